"""Everything that is measured of one set of clips or pictures, in one pass over its files."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from emu_jax.evaluation import clip_score, metrics
from emu_jax.evaluation.clip_sets import ClipSet, Progress
from emu_jax.evaluation.features import Features, Stream, distances
from emu_jax.evaluation.frechet import Accumulated
from emu_jax.evaluation.report import Report


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one pass found: features by the name of their distance, and a report."""

  features: dict[str, Accumulated]
  report: Report


def measure(
  clips: ClipSet,
  features: Sequence[Features],
  clip: clip_score.ClipModel | None,
  *,
  batch_size: int,
  mesh: Mesh | None = None,
  seed: int = 0,
  progress: Progress = lambda indices, what: iter(indices),
) -> Measured:
  """Reads every clip once and hands it to all that measures.

  Args:
    batch_size: frames at a time; clips are as many as have so many frames.
    seed: of the means' bootstrap.
  """
  T = clips.spec.num_frames
  gathered = {f.name: Accumulated(f.dims) for f in features}
  sinks = [(f, gathered[f.name].add) for f in features]
  if clip is not None:
    texts = clip_score.text_embeddings(clip, clips.captions) if clips.captions else None
    scored = clip_score.Scores(T, texts)
    sinks.append((clip.frames, scored.add))
  streams = [
    Stream(f, batch_size if f.unit == "frames" else max(1, batch_size // T), sink, mesh)
    for f, sink in sinks
  ]
  motion = []
  for index in progress(range(len(clips)), "measuring"):
    frames = clips.read(index)
    if T > 1:
      motion.append(metrics.h264_motion_score(frames, clips.spec.fps))
    for stream in streams:
      stream.take(frames, index)
  for stream in streams:
    stream.finish()
  values = scored.scores() if clip is not None else {}
  if motion:
    values["h264_motion_score"] = np.array(motion)
  estimates = {name: metrics.mean(v, seed=seed) for name, v in values.items()}
  return Measured(
    gathered, Report(estimates, len(clips), T, clips.size, clips.size, float(clips.spec.fps))
  )


def compared(generated: Measured, reference: Measured) -> dict[str, Report]:
  """Both reports by their columns' names, the distances in the first."""
  found = {}
  for name, gathered in generated.features.items():
    found |= distances(name, gathered, reference.features[name])
  return {
    "generated": dataclasses.replace(generated.report, distances=found),
    "reference": reference.report,
  }
