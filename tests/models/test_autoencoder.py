"""Laws of the KL autoencoder; tests/weights has its parity with diffusers."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding

from emu_jax.models.autoencoder import (
  Autoencoder,
  AutoencoderConfig,
  fourier_features,
  from_patches,
  in_chunks,
  kl_divergence,
  sample_posterior,
  to_patches,
)
from emu_jax.parallel.activations import shares, video_spec
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.planning import hlo

SMALL = AutoencoderConfig(channels=(8, 16), num_res_blocks=1, norm_groups=4)


def noise(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def build(config, x, seed=0):
  """The module and parameters drawn anew, so that no bias is zero and no norm scale is 1."""
  net = Autoencoder(config)
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
  rng = np.random.default_rng(seed)
  draw = lambda leaf: (0.5 + rng.random(leaf.shape)) / max(leaf.size // leaf.shape[-1], 1) ** 0.5
  sign = lambda leaf: rng.choice([-1.0, 1.0], leaf.shape)
  return net, jax.tree.map(lambda a: jnp.asarray(draw(a) * sign(a), jnp.float32), shapes)


@pytest.fixture(scope="module")
def small():
  x = noise(1, 2, 3, 8, 12, 3)
  net, params = build(SMALL, x)
  encode = jax.jit(lambda x: net.apply({"params": params}, x, method="encode"))
  decode = jax.jit(lambda z: net.apply({"params": params}, z, method="decode"))
  return x, encode, decode


# Laws


def test_a_clip_is_encoded_and_decoded_as_its_frames(small):
  x, encode, decode = small
  mean, log_var = encode(x)
  assert mean.shape == log_var.shape == (2, 3, 4, 6, 4)
  for t in range(3):
    frame_mean, frame_log_var = encode(x[:, t : t + 1])
    np.testing.assert_allclose(frame_mean, mean[:, t : t + 1], atol=1e-5)
    np.testing.assert_allclose(frame_log_var, log_var[:, t : t + 1], atol=1e-5)
    # Each call's pixels have a standard deviation near 1: rounding is some 1e-6.
    np.testing.assert_allclose(decode(mean[:, t : t + 1]), decode(mean)[:, t : t + 1], atol=1e-5)


def test_no_example_and_no_frame_sees_another(small):
  x, encode, decode = small
  reach = jax.jit(jax.grad(lambda x: decode(encode(x)[0])[0, 1].sum()))(x)
  assert np.abs(reach[0, 1]).min() > 0
  np.testing.assert_array_equal(reach[1], 0)
  np.testing.assert_array_equal(reach[0, [0, 2]], 0)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 9])  # frames at a time, of 2 times 3
def test_coding_in_chunks_equals_coding_at_once(small, size):
  """Of every number of frames; as one program, which all calls share."""
  x, encode, decode = small
  z = noise(2, 2, 3, 4, 6, 4)
  shapes = []

  def watched(z):
    shapes.append(z.shape[:2])
    return decode(z)

  np.testing.assert_allclose(in_chunks(watched, z, size), decode(z), atol=1e-5)
  assert set(shapes) == {(1, min(size, 6))}
  for part, all_at_once in zip(in_chunks(encode, x, size), encode(x), strict=True):
    np.testing.assert_allclose(part, all_at_once, atol=1e-5)


@pytest.mark.parametrize(("size", "cuts"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_chunks_of_whole_clips_are_clips_of_their_own(size, cuts):
  """The last one too, although it is shorter: its frames see no others and no filling."""
  alone = lambda z: z - z.mean(axis=1, keepdims=True)  # crosses frames, as such a decoder does
  z = noise(6, 2, 5, 2, 3, 4)
  parts = [alone(z[:, i:j]) for i, j in itertools.pairwise(cuts)]
  seen = []

  def watched(z):
    seen.append(z.shape[0])
    return alone(z)

  found = in_chunks(watched, z, size, whole_clip=True)
  np.testing.assert_allclose(found, jnp.concatenate(parts, axis=1), atol=1e-6)
  assert set(seen) == {1}  # example


@pytest.mark.parametrize("whole_clip", [False, True])
@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2), MeshConfig(data=2, frames=2)])
def test_on_a_mesh_a_device_codes_its_own_frames_a_few_at_a_time(mesh, whole_clip):
  """Every device codes its own examples and, where these are independent, its own frames."""
  mesh = make_mesh(jax.devices()[:4], mesh)
  config = dataclasses.replace(SMALL, channels=(8,), temporal_decoder=whole_clip)
  z = noise(7, 4, 4, 4, 6, 4)
  net, params = build(config, noise(1, 1, 4, 4, 6, 3))
  shapes = []

  def f(params, z):
    shapes.append(z.shape)
    return net.apply({"params": params}, z, method="decode")

  chunked = jax.jit(lambda p, z: in_chunks(lambda z: f(p, z), z, 2, whole_clip=whole_clip))
  expected = chunked(params, z)
  with jax.set_mesh(mesh):
    parts = shares(z.shape)
    placed = jax.device_put(z, NamedSharding(mesh, video_spec(mesh, z.shape, "frames")))
    compiled = chunked.lower(params, placed).compile()
    found = compiled(params, placed)
  # Pixels of a standard deviation near 1, their sums in another order.
  np.testing.assert_allclose(found, expected, atol=1e-5)
  batch, _ = parts
  assert shapes[-1][:2] == (batch, 2)
  if not whole_clip:
    exchanged = hlo.read(compiled.as_text()).exchanges
    assert not exchanged, exchanged


def temporary(config, B, T, size, method="decode"):
  """Bytes that the compiled program needs beside its arguments and its result."""
  net, side = Autoencoder(config), 32
  params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1, side, side, 3)))
  channels, side = (config.z_channels, side // config.downsample) if method == "decode" else (3, 32)
  f = lambda params, z: in_chunks(
    lambda z: net.apply(params, z, method=method), z, size, whole_clip=config.temporal_decoder
  )
  x = jax.ShapeDtypeStruct((B, T, side, side, channels), jnp.float32)
  return jax.jit(f).lower(params, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("temporal_decoder", [False, True])
def test_memory_is_that_of_the_frames_at_a_time(temporal_decoder):
  """Neither of the batch nor of the clip: what is added is as large as the result itself."""
  config = dataclasses.replace(SMALL, temporal_decoder=temporal_decoder)
  one, batch, clip = (temporary(config, B, T, 4) for B, T in ((1, 4), (4, 8), (1, 32)))
  result = 4 * 32 * 32**2 * 3  # bytes of 32 frames
  for found in (batch, clip):
    assert found < one + 2 * result, (one, found)
  assert one + 2 * result < temporary(config, 1, 32, 32) / 2  # all at once


def test_a_temporal_decoder_starts_as_the_image_decoder_and_then_sees_other_frames():
  config = dataclasses.replace(SMALL, channels=(8,), temporal_decoder=True)
  net, z = Autoencoder(config), noise(5, 2, 3, 4, 6, 4)
  params = net.init(jax.random.key(0), noise(1, 1, 1, 4, 6, 3))["params"]
  decode = jax.jit(lambda p: net.apply({"params": p}, z, method="decode"))
  image = {
    name: {k: v for k, v in tree.items() if not k.startswith("temporal_")}
    for name, tree in params.items()
  }
  frames = Autoencoder(dataclasses.replace(config, temporal_decoder=False))
  expected = jax.jit(lambda p: frames.apply({"params": p}, z, method="decode"))(image)
  np.testing.assert_array_equal(decode(params), expected)
  moved = jax.tree_util.tree_map_with_path(
    lambda path, a: a + 0.1 * ("temporal_" in jax.tree_util.keystr(path)), params
  )
  reach = jax.jit(jax.grad(lambda z: net.apply({"params": moved}, z, method="decode")[0, 1].sum()))
  assert np.abs(reach(z)[0]).max(axis=(1, 2, 3)).min() > 0
  np.testing.assert_array_equal(reach(z)[1], 0)


def test_chunks_of_no_frames_are_refused():
  with pytest.raises(ValueError, match=r"frames_at_a_time=0 must be at least 1 frame"):
    in_chunks(lambda z: z, noise(0, 1, 2, 4, 4, 4), 0)


def test_fourier_features_are_the_waves_they_claim_to_be():
  x = noise(3, 2, 1, 4, 5, 3)
  np.testing.assert_array_equal(fourier_features(x, 0), x)
  y = np.asarray(fourier_features(x, 3))
  assert y.shape[-1] == 3 + 6 * 3
  np.testing.assert_array_equal(y[..., :3], x)
  for k in range(3):
    angle = 2 * np.pi * 2**k * np.asarray(x, np.float64)
    # float32 rounds an angle of up to 100 by 4e-6.
    np.testing.assert_allclose(y[..., 3 + 6 * k : 6 + 6 * k], np.sin(angle), atol=2e-5)
    np.testing.assert_allclose(y[..., 6 + 6 * k : 9 + 6 * k], np.cos(angle), atol=2e-5)


def test_fourier_features_and_patch_widen_the_first_convolution_only():
  x = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
  shapes = lambda **c: jax.eval_shape(
    Autoencoder(dataclasses.replace(SMALL, **c)).init, jax.random.key(0), x
  )["params"]
  plain, waves, patch = shapes(), shapes(fourier_features=2), shapes(fourier_features=2, patch=2)
  kernel = lambda tree: tree["encoder"]["conv_in"]["kernel"].shape
  assert kernel(plain) == (3, 3, 3, 8)
  assert kernel(waves) == (3, 3, 3 + 12, 8)
  assert kernel(patch) == (3, 3, 4 * (3 + 12), 8)
  assert patch["decoder"]["conv_out"]["kernel"].shape == (3, 3, 8, 12)
  assert plain["decoder"] == waves["decoder"]


@pytest.mark.parametrize("patch", [1, 2])
def test_fourier_features_begin_without_effect_and_are_learned_from(patch):
  """The network at its start is the one without them; its first gradient reaches their weights."""
  x, plain = noise(6, 2, 1, 8, 8, 3), dataclasses.replace(SMALL, patch=patch)
  waves = dataclasses.replace(plain, fourier_features=2)
  nets = [Autoencoder(config) for config in (plain, waves)]
  before, after = (net.init(jax.random.key(7), x) for net in nets)
  rebuilt = [net.apply(params, x) for net, params in zip(nets, (before, after), strict=True)]
  # Sums of 27 or more products, some of them with 0, in another order.
  np.testing.assert_allclose(*rebuilt, atol=1e-5)
  gradient = jax.grad(lambda params: jnp.square(nets[1].apply(params, x) - x).mean())(after)
  kernel = gradient["params"]["encoder"]["conv_in"]["kernel"].reshape(3, 3, patch**2, 15, 8)
  assert (np.abs(kernel[:, :, :, 3:]).max(axis=(0, 1, 2, 4)) > 0).all()


def test_patches_are_blocks_of_pixels_and_go_back_to_their_places():
  x = noise(4, 2, 3, 4, 6, 3)
  patches = to_patches(x, 2)
  assert patches.shape == (2, 3, 2, 3, 12)
  np.testing.assert_array_equal(patches[1, 2, 0, 2].reshape(2, 2, 3), x[1, 2, 0:2, 4:6])
  np.testing.assert_array_equal(from_patches(patches, 2), x)


@pytest.mark.parametrize(
  ("change", "sides"),
  [
    ({}, 2),
    ({"patch": 2}, 4),
    ({"channels": (8, 8, 16), "quant_conv": False, "post_quant_conv": False}, 4),
  ],
)
def test_downsample_is_what_the_network_does(change, sides):
  config = dataclasses.replace(SMALL, **change)
  assert config.downsample == sides
  x = jax.ShapeDtypeStruct((1, 2, 16, 24, 3), jnp.float32)
  net = Autoencoder(config)
  params = jax.eval_shape(net.init, jax.random.key(0), x)
  mean, _ = jax.eval_shape(lambda p, x: net.apply(p, x, method="encode"), params, x)
  assert mean.shape == (1, 2, 16 // sides, 24 // sides, 4)
  pixels = jax.eval_shape(lambda p, z: net.apply(p, z, method="decode"), params, mean)
  assert pixels.shape == x.shape


@pytest.mark.parametrize("norm_out", [True, False])
def test_without_a_last_norm_all_but_the_residual_branches_is_linear(norm_out):
  """With those branches silenced, the sum of two pictures maps to the sum of what they map to."""
  config = dataclasses.replace(SMALL, norm_out=norm_out, mid_attention=False)
  x, y = noise(1, 1, 1, 8, 8, 3), noise(2, 1, 1, 8, 8, 3)
  net, params = build(config, x)
  silent = lambda path, a: a * 0 if "conv_2" in jax.tree_util.keystr(path) else a
  params = jax.tree_util.tree_map_with_path(silent, params)
  through = lambda x: net.apply({"params": params}, x)
  excess = through(x + y) + through(0 * x) - through(x) - through(y)
  # Without it float32 rounding remains, some 1e-6 of pixels whose spread is near 1.
  assert (float(jnp.abs(excess).max()) > 1e-2) == norm_out
  if not norm_out:
    assert float(jnp.abs(excess).max()) < 1e-4 * float(through(x).std())


def test_stable_diffusions_autoencoder_has_its_published_number_of_parameters():
  x = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
  params = jax.eval_shape(Autoencoder(AutoencoderConfig()).init, jax.random.key(0), x)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 83_653_863


def test_rematerialisation_changes_nothing_and_bfloat16_rounding_only():
  x = noise(6, 2, 1, 8, 8, 3)
  _, params = build(SMALL, x)

  def gradient(**change):
    net = Autoencoder(dataclasses.replace(SMALL, **change))
    loss = lambda p: jnp.square(net.apply({"params": p}, x) - x).mean()
    return ravel_pytree(jax.jit(jax.grad(loss))(params))[0]

  exact = gradient()
  size = np.abs(exact).max()
  np.testing.assert_allclose(gradient(remat=True), exact, rtol=0, atol=1e-5 * size)
  net = Autoencoder(dataclasses.replace(SMALL, dtype="bfloat16"))
  half = jax.jit(net.apply)({"params": params}, x)
  full = jax.jit(Autoencoder(SMALL).apply)({"params": params}, x)
  assert half.dtype == jnp.float32
  # bfloat16 rounds by 2^-9 in each of some twenty convolutions: 2^-9 * sqrt(20) = 1 %.
  assert 1e-4 < np.std(half - full) / np.std(full) < 0.05


def test_log_variance_is_clipped():
  x = noise(1, 2, 1, 4, 4, 3)
  net, params = build(SMALL, x)
  encode = jax.jit(lambda p: net.apply({"params": p}, x, method="encode"))
  for bias, expected in ((1e4, 20.0), (-1e4, -30.0)):
    params["quant"]["bias"] = jnp.full(8, bias)
    np.testing.assert_array_equal(encode(params)[1], expected)


def test_posterior_samples_have_the_moments_they_claim(key):
  mean = jnp.full((1, 1, 200, 200, 1), 1.5)
  z = sample_posterior(mean, jnp.full_like(mean, np.log(0.25)), key)
  # 40,000 draws of standard deviation 0.5: four standard errors are 0.01 and 0.007.
  assert abs(z.mean() - 1.5) < 0.01
  assert abs(z.std() - 0.5) < 0.007


def test_kl_divergence_is_the_gaussian_one():
  mean, log_var = (np.asarray(noise(seed, 2, 3, 2, 2, 4)) for seed in (7, 8))
  np.testing.assert_array_equal(kl_divergence(jnp.zeros(mean.shape), jnp.zeros(mean.shape)), 0)
  # Against its definition, E[log q - log p], by Gauss-Hermite quadrature (exact for quadratics).
  nodes, weights = np.polynomial.hermite_e.hermegauss(5)
  z = mean[..., None] + np.exp(log_var / 2)[..., None] * nodes
  gap = -0.5 * nodes**2 - log_var[..., None] / 2 + 0.5 * z**2
  expected = (gap @ weights / weights.sum()).sum(axis=(2, 3, 4)).mean(axis=1)
  mean, log_var = jnp.asarray(mean), jnp.asarray(log_var)
  np.testing.assert_allclose(kl_divergence(mean, log_var), expected, rtol=1e-5)
  frame = kl_divergence(mean[:, :1], log_var[:, :1])
  repeated = kl_divergence(mean[:, [0, 0, 0]], log_var[:, [0, 0, 0]])
  np.testing.assert_allclose(frame, repeated, rtol=1e-6)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"channels": (8, 18)}, "18 of channels=(8, 18) is not a positive multiple of norm_groups=4"),
    ({"channels": ()}, "channels=() has no level"),
    ({"z_channels": 0}, "z_channels=0 must be at least 1"),
    ({"num_res_blocks": 0}, "num_res_blocks=0"),
    ({"patch": 0}, "patch=0"),
    ({"norm_groups": 0}, "norm_groups=0"),
    ({"fourier_features": -1}, "fourier_features=-1 is negative"),
    ({"latent_scale": 0.0}, "latent_scale=0.0 must be above 0"),
  ],
)
def test_impossible_configurations_do_not_start(change, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    dataclasses.replace(SMALL, **change)


def test_impossible_inputs_are_named():
  net = Autoencoder(SMALL)
  with pytest.raises(ValueError, match=r"8x9 pixels and 3 channels.*multiples of 2"):
    net.init(jax.random.key(0), noise(0, 1, 1, 8, 9, 3))
  with pytest.raises(ValueError, match=r"8x8 pixels and 4 channels"):
    net.init(jax.random.key(0), noise(0, 1, 1, 8, 8, 4))
  with pytest.raises(ValueError, match=r"latents have 8 channels, z_channels=4"):
    net.init(jax.random.key(0), noise(0, 1, 1, 8, 8, 8), method="decode")
