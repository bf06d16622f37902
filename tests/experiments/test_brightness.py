"""Brightness by exact denoisers: the published effect's size, and a network's place in it."""

import numpy as np
import pytest
from scipy import integrate

from emu_jax.diffusion.process import Sampling
from experiments.brightness import SCHEDULES, closed_form, cut_off_mean, gaussian, uniform

SD, ZERO = SCHEDULES["SD, v"], SCHEDULES["zero SNR, v"]

# Numbers -> closed form and 250 trailing steps of SD's schedule, and those of zero SNR; computed
# once in double precision by another program.
TABLE = {
  64: (0.956, 0.952, 0.993),
  1024: (0.622, 0.621, 0.983),
  3072: (0.416, 0.416, 0.974),
  24576: (0.160, 0.160, 0.935),
}


@pytest.mark.parametrize("numbers", TABLE)
def test_ddim_keeps_as_much_brightness_as_the_schedule_lets_it(numbers):
  steps = Sampling(num_steps=250)
  found = closed_form(SD, numbers), gaussian(SD, numbers, steps), gaussian(ZERO, numbers, steps)
  np.testing.assert_allclose(found, TABLE[numbers], atol=1e-3)


def test_eps_and_v_are_one_denoiser():
  steps = Sampling(num_steps=50)
  np.testing.assert_allclose(
    gaussian(SCHEDULES["SD, eps"], 3072, steps), gaussian(SD, 3072, steps), rtol=1e-4
  )


@pytest.mark.parametrize("y", [-2.0, -0.3, 0.0, 0.31, 5.0])
def test_the_mean_of_a_cut_off_normal(y):
  alpha, noise = 0.4, 0.1
  density = lambda b: np.exp(-0.5 * ((y - alpha * b) ** 2 - (abs(y) - alpha) ** 2) / noise**2)
  if abs(y) < alpha:
    density = lambda b: np.exp(-0.5 * ((y - alpha * b) / noise) ** 2)
  mass, moment = (
    integrate.quad(f, -1, 1, epsabs=1e-300, epsrel=1e-8, limit=200)[0]
    for f in (density, lambda b: b * density(b))
  )
  np.testing.assert_allclose(cut_off_mean(np.array([y]), alpha, noise)[0], moment / mass, atol=1e-8)


def test_uniform_brightness_comes_back_where_nothing_leaks():
  steps = Sampling(num_steps=1000)
  assert uniform(ZERO, 3072, steps) == pytest.approx(1, abs=0.02)
  # Pure noise lies within the flat middle of what the picture leaves: 1 / sqrt(abar N) of it.
  abar = SD.alphas_cumprod[-1]
  assert uniform(SD, 24576, steps) == pytest.approx(np.sqrt(3 / (abar * 24576)), rel=0.02)
