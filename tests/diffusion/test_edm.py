"""EDM against what is known exactly: Gaussians, points, and diffusers' Euler scheduler.

For data N(m, C) the exact denoiser is D = m + C (C + sigma^2)^-1 (x - m), and the ODE scales each
principal component of x - m like its standard deviation sqrt(c + sigma^2).
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.edm import Edm, edm_euler, edm_heun, edm_loss
from emu_jax.diffusion.schedule import add_noise, per_example, target

V, KARRAS = Edm(), Edm(prediction="edm", data_std=0.5, sigma_max=80.0, log_mean=-1.2, log_std=1.2)
BOTH = pytest.mark.parametrize("edm", [V, KARRAS], ids=["v", "edm"])
SAMPLERS = pytest.mark.parametrize("sampler", [edm_euler, edm_heun])


def from_denoiser(edm, denoise):
  """The raw network whose D is `denoise(x, sigma)`."""

  def predict(scaled, c_noise):
    sigma = jnp.exp(4 * c_noise)
    c_skip, c_out, c_in, _ = (per_example(c, scaled) for c in edm.coefficients(sigma))
    x = scaled / c_in
    return (denoise(x, per_example(sigma, x)) - c_skip * x) / c_out

  return predict


def gaussian(edm, variance):
  return from_denoiser(edm, lambda x, sigma: variance / (variance + sigma**2) * x)


def ones(B=1):
  return jnp.ones((B, 1, 1, 1, 1))


def test_levels_are_even_in_the_root():
  levels = V.levels(25)
  assert levels.shape == (26,)
  assert levels[-1] == 0
  np.testing.assert_allclose(levels[[0, -2]], [700.0, 0.002], rtol=1e-12)
  steps = np.diff(levels[:-1] ** (1 / 7))
  np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
  np.testing.assert_allclose(V.levels(1), [700.0, 0.0])


@BOTH
def test_input_and_target_of_the_network_have_variance_1(edm):
  sigma = jnp.array([0.002, 0.1, 1.0, 30.0, 700.0])
  c_skip, c_out, c_in, c_noise = edm.coefficients(sigma)
  s = edm.data_std
  np.testing.assert_allclose(c_in**2 * (s**2 + sigma**2), 1, rtol=1e-5)
  # (x_0 - c_skip x) / c_out, of x_0 with variance s^2
  variance = ((1 - c_skip) ** 2 * s**2 + (c_skip * sigma) ** 2) / c_out**2
  np.testing.assert_allclose(variance[1:], 1, rtol=1e-4)
  np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-6)


def test_stable_video_diffusions_network_predicts_v(key):
  x_0, eps = jax.random.normal(key, (2, 5, 1, 2, 2, 3))
  sigma = jnp.array([0.002, 0.1, 1.0, 30.0, 700.0])
  c_skip, c_out, c_in, _ = V.coefficients(sigma)
  np.testing.assert_allclose(c_skip, 1 / (sigma**2 + 1), rtol=1e-5)
  np.testing.assert_allclose(c_out, -sigma / np.sqrt(sigma**2 + 1), rtol=1e-5)
  x = x_0 + per_example(sigma, x_0) * eps
  alpha = 1 / jnp.sqrt(1 + sigma**2)
  v = target("v", x_0, eps, alpha, alpha * sigma)
  seen = []
  denoised = V.denoised(lambda x_t, t: seen.append(x_t) or v, x, sigma)
  np.testing.assert_allclose(seen[0], add_noise(x_0, eps, alpha, alpha * sigma), atol=1e-5)
  np.testing.assert_allclose(denoised, x_0, atol=2e-4)  # at 700, x has an ulp of 6e-5


@BOTH
@SAMPLERS
def test_gaussian_data_reaches_its_mean_and_covariance(edm, sampler):
  """The sampler is affine in its noise: unit vectors show the matrix."""
  turn = np.array([[0.8, -0.6], [0.6, 0.8]])
  mean, C = np.array([0.7, -0.3]), turn @ np.diag([1.5, 0.2]) @ turn.T
  m, basis = (jnp.asarray(a, jnp.float32) for a in (mean, turn))
  variances = jnp.array([1.5, 0.2]).reshape(1, 1, 1, 1, 2)

  def denoise(x, sigma):
    parts = (x - m.reshape(1, 1, 1, 1, 2)) @ basis
    return m.reshape(1, 1, 1, 1, 2) + (variances / (variances + sigma**2) * parts) @ basis.T

  noise = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).reshape(3, 1, 1, 1, 2)
  levels = edm.levels(400 if sampler is edm_euler else 60)
  b, *columns = np.asarray(sampler(from_denoiser(edm, denoise), edm, noise, levels))[:, 0, 0, 0]
  A = np.stack([c - b for c in columns], axis=1)
  np.testing.assert_allclose(b, mean, atol=0.02)
  np.testing.assert_allclose(A @ A.T, C, atol=0.04)


@pytest.mark.parametrize(("sampler", "order"), [(edm_euler, 1), (edm_heun, 2)])
def test_order_of_convergence(sampler, order):
  edm = Edm(sigma_max=20.0, sigma_min=0.05)
  variance = 0.3
  ratio = np.sqrt((variance + 0.05**2) / (variance + 20.0**2)) * np.hypot(20.0, 1.0)
  errors = []
  for steps in (16, 32, 64):
    levels = edm.levels(steps + 1)[:-1]  # ends at sigma_min, where the ODE is smooth
    reached = sampler(gaussian(edm, variance), edm, ones(), levels)
    errors.append(abs(float(reached[0, 0, 0, 0, 0]) - ratio))
  slopes = np.log2(np.divide(errors[:-1], errors[1:]))
  np.testing.assert_allclose(slopes, order, atol=0.25)


@BOTH
@SAMPLERS
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_denoiser_lands_on_its_point(edm, sampler, steps, key):
  point = jax.random.normal(key, (1, 3, 2, 2, 2))
  predict = from_denoiser(edm, lambda x, sigma: jnp.broadcast_to(point, x.shape))
  noise = jax.random.normal(jax.random.key(1), (2, 3, 2, 2, 2))
  reached = sampler(predict, edm, noise, edm.levels(steps))
  # One step from 700 subtracts numbers of a thousand: an ulp there is 6e-5.
  np.testing.assert_allclose(
    reached, jnp.broadcast_to(point, noise.shape), atol=5e-4 if steps == 1 else 1e-5
  )


def test_levels_that_rise_or_are_none_do_not_start():
  for levels in (np.array([1.0]), np.array([1.0, 2.0, 0.0]), np.array([1.0, -0.5])):
    for sampler in (edm_euler, edm_heun):
      with pytest.raises(ValueError, match="do not descend strictly"):
        sampler(gaussian(V, 1.0), V, ones(), levels)


def test_numbers_without_meaning_do_not_start():
  with pytest.raises(ValueError, match="prediction='epsilon' is none of"):
    # Past the annotations, which only tests enforce.
    Edm.__post_init__(types.SimpleNamespace(**dataclasses.asdict(V) | {"prediction": "epsilon"}))
  with pytest.raises(ValueError, match="break 0 < sigma_min < sigma_max"):
    Edm(sigma_min=1.0, sigma_max=0.5)
  with pytest.raises(ValueError, match="rho=0"):
    Edm(rho=0.0)
  with pytest.raises(ValueError, match="num_steps=0"):
    V.levels(0)


# The loss.


@BOTH
def test_the_loss_is_the_weighted_error_of_the_denoiser(edm, key):
  """Written out: E[lambda |D - x_0|^2] with lambda = 1 / c_out^2, of any network."""
  x_0 = edm.data_std * jax.random.normal(key, (3, 2, 4, 4, 2))
  seen = []

  def predict(scaled, c_noise):
    seen.append((scaled, c_noise))
    return jnp.sin(scaled) + per_example(c_noise, scaled)

  loss = edm_loss(predict, edm, x_0, jax.random.key(3))
  scaled, c_noise = seen[0]
  sigma = jnp.exp(4 * c_noise)
  _, c_out, c_in, _ = edm.coefficients(sigma)
  denoised = edm.denoised(predict, scaled / per_example(c_in, scaled), sigma)
  wanted = jnp.mean(jnp.square(denoised - x_0), axis=(1, 2, 3, 4)) / c_out**2
  np.testing.assert_allclose(loss, wanted, rtol=1e-3)


def test_the_exact_denoiser_has_the_lowest_loss_a_gaussian_allows(key):
  """For N(0, s^2) the best F is 0: the loss is the target's variance, 1, at every level."""
  x_0 = jax.random.normal(key, (64, 2, 8, 8, 4))
  loss = edm_loss(lambda x, t: jnp.zeros_like(x), V, x_0, jax.random.key(1))
  np.testing.assert_allclose(jnp.mean(loss), 1.0, atol=0.02)


@BOTH
def test_levels_are_drawn_log_normal(edm, key):
  logs = np.log(edm.draw(key, 20_000))
  np.testing.assert_allclose([logs.mean(), logs.std()], [edm.log_mean, edm.log_std], atol=0.04)


# Diffusers.


def test_every_step_is_that_of_diffusers_euler_scheduler(key):
  torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
  diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
  scheduler = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    timestep_type="continuous",
    timestep_spacing="leading",
    steps_offset=1,
    use_karras_sigmas=True,
    sigma_min=0.002,
    sigma_max=700.0,
  )
  scheduler.set_timesteps(25)
  np.testing.assert_allclose(scheduler.sigmas.numpy(), V.levels(25), rtol=1e-6)
  noise = jax.random.normal(key, (2, 3, 4, 6, 4))
  x = torch.tensor(np.asarray(noise)) * scheduler.init_noise_sigma
  theirs, times = [], []
  for t in scheduler.timesteps:
    scaled = scheduler.scale_model_input(x, t)
    theirs.append(scaled.numpy())
    times.append(float(t))
    x = scheduler.step(torch.sin(2 * scaled) + 0.3 * t, t, x).prev_sample

  ours = []

  def predict(scaled, t):
    jax.debug.callback(lambda *seen: ours.append(seen), scaled, t, ordered=True)
    return jnp.sin(2 * scaled) + 0.3 * per_example(t, scaled)

  reached = jax.block_until_ready(edm_euler(predict, V, noise, V.levels(25)))
  jax.effects_barrier()
  assert len(ours) == 25
  for (scaled, t), wanted, time in zip(ours, theirs, times, strict=True):
    np.testing.assert_allclose(t, time, rtol=1e-5, atol=1e-6)
    # Every step rounds x, which is of order sigma, and later ones double an error at most.
    np.testing.assert_allclose(scaled, wanted, atol=1e-4)
  np.testing.assert_allclose(reached, x.numpy(), atol=1e-4)
