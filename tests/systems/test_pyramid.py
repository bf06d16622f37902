"""Laws of the Laplacian pyramid, and scipy's filters as its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from emu_jax.systems.pyramid import BINOMIAL, doubled, halved, laplacian, pyramid_error

SIDES = [(16, 16), (13, 6), (1, 5)]


def picture(H, W, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal((2, 3, H, W, 3)), jnp.float32)


@pytest.mark.parametrize(("H", "W"), SIDES)
def test_halving_is_every_other_pixel_of_the_binomial_filter(H, W):
  x = picture(H, W)
  blurred = np.asarray(x, np.float64)
  for axis in (2, 3):
    blurred = correlate1d(blurred, BINOMIAL, axis=axis, mode="nearest")
  # Sums of 25 float32 terms of unit size.
  np.testing.assert_allclose(halved(x), blurred[:, :, ::2, ::2], atol=1e-6)


@pytest.mark.parametrize(("H", "W"), SIDES)
def test_doubling_is_the_same_filter_between_zeros(H, W):
  x = picture((H + 1) // 2, (W + 1) // 2)
  wide = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
  spread = np.zeros((2, 3, 2 * wide.shape[2], 2 * wide.shape[3], 3))
  spread[:, :, ::2, ::2] = wide
  for axis in (2, 3):
    spread = correlate1d(spread, 2 * np.array(BINOMIAL), axis=axis, mode="constant")
  np.testing.assert_allclose(doubled(x, (H, W)), spread[:, :, 2 : 2 + H, 2 : 2 + W], atol=1e-6)


@pytest.mark.parametrize(("H", "W"), SIDES)
def test_the_bands_put_together_are_the_picture(H, W):
  x = picture(H, W)
  *bands, total = laplacian(x)
  for band in reversed(bands):
    total = band + doubled(total, band.shape[2:4])
  np.testing.assert_allclose(total, x, atol=1e-5)


def test_a_flat_difference_costs_its_size_once_and_fine_detail_costs_about_its_own():
  flat = jnp.full((1, 1, 16, 16, 3), -0.25)
  np.testing.assert_allclose(jax.jit(pyramid_error)(flat), 0.25, rtol=1e-6)
  board = jnp.asarray(np.indices((16, 16)).sum(axis=0) % 2 * 2.0 - 1.0)
  fine = jnp.broadcast_to(board[:, :, None], (1, 1, 16, 16, 3))
  bands = jax.jit(laplacian)(fine)
  # The filter is zero at the highest frequency: but at the edge, all of it is in the first band.
  np.testing.assert_allclose(np.abs(bands[0]).mean(), 1, atol=0.05)
  assert sum(float(jnp.abs(b).mean()) for b in bands[1:]) < 0.1


def test_each_example_has_its_own_error():
  x = picture(8, 8)
  error = jax.jit(pyramid_error)
  alone = [error(x[i : i + 1])[0] for i in range(2)]
  np.testing.assert_allclose(error(x), jnp.stack(alone), rtol=1e-6)
  reach = jax.jit(jax.grad(lambda x: pyramid_error(x)[0]))(x)
  np.testing.assert_array_equal(reach[1], 0)
