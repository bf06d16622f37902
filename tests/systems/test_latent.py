"""The law of normalised latents."""

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.systems.latent import Posterior, encode_frames, posterior_statistics
from tests.tiny import MODEL


def test_latents_have_mean_0_and_variance_1_in_every_channel_on_the_data_they_were_measured_on():
  """Also where most of a channel's spread is the posterior's own, not its mean's."""
  shape = (8, 4, 32, 32, 4)
  centres, spreads = jnp.array([3.0, -40.0, 0.0, 0.2]), jnp.array([5.0, 0.01, 1.0, 0.3])
  noise_spreads = jnp.array([0.01, 0.02, 2.0, 0.3])
  wide = lambda a: a.reshape(1, 1, 1, 1, 4)
  mean = wide(centres) + wide(spreads) * jax.random.normal(jax.random.key(0), shape)
  log_var = jnp.broadcast_to(2 * jnp.log(wide(noise_spreads)), shape)
  of = Posterior(mean, log_var)
  trees = {"latents": posterior_statistics(of)}
  latents = encode_frames(MODEL.image.autoencoder, trees, of, jax.random.key(1))
  axes = (0, 1, 2, 3)
  # N = 32768 Gaussian values a channel: sigma of the mean is 1 / sqrt(N) = 0.0055, of the variance
  # sqrt(2 / N) = 0.0078; five of each.
  np.testing.assert_allclose(latents.mean(axis=axes), 0, atol=0.028)
  np.testing.assert_allclose(latents.var(axis=axes), 1, atol=0.04)
