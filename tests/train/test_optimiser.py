"""Laws of the learning rate, of AdamW and of the moving average."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.errors import InputError
from emu_jax.train.optimiser import OptimConfig, ema_decay, learning_rate, optimiser


def test_warmup_is_linear_and_ends_at_the_peak():
  config = OptimConfig(peak_lr=0.5, warmup_steps=4)
  rates = [float(learning_rate(config, 100, step)) for step in range(6)]
  assert rates == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_no_warmup_starts_at_the_peak():
  assert float(learning_rate(OptimConfig(peak_lr=0.5, warmup_steps=0), 10, 0)) == 0.5


def test_cosine_is_half_at_its_middle_and_nothing_at_the_end():
  config = OptimConfig(peak_lr=1.0, warmup_steps=10, decay="cosine")
  rates = [float(learning_rate(config, 110, step)) for step in (10, 60, 110, 200)]
  np.testing.assert_allclose(rates, [1.0, 0.5, 0.0, 0.0], atol=1e-7)


def test_clipping_bounds_the_norm_of_each_tree():
  # Adam divides the scale of the first gradient out; its first moment, (1 - b1) g, keeps it.
  grads = {
    "small": {"a": jnp.full(4, 0.25)},
    "large": {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)},
  }
  for clip, want in ((2.0, (0.5, 2.0)), (0.0, (0.5, 50.0)), (1e6, (0.5, 50.0))):
    tx = optimiser(OptimConfig(clip_norm=clip, betas=(0.0, 0.999)))
    _, state = tx.update(grads, tx.init(grads), grads)
    norms = [optax.tree.norm(state[1].mu[name]) for name in ("small", "large")]
    np.testing.assert_allclose(norms, want, rtol=1e-6)


def test_first_direction_is_the_sign_of_the_gradient_plus_decay_of_kernels():
  # Adam's first step is g / |g|; weight decay adds 0.1 of a kernel and nothing of a bias.
  tx = optimiser(OptimConfig(weight_decay=0.1, clip_norm=0.0, eps=1e-12))
  params = {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([5.0])}
  grads = {"kernel": jnp.array([[0.5, 4.0]]), "bias": jnp.array([-7.0])}
  direction, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(direction["kernel"], [[1 + 0.2, 1 - 0.3]], rtol=1e-5)
  np.testing.assert_allclose(direction["bias"], [-1.0], rtol=1e-5)


def test_average_is_short_at_first():
  config = OptimConfig(ema_decay=0.99)
  np.testing.assert_allclose([ema_decay(config, s) for s in (0, 8, 10_000)], [0.1, 0.5, 0.99])


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"peak_lr": -1.0}, "peak_lr=-1.0 is negative"),
    ({"accumulate": 0}, "accumulate=0 is below 1"),
    ({"ema_decay": 1.0}, "ema_decay=1.0 is outside"),
    ({"betas": (0.9, 1.5)}, "betas=1.5 is outside"),
  ],
)
def test_impossible_values_are_refused(fields, words):
  with pytest.raises(InputError, match=words):
    OptimConfig(**fields)
