"""A model of the moving shapes against its prompts, read by the pixel oracle beside real clips."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

from emu_jax.data import shapes
from emu_jax.evaluation.report import Report, evaluate_clips
from emu_jax.generation import Request, generate
from emu_jax.pipeline import Pipeline

Clips = UInt8[np.ndarray, "B T H W 3"]


@dataclasses.dataclass(frozen=True)
class Measured:
  """What `measure` found: reports by column, and the clips they are of."""

  reports: dict[str, Report]
  captions: list[str]
  generated: Clips
  real: Clips


def measure(
  pipeline: Pipeline,
  request: Request,
  *,
  num_prompts: int,
  batch_size: int,
  split: str,
  progress: Callable[[Iterator, int], Iterator] = lambda batches, total: batches,
) -> Measured:
  """Samples one clip a prompt and reads it, and the drawn clip of the same prompt, by the oracle.

  Every prompt is sampled once, in order, with noise that follows from `request.seed`; nothing is
  chosen among several. The last batch is filled up with its own last prompt, so that every batch
  has one shape.

  Args:
    split: of `shapes.prompts`.
  """
  pairs = list(shapes.prompts(split, num_prompts, request.seed))
  captions, truths = [c for c, _ in pairs], [t for _, t in pairs]
  starts = range(0, num_prompts, batch_size)
  parts = []
  for start in progress(iter(starts), len(starts)):
    texts = captions[start : start + batch_size]
    padded = texts + texts[-1:] * (batch_size - len(texts))
    frames, fps = generate(
      pipeline, padded, dataclasses.replace(request, seed=request.seed + start)
    )
    parts.append(frames[: len(texts)])
  generated = np.concatenate(parts)
  real = real_clips(split, num_prompts, request.seed, pipeline.config.image.size, generated, fps)
  reports = {
    "generated": evaluate_clips(generated, truths, fps),
    "real": evaluate_clips(real, truths, fps),
  }
  return Measured(reports, captions, generated, real)


def real_clips(split: str, num: int, seed: int, size: int, generated: Clips, fps: float) -> Clips:
  """The drawn clips of the same prompts, as many frames at the same rate as the generated ones."""
  every = round(shapes.FPS / fps)
  chosen = np.arange(generated.shape[1]) * every
  scenes = (shapes.scene("videos", split, index, seed) for index in range(num))
  return np.stack([shapes.draw(scene, size)[chosen] for scene in scenes])
