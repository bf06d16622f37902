"""The training objective: one number an example, float32; the caller averages."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Int

from emu_jax.diffusion.schedule import Schedule, add_noise, target
from emu_jax.typing import PerExample, Predict, Video

Weighting = Callable[[PerExample, PerExample], PerExample]  # alpha, sigma -> factor of the loss


@dataclasses.dataclass(frozen=True)
class Times:
  """How often training visits each noise level of a process. The default: all alike.

  What a network can learn lies in the middle: at pure noise the loss is large whatever it does, and
  that drowns the gradient of the rest. A share of uniform times keeps the ends, where the logistic
  of a normal is rare: a sampler of zero terminal SNR begins at the last step.

  Source: logit-normal, arXiv:2403.03206, eq. 19; stratified times, arXiv:2107.00630, app. I.1.
  Differs: the share of uniform times is ours.
  """

  uniform: float = 1.0  # share of times that are drawn alike; of the rest, u = logistic(normal)
  mean: float = 0.0  # of that normal; below 0 = less noise
  std: float = 1.0  # of the normal draw before the logistic function
  stratified: bool = False  # the B quantiles of a batch lie one in each B-th part of 0..1

  def __post_init__(self):
    if not 0 <= self.uniform <= 1:
      raise ValueError(f"Times: uniform={self.uniform} is a share, 0 to 1")
    if self.std <= 0:
      raise ValueError(f"Times: std={self.std} must be positive; uniform=1 turns the normal off")

  def draw(self, key: jax.Array, num: int, num_steps: int) -> Int[Array, "B"]:
    """0-based steps of `num` examples."""
    if self == Times():
      return jax.random.randint(key, (num,), 0, num_steps)
    u = self.fraction(key, num)
    return jnp.clip(jnp.floor(u * num_steps).astype(jnp.int32), 0, num_steps - 1)

  def fraction(self, key: jax.Array, num: int) -> PerExample:
    """Times of `num` examples as parts of the whole, 0 (clean) to 1 (noisiest)."""
    key_quantile, key_order, key_kind = jax.random.split(key, 3)
    quantile = jax.random.uniform(key_quantile, (num,))
    if self.stratified:  # in random order, for examples of a batch may stand in one themselves
      quantile = jax.random.permutation(
        key_order, (jnp.arange(num, dtype=jnp.float32) + quantile) / num
      )
    logit_normal = jax.nn.sigmoid(self.mean + self.std * ndtri(quantile))
    return jnp.where(jax.random.bernoulli(key_kind, self.uniform, (num,)), quantile, logit_normal)


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
  times: Times = Times(),
  weighting: Weighting | None = None,
) -> PerExample:
  """Squared error to the schedule's target at a drawn step, mean over T H W C.

  Source: arXiv:2006.11239, eq. 14; v and x_0 targets arXiv:2202.00512, app. D.

  Args:
    predict: receives x_t and the 0-based step as float32 [B].
    offset_noise: standard deviation of the noise shared by a clip and channel; static.
    times: which steps are drawn; static.
    weighting: from (alpha, sigma) to a factor an example; None weighs all steps alike.
  """
  key_t, key_eps = jax.random.split(key)
  t = times.draw(key_t, x_0.shape[0], schedule.num_steps)
  x_0 = x_0.astype(jnp.float32)
  eps = training_noise(key_eps, x_0.shape, offset_noise)
  alpha, sigma = schedule(t)
  output = predict(add_noise(x_0, eps, alpha, sigma), t.astype(jnp.float32))
  error = output.astype(jnp.float32) - target(schedule.prediction, x_0, eps, alpha, sigma)
  loss = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
  return loss if weighting is None else weighting(alpha, sigma) * loss
