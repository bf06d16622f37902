"""What a checkpoint costs the training loop: seconds of it, and the share at a config's own pace.

  python -m benchmarks.save_cost --size default --rounds 3

The video stage of configs/shapes_32.py trains for a few steps, without a save and with one in the
middle, in turns. The time counts from the batch after the first steps to the last one, so that the
copy of the arrays, the writing in the background and what it takes from the step's own threads are
all in it.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.basics import say, spread
from benchmarks.data_wait import before, experiment
from emu_jax.data.batches import batches, open_source
from emu_jax.data.shapes import prepare_shapes
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.train.clips import batch_options, empty_prompt
from emu_jax.train.config import Experiment, config_json
from emu_jax.train.loop import train
from emu_jax.train.parts import build

STEPS, FIRST = 24, 3  # of a run; the step before which the clock starts
SAVE = 8  # a save comes after this many steps, early enough to end within the run


class Stamped:
  """Batches, and when each of them was asked for."""

  def __init__(self, source: Any):
    self.source, self.times = source, []
    self.get_state, self.set_state = source.get_state, source.set_state

  def __iter__(self) -> Iterator:
    return self

  def __next__(self) -> dict:
    self.times.append(time.perf_counter())
    return next(self.source)


def seconds(stage: Experiment, trees: dict, folder: pathlib.Path, name: str, save: bool) -> float:
  """Wall time of the counted steps of one run."""
  (text,) = stage.system.texts
  tokenizers = (load_tokenizer(folder / "tokenizer", text.max_length),)
  source = open_source(folder / "data" / "videos", "train")
  data = batches(source, **batch_options(stage, tokenizers))
  loop = dataclasses.replace(
    stage.loop, num_steps=STEPS, log_every=STEPS, save_every=SAVE if save else 0, keep=1
  )
  stamped = Stamped(data)
  # A second save would come at 2 * SAVE: the clock stops before it.
  with contextlib.closing(data):
    train(
      build(stage, trees, empty_prompt(tokenizers)), stamped, run_dir=folder / name,
      optim=stage.optim, loop=loop, config=config_json(stage),
    )  # fmt: skip
  return stamped.times[2 * SAVE - 1] - stamped.times[FIRST]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=("small", "default"), default="default")
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as base:
    folder = pathlib.Path(base)
    prepare_shapes(folder / "data", size=32, num_images=1, num_clips=64, progress=False)
    stage = experiment(arguments.size, str(folder / "data" / "videos"))
    (text,) = stage.system.texts
    source = open_source(folder / "data" / "videos", "train")
    train_tokenizer(source.captions, folder / "tokenizer", text.vocab_size)
    trees, found = before(stage), {True: [], False: []}
    for i, save in itertools.product(range(arguments.rounds), (False, True)):
      say(f"round {i + 1}: {'with' if save else 'without'} a save")
      found[save].append(seconds(stage, trees, folder, f"{i}{save}", save))
  steps = 2 * SAVE - 1 - FIRST
  step = statistics.median(found[False]) / steps
  cost = statistics.median(found[True]) - statistics.median(found[False])
  print(f"{steps} steps: {spread(found[False])} s without, {spread(found[True])} s with one save")
  print(f"a save costs the loop {cost:.2f} s, {cost / step:.2f} steps of {step:.3f} s")
  print(f"so it is 2 % of the time where one is made every {cost / step / 0.02:.0f} steps")


if __name__ == "__main__":
  main()
