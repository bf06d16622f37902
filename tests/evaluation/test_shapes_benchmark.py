"""Laws of the measurement on moving shapes: who draws the truth scores what the truth does."""

import dataclasses

import numpy as np

from emu_jax.data import shapes
from emu_jax.evaluation import shapes_benchmark
from emu_jax.evaluation.shapes_benchmark import measure, real_clips
from emu_jax.generation import Request
from emu_jax.pipeline import Pipeline
from tests.tiny import MODEL

SIZE, FPS, FRAMES = 32, 4.0, 8


def pretend(monkeypatch, num, split):
  """A pipeline whose `generate` draws each prompt, and the batches that it was asked for."""
  clips = real_clips(split, num, 0, SIZE, np.zeros((num, FRAMES, SIZE, SIZE, 3), np.uint8), FPS)
  captions = [caption for caption, _ in shapes.prompts(split, num, 0)]
  asked = []

  def generate(pipeline, texts, request):
    asked.append((tuple(texts), request.seed))
    rows = np.minimum(request.seed + np.arange(len(texts)), num - 1)  # a batch's seed is its start
    assert [captions[row] for row in rows] == list(texts)
    return clips[rows], FPS

  monkeypatch.setattr(shapes_benchmark, "generate", generate)
  image = dataclasses.replace(MODEL.image, size=SIZE)
  return Pipeline(dataclasses.replace(MODEL, image=image), {}, (), "pretended"), asked


def run(pipeline, num, batch_size, split="test"):
  return measure(pipeline, Request(), num_prompts=num, batch_size=batch_size, split=split)


def test_a_model_that_draws_the_truth_scores_as_real_clips_do(monkeypatch):
  pipeline, _ = pretend(monkeypatch, 12, "test")
  found = run(pipeline, 12, 4)
  np.testing.assert_array_equal(found.generated, found.real)
  assert found.reports["generated"] == found.reports["real"]
  for name in ("appearance", "direction", "joint", "object_consistency"):
    assert found.reports["real"].estimates[name].value == 1.0


def stand_still(monkeypatch):
  """Every clip is its first frame, from now on."""
  moving = shapes_benchmark.generate

  def still(*arguments):
    frames, fps = moving(*arguments)
    return np.repeat(frames[:, :1], FRAMES, axis=1), fps

  monkeypatch.setattr(shapes_benchmark, "generate", still)


def test_a_model_that_stands_still_fails_on_direction_alone(monkeypatch):
  pipeline, _ = pretend(monkeypatch, 12, "test")
  stand_still(monkeypatch)
  estimates = run(pipeline, 12, 4).reports["generated"].estimates
  assert estimates["appearance"].value == 1.0
  assert estimates["direction"].value == 0.0


def test_distances_are_to_other_prompts_and_say_that_a_still_model_stands_still(monkeypatch):
  pipeline, _ = pretend(monkeypatch, 24, "test")
  stand_still(monkeypatch)
  columns = {name: made.distances for name, made in run(pipeline, 24, 24).reports.items()}
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


def test_one_prompt_has_no_distance(monkeypatch):
  pipeline, _ = pretend(monkeypatch, 1, "test")
  assert not run(pipeline, 1, 1).reports["generated"].distances


def test_the_last_batch_is_filled_up_and_its_filling_is_not_counted(monkeypatch):
  pipeline, asked = pretend(monkeypatch, 5, "validation")
  found = run(pipeline, 5, 3, "validation")
  assert [len(texts) for texts, _ in asked] == [3, 3]
  assert len({seed for _, seed in asked}) == 2  # no two batches draw the same noise
  assert found.generated.shape == (5, FRAMES, SIZE, SIZE, 3)
  assert found.reports["generated"].num_clips == 5


def test_prompts_of_a_split_are_the_drawn_ones():
  captions = [caption for caption, _ in shapes.prompts("test", 3, 0)]
  assert captions == [shapes.caption(shapes.scene("videos", "test", i, 0)) for i in range(3)]
