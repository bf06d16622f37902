"""Layers over pictures in horizontal strips, one after another: the same function in less memory.

A 3x3 convolution needs one row more above and below a strip than it gives, so strips overlap in
what they read and not in what they write. A norm needs the statistics of the whole picture: they
are gathered over all strips first. So nothing is blended, and the result is that of the whole
picture but for the order in which float32 sums are taken. What it costs is time: a layer before a
norm runs once for the norm's statistics and once more for its result.

By XLA's account, decoding 512x512 pixels at Stable Diffusion's width takes 940 MB beside weights
and pixels, in strips of 32 rows 296 MB; encoding them takes 537 MB and 296 MB.

Each function here takes a bound module and a picture, whole or in strips: whole pictures go through
the module as it is, and strips are put off until `whole` asks for them.

Source: ours. Tiled decoding elsewhere normalises each tile by itself and blends the seams.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.models.attention import WHOLE_CLIP, GroupNorm, Groups

Picture = Float[Array, "B T _ _ _"]  # B T H W C, of which layers change the last three
Row = Any  # the number of a row: an int, or traced


@dataclasses.dataclass(frozen=True)
class Strips:
  """A picture [B, T, height, W, C] of which rows are computed when they are read.

  `read(start, n)` gives rows `start` to `start + n`; of those outside of the picture it gives
  anything. Batch and frames stay whole.
  """

  read: Callable[[Row, int], Picture]
  height: int
  rows: int  # at a time
  source: Array  # in memory, what is read in the end

  @classmethod
  def of(cls, picture: Picture, rows: int) -> "Strips":
    """Strips of a picture in memory."""

    def read(start, n):
      return jnp.take(picture, start + jnp.arange(n), axis=2, mode="clip")

    return cls(read, picture.shape[2], rows, picture)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the whole picture."""
    B, T, _, W, C = jax.eval_shape(lambda: self.read(0, 1)).shape
    return B, T, self.height, W, C

  def over(self, step: Callable[[Row, int, Array, Any], Any], initial: Any) -> Any:
    """What `step(start, n, fresh, so far)` makes of all strips, from the top.

    All have n rows, so that the last one may overlap the one before it: `fresh` tells which of its
    rows are new.
    """
    n = min(self.rows, self.height)

    def body(k, so_far):
      start = jnp.minimum(k * n, self.height - n)
      return step(start, n, start + jnp.arange(n) >= k * n, so_far)

    return jax.lax.fori_loop(0, -(-self.height // n), body, initial)


def whole(x: Picture | Strips) -> Picture:
  """The picture in memory."""
  if not isinstance(x, Strips):
    return x

  def write(start, n, fresh, result):
    return jax.lax.dynamic_update_slice_in_dim(result, x.read(start, n), start, axis=2)

  # Every row will be written. A number of the source says when: constants would all be filled, and
  # take their memory, at the program's start.
  anything = x.source[(0,) * x.source.ndim]
  dtype = jax.eval_shape(lambda: x.read(0, 1)).dtype
  return x.over(write, jnp.full(x.shape, anything, dtype))


def free(module: Callable, **changes: Any) -> Callable:
  """A bound module as a function of arrays, which loops of JAX can call."""
  if not isinstance(module, nn.Module):
    return module
  clone = module.clone(parent=None, name=None, **changes)
  return functools.partial(clone.apply, module.variables)


def pointwise(module: Callable, x: Picture | Strips) -> Picture | Strips:
  """A bound module, or another function, that treats every row by itself."""
  if not isinstance(x, Strips):
    return module(x)
  f = free(module)
  return dataclasses.replace(x, read=lambda start, n: f(x.read(start, n)))


def add(x: Picture | Strips, h: Picture | Strips) -> Picture | Strips:
  """The sum of a picture and of what layers, two 3x3 convolutions at most, made of it."""
  if not isinstance(x, Strips):
    return x + h

  def read(start, n):
    # The rows that convolutions read, by the same steps: the compiler then computes them once.
    return x.read(start - 1 - 1, n + 2 + 2)[:, :, 2:-2] + h.read(start, n)

  return dataclasses.replace(x, read=read)


def convolve(conv: nn.Conv, x: Picture | Strips) -> Picture | Strips:
  """A bound 3x3 convolution."""
  if not isinstance(x, Strips):
    return conv(x)
  f = _rows_of(conv, x.height)
  return dataclasses.replace(x, read=lambda start, n: f(x.read(start - 1, n + 2), start - 1))


def halve(conv: nn.Conv, x: Picture | Strips) -> Picture | Strips:
  """A bound 3x3 convolution of stride 2 that is padded at the bottom and right only."""
  if not isinstance(x, Strips):
    return conv(x)
  f = _rows_of(conv, x.height)
  return Strips(
    lambda start, n: f(x.read(2 * start, 2 * n + 1), 2 * start), x.height // 2, x.rows, x.source
  )


def double(conv: nn.Conv, x: Picture | Strips) -> Picture | Strips:
  """A bound 3x3 convolution of the picture with each pixel twice a side (nearest neighbour)."""
  twice = lambda a: a.repeat(2, axis=2).repeat(2, axis=3)
  if not isinstance(x, Strips):
    return conv(twice(x))
  f = _rows_of(conv, 2 * x.height)

  def read(start, n):
    h = twice(x.read((start - 1) // 2, n // 2 + 2))
    # The first row needed may be the lower one of its pair.
    return f(jax.lax.dynamic_slice_in_dim(h, (start - 1) % 2, n + 2, axis=2), start - 1)

  return Strips(read, 2 * x.height, x.rows, x.source)


def normalise(norm: GroupNorm | Groups, x: Picture | Strips) -> Picture | Strips:
  """A bound norm, of each frame by itself or of the whole clip."""
  if not isinstance(x, Strips):
    return norm(x)
  params = norm.variables["params"]
  params = params.get("group", params)
  mean, variance = moments(x, norm.num_groups, over_frames=norm.axes == WHOLE_CLIP)
  factor = jax.lax.rsqrt(variance + norm.epsilon)

  def apply(strip):
    *shape, C = strip.shape
    groups = strip.astype(jnp.float32).reshape(*shape, norm.num_groups, -1)
    normal = ((groups - mean) * factor).reshape(*shape, C)
    scale, bias = (params[name].reshape(1, 1, 1, 1, C) for name in ("scale", "bias"))
    return normal * scale + bias

  return pointwise(apply, x)


def moments(
  x: Strips, num_groups: int, over_frames: bool
) -> tuple[Float[Array, "B _ 1 1 G 1"], Float[Array, "B _ 1 1 G 1"]]:
  """Mean and variance, float32, of groups of channels: of each frame, or of all frames together.

  Source: means and squared deviations of parts are merged as by Chan, Golub and LeVeque (1983),
    which loses no digits where the mean is large.
  """
  B, T, _, W, C = x.shape
  axes = (1, 2, 3, 5) if over_frames else (2, 3, 5)
  a_row = W * (C // num_groups) * (T if over_frames else 1)  # numbers of a group

  def merge(start, n, fresh, so_far):
    count, mean, squares = so_far
    strip = x.read(start, n).astype(jnp.float32).reshape(B, T, n, W, num_groups, -1)
    fresh = fresh.reshape(1, 1, n, 1, 1, 1)
    size = jnp.float32(a_row) * fresh.sum()
    own = jnp.sum(strip * fresh, axes, keepdims=True) / size
    deviations = jnp.sum(jnp.square(strip - own) * fresh, axes, keepdims=True)
    share = size / (count + size)
    delta = own - mean
    squares = squares + deviations + jnp.square(delta) * count * share
    return count + size, mean + delta * share, squares

  zero = jnp.zeros((B, 1 if over_frames else T, 1, 1, num_groups, 1))
  count, mean, squares = x.over(merge, (jnp.float32(0), zero, zero))
  return mean, squares / count


def _rows_of(conv: nn.Conv, height: int) -> Callable[[Picture, Row], Picture]:
  """A 3x3 convolution of some rows of a picture of `height`, the outer ones of which it uses up.

  The function takes the rows and the number of the first one; those outside count as zero.
  """
  f = free(conv, padding=((0, 0), conv.padding[1]))

  def apply(x, first):
    rows = first + jnp.arange(x.shape[2])
    inside = ((rows >= 0) & (rows < height)).reshape(1, 1, -1, 1, 1)
    return f(jnp.where(inside, x, 0))

  return apply
