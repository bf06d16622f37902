"""Uniform pictures of one brightness: what an exact denoiser makes of them, in closed form.

A brightness that all N numbers of a picture share is one direction of the data: the mean of x_t
over the N numbers says all there is to know of it, with noise of standard deviation sigma_t /
sqrt(N). So a large picture tells its brightness through noise that hides it in a small one, a
schedule that never reaches pure noise leaks it (more with every pixel), and a sampler that begins
at pure noise begins where no picture is.

Source: the effect, arXiv:2305.08891; its size as a function of N is ours.
"""

import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.sampler import ddim, time_grid
from emu_jax.diffusion.schedule import Schedule, per_example, target

SCHEDULES = {
  "SD, eps": Schedule(prediction="epsilon"),
  "SD, v": Schedule(prediction="v"),
  "zero SNR, v": Schedule(prediction="v", zero_terminal_snr=True),
}
SPREAD = 1 / math.sqrt(3)  # standard deviation of a brightness uniform on (-1, 1)


def closed_form(schedule: Schedule, numbers: int) -> float:
  """Spread of sampled brightness over that of Gaussian data, steps without end.

  The probability flow keeps quantiles; what begins with standard deviation 1 should begin with
  sqrt(abar V + 1 - abar), V = N / 3 being the variance of the shared direction.
  """
  abar, variance = schedule.alphas_cumprod[-1], numbers * SPREAD**2
  return 1 / math.sqrt(1 - abar + abar * variance)


def gaussian(schedule: Schedule, numbers: int, sampling: Sampling) -> float:
  """The same ratio by DDIM with the exact denoiser, which is linear."""
  variance = numbers * SPREAD**2

  def predict(x_t, t):
    alpha, sigma = (per_example(a, x_t) for a in schedule(t))
    x_0 = alpha * variance / (alpha**2 * variance + sigma**2) * x_t
    return target(schedule.prediction, x_0, (x_t - alpha * x_0) / sigma, *schedule(t))

  grid = time_grid(schedule.num_steps, sampling.num_steps, sampling.spacing)
  one = ddim(predict, schedule, jnp.ones((1, 1, 1, 1, 1)), grid)
  return float(one.squeeze()) / math.sqrt(variance)


@functools.cache
def uniform(schedule: Schedule, numbers: int, sampling: Sampling, quantiles: int = 2000) -> float:
  """The ratio for brightness uniform on (-1, 1), by DDIM with its exact denoiser, in float64.

  The mean of a picture given the mean y of x_t is that of a normal around y / alpha cut off at
  -1 and 1. Evenly spaced quantiles of pure noise stand for samples.
  """
  grid = time_grid(schedule.num_steps, sampling.num_steps, sampling.spacing)
  abar = np.append(schedule.alphas_cumprod[grid], 1.0)
  levels = list(zip(np.sqrt(abar), np.sqrt(1 - abar), strict=True))
  y = stats.norm.ppf((np.arange(quantiles) + 0.5) / quantiles) / math.sqrt(numbers)
  for (alpha, sigma), (alpha_s, sigma_s) in itertools.pairwise(levels):
    x_0 = cut_off_mean(y, alpha, sigma / math.sqrt(numbers))
    y = alpha_s * x_0 + sigma_s * (y - alpha * x_0) / sigma
  return float(y.std() / SPREAD)


def cut_off_mean(y: np.ndarray, alpha: float, noise: float) -> np.ndarray:
  """E[b | alpha b + noise e = y] of b uniform on (-1, 1) and e unit normal.

  In logarithms, and of |y|, so that the tail of the normal that lies within is never 0 / 0.
  """
  if alpha < 1e-9:
    return np.zeros_like(y)
  mean, spread = np.abs(y) / alpha, noise / alpha
  low, high = (-1 - mean) / spread, (1 - mean) / spread
  below = special.log_ndtr(low) - special.log_ndtr(high)
  mass = special.log_ndtr(high) + np.log1p(-np.exp(below))
  density = lambda x: np.exp(stats.norm.logpdf(x) - mass)
  return np.sign(y) * (mean + spread * (density(low) - density(high)))
