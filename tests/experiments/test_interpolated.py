"""What is said of frames between keys, where it is known: nothing wrong, and frames repeated."""

import numpy as np
import pytest

from emu_jax.data import shapes
from experiments.between_frames import KNOWN, colour_steps, repeated
from experiments.interpolated import MOST, errors, times_less

SCENE = shapes.Scene("red", "square", "large", "plain", "black", "right", "quickly", (0.25, 0.5))


@pytest.fixture(scope="module")
def real():
  """Quick clips of large shapes: 15 pixels a second, 15/16 a frame."""
  return shapes.draw(SCENE, 64)[None, : KNOWN.num_frames]


def test_the_truth_has_no_errors(real):
  found = errors(real, real)
  assert {name for name, v in found.items() if name.startswith("off") and v == 0} == {
    "off between", "off outside", "off added"
  }  # fmt: skip
  assert all(v == MOST for name, v in found.items() if not name.startswith("off"))


def test_repetition_leaves_the_shape_where_it_was(real):
  found = errors(repeated(real[:, list(KNOWN.positions)]), real)
  assert found["given"] == MOST
  # One to four frames beyond an end; one, two or one from the nearest key.
  for where, frames in (("outside", (1, 2, 3, 4)), ("between", (1, 2, 1))):
    expected = 15 / 16 * np.sqrt(np.square(frames).mean())
    np.testing.assert_allclose(found[f"off {where}"], expected, rtol=0.03)


def test_a_ratio_of_errors_is_of_their_means_with_the_same_clips_drawn_for_both():
  ours = np.array([1.0, 2.0, 3.0])
  thrice = times_less(3 * ours, ours)
  assert (thrice.value, thrice.low, thrice.high) == pytest.approx((3, 3, 3))
  assert thrice.n == len(ours)
  spread = times_less(np.array([1.0, 9.0, 2.0]), ours)
  assert spread.low < spread.value == 2 < spread.high


def test_no_shape_is_half_a_side_away(real):
  blank = np.zeros_like(real)
  assert errors(blank, real)["off added"] == 32


def test_a_key_of_another_colour_is_a_step_into_it_and_one_out_of_it(real):
  scene, clip = SCENE, real[0].astype(float)
  assert colour_steps(clip, scene) == (0, 0)
  clip[KNOWN.positions[0], ..., 0] *= 0.9
  at_keys, elsewhere = colour_steps(clip, scene)
  red = shapes.COLOURS["red"][0]
  # Two of the 16 steps at the 8 keys; edges have less of the colour than the 0.75 that count.
  np.testing.assert_allclose(at_keys, 2 * 0.1 * red / 16, rtol=0.05)
  assert elsewhere == 0
