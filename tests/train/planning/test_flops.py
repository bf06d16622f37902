"""Counted arithmetic against the formulas of each operation."""

import jax
import jax.numpy as jnp

from train.planning.flops import count


def test_a_product_and_its_gradients():
  x, w = jnp.zeros((6, 3, 4)), jnp.zeros((4, 5))
  product = 2 * 6 * 3 * 4 * 5
  assert count(jnp.matmul, x, w) == product
  loss = lambda w, x: (x @ w).sum()
  assert count(jax.grad(loss, argnums=(0, 1)), w, x) == 3 * product


def test_a_convolution_by_its_taps():
  x, k = jnp.zeros((2, 8, 10, 3)), jnp.zeros((3, 3, 3, 7))
  conv = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert count(conv, x, k) == 2 * (2 * 4 * 5 * 7) * (3 * 3 * 3)


def test_a_scan_counts_each_round_and_recomputation_counts_again():
  w = jnp.zeros((4, 4))

  def f(w, x):
    return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=7)[0].sum()

  assert count(f, w, w) == 7 * 2 * 4**3
  layers = lambda w, x: jnp.sin(jnp.sin(x @ w) @ w).sum()
  plain = count(jax.grad(layers), w, w)
  assert count(jax.grad(jax.checkpoint(layers)), w, w) > plain
