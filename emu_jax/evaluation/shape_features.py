"""Features that tell moving shapes apart: two small networks that read pictures' and clips' words.

Distances by them are no FID and no FVD, and are called FID-o and FVD-o. Their weights are part of
the package, since distances compare only where everybody's features are the same ones; how they
were trained, and how well they read: experiments/shape_features.py.
"""

import functools
import itertools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from emu_jax.data import shapes
from emu_jax.evaluation.features import Features
from emu_jax.typing import Params

SIDE = 32  # pixels that frames are brought to: what is finer, the features do not see
DIMS = 64
WEIGHTS = pathlib.Path(__file__).with_name("shape_features.safetensors")
LOOK = {
  "colour": tuple(shapes.COLOURS),
  "shape": shapes.SHAPES,
  "size": tuple(shapes.SIZES),
  "texture": shapes.TEXTURES,
  "background": tuple(shapes.BACKGROUNDS),
}
MOTION = {"direction": tuple(shapes.DIRECTIONS), "speed": tuple(shapes.SPEEDS)}
# Channels, kernel over (time, rows, columns), strides.
PICTURE = ((24, (1, 3, 3), (1, 2, 2)), (48, (1, 3, 3), (1, 2, 2)), (DIMS, (1, 3, 3), (1, 1, 1)))
CLIP = ((24, (3, 3, 3), (1, 2, 2)), (32, (3, 3, 3), (2, 2, 2)), (DIMS, (1, 3, 3), (1, 1, 1)))


class ShapeReader(nn.Module):
  """Convolutions, their mean over time and place, and a linear layer for each word."""

  layers: tuple[tuple, ...]
  words: tuple[tuple[str, int], ...]  # an attribute, and how many words it has

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T H W 3"]
  ) -> tuple[Float[Array, "B D"], dict[str, Float[Array, "B K"]]]:
    """Features, and the logits of each attribute's words; pixels in [-1, 1]."""
    B, T, H, W, C = x.shape
    x = jax.image.resize(x, (B, T, SIDE, SIDE, C), "linear")
    for i, (channels, kernel, strides) in enumerate(self.layers):
      x = nn.relu(nn.Dense(channels, name=f"layer_{i}")(neighbourhoods(x, kernel, strides)))
    features = x.mean(axis=(1, 2, 3))
    return features, {name: nn.Dense(n, name=name)(features) for name, n in self.words}


def neighbourhoods(
  x: Float[Array, "B T H W C"], kernel: tuple[int, int, int], strides: tuple[int, int, int]
) -> Float[Array, "B t h w D"]:
  """What a convolution's kernel lies over, as channels, zeros beyond the edges.

  Products of these are convolutions, and several times as fast on a CPU in training.
  """
  edges = [(0, 0), *((k // 2, k // 2) for k in kernel), (0, 0)]
  padded, sizes = jnp.pad(x, edges), x.shape[1:4]
  parts = [
    padded[
      :, t : t + sizes[0] : strides[0], i : i + sizes[1] : strides[1], j : j + sizes[2] : strides[2]
    ]
    for t, i, j in itertools.product(*(range(k) for k in kernel))
  ]
  return jnp.concatenate(parts, axis=-1)


def reader(moving: bool) -> ShapeReader:
  """The network of clips, or of pictures."""
  words = LOOK | MOTION if moving else LOOK
  return ShapeReader(CLIP if moving else PICTURE, tuple((n, len(w)) for n, w in words.items()))


@functools.cache
def frames() -> Features:
  """Features of single frames: FID-o."""
  return Features("FID-o (shape features of frames)", "frames", DIMS, _params("frames"), _of_frames)


@functools.cache
def clips() -> Features:
  """Features of clips of two frames or more: FVD-o."""
  return Features("FVD-o (shape features of clips)", "clips", DIMS, _params("clips"), _of_clips, 2)


def _params(kind: str) -> Params:
  leaves = safetensors.numpy.load_file(WEIGHTS)
  of_kind = {name.removeprefix(f"{kind}/"): leaf for name, leaf in leaves.items() if kind in name}
  return unflatten_dict(of_kind, sep="/")


def _of_frames(params: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
  return _whitened(params, reader(False).apply({"params": params}, pixels[:, None])[0])


def _of_clips(params: Params, pixels: Float[Array, "B T H W 3"]) -> Float[Array, "B D"]:
  return _whitened(params, reader(True).apply({"params": params}, pixels)[0])


def _whitened(params: Params, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
  """Of covariance 1 on real shapes: what their looks vary most would else be all of a distance."""
  white = params["white"]
  return (x - white["mean"][None]) @ white["kernel"]
