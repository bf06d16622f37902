"""Noise that is added without shrinking the data: EDM's levels, network scaling, loss, samplers.

The numbers continue those of `schedule.py`:

 (20) x = x_0 + sigma eps, sigma from 0 to sigma_max: (1) divided by alpha. With data of standard
      deviation s, x has variance sigma^2 + s^2.
 (21) A network F says what x_0 is through D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) with
      c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2),
      c_in = 1 / sqrt(sigma^2 + s^2), c_noise = log(sigma) / 4.
 (22) The squared error of D weighted by 1 / c_out^2 is that of F to
      (x_0 - c_skip x) / c_out = (sigma x_0 / s - s eps) / sqrt(sigma^2 + s^2): F's input and target
      have variance 1 at every sigma, and nothing is divided by a small number.
 (23) With s = 1, c_in x is the x_t of (3) and the target of (22) is -v. A network that predicts v
      therefore has c_out = -sigma / sqrt(sigma^2 + 1) and weight (1 + sigma^2) / sigma^2.
 (24) The probability-flow ODE is dx/dsigma = (x - D) / sigma. Euler's step to sigma' is
      x' = D + (sigma' / sigma) (x - D), at sigma' = 0 D itself; Heun's takes the mean of the slopes
      at both of its ends, and Euler's where sigma' = 0.
 (25) Levels that sampling visits are even in sigma^(1 / rho), from sigma_max to sigma_min, then 0.
 (26) Levels that training draws are log-normal: log sigma = mean + std z.

Sources: Karras et al., arXiv:2206.00364, eq. 1, 5, 7, 8, table 1, alg. 1 and 2; (23) Stable Video
Diffusion, arXiv:2311.15127, app. D.
"""

import dataclasses
import itertools
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from emu_jax.config import kind
from emu_jax.diffusion.loss import training_noise
from emu_jax.diffusion.noise import normal
from emu_jax.diffusion.process import Sampling, Solver, check_continuous
from emu_jax.diffusion.schedule import add_noise, per_example
from emu_jax.typing import PerExample, Predict, Video

Prediction = Literal["v", "edm"]
Levels = Float64[np.ndarray, "S"]


@kind("edm")
@dataclasses.dataclass(frozen=True)
class Edm:
  """A `Process`: noise levels and what a network says at them; hashable, static under jit.

  As a process: x_t is c_in x, of alpha = c_in and sigma_t = c_in sigma; a level is c_noise.

  Defaults: Stable Video Diffusion's image to video at high resolution.

  Raises: ValueError where the numbers have no meaning.
  """

  prediction: Prediction = "v"  # what F is: v of (23), or the opposite of it, (21)
  data_std: float = 1.0  # s
  sigma_min: float = 0.002  # last noise level of sampling
  sigma_max: float = 700.0  # first noise level of sampling
  rho: float = 7.0  # (25)
  # Of log sigma in training, (26). SVD: image to video (0.7, 1.6) at 320x576, (1.0, 1.6) above;
  # text to video (0.0, 1.0) and (0.5, 1.4); images (-1.2, 1.0).
  log_mean: float = 1.0
  log_std: float = 1.6  # spread of log sigma in training

  solvers: ClassVar[tuple[Solver, ...]] = ("euler", "heun")

  def __post_init__(self):
    if self.prediction not in get_args(Prediction):
      raise ValueError(f"Edm: prediction={self.prediction!r} is none of {get_args(Prediction)}")
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f"Edm: sigma_min={self.sigma_min}, sigma_max={self.sigma_max} break "
        "0 < sigma_min < sigma_max"
      )
    for name in ("data_std", "rho", "log_std"):
      if getattr(self, name) <= 0:
        raise ValueError(f"Edm: {name}={getattr(self, name)} must be above 0")

  def levels(self, num_steps: int) -> Levels:
    """The levels of (25), float64 [num_steps + 1], falling to 0."""
    if num_steps < 1:
      raise ValueError(f"Edm: num_steps={num_steps} must be at least 1")
    roots = np.linspace(
      self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho), num_steps
    )
    return np.append(roots**self.rho, 0.0)

  def draw(self, key: jax.Array, batch: int) -> PerExample:
    """Levels of (26)."""
    return jnp.exp(self.log_mean + self.log_std * jax.random.normal(key, (batch,)))

  def coefficients(self, sigma: PerExample) -> tuple[PerExample, ...]:
    """c_skip, c_out, c_in and c_noise of (21) and (23)."""
    s = self.data_std
    root = jnp.sqrt(jnp.square(sigma) + s**2)
    sign = -1.0 if self.prediction == "v" else 1.0
    return jnp.square(s / root), sign * s * sigma / root, 1 / root, jnp.log(sigma) / 4

  def denoised(self, predict: Predict, x: Video, sigma: PerExample) -> Video:
    """D of (21), float32; `predict` receives c_in x and c_noise."""
    x = x.astype(jnp.float32)
    c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
    output = predict(per_example(c_in, x) * x, c_noise).astype(jnp.float32)
    return per_example(c_skip, x) * x + per_example(c_out, x) * output

  def loss(
    self, predict: Predict, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
  ) -> PerExample:
    """`edm_loss`."""
    return edm_loss(predict, self, x_0, key, offset_noise=offset_noise)

  def sample(
    self, predict: Predict, noise: Video, key: jax.Array | None, sampling: Sampling
  ) -> Video:
    """`edm_euler` or `edm_heun` on the levels of (25)."""
    self.check(sampling)
    solve = edm_heun if sampling.solver == "heun" else edm_euler
    return solve(predict, self, noise, self.levels(sampling.num_steps))

  def noised(self, clean: Video, level: PerExample, key: jax.Array) -> Video:
    """c_in x: with data of standard deviation s, of variance 1 at every level."""
    eps = normal(key, clean.shape)
    return add_noise(clean.astype(jnp.float32), eps, *self.alpha_sigma(level))

  def clean(self, output: Video, x_t: Video, level: PerExample) -> Video:
    """D of (21)."""
    x_t, output = x_t.astype(jnp.float32), output.astype(jnp.float32)
    skip, scale = self._skip_and_scale(level, x_t)
    return skip * x_t + scale * output

  def output(self, x_0: Video, x_t: Video, level: PerExample) -> Video:
    x_t, x_0 = x_t.astype(jnp.float32), x_0.astype(jnp.float32)
    skip, scale = self._skip_and_scale(level, x_t)
    return (x_0 - skip * x_t) / scale

  def alpha_sigma(self, level: PerExample) -> tuple[PerExample, PerExample]:
    sigma = jnp.exp(4 * level)
    c_in = self.coefficients(sigma)[2]
    return c_in, sigma * c_in

  def _skip_and_scale(self, level: PerExample, like: Video) -> tuple[jax.Array, jax.Array]:
    """Factors of c_in x and of F in (21)."""
    c_skip, c_out, c_in, _ = self.coefficients(jnp.exp(4 * level))
    return per_example(c_skip / c_in, like), per_example(c_out, like)

  def check(self, sampling: Sampling) -> None:
    check_continuous("Edm", sampling, self.solvers)


def edm_loss(
  predict: Predict, edm: Edm, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
) -> PerExample:
  """Weighted squared error of D at a drawn level (22), mean over T H W C.

  Source: arXiv:2206.00364, eq. 8, with its weight; arXiv:2311.15127, app. D.

  Args:
    predict: receives c_in x and c_noise.
    offset_noise: standard deviation of the noise shared by a clip and channel; static.
  """
  key_sigma, key_eps = jax.random.split(key)
  x_0 = x_0.astype(jnp.float32)
  sigma = edm.draw(key_sigma, x_0.shape[0])
  eps = training_noise(key_eps, x_0.shape, offset_noise)
  s = edm.data_std
  _, c_out, c_in, c_noise = edm.coefficients(sigma)
  wide = per_example(sigma, x_0)
  sign = per_example(jnp.sign(c_out) * c_in, x_0)
  target = sign * (wide / s * x_0 - s * eps)
  output = predict(per_example(c_in, x_0) * (x_0 + wide * eps), c_noise)
  return jnp.mean(jnp.square(output.astype(jnp.float32) - target), axis=(1, 2, 3, 4))


def edm_euler(predict: Predict, edm: Edm, noise: Video, levels: Levels) -> Video:
  """x at the last of `levels` from unit noise at the first, by Euler's steps (24); float32.

  Source: arXiv:2206.00364, alg. 1 without its correction; Stable Video Diffusion samples so.
  """
  levels = _checked("edm_euler", levels)

  def step(x, inputs):
    sigma, ratio = inputs
    x_0 = edm.denoised(predict, x, jnp.full(x.shape[:1], sigma))
    return x_0 + ratio * (x - x_0), None

  return jax.lax.scan(
    step, _start(edm, noise, levels), _float32(levels[:-1], levels[1:] / levels[:-1])
  )[0]


def edm_heun(predict: Predict, edm: Edm, noise: Video, levels: Levels) -> Video:
  """As `edm_euler`, each step but one to 0 corrected by the slope at its end (24).

  Calls the network twice a step.

  Source: arXiv:2206.00364, alg. 1.
  Differs: predictions and corrections are the steps of one scan, which holds the network once.
  """
  levels = _checked("edm_heun", levels)
  # Of each call: its level, the step's length, and whether it corrects.
  calls = []
  for sigma, after in itertools.pairwise(levels):
    calls.append((sigma, after - sigma, 0.0))
    if after > 0:
      calls.append((after, after - sigma, 1.0))

  def step(carry, inputs):
    x, before, slope_before = carry
    sigma, length, corrects = inputs
    slope = (x - edm.denoised(predict, x, jnp.full(x.shape[:1], sigma))) / sigma
    start = jnp.where(corrects > 0, before, x)
    mean = jnp.where(corrects > 0, (slope + slope_before) / 2, slope)
    return (start + length * mean, start, slope), None

  start = _start(edm, noise, levels)
  zero = jnp.zeros_like(start)
  return jax.lax.scan(step, (start, zero, zero), _float32(*np.array(calls).T))[0][0]


def _checked(who: str, levels: Levels) -> Levels:
  if len(levels) < 2 or np.any(np.diff(levels) >= 0) or levels[-1] < 0:
    raise ValueError(f"{who}: {len(levels)} levels do not descend strictly to 0 or above")
  return levels


def _start(edm: Edm, noise: Video, levels: Levels) -> Video:
  """Noise with the spread that (20) has at the first level."""
  return float(np.hypot(levels[0], edm.data_std)) * noise.astype(jnp.float32)


def _float32(*columns: np.ndarray) -> tuple[jax.Array, ...]:
  return tuple(jnp.asarray(column, jnp.float32) for column in columns)
