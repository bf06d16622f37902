"""Wrappers of a denoiser that change what it takes x_0 to be.

Keeping known frames, clipping to the range of pixels, smoothing over time and reconstruction
guidance all are functions of x_0; any process, solver and guidance goes with them.
"""

from collections.abc import Callable

import jax.numpy as jnp

from emu_jax.diffusion.process import Process
from emu_jax.diffusion.schedule import per_example
from emu_jax.typing import PerExample, Predict, Video

Edit = Callable[[Video, PerExample], Video]  # x_0, level -> x_0


def edited(predict: Predict, process: Process, edit: Edit) -> Predict:
  """`predict` with its x_0 passed through `edit`.

  Values that `edit` leaves alone leave the prediction alone too, bit for bit, however badly an
  output is determined by x_0 at that level.

  Source: ours.
  """

  def after_edit(x_t: Video, level: PerExample) -> Video:
    output = predict(x_t, level).astype(jnp.float32)
    before = process.clean(output, x_t, level)
    after = edit(before, level)
    return jnp.where(after == before, output, process.output(after, x_t, level))

  return after_edit


def static_threshold(x_0: Video, level: PerExample) -> Video:
  """An `Edit`: x_0 clipped to the range of pixels, [-1, 1]. Source: arXiv:2205.11487, sec. 2.3."""
  return jnp.clip(x_0, -1.0, 1.0)


def dynamic_threshold(quantile: float = 0.995) -> Edit:
  """An `Edit`: x_0 clipped to [-s, s] and divided by s, for pixels in [-1, 1].

  s is that quantile of an example's |x_0| over T H W C, and at least 1. Strong guidance drives x_0
  out of range; clipping alone saturates it, and this pulls it back in.

  Source: Imagen, arXiv:2205.11487, sec. 2.3; the quantile is that of public code.
  """
  if not 0 < quantile <= 1:
    raise ValueError(f"dynamic_threshold: quantile={quantile} is not within 0..1; 0.995 is usual")

  def edit(x_0: Video, level: PerExample) -> Video:
    sizes = jnp.abs(x_0).reshape(x_0.shape[0], -1)
    s = per_example(jnp.maximum(jnp.quantile(sizes, quantile, axis=1), 1.0), x_0)
    return jnp.clip(x_0, -s, s) / s

  return edit
