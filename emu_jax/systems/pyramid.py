"""The Laplacian pyramid: a picture as bands of detail, each half as fine as the one before."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.typing import PerExample, Video

LEVELS = 3  # halvings; ours: the coarsest of 64 pixels is 8 on a side, as its latents often are
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def pyramid_error(difference: Video, levels: int = LEVELS) -> PerExample:
  """Mean absolute value of each band of a difference of pictures, summed over bands.

  A shift of colour over a whole object is one large coefficient of a coarse band and many small
  pixels: here the two weigh alike. It needs no trained network, as perceptual losses do.

  Source: Burt and Adelson 1983, "The Laplacian pyramid as a compact image code"; as a loss GLO,
    arXiv:1707.05776, sec. 3.2, whose factor 2^2j makes of each band's sum its mean, as here.
  """
  bands = laplacian(difference, levels)
  return sum(jnp.abs(band).mean(axis=(1, 2, 3, 4)) for band in bands)


def laplacian(x: Video, levels: int = LEVELS) -> list[Float[Array, "B T _ _ C"]]:
  """`levels` bands, finest first, and what is left; expanded and added up they are x again."""
  bands = []
  for _ in range(levels):
    coarse = halved(x)
    bands.append(x - doubled(coarse, x.shape[2:4]))
    x = coarse
  return [*bands, x]


def halved(x: Video) -> Float[Array, "B T _ _ C"]:
  """Every other pixel of the picture blurred; an odd side is rounded up."""
  for axis in (2, 3):
    n = x.shape[axis]
    padded = jnp.pad(x, [(2, 2) if i == axis else (0, 0) for i in range(5)], mode="edge")
    taps = (jnp.take(padded, jnp.arange(k, k + n, 2), axis=axis) for k in range(5))
    x = sum(w * tap for w, tap in zip(BINOMIAL, taps, strict=True))
  return x


def doubled(x: Video, size: tuple[int, int]) -> Float[Array, "B T _ _ C"]:
  """The picture at twice the size, blurred, cut to `size` rows and columns."""
  for axis, side in zip((2, 3), size, strict=True):
    n = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(5)], mode="edge")
    before, here, after = (jnp.take(padded, jnp.arange(k, k + n), axis=axis) for k in range(3))
    # The binomial on the pixels with zeros between them, times 2.
    both = jnp.stack([(before + 6 * here + after) / 8, (here + after) / 2], axis=axis + 1)
    x = both.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    x = jnp.take(x, jnp.arange(side), axis=axis)
  return x
