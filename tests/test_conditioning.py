"""Known frames: where they stand, and what the network sees of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import KnownFrames, concat_known, every_fourth, first_frame, past_frames


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
