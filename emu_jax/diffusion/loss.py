"""The training objective: one number an example, float32; the caller averages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emu_jax.diffusion.schedule import Schedule, add_noise, target
from emu_jax.typing import PerExample, Predict, Video

Weighting = Callable[[PerExample, PerExample], PerExample]  # alpha, sigma -> factor of the loss


def training_noise(key: jax.Array, shape: tuple[int, ...], offset: float = 0.0) -> Video:
  """Unit normal noise of a video's shape, plus `offset` times one normal an example and channel.

  The second part moves a whole clip's brightness and colour, which white noise hardly touches.

  Source: arXiv:2305.08891, sec. 5.4; Emu, arXiv:2309.15807, uses offset 0.02 late in pretraining
    and 0.1 in quality-tuning.
  Differs: one draw serves all frames of a clip (ours: it is the clip's brightness that is to move).
  """
  key_white, key_offset = jax.random.split(key)
  noise = jax.random.normal(key_white, shape)
  if offset:
    noise += offset * jax.random.normal(key_offset, (shape[0], 1, 1, 1, shape[-1]))
  return noise


def diffusion_loss(
  predict: Predict,
  schedule: Schedule,
  x_0: Video,
  key: jax.Array,
  *,
  offset_noise: float = 0.0,
  weighting: Weighting | None = None,
) -> PerExample:
  """Squared error to the schedule's target at a uniformly drawn step, mean over T H W C.

  Source: arXiv:2006.11239, eq. 14; v and x_0 targets arXiv:2202.00512, app. D.

  Args:
    predict: receives x_t and the 0-based step as float32 [B].
    offset_noise: standard deviation of the noise shared by a clip and channel; static.
    weighting: from (alpha, sigma) to a factor an example; None weighs all steps alike.
  """
  key_t, key_eps = jax.random.split(key)
  t = jax.random.randint(key_t, x_0.shape[:1], 0, schedule.num_steps)
  x_0 = x_0.astype(jnp.float32)
  eps = training_noise(key_eps, x_0.shape, offset_noise)
  alpha, sigma = schedule(t)
  output = predict(add_noise(x_0, eps, alpha, sigma), t.astype(jnp.float32))
  error = output.astype(jnp.float32) - target(schedule.prediction, x_0, eps, alpha, sigma)
  loss = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
  return loss if weighting is None else weighting(alpha, sigma) * loss
