"""Laws of the measurement on moving shapes: who draws the truth scores what the truth does."""

import dataclasses

import numpy as np
import pytest

from emu_jax.data import shapes
from emu_jax.errors import InputError
from emu_jax.evaluation.shapes_benchmark import measure, real_clips
from emu_jax.model import Clips, Model
from tests.tiny import MODEL

SIZE, FPS, FRAMES = 32, 4.0, 8


@dataclasses.dataclass(frozen=True)
class Pretended(Model):
  """A model that draws each prompt, and keeps what it was asked for."""

  clips: np.ndarray = None
  captions: list = ()
  calls: list = dataclasses.field(default_factory=list)
  still: bool = False
  rate: float = FPS

  def shape(self, task, request):
    return (1, *self.clips.shape[1:])

  def fps(self, task, request):
    return self.rate

  def run(self, task, *, prompt, seed, **fields):
    self.calls.append((task, prompt, seed, fields))
    last = len(self.captions) - 1
    rows = np.minimum(seed + np.arange(len(prompt)), last)  # example i of a batch has its seed + i
    assert [self.captions[row] for row in rows] == list(prompt)
    frames = self.clips[rows]
    return Clips(np.repeat(frames[:, :1], FRAMES, axis=1) if self.still else frames, self.rate)


def pretend(num, split, still=False):
  clips = real_clips(split, num, 0, SIZE, np.zeros((num, FRAMES, SIZE, SIZE, 3), np.uint8), FPS)
  captions = [caption for caption, _ in shapes.prompts(split, num, 0)]
  return Pretended(MODEL, {}, (), "pretended", clips=clips, captions=captions, still=still)


def run(model, num, batch_size, split="test"):
  return measure(model, num_prompts=num, batch_size=batch_size, split=split, steps=3)


def test_a_model_that_draws_the_truth_scores_as_real_clips_do():
  found = run(pretend(12, "test"), 12, 4)
  np.testing.assert_array_equal(found.generated, found.real)
  assert found.reports["generated"] == found.reports["real"]
  for name in ("appearance", "direction", "joint", "object_consistency"):
    assert found.reports["real"].estimates[name].value == 1.0


def test_a_model_that_stands_still_fails_on_direction_alone():
  estimates = run(pretend(12, "test", still=True), 12, 4).reports["generated"].estimates
  assert estimates["appearance"].value == 1.0
  assert estimates["direction"].value == 0.0


def test_distances_are_to_other_prompts_and_say_that_a_still_model_stands_still():
  model = pretend(24, "test", still=True)
  columns = {name: made.distances for name, made in run(model, 24, 24).reports.items()}
  found = {
    (column, name.split()[0]): distance
    for column, distances in columns.items()
    for name, distance in distances.items()
    if "kernel" not in name
  }
  assert set(found) == {(c, n) for c in ("generated", "real") for n in ("FID-o", "FVD-o")}
  for column in ("generated", "real"):
    assert (found[column, "FID-o"].n, found[column, "FVD-o"].n) == (24 * FRAMES, 24)
    assert found[column, "FID-o"].value > 0.01  # other prompts, not the same clips
  assert found["generated", "FVD-o"].value > found["real", "FVD-o"].value


def test_one_prompt_has_no_distance():
  assert not run(pretend(1, "test"), 1, 1).reports["generated"].distances


def test_the_last_batch_is_filled_up_and_its_filling_is_not_counted():
  model = pretend(5, "validation")
  found = run(model, 5, 3, "validation")
  assert [(task, len(texts), seed, fields) for task, texts, seed, fields in model.calls] == [
    ("sample", 3, 0, {"steps": 3}),
    ("sample", 3, 3, {"steps": 3}),  # no two batches draw the same noise
  ]
  assert found.generated.shape == (5, FRAMES, SIZE, SIZE, 3)
  assert found.reports["generated"].num_clips == 5


def test_prompts_of_a_split_are_the_drawn_ones():
  captions = [caption for caption, _ in shapes.prompts("test", 3, 0)]
  assert captions == [shapes.caption(shapes.scene("videos", "test", i, 0)) for i in range(3)]


@pytest.mark.parametrize(
  ("shape", "fps", "says"),
  [
    ((8, 16, 32), 4.0, "frames of 16x32 pixels; the moving shapes are square"),
    ((8, 32, 32), 24.0, "24 frames a second do not divide the 16 of the moving shapes"),
    ((8, 32, 32), 5.0, "5 frames a second do not divide the 16"),
    ((16, 32, 32), 4.0, "16 frames at 4 a second are longer than the 40 frames at 16"),
  ],
)
def test_clips_to_which_no_real_ones_compare_are_refused_before_sampling(shape, fps, says):
  clips = np.zeros((2, *shape, 3), np.uint8)
  model = dataclasses.replace(pretend(2, "test"), clips=clips, rate=fps)
  with pytest.raises(InputError, match=f"^evaluate: {says}"):
    run(model, 2, 2)
  assert not model.calls
