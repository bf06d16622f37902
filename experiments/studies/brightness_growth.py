"""Study 4: what terminal SNR does to brightness, by resolution, of direct and factorized models."""

import math

import numpy as np

from experiments.estimates import over_seeds
from experiments.studies.brightness import METHOD, SD, ZERO, cell, ratio
from experiments.study import Cell, Criterion, Results, Size, Study, average

SIDES = (16, 32, 64)  # pixels, of pictures
CLIP_SIDE = 16  # of clips: larger ones take more than two cores give
SYSTEMS = ("direct", "factorized")
ARMS = tuple(
  (system, side, name)
  for system, sides in {"picture": SIDES, **dict.fromkeys(SYSTEMS, (CLIP_SIDE,))}.items()
  for side in sides
  for name in (SD, ZERO)
)


def arm(system: str, side: int, schedule: str) -> str:
  return f"{system} {side}, {schedule}"


def cells(size: Size, seed: int) -> dict[str, Cell]:
  return {arm(*which): cell(size, seed, *which) for which in ARMS}


def gap(results: Results, system: str, side: int) -> np.ndarray:
  """Of each seed, how much more of the data's spread the zero-SNR schedule gives."""
  pairs = zip(
    results.arms[arm(system, side, ZERO)], results.arms[arm(system, side, SD)], strict=True
  )
  return np.array([ratio(zero) - ratio(sd) for zero, sd in pairs])


def judge(results: Results) -> list[Criterion]:
  gaps = {side: gap(results, "picture", side) for side in SIDES}
  direct, factorized = (gap(results, system, CLIP_SIDE) for system in SYSTEMS)
  return [
    Criterion("gap at 32 less that at 16", over_seeds(gaps[32] - gaps[16]), least=0.0),
    Criterion("gap at 64 less that at 32", over_seeds(gaps[64] - gaps[32]), least=0.0),
    Criterion(
      "gap of factorized clips less that of direct ones", over_seeds(factorized - direct), least=0.0
    ),
  ]


def draw(axes, results: Results) -> None:
  for name, colour in ((SD, "C3"), (ZERO, "C0")):
    found = [results.figure(arm("picture", side, name), ratio) for side in SIDES]
    axes.plot(SIDES, [e.value for e in found], "o-", color=colour, label=f"{name}, trained")
    for side, e in zip(SIDES, found, strict=True):
      if math.isfinite(e.low):
        axes.plot([side, side], [e.low, e.high], color=colour)
    exact = [average("expected")(results.arms[arm("picture", side, name)][0]) for side in SIDES]
    axes.plot(SIDES, exact, "--", color=colour, label=f"{name}, exact denoiser")
  axes.set_xscale("log", base=2)
  axes.set_xticks(SIDES, SIDES)
  axes.set_ylim(0, 1.2)
  axes.set_xlabel("side of a picture, pixels")
  axes.set_ylabel("spread of brightness / that of the data")
  axes.legend(fontsize=7)


STUDY = Study(
  name="brightness_growth",
  title="Terminal SNR and brightness, by resolution and system",
  claim=(
    "Zero terminal SNR matters more with resolution, and more for factorized models than for "
    "direct ones (Emu Video, arXiv:2311.10709, sec. 4.1)."
  ),
  method=(
    "The data are RGB pictures, or clips of 8 frames, of one brightness drawn from (-1, 1). "
    + METHOD
    + " The gap is the ratio of the zero-SNR schedule less that of SD's, both with v. A direct "
    "clip model is told nothing, a factorized one its first frame, which a picture model of the "
    "same schedule draws and whose expectation stands for its own. Drift is the largest distance "
    "of a frame's brightness from the first one's. The data hold no objects: what the paper says "
    "of their consistency is not measured here."
  ),
  cells=cells,
  statistics={
    "ratio of spreads": ratio,
    "expected": average("expected"),
    "drift": average("drift"),
    "noise": average("noise"),
  },
  judge=judge,
  draw=draw,
)
