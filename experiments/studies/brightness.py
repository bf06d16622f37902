"""Studies 3b and 4, trained: brightness of pixel-space models, by schedule, size and system."""

import math

import jax
import numpy as np

from emu_jax.systems.latent import Sampling
from experiments.brightness import SCHEDULES, SPREAD, uniform
from experiments.estimates import over_seeds
from experiments.pixel_model import PixelModel, network, run_of, sample
from experiments.study import Cell, Criterion, Results, Size, Study, average

SD, ZERO, EPS = "SD, v", "zero SNR, v", "SD, eps"
FRAMES = 8
STEPS = {"tiny": 2, "default": 1500}  # of training
DRAWN = {"tiny": 2, "default": 128}  # clips a cell
SAMPLING = {"tiny": Sampling(num_steps=2), "default": Sampling(num_steps=250)}
CHUNK = 32  # clips drawn at once

# (system, side in pixels, schedule); eps at one size, clips at the size that two cores can train.
ARMS = (
  *(("picture", side, name) for side in (16, 32, 64) for name in (SD, ZERO)),
  ("picture", 32, EPS),
  *((system, 16, name) for system in ("direct", "factorized") for name in (SD, ZERO)),
)


def arm(system: str, side: int, schedule: str) -> str:
  return f"{system} {side}, {schedule}"


def cells(size: Size, seed: int) -> dict[str, Cell]:
  return {arm(*which): cell(size, seed, *which) for which in ARMS}


def cell(size: Size, seed: int, system: str, side: int, name: str) -> Cell:
  """A picture model, a direct clip model, or a picture model and a clip model told its pictures."""
  schedule, sampling, num = SCHEDULES[name], SAMPLING[size], DRAWN[size]
  picture = PixelModel(schedule, side)
  clip = PixelModel(schedule, side, FRAMES, told=system == "factorized")
  models = {"picture": (picture,), "direct": (clip,), "factorized": (picture, clip)}[system]
  batch_size = 8 if size == "tiny" else 16
  runs = tuple(run_of(model, STEPS[size], batch_size, seed) for model in models)

  def measure(folders):
    chunks = []
    for start in range(0, num, CHUNK):
      drawn = None
      for model, folder in zip(models, folders, strict=True):
        key = jax.random.fold_in(jax.random.key(seed), start)
        key = jax.random.fold_in(key, model.num_frames)
        drawn = sample(
          network(folder), key, drawn, model=model, sampling=sampling, num=min(CHUNK, num - start)
        )
      chunks.append(np.asarray(drawn, np.float64))
    return read(np.concatenate(chunks))

  expected = uniform(schedule, models[0].numbers, sampling)
  options = {"sampling": vars(sampling), "num": num, "expected": round(expected, 6)}
  return Cell(runs, options, lambda folders: measure(folders) | {"expected": [expected] * num})


def read(clips: np.ndarray) -> dict[str, np.ndarray]:
  """Of each clip: its brightness, how far a frame's is from the first one's, and its noise."""
  frames = clips.mean(axis=(2, 3, 4))
  return {
    "brightness": frames.mean(axis=1),
    "drift": np.abs(frames - frames[:, :1]).max(axis=1),
    "noise": clips.std(axis=(2, 3, 4)).mean(axis=1),
  }


def ratio(values) -> float:
  """Spread of brightness over that of the data."""
  return float(values["brightness"].std() / SPREAD)


def gap(results: Results, system: str, side: int) -> np.ndarray:
  """Of each seed, how much more spread the zero-SNR schedule gives."""
  pairs = zip(
    results.arms[arm(system, side, ZERO)], results.arms[arm(system, side, SD)], strict=True
  )
  return np.array([ratio(zero) - ratio(sd) for zero, sd in pairs])


def judge(results: Results) -> list[Criterion]:
  zero = {side: results.figure(arm("picture", side, ZERO), ratio) for side in (16, 32, 64)}
  gaps = {side: gap(results, "picture", side) for side in (16, 32, 64)}
  direct, factorized = (gap(results, system, 16) for system in ("direct", "factorized"))
  return [
    Criterion("zero SNR at 32: at least 0.9 of the spread", zero[32], least=0.9),
    Criterion(
      "SD at 32: at most 0.6 of the spread",
      results.figure(arm("picture", 32, SD), ratio), most=0.6,
    ),
    Criterion(
      "SD with eps at 32: at most 0.6 of the spread",
      results.figure(arm("picture", 32, EPS), ratio), most=0.6,
    ),
    Criterion("gap at 32 less that at 16", over_seeds(gaps[32] - gaps[16]), least=0.0),
    Criterion("gap at 64 less that at 32", over_seeds(gaps[64] - gaps[32]), least=0.0),
    Criterion(
      "gap of the direct model less that of the factorized one, at 16",
      over_seeds(direct - factorized), least=0.0,
    ),
  ]  # fmt: skip


def draw(axes, results: Results) -> None:
  sides = (16, 32, 64)
  for name, colour in ((SD, "C3"), (ZERO, "C0")):
    found = [results.figure(arm("picture", side, name), ratio) for side in sides]
    axes.plot(sides, [e.value for e in found], "o-", color=colour, label=f"{name}, trained")
    for side, e in zip(sides, found, strict=True):
      if math.isfinite(e.low):
        axes.plot([side, side], [e.low, e.high], color=colour)
    exact = [average("expected")(results.arms[arm("picture", side, name)][0]) for side in sides]
    axes.plot(sides, exact, "--", color=colour, label=f"{name}, exact denoiser")
  axes.set_xscale("log", base=2)
  axes.set_xticks(sides, sides)
  axes.set_ylim(0, 1.2)
  axes.set_xlabel("side of a picture, pixels")
  axes.set_ylabel("spread of brightness / that of the data")
  axes.legend(fontsize=7)


STUDY = Study(
  name="brightness",
  title="Terminal SNR and brightness, trained networks in pixel space",
  claim=(
    "Zero terminal SNR with v gives samples the brightness of the data, where Stable Diffusion's "
    "schedule leaves them near grey (arXiv:2305.08891), and this matters more with resolution; it "
    "helps factorized models more than direct ones (Emu Video, arXiv:2311.10709, sec. 4.1)."
  ),
  method=(
    "The data are RGB pictures, or clips of 8 frames, of one uniform brightness drawn from "
    "(-1, 1). A small U-Net without attention is trained in pixel space (2 x 2 patches as "
    "channels) for 1500 steps of 16, and 128 pictures or clips are drawn by DDIM on 250 trailing "
    "steps, the same noise in all arms of a size. The ratio is that of the standard deviations of "
    "brightness, samples over data; 'expected' is what an exact denoiser of this data gives "
    "(`experiments/brightness.py`), of a factorized model that of its picture. Drift is the "
    "largest distance of a frame's brightness from the first one's; noise the spread of pixels "
    "within a clip, 0 in the data. A direct clip model is told nothing, a factorized one its first "
    "frame, which a picture model of the same schedule draws. Clips at 16 only: larger ones take "
    "more than these cores give. The data hold no objects, so that object consistency and "
    "direction are not measured here."
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
