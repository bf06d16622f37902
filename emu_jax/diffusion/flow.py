"""Rectified flow: data and noise joined by straight lines.

The numbers continue those of `log_snr.py`:

 (30) x_t = (1 - t) x_0 + t eps, t from 0 (data) to 1 (noise). Along a line x_t moves at the
      constant speed eps - x_0, which is what the network predicts.
 (31) So x_0 = x_t - t output, and Euler's step is x_s = x_t + (s - t) output.
 (32) Of m / n times as many pixels, which carry more of the same signal, noise must hide more:
      t = shift u / (1 + (shift - 1) u) with shift = sqrt(m / n) has the uncertainty there that u
      has at n pixels. It serves training, on drawn u, and sampling, on even ones.

Sources: (30) arXiv:2209.03003; times in training, arXiv:2403.03206, eq. 19; (32) there, sec. 5.3.2,
eq. 23, with shift 3 at 1024 pixels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.config import kind
from emu_jax.diffusion.loss import Times, training_noise
from emu_jax.diffusion.noise import normal
from emu_jax.diffusion.process import TIME_SCALE, Sampling, Solver, check_continuous
from emu_jax.diffusion.sampler import first_order
from emu_jax.diffusion.schedule import add_noise, per_example
from emu_jax.typing import PerExample, Predict, Video


@kind("flow")
@dataclasses.dataclass(frozen=True)
class Flow:
  """A `Process`: rectified flow; a level is 1000 t. `output` needs t > 0, as samplers visit it.

  Raises: ValueError where the numbers have no meaning.
  """

  shift: float = 1.0  # (32); 1 = none, above it more noise
  times: Times = Times(uniform=0.0)  # of u in training: logit-normal of mean 0, std 1

  solvers: ClassVar[tuple[Solver, ...]] = ("euler",)

  def __post_init__(self):
    if self.shift <= 0:
      raise ValueError(f"Flow: shift={self.shift} must be above 0; 1 shifts nothing")

  def loss(
    self, predict: Predict, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
  ) -> PerExample:
    """Squared error to eps - x_0 at a drawn t, mean over T H W C.

    Source: arXiv:2403.03206, sec. 2 and 3.1: a t counts as much as it is drawn often.
    """
    key_u, key_eps = jax.random.split(key)
    level = TIME_SCALE * self.shifted(self.times.fraction(key_u, x_0.shape[0]))
    x_0 = x_0.astype(jnp.float32)
    eps = training_noise(key_eps, x_0.shape, offset_noise)
    output = predict(add_noise(x_0, eps, *self.alpha_sigma(level)), level).astype(jnp.float32)
    return jnp.mean(jnp.square(output - (eps - x_0)), axis=(1, 2, 3, 4))

  def sample(
    self, predict: Predict, noise: Video, key: jax.Array | None, sampling: Sampling
  ) -> Video:
    """Euler's steps (31) on even u from 1 to 0, shifted by (32)."""
    self.check(sampling)
    t = self.shifted(np.linspace(1.0, 0.0, sampling.num_steps + 1))
    return first_order(predict, self.clean, noise, TIME_SCALE * t[:-1], 1 - t, t)

  def shifted(self, u):
    """t of (32), of an array of u from 0 to 1."""
    return self.shift * u / (1 + (self.shift - 1) * u)

  def noised(self, clean: Video, level: PerExample, key: jax.Array) -> Video:
    eps = normal(key, clean.shape)
    return add_noise(clean.astype(jnp.float32), eps, *self.alpha_sigma(level))

  def clean(self, output: Video, x_t: Video, level: PerExample) -> Video:
    x_t, output = x_t.astype(jnp.float32), output.astype(jnp.float32)
    return x_t - per_example(level / TIME_SCALE, x_t) * output

  def output(self, x_0: Video, x_t: Video, level: PerExample) -> Video:
    x_t, x_0 = x_t.astype(jnp.float32), x_0.astype(jnp.float32)
    return (x_t - x_0) / per_example(level / TIME_SCALE, x_t)

  def alpha_sigma(self, level: PerExample) -> tuple[PerExample, PerExample]:
    t = level / TIME_SCALE
    return 1 - t, t

  def check(self, sampling: Sampling) -> None:
    check_continuous("Flow", sampling, self.solvers)
