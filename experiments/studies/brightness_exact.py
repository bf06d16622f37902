"""Studies 3a and 4 in closed form: terminal SNR, pixels and brightness, with exact denoisers."""

import numpy as np

from emu_jax.diffusion.process import Sampling
from experiments.brightness import SCHEDULES, closed_form, gaussian, uniform
from experiments.estimates import exactly
from experiments.study import Cell, Criterion, Results, Size, Study, average

SIDES = (8, 16, 32, 64)  # pixels, RGB
FRAMES = 8
SAMPLING = Sampling(num_steps=250)
SD, ZERO = SCHEDULES["SD, v"], SCHEDULES["zero SNR, v"]


def sizes() -> dict[str, int]:
  """What is drawn at once by each system -> how many numbers share a brightness."""
  pictures = {f"picture of {side}": 3 * side**2 for side in SIDES}
  return pictures | {f"{FRAMES} frames of {side}, direct": FRAMES * 3 * side**2 for side in SIDES}


def cells(size: Size, seed: int) -> dict[str, Cell]:
  """Nothing random: every seed is the same."""
  chosen = dict(list(sizes().items())[:2]) if size == "tiny" else sizes()
  options = {"sampling": vars(SAMPLING)}
  return {
    name: Cell((), options | {"numbers": n}, lambda folders, n=n: measure(n))
    for name, n in chosen.items()
  }


def measure(numbers: int) -> dict[str, list[float]]:
  return {
    "numbers": [float(numbers)],
    "SD, closed form": [closed_form(SD, numbers)],
    "SD, 250 steps": [gaussian(SD, numbers, SAMPLING)],
    "zero SNR, 250 steps": [gaussian(ZERO, numbers, SAMPLING)],
    "zero SNR, 1000 steps": [gaussian(ZERO, numbers, Sampling(num_steps=1000))],
    "SD, 250 steps, uniform": [uniform(SD, numbers, SAMPLING)],
    "zero SNR, 250 steps, uniform": [uniform(ZERO, numbers, SAMPLING)],
  }


METRICS = (
  "numbers",
  "SD, closed form",
  "SD, 250 steps",
  "zero SNR, 250 steps",
  "zero SNR, 1000 steps",
  "SD, 250 steps, uniform",
  "zero SNR, 250 steps, uniform",
)


def judge(results: Results) -> list[Criterion]:
  one = {metric: _column(results, metric) for metric in METRICS}
  off = np.abs(one["SD, 250 steps"] / one["SD, closed form"] - 1).max()
  gaps = one["zero SNR, 250 steps"] - one["SD, 250 steps"]
  growth = np.diff(gaps[np.argsort(one["numbers"])]).min()
  worst = one["zero SNR, 250 steps"][one["numbers"] <= 3 * 32**2].min()
  return [
    Criterion(
      "SD: relative error of DDIM of 250 trailing steps to the closed form",
      exactly(off), most=0.02,
    ),
    Criterion("zero SNR: least share of the spread, up to 32 x 32 x 3", exactly(worst), 0.9),
    Criterion(
      "least growth of the gap, with a doubling or with frames", exactly(growth), least=0.0
    ),
  ]  # fmt: skip


def _column(results: Results, metric: str) -> np.ndarray:
  return np.array([seeds[0][metric][0] for seeds in results.arms.values()])


def draw(axes, results: Results) -> None:
  numbers = _column(results, "numbers")
  order = np.argsort(numbers)
  for metric in METRICS[1:]:
    dashed = "--" if "uniform" in metric else "-"
    axes.plot(numbers[order], _column(results, metric)[order], dashed, marker=".", label=metric)
  axes.set_xscale("log")
  axes.set_ylim(0, 1.05)
  axes.set_xlabel("numbers that share one brightness")
  axes.set_ylabel("spread of brightness / that of the data")
  axes.legend(fontsize=7)


STUDY = Study(
  name="brightness_exact",
  title="Terminal SNR and brightness, exact denoisers",
  claim=(
    "A schedule whose last step is not pure noise cannot give brightness its spread, the less the "
    "larger the picture or clip; the zero-terminal-SNR schedule can (arXiv:2305.08891; Emu Video, "
    "arXiv:2311.10709, sec. 4.1, for resolution)."
  ),
  method=(
    "The spread of brightness over that of the data, drawn by the project's DDIM on 250 trailing "
    "steps with the exact denoiser of a brightness that N numbers share: Gaussian with variance "
    "1/3, where the limit of many steps is 1 / sqrt(1 - abar_T + abar_T N / 3), or uniform on "
    "(-1, 1). Nothing is trained and nothing is random. A direct model draws all frames' numbers "
    "at once; a factorized one draws a picture's, and its frames are then given a brightness that "
    "is no longer to be drawn."
  ),
  cells=cells,
  statistics={metric: average(metric) for metric in METRICS},
  judge=judge,
  draw=draw,
)
