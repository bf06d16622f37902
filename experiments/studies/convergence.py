"""Study 2: does beginning as the identity speed up the training of temporal layers?"""

import dataclasses
import json
import pathlib

import numpy as np

from experiments.estimates import over_seeds
from experiments.random_start import image_with_random_layers
from experiments.recipe import recipe, short
from experiments.study import Cell, Criterion, Results, Size, Study

IDENTITY, RANDOM = "identity", "random"
STEPS = {"tiny": 2, "default": 400}  # of training
EVERY = {"tiny": 1, "default": 20}  # steps between validations
CLIPS = 64  # held-out ones a validation, at most


def cells(size: Size, seed: int) -> dict[str, Cell]:
  r = recipe(size)
  given = r.stages["video_32"]
  every, batches = EVERY[size], max(1, min(CLIPS, r.num_records // 10) // given.data.batch_size)
  experiment = short(given, STEPS[size], validate_every=every, validate_batches=batches)
  # A constant rate: how soon a loss is reached must not hang on when the run is to end.
  optim = dataclasses.replace(experiment.optim, decay="constant")
  data = dataclasses.replace(experiment.data, batch_size=min(given.data.batch_size, batches * 4))
  experiment = dataclasses.replace(experiment, optim=optim, data=data)
  starts = {IDENTITY: r.image(), RANDOM: image_with_random_layers(r.image(), seed)}
  return {
    arm: Cell((r.video(seed, change=experiment, after=start),), {}, lambda f: losses(*f))
    for arm, start in starts.items()
  }


def losses(folder: pathlib.Path) -> dict[str, list[float]]:
  """The validation losses of a run, and the steps at which they were measured."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  found = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
  steps = sorted(found)
  return {"step": [float(s) for s in steps], "loss": [found[s] for s in steps]}


def reached(values, target: float) -> float:
  """The first step, between measurements by a straight line, at which the loss is the target."""
  steps, lowest = values["step"], np.minimum.accumulate(values["loss"])
  if lowest[-1] > target:
    return float("nan")
  if lowest[0] <= target:
    return float(steps[0])
  return float(np.interp(-target, -lowest, steps))


def speed_ups(results: Results) -> list[float]:
  """Steps of the random start over those of the identity, to what both arms of a seed reach."""
  ratios = []
  for ours, theirs in zip(results.arms[IDENTITY], results.arms[RANDOM], strict=True):
    target = max(v["loss"].min() for v in (ours, theirs))
    ratios.append(reached(theirs, target) / reached(ours, target))
  return ratios


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion(
      "steps of a random start over steps of the identity, to the loss that both reach",
      over_seeds(speed_ups(results)), least=1.5,
    )
  ]  # fmt: skip


def draw(axes, results: Results) -> None:
  for colour, (arm, seeds) in zip(("C0", "C3"), results.arms.items(), strict=True):
    for i, values in enumerate(seeds):
      axes.plot(values["step"], values["loss"], color=colour, label=None if i else arm)
  axes.set_xlabel("step")
  axes.set_ylabel("validation loss")
  axes.legend()


STUDY = Study(
  name="convergence",
  title="Identity initialisation and speed",
  claim=(
    "Temporal layers that begin as the identity converge twice as fast as random ones (Emu Video, "
    "arXiv:2311.10709, sec. 3.2)."
  ),
  method=(
    "The same video stage with a constant learning rate, from the same image model, data and "
    "seeds, once with new temporal layers that are the identity and once with every kernel that "
    "would be zero drawn like the others (a convolution's whole kernel, the identity left out). "
    "The loss is that of the averaged weights on the same held-out clips with the same noise. The "
    "loss to reach is, seed by seed, the higher of the two arms' lowest."
  ),
  cells=cells,
  statistics={
    "first loss": lambda values: float(values["loss"][0]),
    "lowest loss": lambda values: float(values["loss"].min()),
  },
  judge=judge,
  draw=draw,
)
