"""Pictures in strips: the result of whole pictures, in less memory."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models import strips
from emu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from emu_jax.models.strips import Strips

VIDEO = AutoencoderConfig((8, 16), num_res_blocks=1, norm_groups=4, temporal_decoder=True)
ODD = AutoencoderConfig(
  (8, 16), num_res_blocks=1, norm_groups=4, patch=2, norm_out=False, fourier_features=1
)


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def redrawn(net, x):
  """Parameters of which none is zero and no norm scale is 1."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
  rng = np.random.default_rng(0)
  noise = lambda a: rng.standard_normal(a.shape) / max(1, a.size // a.shape[-1]) ** 0.5
  return jax.tree.map(lambda a: jnp.asarray(noise(a) + 0.5 * (a.ndim == 1), jnp.float32), shapes)


@pytest.fixture(scope="module", params=[VIDEO, ODD], ids=["temporal decoder", "our own options"])
def coded(request):
  """A function of rows in a strip, of 7x5 latents: their encoding, and decoding."""
  config = request.param
  x = draw(1, 2, 3, 7 * config.downsample, 5 * config.downsample, 3)
  z = draw(2, 2, 3, 7, 5, config.z_channels)
  params = redrawn(Autoencoder(config), x)

  def run(rows):
    net = Autoencoder(dataclasses.replace(config, strip=rows))

    def both(params):
      encoded = net.apply({"params": params}, x, method="encode")
      return *encoded, net.apply({"params": params}, z, method="decode")

    return jax.jit(both)(params)

  return run, run(0)


@pytest.mark.parametrize("rows", [3, 8])  # neither divides 7 or 14; 8 leaves the middle whole
def test_strips_equal_whole_pictures(coded, rows):
  run, expected = coded
  for ours, theirs in zip(run(rows), expected, strict=True):
    # Sums in another order: 2^-24 a layer, some twenty layers deep.
    assert float(jnp.abs(ours - theirs).max() / theirs.std()) < 1e-5


def test_pictures_of_few_rows_are_left_whole(coded):
  run, expected = coded
  jax.tree.map(np.testing.assert_array_equal, run(100), expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("layer", [strips.convolve, strips.halve, strips.double])
def test_each_layer_reads_the_rows_that_it_needs(layer, rows):
  """Exact: sums of small whole numbers have no rounding."""

  class One(nn.Module):
    @nn.compact
    def __call__(self, x):
      stride = 2 if layer is strips.halve else 1
      padding = ((0, 1), (0, 1)) if layer is strips.halve else ((1, 1), (1, 1))
      return strips.whole(layer(nn.Conv(2, (3, 3), stride, padding=padding), x))

  x = jnp.round(4 * draw(3, 2, 1, 6, 4, 3))
  kernel = {"kernel": jnp.round(3 * draw(4, 3, 3, 3, 2)), "bias": jnp.ones(2)}
  apply = lambda x: One().apply({"params": {"Conv_0": kernel}}, x)
  np.testing.assert_array_equal(apply(Strips.of(x, rows)), apply(x))


@pytest.mark.parametrize("over_frames", [True, False])
def test_moments_are_those_of_all_rows_once_and_lose_no_digits(over_frames):
  x = 1000 + draw(5, 2, 3, 7, 5, 8)  # a mean of squares would keep none of the variance
  groups = np.asarray(x, np.float64).reshape(2, 3, 7, 5, 4, 2)
  axes = (1, 2, 3, 5) if over_frames else (2, 3, 5)
  mean, variance = strips.moments(Strips.of(x, 3), 4, over_frames)
  np.testing.assert_allclose(mean, groups.mean(axes, keepdims=True), rtol=1e-6)
  np.testing.assert_allclose(variance, groups.var(axes, keepdims=True), rtol=1e-4)


def test_strips_take_less_memory():
  """As the compiler counts it; the figures of Stable Diffusion's width are in strips.py."""
  config = AutoencoderConfig((32, 64), num_res_blocks=1)
  shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  params = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), shape(1, 1, 64, 64, 3))

  def temporary(method, rows, x):
    net = Autoencoder(dataclasses.replace(config, strip=rows))
    program = jax.jit(lambda params, x: net.apply(params, x, method=method))
    return program.lower(params, x).compile().memory_analysis().temp_size_in_bytes

  for method, x in (("decode", shape(1, 1, 64, 64, 4)), ("encode", shape(1, 1, 128, 128, 3))):
    assert temporary(method, 8, x) < 0.6 * temporary(method, 0, x), method


def test_parameters_of_a_network_in_strips_are_made_as_ever():
  x = draw(1, 1, 1, 8, 8, 3)
  shapes = [
    jax.eval_shape(Autoencoder(dataclasses.replace(VIDEO, strip=rows)).init, jax.random.key(0), x)
    for rows in (0, 2)
  ]
  assert shapes[0] == shapes[1]
