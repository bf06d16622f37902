"""The features that FID-o and FVD-o compare read what their clips show, and move when spoilt."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from emu_jax.data import shapes
from emu_jax.evaluation import shape_features
from emu_jax.evaluation.features import accumulated
from emu_jax.evaluation.frechet import frechet
from emu_jax.evaluation.shape_features import LOOK, MOTION, reader

LEAST_OF_PICTURES = dict.fromkeys(LOOK, 0.9)
LEAST_OF_CLIPS = {
  **{"colour": 0.95, "shape": 0.5, "size": 0.9, "texture": 0.85, "background": 0.95},
  **{"direction": 0.95, "speed": 0.95},
}
SEED = 77  # of scenes that the weights have not seen


def drawn(kind, size, num, first=0):
  splits = ("train", "test", "image_only") if kind == "videos" else ("train",)
  scenes = [shapes.scene(kind, splits[i % len(splits)], first + i, SEED) for i in range(num)]
  return np.stack([shapes.draw(s, size)[:32:4] for s in scenes]), scenes


@pytest.fixture(scope="module")
def clips():
  return drawn("videos", 32, 90)


def read_right(moving, pixels, scenes):
  """Share of scenes of which each word is read right."""
  features = shape_features.clips() if moving else shape_features.frames()
  x = pixels.astype(np.float32) / 127.5 - 1
  apply = jax.jit(lambda x: reader(moving).apply({"params": features.params}, x)[1])
  return {
    name: np.mean(
      np.asarray(apply(x)[name]).argmax(axis=-1) == [words.index(getattr(s, name)) for s in scenes]
    )
    for name, words in (LOOK | (MOTION if moving else {})).items()
  }


@pytest.mark.parametrize("size", [32, 64])
def test_words_of_pictures_never_seen_are_read(size):
  """docs/metrics.md has the measured shares; these are some standard errors of 100 below."""
  right = read_right(False, *drawn("images", size, 100))
  assert {name: share for name, share in right.items() if share < LEAST_OF_PICTURES[name]} == {}


def test_words_of_clips_never_seen_are_read(clips):
  right = read_right(True, *clips)
  assert {name: share for name, share in right.items() if share < LEAST_OF_CLIPS[name]} == {}


def test_the_weights_in_the_package_are_small():
  assert shape_features.WEIGHTS.stat().st_size < 500_000


def test_what_spoils_clips_is_farther_than_another_draw(clips):
  """Both from a third set; a shuffle of frames, which frames alone cannot tell, clips tell."""
  pixels, _ = clips
  rng = np.random.default_rng(0)
  sets = {
    "real": pixels,
    "noisy": np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8),
    "blurred": ndimage.gaussian_filter(pixels.astype(float), (0, 0, 1, 1, 0)).astype(np.uint8),
    "shuffled": pixels[:, rng.permutation(8)],
  }
  third = drawn("videos", 32, 90, first=1000)[0]

  def found(features):
    reference = accumulated(features, third, 90)
    return {
      name: frechet(accumulated(features, x, 90), reference).value for name, x in sets.items()
    }

  of_frames, of_clips = found(shape_features.frames()), found(shape_features.clips())
  # Of 90 clips most of a distance is bias; what is compared is one scene by one, so it cancels.
  assert of_frames["noisy"] > 2 * of_frames["real"]
  assert of_frames["blurred"] > 1.1 * of_frames["real"]
  assert of_clips["shuffled"] > 1.3 * of_clips["real"]
  assert of_frames["shuffled"] == pytest.approx(of_frames["real"], rel=1e-5)
