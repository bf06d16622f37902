"""The patch discriminator and its hinge losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.discriminator import (
  PatchDiscriminator,
  PatchDiscriminatorConfig,
  feature_distance,
  hinge_discriminator,
  hinge_generator,
)

SMALL = PatchDiscriminatorConfig(width=4, num_layers=2, norm_groups=2)


def noise(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def small():
  """Frames and the network as a function of them, every parameter drawn anew."""
  x = noise(1, 2, 3, 14, 20, 3)
  net = PatchDiscriminator(SMALL)
  rng = np.random.default_rng(0)
  draw = lambda a: jnp.asarray(0.3 + 0.5 * rng.standard_normal(a.shape), jnp.float32)
  params = jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0), x)["params"])
  return x, params, jax.jit(lambda x: net.apply({"params": params}, x))


def test_a_clip_is_judged_as_its_frames(small):
  x, _, logits = small
  whole = logits(x)
  # Two halvings, then two convolutions that take a pixel each: 14 -> 3 -> 1 and 20 -> 5 -> 3.
  assert whole.shape == (2, 3, 1, 3, 1)
  assert whole.dtype == jnp.float32
  for t in range(3):
    np.testing.assert_allclose(logits(x[:, t : t + 1]), whole[:, t : t + 1], rtol=1e-4, atol=1e-4)


def test_no_example_and_no_frame_sees_another(small):
  x, _, logits = small
  reach = jax.jit(jax.grad(lambda x: logits(x)[0, 1].sum()))(x)
  assert np.abs(reach[0, 1]).max() > 0
  np.testing.assert_array_equal(reach[1], 0)
  np.testing.assert_array_equal(reach[0, [0, 2]], 0)


def test_published_discriminator_has_its_number_of_parameters():
  x = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), jnp.float32)
  net = PatchDiscriminator(PatchDiscriminatorConfig())
  params = jax.eval_shape(net.init, jax.random.key(0), x)
  convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
  biases, norms = 64 + 1, 2 * (128 + 256 + 512)
  assert sum(a.size for a in jax.tree.leaves(params)) == convolutions + biases + norms == 2_765_633


def test_equals_the_same_layers_in_torch(small):
  torch = pytest.importorskip("torch", reason="parity needs the extra 'reference': torch")
  x, params, logits = small
  convs = [
    torch.nn.Conv2d(3, 4, 4, 2, 1),
    torch.nn.Conv2d(4, 8, 4, 2, 1, bias=False),
    torch.nn.Conv2d(8, 16, 4, 1, 1, bias=False),
    torch.nn.Conv2d(16, 1, 4, 1, 1),
  ]
  norms = [torch.nn.GroupNorm(2, 8), torch.nn.GroupNorm(2, 16)]
  tensor = lambda a: torch.nn.Parameter(torch.from_numpy(np.array(a)))
  for conv, name in zip(convs, ("conv_in", "conv_1", "conv_2", "conv_out"), strict=True):
    conv.weight = tensor(params[name]["kernel"].transpose(3, 2, 0, 1))
    if "bias" in params[name]:
      conv.bias = tensor(params[name]["bias"])
  for norm, name in zip(norms, ("norm_1", "norm_2"), strict=True):
    norm.weight = tensor(params[name]["group"]["scale"])
    norm.bias = tensor(params[name]["group"]["bias"])
  leak = torch.nn.LeakyReLU(0.2)
  oracle = torch.nn.Sequential(
    convs[0], leak, convs[1], norms[0], leak, convs[2], norms[1], leak, convs[3]
  )
  frames = torch.from_numpy(np.array(x.reshape(6, 14, 20, 3).transpose(0, 3, 1, 2)))
  expected = oracle(frames).detach().numpy().transpose(0, 2, 3, 1).reshape(2, 3, 1, 3, 1)
  np.testing.assert_allclose(logits(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_hinge_losses_at_hand_made_logits():
  patches = lambda *rows: jnp.asarray(rows, jnp.float32).reshape(len(rows), 1, 1, 2, 1)
  real, fake = patches((2.0, 0.5), (-1.0, 1.0)), patches((-3.0, 0.0), (1.0, -1.0))
  # First example: (0 + 0.5) / 2 and (0 + 1) / 2; second: (2 + 0) / 2 and (2 + 0) / 2; halved sums.
  np.testing.assert_allclose(hinge_discriminator(real, fake), [0.375, 1.0])
  np.testing.assert_allclose(hinge_generator(fake), [1.5, 0.0])


def test_the_two_losses_pull_generated_patches_apart():
  logits = 0.5 * noise(2, 3, 2, 4, 5, 1).clip(-1, 1)
  down = jax.grad(lambda fake: hinge_discriminator(logits, fake).sum())(logits)
  up = jax.grad(lambda fake: hinge_generator(fake).sum())(logits)
  real = jax.grad(lambda real: hinge_discriminator(real, logits).sum())(logits)
  assert (down > 0).all()  # descending lowers the logits of generated patches,
  assert (up < 0).all()  # raises them,
  assert (real < 0).all()  # and raises those of real ones
  certain = jax.grad(lambda fake: hinge_discriminator(fake + 10, fake - 10).sum())(logits)
  np.testing.assert_array_equal(certain, 0)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"norm_groups": 3}, r"2 \* width=8 channels are not a multiple of norm_groups=3"),
    ({"num_layers": 0}, r"num_layers=0 must be at least 1"),
    ({"width": 0}, r"width=0 must be at least 1"),
  ],
)
def test_impossible_configurations_do_not_start(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_frames_too_small_for_a_patch_are_refused(num_layers):
  config = dataclasses.replace(SMALL, num_layers=num_layers)
  net = PatchDiscriminator(config)
  side = config.min_size
  shape = lambda H: jax.ShapeDtypeStruct((1, 1, H, 64, 3), jnp.float32)
  logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), shape(side))
  assert logits.shape[2] == 1
  with pytest.raises(ValueError, match=rf"{side - 1}x64 pixels leave no patch.*{side} pixels"):
    jax.eval_shape(net.init, jax.random.key(0), shape(side - 1))


def test_features_are_every_layer_before_the_logits_and_their_distance_is_of_means():
  net, x = PatchDiscriminator(SMALL), noise(2, 1, 1, 14, 14, 3)
  params = net.init(jax.random.key(0), x)
  layers = net.apply(params, x, method="layers")
  assert [a.shape for a in layers] == [
    (1, 1, 7, 7, 4), (1, 1, 3, 3, 8), (1, 1, 2, 2, 16), (1, 1, 1, 1, 1)
  ]  # fmt: skip
  np.testing.assert_array_equal(layers[-1], net.apply(params, x))
  # The layers' mean differences are 1, 2 and 3; the logits' does not count.
  other = [a - i - 1 for i, a in enumerate(layers)]
  np.testing.assert_allclose(feature_distance(layers, other), 2.0, rtol=1e-6)
  np.testing.assert_array_equal(feature_distance(layers, layers), 0)
