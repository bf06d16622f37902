"""Laws of attention in pieces and of dense layers that are cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from emu_jax.models import attention
from emu_jax.models.attention import Products, attend


@pytest.fixture
def in_pieces(monkeypatch):
  """Attention that goes in pieces at sizes of a test."""
  monkeypatch.setattr(attention, "LONG", 8)
  monkeypatch.setattr(attention, "PIECE", 40)


def draw(*shape):
  return jax.random.normal(jax.random.key(sum(shape)), shape)


def largest(jaxpr) -> int:
  """Elements of the largest array that a program makes, inside its loops too."""
  sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
  for eqn in jaxpr.eqns:
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(value):
        sizes.append(largest(getattr(value, "jaxpr", value)))
  return max(sizes, default=0)


def _is_jaxpr(value) -> bool:
  return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


@pytest.mark.parametrize(("Q", "L"), [(24, 10), (10, 24), (11, 50), (4, 24)])
def test_attention_in_pieces_is_attention(in_pieces, Q, L):
  """Of lengths that divide, that do not, and of one too short for pieces; gradients too."""
  q, k, v = draw(2, Q, 3, 5), draw(2, L, 3, 5), draw(2, L, 3, 5)

  def by_definition(q, k, v):
    logits = jnp.einsum("nqhd,nlhd->nhql", q, k) / np.sqrt(5)
    return jnp.einsum("nhql,nlhd->nqhd", jax.nn.softmax(logits, axis=-1), v)

  found, back = jax.vjp(attend, q, k, v)
  wanted, oracle = jax.vjp(by_definition, q, k, v)
  np.testing.assert_allclose(found, wanted, atol=2e-6)
  for ours, theirs in zip(back(found), oracle(found), strict=True):
    # Sums of up to 50 terms of up to 3, in another order: 50 * 3 * 2**-24.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_attention_in_pieces_never_holds_all_logits(in_pieces):
  """Nor those of one head: neither forwards nor, kept for it, backwards."""
  q, k = draw(2, 40, 3, 4), draw(2, 50, 3, 4)
  gradient = jax.make_jaxpr(jax.grad(lambda q, k: (attend(q, k, k) ** 2).sum(), argnums=(0, 1)))
  assert largest(gradient(q, k).jaxpr) <= 2 * 50 * 3 * 4  # k itself; one head's logits are 4000


def test_cut_products_are_a_dense_layers_features():
  x, layer = draw(3, 7, 4), Products(5, 2)
  params = layer.init(jax.random.key(0), x)
  params = jax.tree.map(lambda a: a + draw(*a.shape), params)
  whole = nn.Dense(10).apply(params, x)
  for i, part in enumerate(layer.apply(params, x)):
    np.testing.assert_allclose(part, whole[..., 5 * i : 5 * i + 5], atol=2e-6)
