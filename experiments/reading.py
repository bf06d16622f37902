"""What the pixel oracle says of each clip or picture, one number a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emu_jax.evaluation import frechet, metrics, oracle, shape_features
from emu_jax.evaluation.features import accumulated
from experiments.estimates import Values

BATCH = 16  # clips whose features are computed at once
Truths = Sequence[Mapping[str, Any]]


def clip_values(clips: metrics.Clips, truths: Truths, fps: float) -> Values:
  """Hits are 0 or 1; consistency and motion score are those of `emu_jax.evaluation.metrics`."""
  readings = oracle.read_clips(clips, fps)
  hit = lambda *words: metrics.follows(readings, truths, words).astype(float)
  motion = [metrics.motion_score(metrics.block_motion(clip)[0]) for clip in clips]
  return {
    "appearance": hit(*metrics.APPEARANCE),
    "colour": hit("colour"),
    "shape": hit("shape"),
    "direction": hit("direction"),
    "joint": hit(*metrics.APPEARANCE, *metrics.MOTION),
    "consistency": metrics.object_consistency(readings),
    "motion": np.array(motion),
  }


def picture_values(pictures: metrics.Clips, truths: Truths) -> Values:
  """Of pictures, clips of one frame: whether all of the look is there."""
  readings = oracle.read_clips(pictures, 1.0)
  hit = metrics.follows(readings, truths, metrics.APPEARANCE)
  return {"picture appearance": hit.astype(float)}


def distance(clips: metrics.Clips, others: metrics.Clips) -> Values:
  """Fréchet's, from real clips of other prompts, or from pictures: one number for all of them."""
  moving = clips.shape[1] > 1
  features = shape_features.clips() if moving else shape_features.frames()
  found = (accumulated(features, group, BATCH) for group in (clips, others))
  return {"FVD-o" if moving else "FID-o": np.array([frechet.frechet(*found).value])}
