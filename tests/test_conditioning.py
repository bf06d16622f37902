"""Known frames: where they stand, and what the network sees of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import (
  KnownFrames,
  concat_known,
  every_fourth,
  first_frame,
  keeping,
  past_frames,
)
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.log_snr import LogSnr
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule

KNOWN = KnownFrames(5, (1, 3))


def test_interpolation_keys_stand_at_every_fourth_of_37_frames():
  assert every_fourth().num_frames == 37
  assert every_fourth().positions == (4, 8, 12, 16, 20, 24, 28, 32)


def test_extension_knows_the_first_16_of_32_frames():
  assert past_frames() == KnownFrames(32, tuple(range(16)))


def test_known_frames_and_their_mask_stand_where_they_belong_and_nowhere_else(key):
  known = KnownFrames(5, (1, 3))
  latents = jax.random.normal(key, (2, 2, 3, 4, 6))
  concat = concat_known(known, latents)
  assert concat.shape == (2, 5, 3, 4, 7)
  for t in range(5):
    given = known.positions.index(t) if t in known.positions else None
    np.testing.assert_array_equal(concat[:, t, ..., 0], 0.0 if given is None else 1.0)
    expected = 0.0 if given is None else latents[:, given]
    np.testing.assert_array_equal(concat[:, t, ..., 1:], expected)


def test_a_dropped_image_leaves_neither_latents_nor_mask(key):
  latents = jax.random.normal(key, (2, 1, 3, 4, 6))
  concat = concat_known(first_frame(4), latents, jnp.array([True, False]))
  np.testing.assert_array_equal(concat[0], 0)
  np.testing.assert_array_equal(concat[1:], concat_known(first_frame(4), latents)[1:])


def test_frames_that_do_not_fit_the_mask_are_refused_with_both_numbers(key):
  with pytest.raises(ValueError, match="2 frames given for 8 positions"):
    concat_known(every_fourth(), jnp.zeros((1, 2, 2, 2, 4)))
  with pytest.raises(ValueError, match="clip of 4 frames"):
    KnownFrames(4, (4,))
  with pytest.raises(ValueError, match="twice"):
    KnownFrames(4, (1, 1))


EPSILON = Discrete(Schedule())
V = Discrete(Schedule(prediction="v", zero_terminal_snr=True))
X_0 = Discrete(Schedule(prediction="x_0", zero_terminal_snr=True))


@pytest.mark.parametrize(
  ("process", "sampling"),
  [
    (EPSILON, Sampling(num_steps=4, eta=1.0)),
    (V, Sampling(num_steps=4)),
    (V, Sampling("dpm++", 4)),
    (X_0, Sampling("dpm++", 4)),
    (LogSnr(), Sampling(num_steps=4)),
    (Flow(), Sampling("euler", 4)),
    (Edm(), Sampling("heun", 4)),
  ],
  ids=str,
)
def test_kept_frames_leave_any_sampler_as_they_are_and_the_others_as_without(
  key, process, sampling
):
  key_given, key_noise, key_steps = jax.random.split(key, 3)
  given = jax.random.normal(key_given, (2, 2, 3, 4, 6))
  noise = jax.random.normal(key_noise, (2, 5, 3, 4, 6))
  wrong = lambda x_t, t: jnp.sin(3 * x_t)
  kept = keeping(wrong, process, KNOWN, given)
  found = process.sample(kept, noise, jax.random.clone(key_steps), sampling)
  # 8 roundings of numbers up to 4, at the last step, whose alpha is more than a half.
  np.testing.assert_allclose(found[:, (1, 3)], given, rtol=0, atol=8 * 4 * 2 * 6e-8)
  without = process.sample(wrong, noise, key_steps, sampling)
  np.testing.assert_array_equal(found[:, (0, 2, 4)], without[:, (0, 2, 4)])


def test_a_network_sees_kept_frames_as_in_training(key):
  """With the noise of the step on what is given, from the first step to the last."""
  key_given, key_noise, key_steps = jax.random.split(key, 3)
  given, seen = jax.random.normal(key_given, (1, 2, 3, 4, 6)), []
  noise = jax.random.normal(key_noise, (1, 5, 3, 4, 6))

  def network(x_t, t):
    jax.debug.callback(
      lambda *args: seen.append([np.asarray(a) for a in args]), x_t, *V.alpha_sigma(t)
    )
    return jnp.zeros_like(x_t)

  kept = keeping(network, V, KNOWN, given)
  V.sample(kept, noise, key_steps, Sampling(num_steps=4))
  jax.effects_barrier()
  assert len(seen) == 4
  for x_t, alpha, sigma in seen:
    expected = float(alpha[0]) * given + float(sigma[0]) * noise[:, (1, 3)]
    np.testing.assert_allclose(x_t[:, (1, 3)], expected, rtol=0, atol=1e-5)
