"""Laws of what stands between pixels and diffused videos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.systems.first_stage import (
  FirstStage,
  KlAutoencoder,
  Pixels,
  Posterior,
  latent_shape,
  latent_statistics,
  pixels_or_posterior,
  to_bytes,
)
from tests.tiny import MODEL, trees

STAGE = MODEL.image.first_stage
WIDE = (16, 24)  # height and width


@pytest.fixture(scope="module")
def model():
  return trees()


def clips(seed, B, T, size=WIDE):
  """uint8 frames that are neither noise nor flat: a gradient of each clip's own colours."""
  rng = np.random.default_rng(seed)
  ends = rng.uniform(0, 255, (B, T, 2, 1, 1, 3))
  along = np.linspace(0, 1, size[0]).reshape(-1, 1, 1) * np.ones((1, size[1], 1))
  frames = ends[:, :, 0] * (1 - along) + ends[:, :, 1] * along
  return np.round(frames).astype(np.uint8)


def measured(model, *batches):
  """The statistics of clips, measured as before training."""
  measure = STAGE.measures()["latents"]
  one = jax.jit(measure.one)
  return measure.all([jax.device_get(one(model, {"frames": batch})) for batch in batches])


@pytest.mark.parametrize("stage", [STAGE, Pixels()])
def test_both_stages_keep_the_protocol(stage):
  assert isinstance(stage, FirstStage)
  shape = latent_shape(stage, 2, 3, WIDE)
  assert shape == (2, 3, 16 // stage.downsample, 24 // stage.downsample, stage.channels)


@pytest.mark.parametrize("size", [(16, 22), (18, 24)])
def test_sides_that_are_no_multiple_are_refused_with_both_numbers(size):
  with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels; both .* multiples of 4"):
    latent_shape(STAGE, 1, 1, size)


def test_statistics_of_batches_are_those_of_all_at_once(model):
  """Batches whose means differ: the spread between them is part of the whole's."""
  frames = np.concatenate([clips(0, 4, 2), 255 - clips(1, 4, 2) // 8, clips(2, 4, 2) // 8])
  together = measured(model, frames)
  in_batches = measured(model, *np.split(frames, 3))
  # Sums of a thousand float32 numbers.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), in_batches, together)
  first = measured(model, frames[:4])
  assert np.abs(first["scale"] / together["scale"] - 1).max() > 0.05


def test_statistics_of_batches_are_the_closed_form_of_their_union():
  """Two Gaussians a channel, as pure numbers: E x and E x^2 of the mixture."""
  means, variances = np.array([[0.0, 3.0], [1.0, -1.0]]), np.array([[1.0, 0.5], [4.0, 2.0]])
  found = latent_statistics(
    [{"mean": m, "variance": v} for m, v in zip(means, variances, strict=True)]
  )
  second = (variances + means**2).mean(axis=0)
  np.testing.assert_allclose(found["shift"], means.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(found["scale"], (second - means.mean(axis=0) ** 2) ** -0.5, rtol=1e-6)


def test_latents_have_mean_0_and_variance_1_in_every_channel_on_the_data_they_were_measured_on():
  """Also where most of a channel's spread is the posterior's own, not its mean's."""
  shape = (8, 4, 32, 32, 4)
  centres, spreads = jnp.array([3.0, -40.0, 0.0, 0.2]), jnp.array([5.0, 0.01, 1.0, 0.3])
  noise_spreads = jnp.array([0.01, 0.02, 2.0, 0.3])
  wide = lambda a: a.reshape(1, 1, 1, 1, 4)
  mean = wide(centres) + wide(spreads) * jax.random.normal(jax.random.key(0), shape)
  log_var = jnp.broadcast_to(2 * jnp.log(wide(noise_spreads)), shape)
  moments = jnp.concatenate([mean, log_var], axis=-1)
  measure = STAGE.measures()["latents"]
  batches = [jax.device_get(measure.one({}, {"moments": m})) for m in jnp.split(moments, 2)]
  latents = STAGE.encode(
    {"latents": measure.all(batches)}, Posterior(mean, log_var), jax.random.key(1)
  )
  axes = (0, 1, 2, 3)
  # N = 32768 Gaussian values a channel: sigma of the mean is 1 / sqrt(N) = 0.0055, of the variance
  # sqrt(2 / N) = 0.0078; five of each.
  np.testing.assert_allclose(latents.mean(axis=axes), 0, atol=0.028)
  np.testing.assert_allclose(latents.var(axis=axes), 1, atol=0.04)


def test_latents_of_frames_are_those_of_each_frame_and_normalised(model):
  frames = pixels_or_posterior({"frames": jnp.asarray(clips(3, 6, 2))})
  normal = {**model, "latents": measured(model, clips(3, 6, 2))}
  latents = STAGE.encode(normal, frames, jax.random.key(1))
  assert latents.shape == (6, 2, 4, 6, 4)
  # 6 * 2 * 24 latents a channel, few of them independent.
  np.testing.assert_allclose(latents.mean(axis=(0, 1, 2, 3)), 0, atol=0.3)
  np.testing.assert_allclose(latents.std(axis=(0, 1, 2, 3)), 1, atol=0.3)
  alone = STAGE.encode(normal, frames[:, 1:])
  np.testing.assert_allclose(STAGE.encode(normal, frames)[:, 1:], alone, atol=1e-5)


def test_what_was_encoded_ahead_gives_the_latents_of_the_frames(model):
  frames = jnp.asarray(clips(4, 2, 3))
  moments = STAGE.encoders()["frames"].apply(model, pixels_or_posterior({"frames": frames}))
  assert moments.shape == (2, 3, 4, 6, 8)
  batch = {"moments": moments}
  for keys in ((), (jax.random.key(1),)):
    ahead, now = (
      STAGE.encode(model, pixels_or_posterior(b), *map(jax.random.clone, keys))
      for b in (batch, {"frames": frames})
    )
    np.testing.assert_allclose(ahead, now, atol=1e-5)


def test_what_is_encoded_ahead_depends_on_all_of_the_autoencoder_but_its_memory():
  depends = lambda **changes: (
    KlAutoencoder(AutoencoderConfig(**changes)).encoders()["frames"].depends_on
  )
  assert depends(remat=True) == depends()
  for change in (
    {"z_channels": 8},
    {"norm_groups": 16},
    {"dtype": "bfloat16"},
    {"channels": (32,)},
  ):
    assert depends(**change) != depends(), change


def test_normalisation_is_undone_before_decoding(key, model):
  z = jax.random.normal(key, (1, 2, 4, 6, 4))
  plain = {**model, "latents": {"shift": jnp.zeros(4), "scale": jnp.ones(4)}}
  normalised = (z - 0.1) * 2.0  # the shift and scale of tests/tiny.py
  np.testing.assert_allclose(STAGE.decode(model, normalised), STAGE.decode(plain, z), atol=1e-5)


def test_pixels_are_their_own_latents_and_bytes_come_back(key):
  frames, stage = jnp.asarray(clips(5, 2, 3)), Pixels()
  x = pixels_or_posterior({"frames": frames})
  assert (float(x.min()) >= -1, float(x.max()) <= 1) == (True, True)
  np.testing.assert_array_equal(to_bytes(stage.decode({}, stage.encode({}, x, key))), frames)
  assert (stage.trees(), stage.measures(), stage.encoders()) == ({}, {}, {})
  np.testing.assert_array_equal(stage.decode({}, jnp.full((1, 1, 2, 2, 3), 1.5)), 1.0)


def test_every_byte_is_itself_again():
  every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 1, 16, 16, 1).repeat(3, axis=-1)
  np.testing.assert_array_equal(to_bytes(pixels_or_posterior({"frames": every})), every)
