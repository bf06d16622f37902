"""Plain interpolation and how wrong frames are, on clips whose motion is known."""

import numpy as np

from emu_jax.data import shapes
from experiments import between_frames as between
from experiments.chosen_clips import least_window, without_speed
from experiments.studies import interpolation

SCENE = shapes.Scene("red", "square", "small", "plain", "black", "right", "quickly", (0.2, 0.5))
SIDE = 32


def clip(scene=SCENE):
  return shapes.draw(scene, SIDE)[: between.KNOWN.num_frames]


def keys(frames):
  return frames[None, list(between.KNOWN.positions)]


def test_keys_stay_and_every_other_frame_is_one_of_two_kinds():
  known = set(between.KNOWN.positions)
  assert known | set(between.BETWEEN) | set(between.OUTSIDE) == set(range(37))
  assert len(between.BETWEEN) == 21
  assert len(between.OUTSIDE) == 8
  frames = clip()
  for make in (between.repeated, between.blended):
    made = make(keys(frames))[0]
    assert made.shape == frames.shape
    np.testing.assert_array_equal(made[list(known)], frames[list(known)])
    np.testing.assert_array_equal(made[:4], frames[[4] * 4])


def test_a_blend_of_still_keys_is_still():
  still = np.repeat(clip()[:1], 37, axis=0)
  np.testing.assert_array_equal(between.blended(keys(still))[0], still)


def test_centroids_are_those_of_the_scene():
  share = between.shares(clip().astype(float), SCENE)
  wanted = shapes.centroids(SCENE, SIDE)[:37]
  # Edges are drawn in quarters of pixels: 1/8 off. Of 8 pixels of an edge up to a fifth each does
  # not count, 1.6 of 49 pixels 3.5 from the middle: 0.11 off.
  np.testing.assert_allclose(between.centroids(share), wanted, atol=0.24)


def test_repetition_lags_and_blending_leaves_ghosts():
  frames = clip()
  right = between.shares(frames.astype(float), SCENE)
  chosen = list(between.BETWEEN)
  repeated, blended = (
    between.shares(make(keys(frames))[0].astype(float), SCENE)
    for make in (between.repeated, between.blended)
  )
  lag = np.abs(between.centroids(repeated) - between.centroids(right))[:, 0]
  speed = shapes.SPEEDS["quickly"] * SIDE / shapes.FPS  # pixels a frame
  np.testing.assert_allclose(lag[chosen].max(), 2 * speed, atol=0.3)
  scores = [between.ghost(share[chosen]) for share in (right, repeated, blended)]
  assert scores[2] > 1.5 * max(scores[:2])


def test_what_moves_evenly_is_on_its_keys_path():
  at = np.arange(37)[:, None]
  places = np.array([3.0, 40.0]) + at * [0.5, -0.25]
  keys = places[list(between.KNOWN.positions)]
  np.testing.assert_allclose(between.off_path(places, keys), 0, atol=1e-12)
  np.testing.assert_allclose(between.off_path(places + np.array([0.3, 0.4]), keys), 0.5)
  unseen = keys.copy()
  unseen[2:5] = np.nan
  np.testing.assert_allclose(between.off_path(places, unseen), 0, atol=1e-12)
  unseen[:7] = np.nan
  assert np.isnan(between.off_path(places, unseen)).all()


def test_without_true_frames_repetition_is_off_the_path_and_doubles_nothing():
  frames = clip()
  true, repeated = (
    interpolation.unevenness(made, keys(frames), [SCENE])
    for made in (frames[None], between.repeated(keys(frames)))
  )
  step = shapes.SPEEDS["quickly"] * SIDE / shapes.FPS  # pixels a frame
  lag = lambda frames: step * np.sqrt(np.mean(np.square(frames)))
  # 0.24 as above, of a frame and of the keys' line.
  assert max(true["off path between"] + true["off path outside"]) < 0.48
  np.testing.assert_allclose(repeated["off path between"], lag([1, 2, 1]), atol=0.48)
  np.testing.assert_allclose(repeated["off path outside"], lag([1, 2, 3, 4]), atol=0.48)
  np.testing.assert_allclose(repeated["ghost"], true["ghost"], atol=0.1)


def test_a_jump_is_a_spike_of_speed():
  scene = between.long_scene(3)
  share = between.shares(between.long_clip(scene, SIDE).astype(float), scene)
  assert len(share) == 80
  smooth = between.spike(share[::4])  # finer steps are smaller than the pixels' edges
  jumped = between.spike(np.concatenate([share[:40:4], share[56::4]]))  # one step of five
  assert smooth < 1.5
  assert 4 < jumped < 6


def test_corruption_is_the_same_for_the_same_seed():
  one, other = (between.corrupted(keys(clip()), 20.0, seed=5) for _ in range(2))
  np.testing.assert_array_equal(one, other)
  assert 5 < np.abs(one.astype(float) - keys(clip())).mean() < 20


def test_the_rule_looks_for_the_stillest_six_frames():
  assert least_window(np.ones(9)) == 6
  assert least_window(np.array([9.0] * 6 + [0.0] * 6 + [9.0] * 6)) == 0
  assert least_window(np.array([0.0, 5, 5, 5, 5, 5, 5])) == 25
  assert without_speed("a red circle moving up slowly on a grey background") == (
    "a red circle moving up on a grey background"
  )
