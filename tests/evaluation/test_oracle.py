"""The oracle reads what two hands drew that share none of its code, and refuses the rest."""

import numpy as np
import pytest
from drawing import drawn
from scipy import ndimage

from emu_jax.data import shapes
from emu_jax.evaluation import oracle

LOOK = ("colour", "shape", "size", "texture", "background")
FPS = 4.0  # every fourth frame of the stored 16 a second
NUM_FRAMES = 8


def blurred(frames, pixels):
  """Gaussian blur of a standard deviation given in 32nds of the side."""
  sigma = pixels * frames.shape[2] / 32
  return np.round(ndimage.gaussian_filter(frames.astype(float), (0, 0, sigma, sigma, 0)))


def noisy(frames, levels=8):
  noise = np.random.default_rng(0).normal(0, levels, frames.shape)
  return np.clip(np.round(frames + noise), 0, 255)


SPOILT = {
  "clean": (lambda frames: frames, 0.99),
  "noise": (noisy, 0.97),
  "blur": (lambda frames: blurred(frames, 0.6), 0.97),
  "noise and blur": (lambda frames: noisy(blurred(frames, 0.6)), 0.97),
}


@pytest.fixture(scope="module", params=[32, 64])
def pictures(request):
  scenes = [shapes.scene("images", "train", i, seed=5) for i in range(300)]
  return np.stack([shapes.draw(s, request.param) for s in scenes]), scenes


@pytest.fixture(scope="module")
def clips():
  scenes = [
    shapes.scene("videos", split, i, seed=5) for split in ("train", "image_only") for i in range(60)
  ]
  return np.stack([shapes.draw(s, 32)[::4][:NUM_FRAMES] for s in scenes]), scenes


def accuracy(words, scenes, attribute):
  return np.mean(words[attribute] == np.array([getattr(scene, attribute) for scene in scenes]))


@pytest.mark.parametrize("kind", SPOILT)
def test_pictures_are_read(pictures, kind):
  frames, scenes = pictures
  spoil, least = SPOILT[kind]
  read = oracle.read_clips(spoil(frames).astype(np.uint8), fps=1)
  assert {
    a: accuracy(read.clips, scenes, a) for a in LOOK if accuracy(read.clips, scenes, a) < least
  } == {}
  np.testing.assert_array_equal(read.clips["direction"], "none")
  np.testing.assert_array_equal(read.clips["speed"], "none")


@pytest.mark.parametrize("kind", SPOILT)
def test_clips_are_read(clips, kind):
  frames, scenes = clips
  spoil, least = SPOILT[kind]
  read = oracle.read_clips(spoil(frames).astype(np.uint8), FPS)
  every = (*LOOK, "direction", "speed")
  assert {
    a: accuracy(read.clips, scenes, a) for a in every if accuracy(read.clips, scenes, a) < least
  } == {}


def test_the_track_is_where_the_object_is(clips):
  frames, scenes = clips
  read = oracle.read_clips(frames, FPS)
  true = np.stack([shapes.centroids(s, 32)[::4][:NUM_FRAMES] for s in scenes])
  # Pixel 0 has its centre half a pixel from the picture's edge. Faint stripes weigh a triangle's
  # centre up or down a little.
  error = np.linalg.norm(read.centroid_sides * 32 - 0.5 - true, axis=-1)
  assert error.max() < 0.5
  assert error.mean() < 0.1
  speeds = np.array([shapes.SPEEDS[s.speed] for s in scenes])
  np.testing.assert_allclose(read.speed_sides, speeds, rtol=0.05)


def test_frames_at_another_rate_show_the_same_motion(clips):
  frames, _ = clips
  assert set(oracle.read_clips(frames, FPS).clips["speed"]) == {"slowly", "quickly"}
  np.testing.assert_array_equal(oracle.read_clips(frames, FPS / 4).clips["speed"], "slowly")
  backward = oracle.read_clips(frames[:, ::-1], FPS).clips["direction"]
  turned = {"left": "right", "right": "left", "up": "down", "down": "up"}
  forward = oracle.read_clips(frames, FPS).clips["direction"]
  np.testing.assert_array_equal(backward, [turned[word] for word in forward])


@pytest.mark.parametrize("side", [32, 48, 64])
def test_a_second_hand_is_read_too(side):
  rng = np.random.default_rng(side)
  truths = [
    {
      "colour": rng.choice(list(shapes.COLOURS)),
      "shape": rng.choice(shapes.SHAPES),
      "size": rng.choice(list(shapes.SIZES)),
      "texture": rng.choice(shapes.TEXTURES),
      "background": rng.choice(list(shapes.BACKGROUNDS)),
    }
    for _ in range(100)
  ]
  frames = np.stack([_second_hand(truth, side, rng) for truth in truths])[:, None]
  read = oracle.read_clips(frames, fps=1)
  for attribute in LOOK:
    assert np.mean(read.clips[attribute] == [t[attribute] for t in truths]) >= 0.99, attribute


def _second_hand(truth, side, rng):
  across = 32 * shapes.SIZES[truth["size"]]
  colour = np.array(shapes.COLOURS[truth["colour"]])
  return drawn(
    truth["shape"],
    colour,
    shapes.BACKGROUNDS[truth["background"]],
    side=side,
    across=across,
    centre=rng.uniform(across / 2 + 0.5, 31.5 - across / 2, 2),
    gap=0.5 * colour if truth["texture"] == "striped" else None,
    period=4.0,
  )


def red(shape="circle", **options):
  return drawn(shape, shapes.COLOURS["red"], shapes.BACKGROUNDS["grey"], **options)


def disc_pair(second_across):
  left, right = red(across=12, centre=(9, 16)), red(across=second_across, centre=(25, 16))
  return np.where(np.arange(32)[None, :, None] < 17, left, right)


def masked(inside):
  return np.where(inside[..., None], shapes.COLOURS["red"], shapes.BACKGROUNDS["grey"]).astype(
    np.uint8
  )


Y, X = np.mgrid[:32, :32]
UNREADABLE = {
  "nothing": masked(X < 0),
  "nothing but noise": noisy(np.full((32, 32, 3), 80.0), 8).astype(np.uint8),
  "white noise": np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8),
  "two objects": disc_pair(10),
  "a ring": masked((np.hypot(X - 16, Y - 16) < 6) & (np.hypot(X - 16, Y - 16) > 3)),
  "half a picture": masked(X < 16),
  "a bar": masked((abs(X - 16) < 2) & (abs(Y - 16) < 7)),
  "a triangle point down": red("triangle", across=12)[::-1],
  "a dot": red(across=3),
  "a giant": red(across=26),
  "a hint": drawn("square", (105, 80, 80), shapes.BACKGROUNDS["grey"], across=12),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_single_shape_is_not_read(name):
  read = oracle.read_clips(UNREADABLE[name][None, None], fps=1)
  assert not read.valid.any()
  assert np.isnan(read.centroid_sides).all()
  for attribute in ("colour", "shape", "size", "texture"):
    assert read.frames[attribute][0, 0] == read.clips[attribute][0] == "none"


def test_a_speck_beside_the_object_is_no_second_object():
  assert oracle.read_clips(disc_pair(3.0)[None, None], fps=1).valid.all()


def test_a_clip_is_read_from_its_valid_frames():
  frames = np.stack([red(across=12, centre=(8 + 2 * i, 16)) for i in range(7)])
  frames[[1, 3, 4, 6]] = UNREADABLE["nothing"]  # most of them
  read = oracle.read_clips(frames[None], FPS)
  np.testing.assert_array_equal(read.valid, [[True, False, True, False, False, True, False]])
  assert read.frames["colour"][0, 1] == "none"
  words = {attribute: read.clips[attribute][0] for attribute in (*LOOK, "direction", "speed")}
  assert words == {
    "colour": "red",
    "shape": "circle",
    "size": "large",
    "texture": "plain",
    "background": "grey",
    "direction": "right",
    "speed": "quickly",
  }
  np.testing.assert_allclose(read.speed_sides, 2 * FPS / 32, rtol=0.02)


def test_the_majority_names_the_clip_and_a_still_one_has_no_direction():
  frames = np.stack([red("square"), red("circle"), red("circle"), red("cross")])
  read = oracle.read_clips(frames[None], FPS)
  np.testing.assert_array_equal(read.frames["shape"], [["square", "circle", "circle", "cross"]])
  assert read.clips["shape"][0] == "circle"
  assert read.clips["direction"][0] == read.clips["speed"][0] == "none"


def test_one_visible_frame_has_no_motion():
  frames = np.stack([red(across=12), UNREADABLE["nothing"]])
  read = oracle.read_clips(frames[None], FPS)
  assert read.clips["direction"][0] == "none"
  assert np.isnan(read.speed_sides).all()


def test_no_clip_sees_another_and_order_does_not_matter(clips, monkeypatch):
  frames, _ = clips
  together = oracle.read_clips(frames[:9], FPS)
  monkeypatch.setattr(oracle, "FRAMES_AT_ONCE", 5)
  in_pieces = oracle.read_clips(frames[:9][::-1], FPS)
  for attribute, words in together.frames.items():
    np.testing.assert_array_equal(words, in_pieces.frames[attribute][::-1])
  np.testing.assert_allclose(together.centroid_sides, in_pieces.centroid_sides[::-1], atol=1e-5)
