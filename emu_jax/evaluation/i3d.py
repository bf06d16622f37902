"""I3D, the Inception of clips, whose 400 logits the Fréchet Video Distance compares.

Source: Carreira and Zisserman, arXiv:1705.07750 (the network, RGB, ImageNet and Kinetics-400);
  Unterthiner et al., arXiv:1812.01717 (the distance, of the logits).
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.evaluation import published
from emu_jax.typing import Params, Video
from emu_jax.weights.table import Row

SIDE = 224  # pixels that frames are resized to
LEAST_FRAMES = 9  # three halvings, rounded up, must leave the two that the last pool takes
# Channels of each block: 1x1; 1x1 and 3x3x3; 1x1 and 3x3x3; 1x1 after the pool.
BLOCKS = {
  "3b": (64, 96, 128, 16, 32, 32),
  "3c": (128, 128, 192, 32, 96, 64),
  "4b": (192, 96, 208, 16, 48, 64),
  "4c": (160, 112, 224, 24, 64, 64),
  "4d": (128, 128, 256, 24, 64, 64),
  "4e": (112, 144, 288, 32, 64, 64),
  "4f": (256, 160, 320, 32, 128, 128),
  "5b": (256, 160, 320, 32, 128, 128),
  "5c": (384, 192, 384, 48, 128, 128),
}


@dataclasses.dataclass(frozen=True)
class I3dConfig:
  """Shape of the network; the default is the published one, the only one with weights."""

  divide: int = 1  # of every layer's channels; more makes a small network for tests
  classes: int = 400

  def __post_init__(self):
    if self.divide < 1 or 8 % self.divide or self.classes < 1:
      raise ValueError(
        f"I3dConfig: divide={self.divide} is no divisor of 8, or classes={self.classes} below 1"
      )


class Unit(nn.Module):
  """Convolution without bias, batch norm, ReLU; padded as TensorFlow's SAME."""

  features: int
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Video) -> Video:
    kernel, stride = (self.kernel,) * 3, (self.stride,) * 3
    x = nn.Conv(self.features, kernel, stride, "SAME", use_bias=False, name="conv")(x)
    return nn.relu(published.StoredBatchNorm(name="bn")(x))


class Block(nn.Module):
  """Four branches, joined along the channels."""

  channels: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Video) -> Video:
    n = self.channels
    parts = [
      Unit(n[0], name="b0")(x),
      Unit(n[2], 3, name="b1b")(Unit(n[1], name="b1a")(x)),
      Unit(n[4], 3, name="b2b")(Unit(n[3], name="b2a")(x)),
      Unit(n[5], name="b3b")(nn.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")),
    ]
    return jnp.concatenate(parts, axis=-1)


class Logits(nn.Module):
  """The last convolution, the only one with a bias."""

  classes: int

  @nn.compact
  def __call__(self, x: Video) -> Video:
    return nn.Conv(self.classes, (1, 1, 1), name="conv")(x)


class I3D(nn.Module):
  """Logits of clips in [-1, 1], their mean over time.

  Raises: ValueError for clips of fewer than 9 frames, or frames of fewer than 193 pixels.
  """

  config: I3dConfig = I3dConfig()

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, "B D"]:
    T, H, W = x.shape[1:4]
    if T < LEAST_FRAMES or min(H, W) <= 6 * 32:
      raise ValueError(
        f"I3D: clips of {T} x {H} x {W} leave nothing for the last pool; give at least "
        f"{LEAST_FRAMES} frames of {SIDE} pixels"
      )
    c = lambda channels: channels // self.config.divide
    halved = lambda x, kernel, stride: nn.max_pool(x, kernel, stride, "SAME")
    x = Unit(c(64), 7, 2, name="Conv3d_1a_7x7")(x)
    x = halved(x, (1, 3, 3), (1, 2, 2))
    x = Unit(c(64), name="Conv3d_2b_1x1")(x)
    x = Unit(c(192), 3, name="Conv3d_2c_3x3")(x)
    x = halved(x, (1, 3, 3), (1, 2, 2))
    for name, channels in BLOCKS.items():
      if name == "4b":
        x = halved(x, (3, 3, 3), (2, 2, 2))
      if name == "5b":
        x = halved(x, (2, 2, 2), (2, 2, 2))
      x = Block(tuple(c(n) for n in channels), name=f"Mixed_{name}")(x)
    x = nn.avg_pool(x, (2, 7, 7), (1, 1, 1))
    return Logits(self.config.classes, name="logits")(x).mean(axis=(1, 2, 3))


def table(config: I3dConfig = I3dConfig()) -> Mapping[str, tuple[Row, ...]]:
  """The parameters by public tensor."""
  shapes = published.shapes_of(I3D(config), (1, LEAST_FRAMES, SIDE, SIDE, 3))
  return published.table(shapes, (("conv", "conv3d"),))


def load(path: str | pathlib.Path, config: I3dConfig = I3dConfig()) -> Params:
  """Weights under the names of pytorch-i3d's state dict; InputError where they are others."""
  return published.load(
    path, "the I3D of FVD (RGB, Kinetics-400)", shapes(config), (("conv", "conv3d"),)
  )


def features(params: Params, clips: Video) -> Float[Array, "B D"]:
  """Logits of clips in [-1, 1], resized frame by frame."""
  return I3D().apply({"params": params}, published.bilinear(clips, SIDE))
