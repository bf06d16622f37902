"""Study 3b, with captions: "black" and "white" of trained picture models, by schedule."""

import numpy as np

from experiments.brightness import SCHEDULES
from experiments.pixel_model import CAPTIONS, PixelModel, run_of
from experiments.studies import brightness
from experiments.studies.brightness import DRAWN, EPS, SAMPLING, SD, ZERO
from experiments.study import Cell, Criterion, Results, Size, Study, average

ASKED = ("black", "white")


def cells(size: Size, seed: int) -> dict[str, Cell]:
  return {name: cell(size, seed, name) for name in brightness.NAMES}


def cell(size: Size, seed: int, name: str) -> Cell:
  """A picture model that is told captions, asked for black and white in turn."""
  model = PixelModel(SCHEDULES[name], brightness.SIDE, captioned=True)
  run = run_of(model, brightness.STEPS[size], brightness.BATCH[size], seed)
  words = [ASKED[i % len(ASKED)] for i in range(DRAWN[size])]
  numbers = np.array([list(CAPTIONS).index(word) for word in words])
  wanted = np.array([CAPTIONS[word][0] for word in words])

  def measure(folders):
    found = brightness.read(brightness.drawn((model,), folders, size, seed, numbers))
    return found | {"asked": wanted, "off": np.abs(found["brightness"] - wanted)}

  return Cell((run,), {"sampling": vars(SAMPLING[size]), "asked": words}, measure)


def mean_of(word: str):
  """The mean brightness of the samples that were asked to be so."""
  return lambda values: float(
    values["brightness"][np.asarray(values["asked"]) == CAPTIONS[word][0]].mean()
  )


def judge(results: Results) -> list[Criterion]:
  less = lambda name: results.difference(ZERO, name, "off")
  return [
    Criterion("zero SNR with v: distance to what was asked", results.mean(ZERO, "off"), most=0.1),
    Criterion("distance: zero SNR with v less SD with v", less(SD), most=0.0),
    Criterion("distance: zero SNR with v less SD with eps", less(EPS), most=0.0),
  ]


def draw(axes, results: Results) -> None:
  """Every sample's brightness, an arm a histogram."""
  bins = np.linspace(-1.5, 1.5, 61)
  for i, (name, seeds) in enumerate(results.arms.items()):
    every = np.concatenate([values["brightness"] for values in seeds])
    axes.hist(every, bins, histtype="step", color=f"C{i}", label=name)
  for word in ASKED:
    axes.axvline(CAPTIONS[word][0], color="k", linestyle=":")
  axes.set_xlabel("brightness of a sample; dotted: black and white")
  axes.set_ylabel("samples")
  axes.legend(fontsize=7)


STUDY = Study(
  name="brightness_captions",
  title="Terminal SNR and the captions black and white",
  claim=(
    "Asked for black or white, a model with zero terminal SNR gives it, where one with Stable "
    "Diffusion's schedule gives something nearer to grey (arXiv:2305.08891)."
  ),
  method=(
    "The data are RGB pictures of 32 x 32 pixels of one brightness each: a third black (-1), with "
    "that caption, a third white (1), with that one, a third of any brightness, without one. The "
    "caption is three more input channels. "
    + brightness.TRAINED
    + brightness.NOISE
    + "Samples are asked to be black and white in turn, without guidance; distance is that "
    "of a sample's brightness to what was asked. An exact denoiser that is told black needs not "
    "see it: it is at distance 0 by every schedule. What is left is what a network does at pure "
    "noise, where Stable Diffusion's schedule has never shown it any."
  ),
  cells=cells,
  statistics={
    "black": mean_of("black"),
    "white": mean_of("white"),
    "distance": average("off"),
    "noise": average("noise"),
  },
  judge=judge,
  pairs=((ZERO, SD), (ZERO, EPS)),
  paired=("off",),
  draw=draw,
)
