"""Samplers against what is known exactly: points, Gaussians, an AR(1) process, their own inverse.

For data N(0, V) the exact denoiser is linear: E[x_0 | x_t] = alpha V / (alpha^2 V + sigma^2) x_t,
E[eps | x_t] = sigma / (alpha^2 V + sigma^2) x_t; the probability-flow ODE scales x_t like its
standard deviation sqrt(alpha^2 V + sigma^2).
"""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.guidance import emu_video_guidance, guided
from emu_jax.diffusion.sampler import check_grid, ddim, ddim_invert, dpm_solver_pp_2m, time_grid
from emu_jax.diffusion.schedule import Schedule, per_example, target
from emu_jax.typing import Conditions

SD = Schedule()
ZERO = Schedule(zero_terminal_snr=True, prediction="v")
EVERY = [
  SD,
  Schedule(prediction="v"),
  Schedule(prediction="x_0"),
  ZERO,
  dataclasses.replace(ZERO, prediction="x_0"),
]
IDS = ["epsilon", "v", "x_0", "v zero SNR", "x_0 zero SNR"]


def from_estimates(schedule, estimates):
  """The raw network output of a function (x_t, alpha, sigma) -> (x_0, eps)."""

  def predict(x_t, t):
    alpha, sigma = schedule(t)
    x_0, eps = estimates(x_t, per_example(alpha, x_t), per_example(sigma, x_t))
    return target(schedule.prediction, x_0, eps, alpha, sigma)

  return predict


def gaussian(schedule, V):
  """The exact denoiser of N(0, V), V one number an example."""
  V = per_example(jnp.asarray(V, jnp.float32), jnp.zeros((1,) * 5))

  def estimates(x_t, alpha, sigma):
    total = alpha**2 * V + sigma**2
    return alpha * V / total * x_t, sigma / total * x_t

  return from_estimates(schedule, estimates)


def ones(B):
  return jnp.ones((B, 1, 1, 1, 1))


# Grids.


@pytest.mark.parametrize(
  ("spacing", "one_based"),
  [
    ("trailing", [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ("leading", [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
    ("linspace", [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
  ],
)
def test_grids_of_ten(spacing, one_based):
  grid = time_grid(1000, 10, spacing)
  assert grid.dtype == np.int32
  np.testing.assert_array_equal(grid, np.array(one_based)[::-1] - 1)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_any_number_of_steps_descends_within_the_table(spacing):
  for N in (1000, 37):
    for S in range(1, N + 1, 1 if N < 100 else 13):
      grid = time_grid(N, S, spacing)
      assert len(grid) == S
      assert grid[-1] >= 0
      assert np.all(np.diff(grid) < 0)
      if spacing != "leading":
        assert grid[0] == N - 1


@pytest.mark.parametrize("S", [3, 7, 25, 30, 64, 250, 333, 999])
def test_trailing_is_the_published_expression(S):
  published = np.round(np.flip(np.arange(1000, 0, -1000 / S))) - 1  # ascending
  np.testing.assert_array_equal(time_grid(1000, S, "trailing")[::-1], published)


def test_number_of_steps_must_fit():
  for S in (0, 1001):
    with pytest.raises(ValueError, match=rf"num_steps={S} is not within 1..1000"):
      time_grid(1000, S, "trailing")
  with pytest.raises(ValueError, match="spacing='karras' is none of"):
    inspect.unwrap(time_grid)(1000, 10, "karras")  # past the annotations, which only tests enforce


# What cannot be sampled does not start.


def test_leading_times_may_be_offset_within_the_schedule():
  np.testing.assert_array_equal(
    time_grid(1000, 25, "leading", 1), time_grid(1000, 25, "leading") + 1
  )
  for spacing, offset in (("leading", 40), ("trailing", 1)):
    with pytest.raises(ValueError, match=f"offset={offset} with spacing='{spacing}'"):
      time_grid(1000, 25, spacing, offset)


def test_leading_with_zero_terminal_snr_does_not_start():
  with pytest.raises(ValueError, match=r"'leading' never visits t=999"):
    check_grid(ZERO, "leading")
  grid = time_grid(1000, 250, "leading")
  for sampler in (ddim, dpm_solver_pp_2m, ddim_invert):
    with pytest.raises(ValueError, match=r"starts at t=996.*t=999"):
      sampler(gaussian(ZERO, [1.0]), ZERO, ones(1), grid)


def test_stochastic_steps_with_zero_terminal_snr_do_not_start(key):
  with pytest.raises(ValueError, match=r"eta=0.5 > 0 where alpha=0 \(t=999"):
    check_grid(ZERO, "trailing", 0.5)
  with pytest.raises(ValueError, match=r"eta=1.0 > 0 where alpha=0"):
    ddim(gaussian(ZERO, [1.0]), ZERO, ones(1), time_grid(1000, 5, "trailing"), eta=1.0, key=key)


def test_what_can_be_sampled_starts():
  for spacing in ("trailing", "leading", "linspace"):
    check_grid(SD, spacing, 1.0)
  check_grid(ZERO, "trailing")
  check_grid(ZERO, "linspace")


@pytest.mark.parametrize("grid", [[], [5, 5], [3, 7], [1000, 4], [4, -1]])
def test_grids_that_do_not_descend_do_not_start(grid):
  with pytest.raises(ValueError, match=r"does not descend strictly within 999\.\.0"):
    ddim(gaussian(SD, [1.0]), SD, ones(1), np.array(grid, np.int32))


def test_illegal_etas_do_not_start(key):
  grid = time_grid(1000, 10, "trailing")
  run = lambda **options: ddim(gaussian(SD, [1.0]), SD, ones(1), grid, **options)
  with pytest.raises(ValueError, match=r"eta=-1\.0 is negative"):
    run(eta=-1.0, key=key)
  with pytest.raises(ValueError, match=r"eta=1\.0 draws noise and key=None"):
    run(eta=1.0)
  # The largest eta is legal, a little more is not: tau = sigma_s exactly there.
  abar = np.append(SD.alphas_cumprod[grid], 1.0)
  largest = np.sqrt((1 - abar[:-2]) / (1 - abar[:-2] / abar[1:-1])).min()
  assert largest > 1
  with pytest.raises(
    ValueError, match=f"eta=.*more noise than a step holds; at most {largest:.4f}"
  ):
    run(eta=1.001 * float(largest), key=key)
  assert np.isfinite(run(eta=0.999 * float(largest), key=key)).all()


def test_inversion_in_one_step_from_everything_to_nothing_does_not_start():
  with pytest.raises(ValueError, match="1 step from x_0 to alpha=0 has no inverse"):
    ddim_invert(gaussian(ZERO, [1.0]), ZERO, ones(1), time_grid(1000, 1, "trailing"))


# A point.


@pytest.mark.parametrize("schedule", EVERY, ids=IDS)
@pytest.mark.parametrize("S", [1, 2, 10])
def test_a_point_is_landed_on(schedule, S, key):
  point, noise = jax.random.normal(key, (2, 2, 2, 3, 3, 2))
  grid = time_grid(1000, S, "trailing")
  denoise = from_estimates(schedule, lambda x_t, a, s: (point, (x_t - a * point) / s))
  samplers = [ddim, dpm_solver_pp_2m]
  if not schedule.zero_terminal_snr:
    samplers.append(lambda *args: ddim(*args, eta=1.0, key=jax.random.key(1)))
  # The network's output is rounded (2^-24 of at most 6); what it says of x_0 at the last time of
  # the grid is that, over alpha where eps is predicted.
  alpha = np.sqrt(schedule.alphas_cumprod[grid[-1]]) if schedule.prediction == "epsilon" else 1
  atol = 0 if schedule.prediction == "x_0" else 4 * 6 * 2.0**-24 / alpha
  for sampler in samplers:
    np.testing.assert_allclose(sampler(denoise, schedule, noise, grid), point, rtol=0, atol=atol)


# A Gaussian: how far the terminal leak reaches (systems with one brightness in N dimensions).

DIMENSIONS = np.array([64, 256, 1024, 3072, 8192, 16384, 24576, 262144])
SPREADS = {  # measured r = standard deviation / true one, 250 steps
  "closed form": [0.956, 0.847, 0.622, 0.416, 0.270, 0.194, 0.160, 0.049],
  (SD, "trailing"): [0.952, 0.844, 0.621, 0.416, 0.270, 0.194, 0.160, 0.049],
  (SD, "leading"): [0.950, 0.840, 0.614, 0.410, 0.265, 0.191, 0.157, 0.049],
  (ZERO, "trailing"): [0.993, 0.990, 0.983, 0.974, 0.960, 0.946, 0.935, 0.807],
}


def spread(schedule, spacing, S, dimensions):
  V = np.asarray(dimensions) / 3  # a brightness uniform on (-1, 1), shared by all dimensions
  x_0 = ddim(gaussian(schedule, V), schedule, ones(len(V)), time_grid(1000, S, spacing))
  return x_0.ravel() / np.sqrt(V)


@pytest.mark.parametrize(
  ("schedule", "spacing"), [(SD, "trailing"), (SD, "leading"), (ZERO, "trailing")]
)
def test_brightness_spread_by_dimensions(schedule, spacing):
  r = spread(schedule, spacing, 250, DIMENSIONS)
  np.testing.assert_allclose(r, SPREADS[schedule, spacing], atol=1e-3)


def test_brightness_spread_is_the_closed_form():
  # The ODE preserves quantiles; what should be sqrt(abar_T V + 1 - abar_T) was started at 1.
  abar, V = SD.alphas_cumprod[-1], DIMENSIONS / 3
  closed = 1 / np.sqrt(1 - abar + abar * V)
  np.testing.assert_allclose(closed, SPREADS["closed form"], atol=5e-4)
  np.testing.assert_allclose(spread(SD, "trailing", 250, DIMENSIONS), closed, rtol=0.01)


@pytest.mark.parametrize(
  ("schedule", "spacing", "by_steps"),
  [
    (SD, "trailing", [0.399, 0.407, 0.413, 0.414, 0.415, 0.416, 0.416]),
    (SD, "leading", [0.160, 0.252, 0.340, 0.377, 0.397, 0.410, 0.416]),
    (ZERO, "trailing", [0.223, 0.469, 0.762, 0.875, 0.936, 0.974, 0.993]),
  ],
)
def test_brightness_spread_by_steps(schedule, spacing, by_steps):
  r = [spread(schedule, spacing, S, [3072])[0] for S in (5, 10, 25, 50, 100, 250, 1000)]
  np.testing.assert_allclose(r, by_steps, atol=1e-3)


# Order. The grids end at a fixed time, where the denoiser answers with x_t itself, so that the last
# step (to the clean end, first order in any solver) is not part of what is measured. On beta
# schedules sigma ~ sqrt(t) near 0: that step would add its own O(1 / S).

FINE = Schedule(  # SD's curve with 65536 steps: 80 intervals of a 1000-step table are uneven
  num_steps=65536, beta_start=8.5e-4 / 65.536, beta_end=1.2e-2 / 65.536, prediction="x_0"
)
FINE_ZERO = dataclasses.replace(FINE, zero_terminal_snr=True)


def errors(sampler, schedule, V, intervals):
  N = schedule.num_steps
  end, exact = N // 10, gaussian(schedule, V)
  std = np.sqrt(schedule.alphas_cumprod[[N - 1, end], None] * np.subtract(V, 1.0) + 1)

  def until_end(x_t, t):
    return jnp.where(per_example(t, x_t) == end, x_t, exact(x_t, t))

  def error(n):
    grid = np.round(np.linspace(N - 1, end, n + 1)).astype(np.int32)
    x = sampler(until_end, schedule, ones(len(V)), grid).ravel()
    return np.abs(np.asarray(x, np.float64) / (std[1] / std[0]) - 1)

  return np.array([error(n) for n in intervals])


@pytest.mark.parametrize("schedule", [FINE, FINE_ZERO], ids=["SD", "zero SNR"])
def test_ddim_is_first_order(schedule):
  e = errors(ddim, schedule, [0.05, 0.25, 4.0, 100.0], (40, 80, 160))
  # Between n and 4 n an order p is a ratio 4^p; the second-order term is about 3 % of the first.
  np.testing.assert_allclose(np.log(e[0] / e[2]) / np.log(4), 1, atol=0.07)


def test_dpm_solver_is_second_order():
  e = errors(dpm_solver_pp_2m, FINE, [0.05, 100.0], (20, 40, 80))
  np.testing.assert_allclose(np.log(e[0] / e[2]) / np.log(4), 2, atol=0.1)
  assert np.all(e[2] < errors(ddim, FINE, [0.05, 100.0], (80,))[0] / 10)


def test_dpm_solver_from_zero_snr_is_nearly_second_order():
  # x_0 is smooth in alpha there, and lambda = log alpha is a poor clock: the k-th step's slope is
  # off by O(1 / k), a local error of S^-2 / k, in all S^-2 log S: 1.77 between 20 and 80.
  e = errors(dpm_solver_pp_2m, FINE_ZERO, [4.0, 9.0], (20, 40, 80))
  assert np.all(np.log(e[0] / e[2]) / np.log(4) > 1.7)
  assert np.all(e[2] < errors(ddim, FINE_ZERO, [4.0, 9.0], (80,))[0] / 10)


def test_an_exact_step_turns_by_the_angle(key):
  # z_{phi - delta} = cos(delta) z - sin(delta) v, seen by answering with x_t at the second time.
  grid = np.array([800, 300], np.int32)
  schedule = Schedule(prediction="x_0")
  z, x_0 = jax.random.normal(key, (2, 1, 2, 3, 3, 2))
  denoise = lambda x_t, t: jnp.where(per_example(t, x_t) == 300, x_t, x_0)
  phi = np.arccos(np.sqrt(schedule.alphas_cumprod[grid]))
  eps = (z - np.cos(phi[0]) * x_0) / np.sin(phi[0])
  v = np.cos(phi[0]) * eps - np.sin(phi[0]) * x_0
  turned = np.cos(phi[0] - phi[1]) * z - np.sin(phi[0] - phi[1]) * v
  for sampler in (ddim, dpm_solver_pp_2m):  # 2M's first step is DDIM's
    np.testing.assert_allclose(sampler(denoise, schedule, z, grid), turned, atol=2e-6)


# Fresh noise.


def test_stochastic_ddim_reaches_the_variance(key):
  V, n, grid = np.array([0.25, 1.0, 4.0]), 16000, time_grid(1000, 500, "trailing")
  key_noise, key_steps = jax.random.split(key)
  noise = jax.random.normal(key_noise, (3, 1, 40, 40, 10))
  x_0 = ddim(gaussian(SD, V), SD, noise, grid, eta=1.0, key=key_steps)
  variance = np.asarray(x_0, np.float64).var((1, 2, 3, 4))
  # A variance of n draws has relative standard error sqrt(2 / n) = 1.1 %; 500 steps of eta = 1 are
  # themselves short of V by their discretisation, by the moments of (8) propagated exactly:
  a2 = np.append(SD.alphas_cumprod[grid], 1.0)[:, None]
  expected = np.ones(3)
  for t, s in itertools.pairwise(a2):
    tau2 = (1 - s) / (1 - t) * (1 - t / s)
    gain = (np.sqrt(s * t) * V + np.sqrt((1 - s - tau2) * (1 - t))) / (t * V + 1 - t)
    expected = gain**2 * expected + tau2
  np.testing.assert_allclose(expected, V, rtol=0.04)  # O(1 / S), at most 3.4 %
  np.testing.assert_allclose(variance, expected, rtol=4 * (2 / n) ** 0.5)


def test_fresh_noise_is_the_keys(key):
  grid = time_grid(1000, 5, "trailing")
  run = lambda seed: ddim(gaussian(SD, [1.0]), SD, ones(1), grid, eta=1.0, key=jax.random.key(seed))
  assert run(0) == run(0)
  assert run(0) != run(1)


def test_continuation_of_an_ar1_process(key):
  """8 frames given, 8 sampled, by the exact denoiser of the conditional distribution."""
  n, rho, A = 4000, 0.95, 8
  frames = np.arange(16)
  cov = rho ** abs(frames[:, None] - frames)
  gain = np.linalg.solve(cov[:A, :A], cov[:A, A:])  # of E[x^b | x^a] = x^a gain
  rest = cov[A:, A:] - cov[A:, :A] @ gain
  lam, basis = (jnp.asarray(m, jnp.float32) for m in np.linalg.eigh(rest))
  keys = jax.random.split(key, 3)
  x_a = jax.random.normal(keys[0], (n, A)) @ np.linalg.cholesky(cov[:A, :A]).T.astype(np.float32)
  mean = x_a @ gain.astype(np.float32)

  def estimates(z, alpha, sigma):
    alpha, sigma, z = alpha[..., 0, 0, 0], sigma[..., 0, 0, 0], z[..., 0, 0, 0]
    shrunk = (z - alpha * mean) @ basis * (alpha * lam[None] / (alpha**2 * lam[None] + sigma**2))
    x_0 = mean + shrunk @ basis.T
    return x_0[..., None, None, None], ((z - alpha * x_0) / sigma)[..., None, None, None]

  schedule = Schedule("cosine", prediction="x_0")
  noise = jax.random.normal(keys[1], (n, 16 - A, 1, 1, 1))
  grid = time_grid(1000, 256, "trailing")
  x_b = ddim(from_estimates(schedule, estimates), schedule, noise, grid, eta=1.0, key=keys[2])
  x_b, last = np.asarray(x_b[..., 0, 0, 0], np.float64), np.asarray(x_a[:, -1], np.float64)
  first = x_b[:, 0]
  # Tolerance 0.01: four standard errors, sqrt(2 / 4000) of 0.0975 or 0.1; of a variance of 1, 0.09.
  np.testing.assert_allclose(np.mean((first - rho * last) ** 2), 1 - rho**2, atol=0.01)
  np.testing.assert_allclose(np.corrcoef(first, last)[0, 1], rho, atol=0.01)
  np.testing.assert_allclose(np.mean((first - last) ** 2), 2 * (1 - rho), atol=0.01)
  np.testing.assert_allclose(np.mean(np.diff(x_b) ** 2), 2 * (1 - rho), atol=0.01)
  np.testing.assert_allclose(x_b.var(), 1, atol=0.09)


# There and back.


@pytest.mark.parametrize("schedule", [EVERY[0], *EVERY[3:]], ids=[IDS[0], *IDS[3:]])
def test_inversion_then_ddim_is_what_was_put_in(schedule):
  V = np.array([0.25, 0.5, 1.0, 4.0])
  x_0 = jnp.array([0.3, -2.0, 1.0, 3.0]).reshape(4, 1, 1, 1, 1)
  misses = []
  for S in (250, 500):
    grid = time_grid(1000, S, "trailing")
    noise = ddim_invert(gaussian(schedule, V), schedule, x_0, grid)
    back = ddim(gaussian(schedule, V), schedule, noise, grid)
    # With v = w x, a step by delta there multiplies by (1 + sin w) / cos, back by cos - sin w.
    phi = np.arccos(np.sqrt(np.append(schedule.alphas_cumprod[grid], 1.0)))[:, None]
    delta, a, s = -np.diff(phi, axis=0), np.cos(phi[:-1]), np.sin(phi[:-1])
    w = a * s * (1 - V) / (a**2 * V + s**2)
    miss = np.prod((1 - np.tan(delta) * w) * (1 + np.sin(delta) * w), axis=0) - 1
    # 2 S steps, each rounding a few times at 2^-24; float32's walk away from it is far smaller.
    np.testing.assert_allclose((back / x_0).ravel() - 1, miss, atol=2 * S * 2 * 2.0**-24)
    misses.append(miss)
    # A factor is 1 - w^2 sin tan - w (tan - sin), and a product of 1 + e is within
    # exp(sum |e|) - 1 of 1: of the order of S delta^2 ~ 1 / S.
    bound = np.sum(
      w**2 * np.sin(delta) * np.tan(delta) + abs(w) * (np.tan(delta) - np.sin(delta)), 0
    )
    assert np.all(abs(miss) <= np.expm1(bound))
  assert np.all(abs(misses[0]) < 0.02)
  np.testing.assert_allclose(abs(misses[1][[0, 1, 3]] / misses[0][[0, 1, 3]]), 0.5, atol=0.05)
  assert misses[0][2] == 0  # V = 1: v is 0 everywhere, and the way back exact


@pytest.mark.parametrize("schedule", [SD, ZERO], ids=["SD", "zero SNR"])
def test_inversion_is_the_probability_flow(schedule):
  V, S = np.array([0.25, 4.0]), 500
  noise = ddim_invert(gaussian(schedule, V), schedule, ones(2), time_grid(1000, S, "trailing"))
  abar = schedule.alphas_cumprod[-1]
  exact = np.sqrt(abar * V + 1 - abar) / np.sqrt(V)
  np.testing.assert_allclose(noise.ravel(), exact, rtol=0.01)  # O(1 / S), measured 0.4 %


# One program.


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp_2m, ddim_invert])
def test_a_sampler_is_one_scan(sampler):
  grid = time_grid(1000, 20, "trailing")
  program = str(jax.make_jaxpr(lambda x: sampler(gaussian(ZERO, [2.0]), ZERO, x, grid))(ones(1)))
  assert program.count("scan[") == 1
  assert "length=20" in program
  assert "callback" not in program
  assert "while[" not in program


def test_new_seeds_and_scales_are_the_same_program():
  traces = []

  @jax.jit
  def sample(seed, image_scale, text_scale, text):
    traces.append(seed)
    key_noise, key_steps = jax.random.split(jax.random.key(seed))
    conditions = tuple(Conditions(texts=(t,)) for t in (0 * text, text, 2 * text))
    network = lambda x_t, t, c: x_t * jnp.tanh(per_example(c.texts[0].sum((1, 2)), x_t))
    predict = guided(network, conditions, emu_video_guidance(image_scale, text_scale))
    noise = jax.random.normal(key_noise, (2, 2, 4, 4, 1))
    grid = time_grid(1000, 4, "trailing")
    video = ddim(predict, ZERO, noise, grid) + dpm_solver_pp_2m(predict, ZERO, noise, grid)
    return video + ddim(predict, SD, noise, grid, eta=1.0, key=key_steps)

  videos = [
    sample(seed, w_i, w_p, jnp.full((2, 3, 1), text))
    for seed, w_i, w_p, text in [(0, 2.0, 7.5, 0.1), (1, 2.0, 7.5, 0.1), (0, 1.0, 3.0, 0.2)]
  ]
  assert len(traces) == 1
  assert all(np.isfinite(v).all() for v in videos)
  assert not np.allclose(videos[0], videos[1])
  assert not np.allclose(videos[0], videos[2])


def test_state_is_float32_whatever_comes_in():
  half = lambda x_t, t: x_t.astype(jnp.bfloat16)
  for sampler in (ddim, dpm_solver_pp_2m, ddim_invert):
    x = sampler(half, ZERO, ones(1).astype(jnp.bfloat16), time_grid(1000, 3, "trailing"))
    assert x.dtype == jnp.float32
