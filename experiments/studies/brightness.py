"""Study 3b: brightness of trained picture models in pixel space, by schedule and prediction."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from emu_jax.diffusion.process import Sampling
from experiments.brightness import SCHEDULES, SPREAD, uniform
from experiments.pixel_model import PixelModel, averaged, run_of, sample
from experiments.study import Cell, Criterion, Results, Size, Study, average

SD, ZERO, EPS = "SD, v", "zero SNR, v", "SD, eps"
FRAMES = 8  # of a clip
STEPS = {"tiny": 2, "default": 3000}  # of training; after 1000 half of a sample is still noise
DRAWN = {"tiny": 2, "default": 128}  # clips a cell
SAMPLING = {"tiny": Sampling(num_steps=2), "default": Sampling(num_steps=250)}
BATCH = {"tiny": 8, "default": 16}  # of training
CHUNK = 64  # clips drawn at once

SIDE = 32  # pixels
NAMES = (SD, ZERO, EPS)


def cells(size: Size, seed: int) -> dict[str, Cell]:
  return {name: cell(size, seed, "picture", SIDE, name) for name in NAMES}


def cell(size: Size, seed: int, system: str, side: int, name: str) -> Cell:
  """A picture model, a direct clip model, or a picture model and a clip model told its pictures."""
  schedule, sampling, num = SCHEDULES[name], SAMPLING[size], DRAWN[size]
  picture = PixelModel(schedule, side)
  clip = PixelModel(schedule, side, FRAMES, told=system == "factorized")
  models = {"picture": (picture,), "direct": (clip,), "factorized": (picture, clip)}[system]
  runs = tuple(run_of(model, STEPS[size], BATCH[size], seed) for model in models)

  expected = uniform(schedule, models[0].numbers, sampling)
  options = {"sampling": vars(sampling), "num": num, "expected": round(expected, 6)}
  return Cell(
    runs,
    options,
    lambda folders: read(drawn(models, folders, size, seed)) | {"expected": [expected] * num},
  )


def drawn(
  models: Sequence[PixelModel],
  folders: Sequence[pathlib.Path],
  size: Size,
  seed: int,
  captions: np.ndarray | None = None,
) -> np.ndarray:
  """Clips by the last model, each of the others' first; `captions` [N] of a captioned one."""
  num, chunks = DRAWN[size], []
  for start in range(0, num, CHUNK):
    rows, clips = slice(start, min(start + CHUNK, num)), None
    for model, folder in zip(models, folders, strict=True):
      key = jax.random.fold_in(jax.random.key(seed), start)
      key = jax.random.fold_in(key, model.num_frames)
      clips = sample(
        averaged(folder), key, clips, None if captions is None else captions[rows],
        model=model, sampling=SAMPLING[size], num=rows.stop - start,
      )  # fmt: skip
    chunks.append(np.asarray(clips, np.float64))
  return np.concatenate(chunks)


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


def judge(results: Results) -> list[Criterion]:
  spread = lambda name: results.figure(name, ratio)
  return [
    Criterion(
      "zero SNR with v: spread of brightness over that of the data", spread(ZERO), least=0.9
    ),
    Criterion("SD's schedule with v: the same", spread(SD), most=0.6),
    Criterion("SD's schedule with eps: the same", spread(EPS), most=0.6),
  ]


def draw(axes, results: Results) -> None:
  """Every sample's brightness, an arm a histogram."""
  bins = np.linspace(-1.3, 1.3, 27)
  for i, (name, seeds) in enumerate(results.arms.items()):
    every = np.concatenate([values["brightness"] for values in seeds])
    axes.hist(every, bins, histtype="step", density=True, color=f"C{i}", label=name)
  axes.plot([-1, -1, 1, 1], [0, 0.5, 0.5, 0], "k:", label="data")
  axes.set_xlabel("brightness of a sample")
  axes.set_ylabel("density")
  axes.legend(fontsize=7)


TRAINED = (
  "A small U-Net without attention is trained in pixel space (2 x 2 patches as channels) for 3000 "
  "steps of 16, and 128 samples are drawn by DDIM on 250 trailing steps, with the same noise in "
  "all arms of a size. "
)
NOISE = "Noise is the spread of pixels within a sample, 0 in the data. "
METHOD = (
  TRAINED + "The ratio is that of the standard deviations of brightness, samples over data; "
  "'expected' is what an exact denoiser of this data gives (`experiments/brightness.py`). "
  + NOISE
  + "A first seed had 1000 steps and ratios of 0.503 (SD) and 0.879 (zero SNR, which "
  "misses the criterion); its samples were still noisy (0.45 and 0.50), and 3000 steps were chosen "
  "on seeing that."
)

STUDY = Study(
  name="brightness",
  title="Terminal SNR and brightness, trained networks in pixel space",
  claim=(
    "Zero terminal SNR with v gives samples the brightness of the data, where Stable Diffusion's "
    "schedule leaves them near grey (arXiv:2305.08891)."
  ),
  method=(
    "The data are RGB pictures of 32 x 32 pixels, each of one brightness drawn from (-1, 1). "
    + METHOD
  ),
  cells=cells,
  statistics={
    "ratio of spreads": ratio,
    "expected": average("expected"),
    "noise": average("noise"),
  },
  judge=judge,
  draw=draw,
)
