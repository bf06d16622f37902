"""Laws of layers in pieces, of dense layers that are cut, and of norms and activations."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models import attention
from emu_jax.models.attention import GroupNorm, Products, TransformerLayer, gelu
from tests.models.jaxprs import largest


def draw(*shape):
  return jax.random.normal(jax.random.key(sum(shape)), shape)


def test_cut_products_are_a_dense_layers_features():
  x, layer = draw(3, 7, 4), Products(5, 2)
  params = layer.init(jax.random.key(0), x)
  params = jax.tree.map(lambda a: a + draw(*a.shape), params)
  whole = nn.Dense(10).apply(params, x)
  for i, part in enumerate(layer.apply(params, x)):
    np.testing.assert_allclose(part, whole[..., 5 * i : 5 * i + 5], atol=2e-6)


@pytest.mark.parametrize("mean", [0, 10, 1000])
@pytest.mark.parametrize("whole_clip", [False, True])
def test_group_norm_is_its_definition_whatever_the_mean(mean, whole_clip):
  """Against float64; the mean of squares alone would be off by 0.05 at a mean of 1000."""
  x = draw(2, 3, 8, 8, 12) + mean
  params = {"group": {"scale": 1 + draw(12), "bias": draw(12)}}
  found = GroupNorm(3, whole_clip=whole_clip).apply({"params": params}, x)
  groups = np.asarray(x, np.float64).reshape(2, 3, 8, 8, 3, 4)
  axes = (1, 2, 3, 5) if whole_clip else (2, 3, 5)
  centred = groups - groups.mean(axes, keepdims=True)
  normal = centred / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
  scale, bias = (np.asarray(params["group"][name], np.float64) for name in ("scale", "bias"))
  # Values of up to 4, scaled by up to 4, each rounded a few times: 16 * 5 * 2**-24.
  np.testing.assert_allclose(found, normal.reshape(x.shape) * scale + bias, atol=5e-6)


def test_group_norm_has_the_gradient_of_flax():
  """Flax takes the mean first and then the deviations from it."""
  x, cotangent = draw(2, 1, 8, 8, 12) + 3, draw(2, 1, 8, 8, 12)
  params = {"scale": 1 + draw(12), "bias": draw(12)}
  theirs = nn.GroupNorm(3, epsilon=1e-5, use_fast_variance=False)  # of one frame, so the same
  of = lambda norm, tree: jax.vjp(lambda p, x: norm.apply({"params": p}, x), tree, x)[1](cotangent)
  (found, at_x), (wanted, wanted_at_x) = of(GroupNorm(3), {"group": params}), of(theirs, params)
  np.testing.assert_allclose(at_x, wanted_at_x, atol=5e-6)
  for name in params:  # sums of 128 products of up to 12
    np.testing.assert_allclose(found["group"][name], wanted[name], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_the_normal_distribution_times_its_argument(dtype):
  x = jnp.linspace(-6, 6, 97).astype(dtype)
  wide = [float(value) for value in x]
  wanted = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in wide]
  assert gelu(x).dtype == dtype
  # 1 + erf is good to 2**-24 at -6, where it is 2e-9; then half a unit of the dtype.
  rounding = 2.0**-8 if dtype == "bfloat16" else 2.0**-22
  np.testing.assert_allclose(np.asarray(gelu(x), np.float64), wanted, atol=1e-6, rtol=rounding)


class Parts(nn.Module):
  """A transformer layer over the frames of B examples, or over their pixels with a text."""

  @nn.compact
  def __call__(self, x, context=None):
    layer = TransformerLayer(2, 4, name="layer")
    return attention.in_pieces(layer, x, 3, context, None)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("sequences", [8, 7])
def test_a_layer_in_pieces_is_the_layer(text, sequences, monkeypatch):
  """Of examples whose sequences divide and of ones that go one by one; gradients too."""
  x, context = draw(3 * sequences, 5, 8), draw(3, 6, 4) if text else None
  params = Parts().init(jax.random.key(0), x, context)
  of = lambda: jax.vjp(lambda p, x: Parts().apply(p, x, context), params, x)
  whole, back = of()
  monkeypatch.setattr(attention, "TOKENS", 10)  # two sequences
  assert jax.tree.map(jnp.shape, Parts().init(jax.random.key(0), x, context)) == jax.tree.map(
    jnp.shape, params
  )
  found, back_of_pieces = of()
  np.testing.assert_allclose(found, whole, atol=2e-6)
  for ours, theirs in zip(*map(jax.tree.leaves, (back_of_pieces(x), back(x))), strict=True):
    # Sums of 120 tokens in another order: relative to the largest, 120 * 2**-24.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, abs(theirs).max()))


def test_a_layer_in_pieces_never_holds_all_of_its_inside(monkeypatch):
  monkeypatch.setattr(attention, "TOKENS", 10)
  x = draw(3 * 8, 5, 8)
  params = Parts().init(jax.random.key(0), x)
  gradient = jax.make_jaxpr(jax.grad(lambda p, x: (Parts().apply(p, x) ** 2).sum(), argnums=1))
  # The network inside is 4 * 8 wide, for a quarter of the 24 sequences; x itself is as large.
  assert largest(gradient(params, x).jaxpr) <= 24 * 5 * 8
