"""Samplers: noise to x_0 along a grid of times, each one scan; numbers refer to `schedule.py`.

Schedule, grid and eta are static: the coefficients of every step are made from them in float64 on
the host. Noise, keys and whatever `predict` closes over (parameters, scales) may be traced. A grid
is descending; a last step, from its last time to the clean end (alpha, sigma) = (1, 0), is implied,
and there every sampler returns the predicted x_0 itself (unless `ddim` is told to end before it).
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32

from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.schedule import Schedule, target, to_x_0_and_eps
from emu_jax.typing import PerExample, Predict, Video

Spacing = Literal["trailing", "leading", "linspace"]
Grid = Int32[np.ndarray, "S"]
Column = Float64[np.ndarray, "_"]  # one number a step, or one a level
Trajectory = Float32[Array, "S B T H W C"]  # the state after each step


def time_grid(num_train_steps: int, num_steps: int, spacing: Spacing, offset: int = 0) -> Grid:
  """The 0-based times that a sampler visits, noisiest first.

  With N = num_train_steps and S = num_steps: "trailing" is round(N, N - N/S, ...) - 1, which starts
  at N - 1; "leading" is the S lowest multiples of floor(N/S), which starts about N/S below the top;
  "linspace" goes evenly from N - 1 to 0.

  Args:
    offset: added to "leading" times, which then end above 0: 1 in Stable Diffusion's public code.
  Source: arXiv:2305.08891, table 2.
  Differs: a single "linspace" step is at N - 1, not 0, where there is no noise to remove. Of public
    code "linspace" rounds halves of 0-based times, which gives a neighbouring time here and there.
  """
  N, S = num_train_steps, num_steps
  if spacing not in get_args(Spacing):
    raise ValueError(f"time_grid: {spacing=} is none of {get_args(Spacing)}")
  if not 1 <= S <= N:
    raise ValueError(f"time_grid: num_steps={S} is not within 1..{N}, the schedule's steps")
  if offset and (spacing != "leading" or not 0 <= offset < N - (S - 1) * (N // S)):
    raise ValueError(
      f"time_grid: offset={offset} with spacing={spacing!r} of {S} steps leaves 0..{N - 1}; give a "
      "small one with 'leading', or none"
    )
  i = np.arange(S)
  # One division of integers: halves are exact, so that rounding (to even) does not depend on S.
  if spacing == "trailing":
    grid = np.round(N * (S - i) / S) - 1
  elif spacing == "linspace":
    grid = np.round(N - i * (N - 1) / max(S - 1, 1)) - 1
  else:
    grid = i[::-1] * (N // S) + offset
  return grid.astype(np.int32)


def check_grid(schedule: Schedule, spacing: Spacing, eta: float = 0.0) -> None:
  """Raises ValueError where a spacing or an eta cannot be sampled with; for use before any work.

  The samplers check the same of the grid that they are given.
  """
  if schedule.zero_terminal_snr and spacing == "leading":
    raise ValueError(
      f"check_grid: spacing='leading' never visits t={schedule.num_steps - 1}, the only time where"
      " zero_terminal_snr=True has alpha=0; use 'trailing' or 'linspace'"
    )
  _check_eta("check_grid", schedule, eta)


def _check_eta(who: str, schedule: Schedule, eta: float) -> None:
  if eta < 0:
    raise ValueError(f"{who}: eta={eta} is negative; 0 is deterministic, 1 the DDPM posterior")
  if eta > 0 and schedule.zero_terminal_snr:
    # Ours, by rule and not by need: with v, tau of (8) is finite there (eta sigma_s) and only
    # exchanges one draw of pure noise for another.
    raise ValueError(
      f"{who}: eta={eta} > 0 where alpha=0 (t={schedule.num_steps - 1}, zero_terminal_snr=True);"
      " use eta=0"
    )


def _checked(who: str, schedule: Schedule, grid: Grid) -> Grid:
  N = schedule.num_steps
  if not len(grid) or grid[0] >= N or grid[-1] < 0 or np.any(np.diff(grid) >= 0):
    ends = f"{len(grid)} times, {grid[0]} to {grid[-1]}" if len(grid) else "no times"
    raise ValueError(f"{who}: grid ({ends}) does not descend strictly within {N - 1}..0")
  if schedule.zero_terminal_snr and grid[0] != N - 1:
    raise ValueError(
      f"{who}: the grid starts at t={grid[0]}, but with zero_terminal_snr=True pure noise is at"
      f" t={N - 1}; use 'trailing' or 'linspace' spacing"
    )
  return grid


def _levels(schedule: Schedule, grid: Grid, ends_clean: bool = True) -> tuple[np.ndarray, ...]:
  """alpha_t, sigma_t at the grid and alpha_s, sigma_s one step cleaner, float64 [S] each."""
  last = 1.0 if ends_clean else schedule.alphas_cumprod[0]
  abar = np.append(schedule.alphas_cumprod[grid], last)
  alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
  return alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]


def _steps(*columns: np.ndarray) -> tuple[jax.Array, ...]:
  """What a scan runs over, in float32; the first column is the grid, as a network takes times."""
  return tuple(jnp.asarray(column, jnp.float32) for column in columns)


def _estimate(predict: Predict, schedule: Schedule, x_t: Video, t: jax.Array):
  """(x_0, eps, alpha, sigma) at one time for the whole batch, by the network."""
  times = jnp.full(x_t.shape[:1], t)
  alpha, sigma = schedule(times)
  output = predict(x_t, times)
  return *to_x_0_and_eps(schedule.prediction, output, x_t, alpha, sigma), alpha, sigma


def ddim(
  predict: Predict,
  schedule: Schedule,
  noise: Video,
  grid: Grid,
  *,
  eta: float = 0.0,
  key: jax.Array | None = None,
  ends_clean: bool = True,
  clip: float = 0.0,
  trajectory: bool = False,
) -> Video | Trajectory:
  """x_0 from noise by (7), or by (8) with fresh noise at every step; float32.

  Source: arXiv:2010.02502, eq. 12 and 16.

  Args:
    predict: the network's raw output, in the schedule's prediction; called once a step.
    eta: share of fresh noise; static. Above 1 it is legal as long as no step would have to draw
      more noise than its level holds.
    key: needed, and used, only if eta > 0; one for the batch, or one an example [B].
    ends_clean: False: the last step ends at the noise of the schedule's step 0, as the files of
      Stable Diffusion have it, and what is returned holds that noise.
    clip: bound of |x_0| in every step, which leaves eps as it is; 0: none.
    trajectory: return what each step leads to, the last one being what is returned else.
  """
  grid = _checked("ddim", schedule, grid)
  _check_eta("ddim", schedule, eta)
  alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, grid, ends_clean)
  if eta and key is None:
    raise ValueError(f"ddim: eta={eta} draws noise and key=None; give a key")
  tau = eta * sigma_s / sigma_t * np.sqrt(1 - (alpha_t / alpha_s) ** 2)  # (8)
  if np.any(tau > sigma_s):
    largest = eta * np.min(sigma_s[:-1] / tau[:-1])
    raise ValueError(
      f"ddim: eta={eta} asks for more noise than a step holds; at most {largest:.4f} here"
    )
  kept = np.sqrt(sigma_s**2 - tau**2)

  def step(x_t, inputs):
    t, alpha_s, kept, tau, key = inputs
    x_0, eps, *_ = _estimate(predict, schedule, x_t, t)
    if clip:
      x_0 = jnp.clip(x_0, -clip, clip)
    x_s = alpha_s * x_0 + kept * eps
    if eta:
      x_s += tau * normal(key, x_s.shape)
    return x_s, x_s if trajectory else None

  keys = split(key, len(grid)) if eta else None
  steps = _steps(grid, alpha_s, kept, tau)
  x_0, states = jax.lax.scan(step, noise.astype(jnp.float32), (*steps, keys))
  return states if trajectory else x_0


def ddim_invert(predict: Predict, schedule: Schedule, x_0: Video, grid: Grid) -> Video:
  """The x_t at the grid's first time from which `ddim` on the same grid leads back near x_0.

  Each step takes v at the noisier time t from the cleaner x_s, which is off by one step's change;
  the way there and back therefore misses by O(1 / S).

  Source: arXiv:2010.02502, sec. 4.3 (the ODE run backwards).
  Differs: v is held over a step (9) where public code holds eps, of which nothing is known but x_t
    itself at alpha = 0.
  Raises: ValueError where one step spans everything, from the clean end to alpha = 0.
  """
  grid = _checked("ddim_invert", schedule, grid)
  alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, grid)
  cos = alpha_t * alpha_s + sigma_t * sigma_s
  sin = sigma_t * alpha_s - alpha_t * sigma_s
  if np.any(cos <= 0):
    raise ValueError(f"ddim_invert: {len(grid)} step from x_0 to alpha=0 has no inverse; use more")

  def step(x_s, inputs):
    t, cos, sin = inputs
    x_0, eps, alpha, sigma = _estimate(predict, schedule, x_s, t)
    return (x_s + sin * target("v", x_0, eps, alpha, sigma)) / cos, None

  return jax.lax.scan(step, x_0.astype(jnp.float32), _steps(grid, cos, sin), reverse=True)[0]


def dpm_solver_pp_2m(predict: Predict, schedule: Schedule, noise: Video, grid: Grid) -> Video:
  """x_0 from noise by (10), second order in the half log-SNR; one network call a step; float32.

  A step is x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D with
  D = x_0 + h / (2 h') (x_0 - x_0'), h and h' this and the last step's length in lambda and x_0' the
  last step's estimate. Neither coefficient contains lambda, so both are finite at alpha = 0. Three
  steps have D = x_0, the first order: the first, which has no x_0'; the one after a step from
  alpha = 0, where h' is infinite and the slope over it 0; and the one to the clean end, where h is
  infinite and extrapolation would be without bound. From alpha = 0 the error is O(S^-2 log S).

  Source: arXiv:2211.01095, alg. 2.
  Differs: begins at lambda = -inf and ends at +inf, as above.
  """
  grid = _checked("dpm_solver_pp_2m", schedule, grid)
  alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, grid)
  h = np.diff(schedule.log_snr[grid] / 2)  # of every step but the last; the first may be infinite
  slope = np.zeros(len(grid))
  slope[1:-1] = h[1:] / (2 * h[:-1])

  def step(carry, inputs):
    x_t, before = carry
    t, shrink, weight, slope = inputs
    x_0, *_ = _estimate(predict, schedule, x_t, t)
    x_s = shrink * x_t + weight * (x_0 + slope * (x_0 - before))
    return (x_s, x_0), None

  shrink = sigma_s / sigma_t
  noise = noise.astype(jnp.float32)
  steps = _steps(grid, shrink, alpha_s - alpha_t * shrink, slope)
  return jax.lax.scan(step, (noise, jnp.zeros_like(noise)), steps)[0][0]


def first_order(
  predict: Predict,
  clean: Callable[[Video, Video, PerExample], Video],
  noise: Video,
  levels: Column,
  alpha: Column,
  sigma: Column,
) -> Video:
  """x_0 from noise along any levels, x_0 and eps held over each step (7); float32.

  A step is x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_0, which is
  finite at alpha_t = 0. It is Euler's step on x / alpha along sigma / alpha, and, where
  alpha = 1 - sigma, Euler's step on x along sigma.

  Source: arXiv:2010.02502, eq. 12 and 14.

  Args:
    clean: x_0 from the network's output, x_t and the level.
    levels: what the network receives as its time at each of S steps.
    alpha, sigma: S + 1 of each, at `levels` and at the end; sigma above 0 but at the end.
  """
  shrink = sigma[1:] / sigma[:-1]

  def step(x_t, inputs):
    level, shrink, weight = inputs
    times = jnp.full(x_t.shape[:1], level)
    x_0 = clean(predict(x_t, times), x_t, times)
    return shrink * x_t + weight * x_0, None

  steps = _steps(levels, shrink, alpha[1:] - alpha[:-1] * shrink)
  return jax.lax.scan(step, noise.astype(jnp.float32), steps)[0]
