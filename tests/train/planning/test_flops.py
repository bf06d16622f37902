"""Counted arithmetic against the formulas of each operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from emu_jax.train.planning.flops import count, without_recomputation


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


def test_recomputation_can_be_left_out_wherever_it_stands():
  """In loops, inside one another and inside functions; the numbers stay."""
  x, w = jnp.linspace(0, 1, 12).reshape(3, 4), jnp.linspace(-1, 1, 16).reshape(4, 4)

  def net(checkpoint, w, x):
    layer = checkpoint(lambda w, h: jax.nn.silu(jnp.sin(h @ w) @ w))
    twice = checkpoint(jax.jit(lambda w, h: layer(w, layer(w, h))))
    branch = lambda h: jax.lax.cond(h.sum() > 0, lambda h: layer(w, h), lambda h: h, h)
    return jax.lax.scan(lambda h, _: (branch(twice(w, h)), None), x, None, length=3)[0].sum()

  with_checkpoints, plain = (functools.partial(net, c) for c in (jax.checkpoint, lambda f: f))
  kept = core.jaxpr_as_fun(without_recomputation(jax.make_jaxpr(with_checkpoints)(w, x)))
  found = jax.value_and_grad(lambda w, x: kept(w, x)[0])
  wanted = jax.value_and_grad(plain)
  assert count(jax.grad(with_checkpoints), w, x) > count(jax.grad(plain), w, x)
  assert count(found, w, x) == count(wanted, w, x)
  for ours, theirs in zip(jax.tree.leaves(found(w, x)), jax.tree.leaves(wanted(w, x)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
