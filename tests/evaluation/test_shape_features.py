"""The features that FID-o and FVD-o compare read what their clips show, and move when spoilt."""

import numpy as np
import pytest
from scipy import ndimage

from emu_jax.data import shapes
from emu_jax.evaluation import shape_features
from emu_jax.evaluation.features import accumulated, distances
from emu_jax.evaluation.shape_features import LOOK, MOTION, reader

SEED = 77  # of scenes that the weights have not seen


def drawn(kind, size, num, first=0):
  splits = ("train", "test", "image_only") if kind == "videos" else ("train",)
  scenes = [shapes.scene(kind, splits[i % len(splits)], first + i, SEED) for i in range(num)]
  return np.stack([shapes.draw(s, size)[:32:4] for s in scenes]), scenes


@pytest.fixture(scope="module")
def clips():
  return drawn("videos", 32, 120)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("moving", [False, True])
def test_words_never_seen_are_read(moving, size):
  """What experiments/shape_features.py prints, of fewer scenes."""
  pixels, scenes = drawn("videos" if moving else "images", size, 60)
  features = shape_features.clips() if moving else shape_features.frames()
  x = pixels.astype(np.float32) / 127.5 - 1
  _, logits = reader(moving).apply({"params": features.params}, x)
  for name, words in (LOOK | (MOTION if moving else {})).items():
    read = np.asarray(logits[name]).argmax(axis=-1)
    right = np.mean(read == [words.index(getattr(s, name)) for s in scenes])
    assert right >= 0.9, name


def test_the_weights_in_the_package_are_small():
  assert shape_features.WEIGHTS.stat().st_size < 500_000


def test_what_spoils_clips_is_farther_than_another_draw_and_a_reversal_is_seen_in_clips_alone(
  clips,
):
  pixels, _ = clips
  other, _ = drawn("videos", 32, 120, first=1000)
  rng = np.random.default_rng(0)
  noisy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
  blurred = ndimage.gaussian_filter(pixels.astype(float), (0, 0, 1, 1, 0)).astype(np.uint8)
  shuffled = pixels[:, rng.permutation(8)]
  still = pixels[:, :1].repeat(8, axis=1)

  def found(features):
    real = accumulated(features, pixels, 64)
    name = features.name
    return {
      what: distances(name, accumulated(features, x, 64), real)[name]
      for what, x in (("other", other), ("noisy", noisy), ("blurred", blurred),
                      ("shuffled", shuffled), ("still", still))
    }  # fmt: skip

  of_frames, of_clips = found(shape_features.frames()), found(shape_features.clips())
  for distance in (of_frames, of_clips):
    assert distance["noisy"].value > 2 * distance["other"].value
    assert distance["blurred"].value > 2 * distance["other"].value
    assert distance["other"].low <= distance["other"].bias * 2
  assert of_clips["shuffled"].value > 2 * of_clips["other"].value
  assert of_clips["still"].value > 2 * of_clips["other"].value
  assert of_frames["shuffled"].value == pytest.approx(0, abs=1e-3)
