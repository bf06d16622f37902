"""Features that tell moving shapes apart: two small networks that read pictures' and clips' words.

Distances by them are no FID and no FVD, and are called FID-o and FVD-o. Their weights are part of
the package, since distances compare only where everybody's features are the same ones; how they
were trained, and how well they read: experiments/shape_features.py.
"""

import functools
import pathlib

import flax.linen as nn
import jax
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
# Channels, kernel over (time, rows, columns), stride over rows and columns.
PICTURE = ((16, (1, 3, 3), 2), (32, (1, 3, 3), 1), (48, (1, 3, 3), 2), (DIMS, (1, 3, 3), 1))
CLIP = ((16, (3, 3, 3), 2), (24, (3, 3, 3), 2), (32, (3, 3, 3), 1), (DIMS, (1, 3, 3), 1))


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
    for i, (channels, kernel, stride) in enumerate(self.layers):
      x = nn.relu(nn.Conv(channels, kernel, (1, stride, stride), name=f"conv_{i}")(x))
    features = x.mean(axis=(1, 2, 3))
    return features, {name: nn.Dense(n, name=name)(features) for name, n in self.words}


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
  own = {name.removeprefix(f"{kind}/"): leaf for name, leaf in leaves.items() if kind in name}
  return unflatten_dict(own, sep="/")


def _of_frames(params: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
  return reader(False).apply({"params": params}, pixels[:, None])[0]


def _of_clips(params: Params, pixels: Float[Array, "B T H W 3"]) -> Float[Array, "B D"]:
  return reader(True).apply({"params": params}, pixels)[0]
