"""Inception-v3 as the Fréchet Inception Distance has it: 2048 features of a picture.

Source: Szegedy et al., arXiv:1512.00567 (the network); Heusel et al., arXiv:1706.08500 (the
  distance), whose TensorFlow graph of 2015-12-05 differs from the paper's network: average pools
  do not count what they pad, and the last block takes a maximum where the others take a mean.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.errors import InputError
from emu_jax.evaluation import published
from emu_jax.typing import Params
from emu_jax.weights.table import Row

SIDE = 299  # pixels that pictures are resized to
NAME = "the Inception-v3 of FID"
CLASSES = 1008  # logits of the graph; a network of torchvision's own has 1000


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
  """Shape of the network; the default is the published one, the only one with weights."""

  divide: int = 1  # of every layer's channels; more makes a small network for tests

  def __post_init__(self):
    if self.divide < 1 or 32 % self.divide:
      raise ValueError(f"InceptionConfig: divide={self.divide} is no divisor of 32; give one")

  @property
  def dims(self) -> int:
    """Features a picture."""
    return 2048 // self.divide


class Unit(nn.Module):
  """Convolution without bias, batch norm, ReLU."""

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"  # of odd kernels with stride 1: as much on both sides

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    conv = nn.Conv(
      self.features, self.kernel, self.stride, self.padding, use_bias=False, name="conv"
    )
    return nn.relu(published.StoredBatchNorm(name="bn")(conv(x)))


class Block(nn.Module):
  """Branches side by side, joined along the channels.

  A branch is a sequence of (name, channels, kernel, stride); the last step may be several, all of
  which read the same. `pool` comes before the last branch: a mean, a maximum, or a maximum that
  halves the picture and is a branch by itself.
  """

  branches: tuple[tuple, ...]
  pool: str  # "mean", "max", "halve"
  pooled: int = 0  # channels of the convolution after the pool

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    out = []
    for branch in self.branches:
      h = x
      for step in branch[:-1]:
        h = self._unit(*step)(h)
      last = branch[-1:] if isinstance(branch[-1][0], str) else branch[-1]
      out.extend(self._unit(*step)(h) for step in last)
    if self.pool == "halve":
      return jnp.concatenate([*out, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)
    if self.pool == "mean":
      h = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
    else:
      h = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    return jnp.concatenate([*out, Unit(self.pooled, name="branch_pool")(h)], axis=-1)

  def _unit(self, name: str, features: int, kernel: tuple[int, int] = (1, 1), stride: int = 1):
    padding = "SAME" if stride == 1 else "VALID"
    return Unit(features, kernel, stride, padding, name=f"branch{name}")


class InceptionV3(nn.Module):
  """Features of pictures in [-1, 1], of any size from 75 pixels a side on."""

  config: InceptionConfig = InceptionConfig()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
    c = lambda channels: channels // self.config.divide
    row, column, square = (1, 7), (7, 1), (3, 3)

    def a(name, pooled):
      return Block(
        (
          (("1x1", c(64)),),
          (("5x5_1", c(48)), ("5x5_2", c(64), (5, 5))),
          (("3x3dbl_1", c(64)), ("3x3dbl_2", c(96), square), ("3x3dbl_3", c(96), square)),
        ),
        "mean",
        c(pooled),
        name=name,
      )

    def b(name, inner):
      n, out = c(inner), c(192)
      double = [(f"7x7dbl_{i}", n, column if i % 2 == 0 else row) for i in range(2, 5)]
      return Block(
        (
          (("1x1", out),),
          (("7x7_1", n), ("7x7_2", n, row), ("7x7_3", out, column)),
          (("7x7dbl_1", n), *double, ("7x7dbl_5", out, row)),
        ),
        "mean",
        out,
        name=name,
      )

    def e(name, pool):
      n = c(384)
      ends = lambda stem: ((f"{stem}a", n, (1, 3)), (f"{stem}b", n, (3, 1)))
      return Block(
        (
          (("1x1", c(320)),),
          (("3x3_1", n), ends("3x3_2")),
          (("3x3dbl_1", c(448)), ("3x3dbl_2", n, square), ends("3x3dbl_3")),
        ),
        pool,
        c(192),
        name=name,
      )

    x = Unit(c(32), square, 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = Unit(c(32), square, 1, "VALID", name="Conv2d_2a_3x3")(x)
    x = nn.max_pool(Unit(c(64), square, name="Conv2d_2b_3x3")(x), (3, 3), (2, 2))
    x = Unit(c(80), name="Conv2d_3b_1x1")(x)
    x = nn.max_pool(Unit(c(192), square, 1, "VALID", name="Conv2d_4a_3x3")(x), (3, 3), (2, 2))
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = a(name, pooled)(x)
    double = (("3x3dbl_1", c(64)), ("3x3dbl_2", c(96), square), ("3x3dbl_3", c(96), square, 2))
    x = Block(((("3x3", c(384), square, 2),), double), "halve", name="Mixed_6a")(x)
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x = b(name, inner)(x)
    n = c(192)
    seven = (("7x7x3_1", n), ("7x7x3_2", n, row), ("7x7x3_3", n, column), ("7x7x3_4", n, square, 2))
    x = Block(
      ((("3x3_1", n), ("3x3_2", c(320), square, 2)), seven), "halve", name="Mixed_7a"
    )(x)  # fmt: skip
    x = e("Mixed_7c", "max")(e("Mixed_7b", "mean")(x))
    return x.mean(axis=(1, 2))


@functools.cache
def table(config: InceptionConfig = InceptionConfig()) -> Mapping[str, tuple[Row, ...]]:
  """The parameters by public tensor; every name is ours too but those of statistics."""
  return published.table(published.shapes_of(InceptionV3(config), (1, 75, 75, 3)))


def load(path: str | pathlib.Path, config: InceptionConfig = InceptionConfig()) -> Params:
  """Weights under the names of pytorch-fid's state dict; InputError where they are others.

  The layer of logits is not read. Its size tells the network of torchvision, whose other names are
  the same and whose distances are not FID.
  """
  logits = published.opened(path, NAME).get("fc.weight")
  classes = CLASSES if logits is None else logits.shape[0]
  if classes != CLASSES:
    raise InputError(
      f"weights: {path} has {classes} logits and the Inception-v3 of FID {CLASSES}: distances by "
      "another one, such as torchvision's own, are not FID; docs/metrics.md says which file it is"
    )
  return published.load(path, NAME, table(config), ignored=("fc.*",))


def features(params: Params, frames: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
  """Features of frames in [-1, 1], resized as pytorch-fid does."""
  return InceptionV3().apply({"params": params}, published.bilinear(frames, SIDE))
