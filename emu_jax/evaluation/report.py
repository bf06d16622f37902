"""Reports of clips side by side, generated and real: every number with interval and count."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
import rich.table

from emu_jax import media
from emu_jax.errors import InputError
from emu_jax.evaluation import clip_score, metrics, oracle
from emu_jax.evaluation.frechet import Distance
from emu_jax.evaluation.metrics import Clips, Estimate, Truths

ENDINGS = (".json", ".md")

# Key of a report -> its row's title, and whether it is a share (shown in per cent).
TITLES = {
  "appearance": ("appearance, all attributes", True),
  "appearance_first_frame": ("appearance, first frame", True),
  **{name: (name, True) for name in metrics.APPEARANCE},
  "direction": ("motion direction", True),
  "speed": ("motion speed", True),
  "joint": ("appearance and motion", True),
  "readable": ("clips with a readable object", True),
  "colour_consistency": ("frames of the first one's colour", True),
  "object_consistency": ("frames like the first in colour and shape", True),
  "pixel_consistency": ("pixel consistency, motion-compensated", True),
  **{name: (title, False) for name, title in clip_score.TITLES.items()},
  "motion_score": ("motion score, block matching (px²/frame)", False),
  "h264_motion_score": ("motion score, H.264 (px²/frame)", False),
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What the metrics said of one set of clips; `estimates` is keyed as `TITLES`.

  `distances` are from a set of reference, keyed by their titles.
  """

  estimates: Mapping[str, Estimate]
  num_clips: int
  num_frames: int
  height: int
  width: int
  fps: float
  distances: Mapping[str, Distance] = dataclasses.field(default_factory=dict)


def evaluate_clips(clips: Clips, truths: Truths, fps: float | int, seed: int = 0) -> Report:
  """Reads the clips with the oracle and compares them with their truths.

  Accuracies are shares of clips with Wilson's 95 % interval; consistencies and motion scores are
  means over clips with a bootstrap interval (drawn from `seed`). A clip's word is the majority of
  its frames'; "joint" is all that the truth says, motion included. One frame is a picture: its
  report holds no row about motion or consistency.

  Raises:
    InputError: no clips, or another number of truths.
  """
  if not len(clips) or len(clips) != len(truths):
    raise InputError(
      f"evaluate_clips: {len(clips)} clips and {len(truths)} truths; give one truth for each clip,"
      " and at least one"
    )
  B, T, H, W, _ = clips.shape
  readings = oracle.read_clips(clips, fps)
  estimates = _accuracies(readings, truths, moving=T > 1)
  if T > 1:
    estimates |= _means(clips, readings, fps, seed)
  return Report(estimates, B, T, H, W, float(fps))


def _accuracies(readings: oracle.Readings, truths: Truths, moving: bool) -> dict[str, Estimate]:
  def share(*attributes, **settings):
    return metrics.proportion(metrics.follows(readings, truths, attributes, **settings))

  shares = {
    "appearance": share(*metrics.APPEARANCE),
    **{name: share(name) for name in metrics.APPEARANCE},
    "readable": metrics.proportion(2 * readings.valid.sum(axis=1) > readings.valid.shape[1]),
  }
  if moving:
    shares["appearance_first_frame"] = share(*metrics.APPEARANCE, first_frame=True)
    shares |= {name: share(name) for name in metrics.MOTION}
    shares["joint"] = share(*metrics.APPEARANCE, *metrics.MOTION)
  return shares


def _means(
  clips: Clips, readings: oracle.Readings, fps: float | int, seed: int
) -> dict[str, Estimate]:
  motions = [metrics.block_motion(clip) for clip in clips]
  scores = {
    "colour_consistency": metrics.object_consistency(readings, ("colour",)),
    "object_consistency": metrics.object_consistency(readings),
    "pixel_consistency": np.array([metrics.pixel_consistency(left) for _, left in motions]),
    "motion_score": np.array([metrics.motion_score(vectors) for vectors, _ in motions]),
    "h264_motion_score": np.array([metrics.h264_motion_score(clip, fps) for clip in clips]),
  }
  return {name: metrics.mean(values, seed=seed) for name, values in scores.items()}


def table(reports: Mapping[str, Report]) -> rich.table.Table:
  """The reports as columns of a table for the terminal, by their names."""
  notes = "\n".join(_notes(reports)) or None
  printed = rich.table.Table(
    title="value [95 % interval] (clips)", title_justify="left", caption=notes,
    caption_justify="left",
  )  # fmt: skip
  printed.add_column("")
  for name, report in reports.items():
    printed.add_column(f"{name}\n{_setting(report)}", justify="right", no_wrap=True)
  for row in _rows(reports):
    printed.add_row(*row)
  return printed


def markdown(reports: Mapping[str, Report]) -> str:
  """The same table as Markdown, ending in a newline."""
  lines = [
    "| value [95 % interval] (clips) | " + " | ".join(reports) + " |",
    "|---" + "|---:" * len(reports) + "|",
    "| clips x frames x height x width, rate | "
    + " | ".join(_setting(report) for report in reports.values())
    + " |",
    *("| " + " | ".join(row) + " |" for row in _rows(reports)),
  ]
  notes = [f"- {note}" for note in _notes(reports)]
  return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def to_json(reports: Mapping[str, Report]) -> str:
  """The reports as JSON, keyed by their names; a number that there is not (NaN) is null."""

  def plain(value):
    if isinstance(value, Mapping):
      return {key: plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

  fields = {name: dataclasses.asdict(report) for name, report in reports.items()}
  return json.dumps(plain(fields), indent=2, allow_nan=False) + "\n"


def save(path: str | pathlib.Path, reports: Mapping[str, Report]) -> pathlib.Path:
  """Writes the reports as JSON or Markdown, by the name's ending; check it early with `ENDINGS`."""
  path = media.check_output(path, ENDINGS)
  text = to_json(reports) if path.suffix.lower() == ".json" else markdown(reports)
  media.write_whole(path, text.encode())
  return path


def _setting(report: Report) -> str:
  r = report
  return f"{r.num_clips} x {r.num_frames} x {r.height} x {r.width}, {r.fps:g} fps"


def _rows(reports: Mapping[str, Report]) -> list[list[str]]:
  rows = [
    [title, *(_cell(report.estimates.get(key), share) for report in reports.values())]
    for key, (title, share) in TITLES.items()
    if any(key in report.estimates for report in reports.values())
  ]
  names = dict.fromkeys(name for report in reports.values() for name in report.distances)
  return rows + [
    [name, *(_distance(report.distances.get(name)) for report in reports.values())]
    for name in names
  ]


def _distance(distance: Distance | None) -> str:
  """Value, interval, both counts, and what of it is bias."""
  if distance is None:
    return "-"
  d = distance
  value, low, high = (f"{x:.4g}" if math.isfinite(x) else "?" for x in (d.value, d.low, d.high))
  bias = "" if d.bias is None else f", bias {d.bias:.2g}"
  return f"{value} [{low}, {high}] ({d.n} to {d.n_reference}{bias})"


def _notes(reports: Mapping[str, Report]) -> list[str]:
  """What must be known of the distances, each once."""
  found = (
    f"{name}: {distance.notice}"
    for report in reports.values()
    for name, distance in report.distances.items()
    if distance.notice
  )
  return list(dict.fromkeys(found))


def _cell(estimate: Estimate | None, share: bool) -> str:
  if estimate is None or not estimate.n:
    return "-"
  unit, suffix, digits = (100, " %", 1) if share else (1, "", 2)
  value, low, high = (
    f"{unit * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
  )
  return f"{value}{suffix} [{low}, {high}] ({estimate.n})"
