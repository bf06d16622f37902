"""Terminal values, the rescale, and every way from (x_0, eps) to a prediction and back."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.schedule import (
  Schedule,
  add_noise,
  noise_at,
  per_example,
  target,
  to_x_0_and_eps,
)

SD = Schedule()
LINEAR = Schedule("linear", beta_start=1e-4, beta_end=0.02)
COSINE = Schedule("cosine")
ALL = [SD, LINEAR, COSINE]


def zero_snr(schedule):
  return dataclasses.replace(schedule, zero_terminal_snr=True, prediction="v")


# The printed values carry 6 digits; cosine's depends on where its betas are capped (1e-4).
@pytest.mark.parametrize(
  ("schedule", "snr", "root_abar", "amplification", "rtol"),
  [
    (LINEAR, 4.035993e-5, 0.006353, 157.41, 1e-5),
    (COSINE, 2.428735e-9, 4.928220e-5, 2.029e4, 1e-4),
    (SD, 0.00468192, 0.0682649, 14.615, 1e-5),
  ],
)
def test_terminal_values(schedule, snr, root_abar, amplification, rtol):
  abar = schedule.alphas_cumprod
  assert abar.dtype == np.float64
  np.testing.assert_allclose(abar[-1] / (1 - abar[-1]), snr, rtol=rtol)
  # Below: as many digits as were printed.
  np.testing.assert_allclose(np.sqrt(abar[-1]), root_abar, rtol=1e-4)
  np.testing.assert_allclose(np.sqrt(1 / abar[-1] - 1), amplification, rtol=1e-4)
  np.testing.assert_allclose(np.exp(schedule.log_snr[-1]), snr, rtol=rtol)


def test_terminal_value_of_stable_diffusion():
  alpha, sigma = SD(jnp.array([999]))
  np.testing.assert_allclose(alpha, 0.068265, atol=5e-7)
  np.testing.assert_allclose(sigma, 0.997667, atol=5e-7)


@pytest.mark.parametrize("schedule", ALL)
def test_rescale_zeroes_the_last_and_keeps_the_first(schedule):
  before, after = schedule.alphas_cumprod, zero_snr(schedule).alphas_cumprod
  assert after[-1] == 0
  assert after[0] == before[0]
  assert zero_snr(schedule).log_snr[-1] == -np.inf
  assert np.all(np.diff(after) < 0)
  # Algorithm 1 as printed, on s = sqrt(abar).
  s = np.sqrt(before)
  np.testing.assert_allclose(np.sqrt(after), (s - s[-1]) * s[0] / (s[0] - s[-1]), atol=1e-15)


@pytest.mark.parametrize("schedule", [*ALL, *map(zero_snr, ALL)])
def test_levels_preserve_variance_and_fall(schedule):
  alpha, sigma = schedule(jnp.arange(schedule.num_steps))
  assert alpha.dtype == sigma.dtype == jnp.float32
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=3e-7)  # two squares and a sum, rounded
  assert np.all(np.diff(alpha) < 0)
  assert sigma[0] > 0


def test_interpolation_levels():
  # sampled with t = 100, trained up to t = 250: systems' printed digits
  alpha, sigma = SD(jnp.array([100.0, 250.0]))
  np.testing.assert_allclose(alpha, [0.9456, 0.8208], atol=5e-5)
  np.testing.assert_allclose(sigma, [0.3252, 0.5711], atol=5e-5)


def test_a_time_outside_the_table_is_not_its_neighbours():
  alpha, sigma = SD(jnp.array([-1, 1000, 5]))
  assert np.isnan(alpha[:2]).all()
  assert np.isnan(sigma[:2]).all()
  assert np.isfinite(alpha[2])


@pytest.mark.parametrize(
  ("prediction", "zero"),
  [("epsilon", False), ("v", False), ("x_0", False), ("v", True), ("x_0", True)],
)
def test_what_a_network_should_say_gives_back_x_0_and_eps(prediction, zero, key):
  schedule = dataclasses.replace(SD, zero_terminal_snr=zero, prediction=prediction)
  t = jnp.array([0, 1, 500, 998, 999])
  alpha, sigma = schedule(t)
  x_0, eps = jax.random.normal(key, (2, 5, 2, 3, 3, 2))
  output = target(prediction, x_0, eps, alpha, sigma)
  x_t = add_noise(x_0, eps, alpha, sigma)
  x_0_back, eps_back = to_x_0_and_eps(prediction, output, x_t, alpha, sigma)
  # x_t is rounded at 2^-24 of its size (at most 6 here, 3 units of rounding); a division by alpha
  # or sigma magnifies that (14.6 and 34 at most on this schedule).
  one = 6 * 3 * 2.0**-24
  small = {"epsilon": alpha, "x_0": sigma, "v": jnp.ones(5)}[prediction]
  np.testing.assert_array_less(abs(x_0_back - x_0).max((1, 2, 3, 4)), 2 * one / small)
  np.testing.assert_array_less(abs(eps_back - eps).max((1, 2, 3, 4)), 2 * one / small)


def test_v_at_zero_snr_is_minus_x_0(key):
  alpha, sigma = zero_snr(SD)(jnp.array([999]))
  x_0, eps = jax.random.normal(key, (2, 1, 1, 4, 4, 3))
  np.testing.assert_array_equal(target("v", x_0, eps, alpha, sigma), -x_0)
  np.testing.assert_array_equal(add_noise(x_0, eps, alpha, sigma), eps)


def test_conversions_are_float32_whatever_the_network_returns(key):
  alpha, sigma = SD(jnp.array([10]))
  x_t = jax.random.normal(key, (1, 1, 2, 2, 1))
  for prediction in ("epsilon", "v", "x_0"):
    for y in to_x_0_and_eps(prediction, x_t.astype(jnp.bfloat16), x_t, alpha, sigma):
      assert y.dtype == jnp.float32


def test_noise_at_has_the_levels_mean_and_spread(key):
  clean = jnp.full((2, 8, 32, 32, 4), 3.0, jnp.bfloat16)
  t = jnp.array([100, 250])
  noised = noise_at(SD, clean, t, key)
  alpha, sigma = SD(t)
  assert noised.dtype == jnp.float32
  n = noised[0].size  # mean of n has a standard error sigma / sqrt(n), spread sigma / sqrt(2 n)
  np.testing.assert_allclose(noised.mean((1, 2, 3, 4)), 3 * alpha, atol=4 / n**0.5)
  np.testing.assert_allclose(noised.std((1, 2, 3, 4)), sigma, atol=4 / n**0.5)


def test_per_example_takes_the_rank_of_what_it_meets():
  assert per_example(jnp.ones(3), jnp.ones((3, 2, 4, 4, 1))).shape == (3, 1, 1, 1, 1)


def test_schedule_is_static_under_jit():
  f = jax.jit(lambda schedule, t: schedule(t)[0], static_argnums=0)
  f(Schedule(), jnp.array([3]))
  f(Schedule(), jnp.array([4]))  # an equal schedule is the same program
  assert f._cache_size() == 1


def test_epsilon_with_zero_terminal_snr_does_not_start():
  with pytest.raises(ValueError, match=r"'epsilon' with zero_terminal_snr=True.*'v'"):
    Schedule(zero_terminal_snr=True)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_steps": 1}, "num_steps=1"),
    ({"beta_start": 0.1, "beta_end": 0.01}, "beta_start=0.1, beta_end=0.01"),
  ],
)
def test_meaningless_schedules_do_not_start(fields, message):
  with pytest.raises(ValueError, match=message):
    Schedule(**fields)


@pytest.mark.parametrize(("name", "value"), [("kind", "quad"), ("prediction", "x0")])
def test_unknown_words_do_not_start(name, value):
  fields = dataclasses.asdict(SD) | {name: value}
  # Past the annotations, which only tests enforce.
  with pytest.raises(ValueError, match=f"{name}='{value}' is none of"):
    Schedule.__post_init__(types.SimpleNamespace(**fields))
