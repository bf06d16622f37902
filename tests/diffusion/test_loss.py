"""The best possible denoiser's loss is known, and so is every part of it."""

import dataclasses
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.loss import Times, diffusion_loss, training_noise
from emu_jax.diffusion.schedule import Schedule, per_example, target

V = 4.0  # variance of Gaussian data


def optimal(schedule):
  """The exact denoiser of N(0, V) data: E[x_0 | x_t] and E[eps | x_t] are linear in x_t."""

  def predict(x_t, t):
    alpha, sigma = schedule(t)
    total = per_example(alpha**2 * V + sigma**2, x_t)
    x_0 = per_example(alpha, x_t) * V / total * x_t
    eps = per_example(sigma, x_t) / total * x_t
    return target(schedule.prediction, x_0, eps, alpha, sigma)

  return predict


# Posterior variances: of x_0 V sigma^2 / (alpha^2 V + sigma^2), of eps the same with alpha^2 for
# sigma^2, of v the same with 1 for it.
@pytest.mark.parametrize(
  ("prediction", "zero", "numerator"),
  [
    ("epsilon", False, lambda abar: V * abar),
    ("v", False, lambda abar: V + 0 * abar),
    ("v", True, lambda abar: V + 0 * abar),
    ("x_0", True, lambda abar: V * (1 - abar)),
  ],
)
def test_loss_of_the_optimal_denoiser(prediction, zero, numerator, key):
  schedule = Schedule(zero_terminal_snr=zero, prediction=prediction)
  key_x, key_loss = jax.random.split(key)
  x_0 = V**0.5 * jax.random.normal(key_x, (4000, 1, 4, 4, 1))
  loss = np.asarray(diffusion_loss(optimal(schedule), schedule, x_0, key_loss), np.float64)
  abar = schedule.alphas_cumprod
  expected = np.mean(numerator(abar) / (abar * V + 1 - abar))
  assert abs(loss.mean() - expected) < 4 * loss.std() / 4000**0.5  # 4 standard errors
  # The standard error is small enough to tell a wrong formula: below 3 % of the value.
  assert loss.std() / 4000**0.5 < 0.03 * expected


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_knowing_x_0_costs_nothing(prediction, key):
  schedule = Schedule(prediction=prediction)
  x_0 = jnp.full((8, 2, 3, 3, 2), 0.5)

  def oracle(x_t, t):
    alpha, sigma = schedule(t)
    a, s = per_example(alpha, x_t), per_example(sigma, x_t)
    return target(prediction, x_0, (x_t - a * x_0) / s, alpha, sigma)

  # eps is read back from a rounded x_t over sigma >= 0.029: 2^-24 * 4 / 0.029, squared, and more
  assert diffusion_loss(oracle, schedule, x_0, key, offset_noise=0.1).max() < 1e-10


def test_every_step_is_drawn_and_alike():
  schedule = Schedule(num_steps=4, prediction="x_0")
  x_0 = jnp.zeros((4000, 1, 1, 1, 1))

  def predict(x_t, t):
    assert t.dtype == jnp.float32
    return per_example(10**t, x_t)

  loss = diffusion_loss(predict, schedule, x_0, jax.random.key(1))  # 100 ** t
  drawn, counts = np.unique(np.round(np.log10(loss) / 2), return_counts=True)
  np.testing.assert_array_equal(drawn, [0, 1, 2, 3])
  # binomial(4000, 1/4): standard deviation 27.4, four of them
  np.testing.assert_allclose(counts, 1000, atol=110)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(
  ("uniform", "mean", "std"), [(1.0, 0.0, 1.0), (0.0, -0.5, 0.9), (0.3, 1.0, 0.5)]
)
def test_times_have_their_density(uniform, mean, std, stratified, key):
  N, B, batches = 1000, 8, 4000
  times = Times(uniform, mean, std, stratified)
  t = jax.vmap(lambda k: times.draw(k, B, N))(jax.random.split(key, batches))
  u = np.arange(1, N) / N
  normal = statistics.NormalDist(mean, std)
  below = [uniform * x + (1 - uniform) * normal.cdf(math.log(x / (1 - x))) for x in u]
  found = np.searchsorted(np.sort(t.ravel()), np.arange(1, N)) / t.size
  # Kolmogorov: the largest difference exceeds 1.95 / sqrt(n) once in a thousand times.
  assert np.abs(found - below).max() < 1.95 / t.size**0.5
  if uniform in (0, 1):
    # The mean of a batch spreads by std / sqrt(B), of stratified uniform times by 1 / B of that.
    spread = t.mean(axis=1).std() / (t.std() / B**0.5)
    assert spread < 0.5 if stratified else spread > 0.9


def test_each_stratum_has_one_time(key):
  t = np.asarray(Times(stratified=True).draw(key, 8, 1000))
  assert set(t // 125) == set(range(8))
  assert np.any(np.diff(t) < 0)  # in no order, since examples may have one


def test_times_that_mean_nothing_are_refused():
  for fields in ({"uniform": 1.5}, {"uniform": -0.1}, {"std": 0.0}):
    with pytest.raises(ValueError, match=f"Times: {next(iter(fields))}="):
      Times(**fields)


def test_loss_is_float32_and_an_example_each(key):
  x_0 = jnp.ones((3, 2, 4, 4, 2), jnp.bfloat16)
  loss = diffusion_loss(lambda x_t, t: x_t.astype(jnp.bfloat16), Schedule(), x_0, key)
  assert loss.shape == (3,)
  assert loss.dtype == jnp.float32


def test_no_example_sees_another(key):
  x_0 = jax.random.normal(key, (3, 2, 4, 4, 2))
  schedule = Schedule(prediction="v")
  first = lambda x_0: diffusion_loss(lambda x_t, t: x_t, schedule, x_0, jax.random.key(1))[0]
  gradient = jax.grad(first)(x_0)
  assert np.any(gradient[0])
  np.testing.assert_array_equal(gradient[1:], 0)


def test_weighting_multiplies_each_example():
  schedule = Schedule(prediction="v")
  x_0, predict = jnp.ones((5, 1, 2, 2, 1)), lambda x_t, t: x_t
  plain = diffusion_loss(predict, schedule, x_0, jax.random.key(0))
  weighted = diffusion_loss(
    predict, schedule, x_0, jax.random.key(0), weighting=lambda a, s: a**2 + 2 * s**2
  )
  assert np.all(weighted > plain)
  assert np.all(weighted <= 2 * plain)


def test_offset_noise_is_one_number_a_clip_and_channel():
  B, C, c = 64, 4, 0.5
  shape = (B, 4, 16, 16, C)
  offset = training_noise(jax.random.key(0), shape, c) - training_noise(jax.random.key(0), shape)
  # one number over T H W, up to the rounding of a sum and a difference
  np.testing.assert_allclose(offset, jnp.broadcast_to(offset[:, :1, :1, :1], shape), atol=2e-6)
  n = B * C
  numbers = offset[:, 0, 0, 0]
  np.testing.assert_allclose(numbers.std(), c, atol=4 * c / (2 * n) ** 0.5)
  assert abs(np.corrcoef(numbers.T) - np.eye(C)).max() < 4 / B**0.5  # channels are independent


def test_offset_noise_reaches_the_target():
  # With alpha = 0 the noisy input is the noise itself, offset and all.
  seen = []
  schedule = dataclasses.replace(Schedule(), zero_terminal_snr=True, prediction="v")

  def predict(x_t, t):
    seen.append(x_t)
    return x_t

  x_0 = jnp.zeros((512, 1, 8, 8, 1))
  diffusion_loss(predict, schedule, x_0, jax.random.key(0), offset_noise=3.0)
  diffusion_loss(predict, schedule, x_0, jax.random.key(0), offset_noise=0.0)
  spread = [float(x.mean((1, 2, 3, 4)).std()) for x in seen]
  assert spread[0] > 5 * spread[1]


def test_the_network_is_shown_the_times_that_were_asked_for():
  seen = []

  def predict(x_t, t):
    seen.append(t)
    return x_t

  for mean in (-9.0, 9.0):  # logistic: 1e-4 and 1 - 1e-4 of the schedule, give or take a little
    times = Times(uniform=0.0, mean=mean, std=0.1)
    diffusion_loss(predict, Schedule(), jnp.zeros((64, 1, 1, 1, 1)), jax.random.key(0), times=times)
  assert np.all(seen[0] == 0)
  assert np.all(seen[1] == 999)
