"""Share of time that the trainer waits for data, in a short run on the built-in moving shapes.

The video stage of configs/shapes_32.py with its own batch size, on image trees drawn at
random: neither the time of a step nor that of a batch depends on what they hold.

  python -m benchmarks.data_wait default
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile

import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks.problem import HighWater
from benchmarks.with_jax import drawn
from emu_jax.configs.shapes_32 import STAGES
from emu_jax.data.batches import batches, open_source
from emu_jax.data.shapes import prepare_shapes
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.train.clips import batch_options, empty_prompt
from emu_jax.train.config import Experiment, config_json
from emu_jax.train.loop import LoopConfig, train
from emu_jax.train.parts import build

LAP = 9  # steps; in the first lap the batches are those that were read during compilation


def experiment(size: str, data: str) -> Experiment:
  """The stage, for two laps."""
  video = next(stage for stage in STAGES if stage.part == "video")
  batch = 4 if size == "small" else video.data.batch_size
  return dataclasses.replace(
    video,
    data=dataclasses.replace(video.data, sources=(data,), batch_size=batch),
    loop=LoopConfig(num_steps=2 * LAP, log_every=LAP, save_every=0),
  )


def before(stage: Experiment) -> dict:
  """Trees of the stages before, drawn at random."""
  table = stage.system.trees()
  names = ("autoencoder", "text", "spatial")
  trees = {name: unflatten_dict(drawn(table[name].init, 0), sep="/") for name in names}
  ones = np.ones(stage.system.image.first_stage.channels, np.float32)
  return trees | {"latents": {"shift": 0 * ones, "scale": ones}}


def measured(size: str, folder: pathlib.Path) -> dict:
  """What emu_jax.train.progress.Clock found in the second lap, and the largest resident set."""
  clips = 64 if size == "small" else 512
  prepare_shapes(folder / "data", size=32, num_images=1, num_clips=clips, progress=False)
  stage, run_dir = experiment(size, str(folder / "data" / "videos")), folder / "run"
  source = open_source(folder / "data" / "videos", "train")
  (text,) = stage.system.texts
  train_tokenizer(source.captions, folder / "tokenizer", text.vocab_size)
  tokenizers = (load_tokenizer(folder / "tokenizer", text.max_length),)
  data = batches(
    source,
    **batch_options(stage, tokenizers),
    drop_text=stage.data.drop_text,
    drop_both=stage.data.drop_both,
  )
  built = build(stage, before(stage), empty_prompt(tokenizers))
  config = config_json(stage)
  with contextlib.closing(data):
    train(built, data, run_dir=run_dir, optim=stage.optim, loop=stage.loop, config=config)
  last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
  return {
    "config": "configs/shapes_32.py, stage video",
    "batch": stage.data.batch_size,
    "steps": LAP,
    "data_wait": last["time/data_wait"],
    "step_s": last["time/step_s"],
    "clips_per_s": last["time/clips_per_s"],
    "peak_MiB": HighWater().peak(),
  }


def main() -> None:
  """Prints it as JSON."""
  (size,) = sys.argv[1:]
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(measured(size, pathlib.Path(folder))))


if __name__ == "__main__":
  main()
