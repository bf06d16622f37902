"""A model of the moving shapes against its prompts, read by the pixel oracle beside real clips."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from emu_jax.data import shapes
from emu_jax.errors import InputError
from emu_jax.evaluation import shape_features
from emu_jax.evaluation.features import accumulated, distances
from emu_jax.evaluation.frechet import Distance
from emu_jax.evaluation.report import Report, evaluate_clips
from emu_jax.model import Model

Clips = UInt8[np.ndarray, "B T H W 3"]
TASK = "sample"  # whose request has a prompt, and a seed
BATCH = 64  # frames, or clips, whose features are computed at a time


@dataclasses.dataclass(frozen=True)
class Measured:
  """What `measure` found: reports by column, and the clips they are of."""

  reports: dict[str, Report]
  captions: list[str]
  generated: Clips
  real: Clips


def measure(
  model: Model,
  *,
  num_prompts: int,
  batch_size: int,
  split: str,
  seed: int = 0,
  progress: Callable[[Iterator, int], Iterator] = lambda batches, total: batches,
  **fields: Any,
) -> Measured:
  """Samples one clip a prompt and reads it, and the drawn clip of the same prompt, by the oracle.

  Of features that tell shapes apart, distances to real clips of as many other prompts stand beside.
  Every prompt is sampled once, in order, prompt i with the seed `seed + i`; nothing is chosen among
  several. The last batch is filled up with its own last prompt, so that every batch has one shape.

  Args:
    split: of `shapes.prompts`.
    fields: of the request of the model's task "sample", such as `frames`.
  Raises: InputError as `check` and `Model.run`.
  """
  check(model, model.request(TASK, prompt="", seed=seed, **fields))
  pairs = list(shapes.prompts(split, num_prompts, seed))
  captions, truths = [c for c, _ in pairs], [t for _, t in pairs]
  starts = range(0, num_prompts, batch_size)
  parts = []
  for start in progress(iter(starts), len(starts)):
    texts = captions[start : start + batch_size]
    padded = texts + texts[-1:] * (batch_size - len(texts))
    clips = model.run(TASK, prompt=tuple(padded), seed=seed + start, **fields)
    parts.append(clips.frames[: len(texts)])
  generated, fps = np.concatenate(parts), clips.fps
  size = generated.shape[2]
  real = real_clips(split, num_prompts, seed, size, generated, fps)
  others = real_clips(split, num_prompts, seed, size, generated, fps, first=num_prompts)
  columns = {"generated": generated, "real": real}
  found = shape_distances(columns, others)
  reports = {
    name: dataclasses.replace(evaluate_clips(clips, truths, fps), distances=found[name])
    for name, clips in columns.items()
  }
  return Measured(reports, captions, generated, real)


def check(model: Model, request: Any) -> None:
  """Raises InputError for clips to which the moving shapes have no real ones; needs no weights."""
  (_, T, H, W, _), fps = model.shape(TASK, request), model.fps(TASK, request)
  if H != W:
    raise InputError(
      f"evaluate: frames of {H}x{W} pixels; the moving shapes are square; give a model of square "
      "frames"
    )
  every = shapes.FPS / fps
  if every != round(every):
    raise InputError(
      f"evaluate: {fps:g} frames a second do not divide the {shapes.FPS:g} of the moving shapes; "
      "give a model of another rate"
    )
  if (T - 1) * every >= shapes.NUM_FRAMES:
    raise InputError(
      f"evaluate: {T} frames at {fps:g} a second are longer than the {shapes.NUM_FRAMES} frames at "
      f"{shapes.FPS:g} of the moving shapes; ask for fewer frames"
    )


def shape_distances(columns: dict[str, Clips], others: Clips) -> dict[str, dict[str, Distance]]:
  """How far each set is from real clips of other prompts, frame by frame and as clips.

  Other prompts, since a set and the real clips of its own prompts are not independent. What real
  clips are away from them is what chance alone makes of a distance at this number.
  """
  found = {name: {} for name in columns}
  if len(others) < 2:  # one alone has no covariance
    return found
  moving = others.shape[1] > 1
  for features in (shape_features.frames(), *([shape_features.clips()] if moving else [])):
    reference = accumulated(features, others, BATCH)
    for name, clips in columns.items():
      found[name] |= distances(features.name, accumulated(features, clips, BATCH), reference)
  return found


def real_clips(
  split: str, num: int, seed: int, size: int, generated: Clips, fps: float, first: int = 0
) -> Clips:
  """The drawn clips of prompts from `first` on, frames and rate as the generated ones'."""
  every = round(shapes.FPS / fps)
  chosen = np.arange(generated.shape[1]) * every
  scenes = (shapes.scene("videos", split, index, seed) for index in range(first, first + num))
  return np.stack([shapes.draw(scene, size)[chosen] for scene in scenes])
