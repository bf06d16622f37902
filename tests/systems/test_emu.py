"""Laws of the adversarial autoencoder's objective."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.autoencoder import Autoencoder, kl_divergence, sample_posterior
from emu_jax.models.discriminator import (
  PatchDiscriminator,
  PatchDiscriminatorConfig,
  feature_distance,
  hinge_discriminator,
)
from emu_jax.systems.autoencoder import (
  AutoencoderObjective,
  adaptive_weight,
  autoencoder_loss,
  reconstruction_error,
)
from emu_jax.systems.pyramid import pyramid_error
from tests.tiny import MODEL

CONFIG = MODEL.image.first_stage.config
OBJECTIVE = AutoencoderObjective(
  adversarial_start=10,
  discriminator=PatchDiscriminatorConfig(width=8, num_layers=1, norm_groups=4),
)
IMAGE = dataclasses.replace(MODEL.image, objective=OBJECTIVE)
ALONE = dataclasses.replace(OBJECTIVE, adversarial_weight=0.0)
MATCHING = dataclasses.replace(ALONE, matching_weight=2.0)


@pytest.fixture(scope="module")
def case():
  table = IMAGE.trees()
  names = ("autoencoder", "discriminator")
  keys = zip(names, jax.random.split(jax.random.key(0)), strict=True)
  frames = jax.random.uniform(jax.random.key(1), (2, 1, 16, 16, 3), minval=-1)
  return {name: jax.jit(table[name].init)(key) for name, key in keys}, frames


@pytest.fixture(scope="module")
def gradients(case):
  """Gradients of the summed losses: of both trees, before and after the adversaries begin."""
  trees, frames = case

  @partial(jax.jit, static_argnums=0)
  def gradient(objective, step):
    total = lambda t: autoencoder_loss(CONFIG, objective, t, frames, jax.random.key(2), step)[
      0
    ].sum()
    return jax.grad(total)(trees)

  steps = {"before": jnp.array(9), "after": jnp.array(10)}
  found = {name: gradient(OBJECTIVE, step) for name, step in steps.items()}
  return found | {
    "alone": gradient(ALONE, steps["after"]),
    "matching": gradient(MATCHING, steps["before"]),
  }


@jax.jit
def coded(trees, frames):
  """Mean, log-variance and decoded sample, with the noise of the losses' key."""
  net, params = Autoencoder(CONFIG), {"params": trees["autoencoder"]}
  mean, log_var = net.apply(params, frames, method="encode")
  z = sample_posterior(mean, log_var, jax.random.key(2))
  return mean, log_var, net.apply(params, z, method="decode")


def assert_close(a, b):
  # Sums of some 10^4 float32 terms in another order.
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6), a, b)


def largest(tree):
  return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_before_its_start_no_adversary_changes_anything(gradients):
  assert largest(gradients["before"]["discriminator"]) == 0
  assert_close(gradients["before"]["autoencoder"], gradients["alone"]["autoencoder"])


def test_from_its_start_on_the_adversary_moves_the_autoencoder(gradients):
  assert_apart(gradients["after"], gradients["alone"])


def test_matching_features_moves_the_autoencoder_alone_and_needs_no_adversary(gradients):
  assert_apart(gradients["matching"], gradients["alone"])
  assert largest(gradients["matching"]["discriminator"]) == 0


def assert_apart(one, other):
  a, b = one["autoencoder"], other["autoencoder"]
  assert max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b))) > 1e-4


def test_the_discriminator_learns_from_its_own_loss_alone(case, gradients):
  """Its gradient in the sum of all losses is that of the hinge loss: the generator adds nothing."""
  trees, frames = case
  _, _, decoded = coded(trees, frames)
  critic = PatchDiscriminator(OBJECTIVE.discriminator)

  def hinge(params):
    real, fake = (critic.apply({"params": params}, x) for x in (frames, decoded))
    return hinge_discriminator(real, fake).sum()

  expected = jax.jit(jax.grad(hinge))(trees["discriminator"])
  assert largest(expected) > 1e-3
  assert_close(gradients["after"]["discriminator"], expected)


def test_the_adaptive_weight_makes_both_gradients_equally_long(key):
  frames, decoded = jax.random.normal(key, (2, 3, 1, 4, 4, 3))
  error = lambda x: reconstruction_error(x, frames, 2.0)
  adversary = lambda x: 0.01 * jnp.sin(x).sum(axis=(1, 2, 3, 4))
  weight = adaptive_weight(decoded, error, adversary)
  length = lambda f: jnp.sqrt(
    jnp.square(jax.grad(lambda x: f(x).sum())(decoded)).sum(axis=(1, 2, 3, 4))
  )
  # 1e-6 in the denominator against a gradient of 0.01 * sqrt(24).
  np.testing.assert_allclose(weight * length(adversary), length(error), rtol=1e-4)


def test_the_reconstruction_error_is_the_sum_of_its_two_parts():
  decoded, frames = jnp.full((1, 1, 2, 2, 3), 0.5), jnp.zeros((1, 1, 2, 2, 3))
  np.testing.assert_allclose(reconstruction_error(decoded, frames, 2.0), 0.5 + 2 * 0.25)


def test_each_weight_adds_its_own_loss_and_nothing_else(case):
  trees, frames = case

  @partial(jax.jit, static_argnums=0)
  def losses(objective):
    key, step = jax.random.key(2), jnp.array(0)
    return autoencoder_loss(CONFIG, objective, trees, frames, key, step)[0]

  mean, log_var, decoded = coded(trees, frames)
  critic = PatchDiscriminator(OBJECTIVE.discriminator)
  layers = lambda x: critic.apply({"params": trees["discriminator"]}, x, method="layers")
  parts = {
    "squared_weight": jnp.square(decoded - frames).mean(axis=(1, 2, 3, 4)),
    # In nats, beside an error that is a mean over 16 * 16 * 3 values.
    "kl_weight": kl_divergence(mean, log_var) / (16 * 16 * 3),
    "pyramid_weight": pyramid_error(decoded - frames),
    "matching_weight": feature_distance(layers(frames), layers(decoded)),
  }
  weights = dict(zip(parts, (3.0, 5.0, 7.0, 11.0), strict=True))
  expected = jnp.abs(decoded - frames).mean(axis=(1, 2, 3, 4))
  base = dataclasses.replace(ALONE, **dict.fromkeys(parts, 0.0))
  np.testing.assert_allclose(losses(base), expected, rtol=1e-5)
  for name, part in parts.items():
    assert float(part.min()) > 1e-3
    expected += weights[name] * part
  np.testing.assert_allclose(losses(dataclasses.replace(base, **weights)), expected, rtol=1e-5)


def test_a_discriminator_that_no_loss_needs_is_not_read():
  part = lambda objective: dataclasses.replace(IMAGE, objective=objective).parts()["autoencoder"]
  assert set(part(ALONE).reads) == {"autoencoder"}
  assert set(part(OBJECTIVE).reads) == set(part(MATCHING).reads) == {"autoencoder", "discriminator"}


def test_the_part_is_the_loss_on_uint8_frames_with_the_systems_objective(case):
  trees, frames = case
  uint8_frames = ((frames + 1) * 127.5).astype(jnp.uint8)
  part, step = IMAGE.parts()["autoencoder"], jnp.array(10)
  losses, metrics = jax.jit(part.loss)(trees, {"frames": uint8_frames}, jax.random.key(2), step)
  pixels = uint8_frames.astype(jnp.float32) / 127.5 - 1
  expected, _ = autoencoder_loss(CONFIG, OBJECTIVE, trees, pixels, jax.random.key(2), step)
  np.testing.assert_allclose(losses, expected, rtol=1e-4)
  assert {"psnr", "generator", "discriminator"} <= set(metrics)
  drawn = part.samples(trees, {"frames": uint8_frames}, {}, jax.random.key(3))["reconstruction"]
  np.testing.assert_array_equal(drawn[..., :16, :], pixels)


def test_negative_weights_are_refused():
  with pytest.raises(ValueError, match=r"matching_weight=-1\.0 is negative; 0 = off"):
    AutoencoderObjective(matching_weight=-1.0)
