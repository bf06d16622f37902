"""A stage of a few numbers, its data and a run of it; also a program, for the tests of signals."""

import dataclasses
import itertools
import json
import pathlib
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.batches import Source, batches
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.errors import InputError
from emu_jax.parallel import placement
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.loop import LoopConfig, train
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.processes import together
from emu_jax.train.stage import Stage
from emu_jax.train.stop import StopSignal

OPTIM = OptimConfig(peak_lr=1e-2, warmup_steps=3, ema_decay=0.9)


def init(key):
  first, out = jax.random.split(key)
  return {
    "net": {
      "first": {"kernel": jax.random.normal(first, (4, 8)), "bias": jnp.zeros(8)},
      "out": {"kernel": jax.random.normal(out, (8, 2)), "bias": jnp.zeros(2)},
    }
  }


def predict(params, frozen, x):
  net = params["net"]
  h = jnp.tanh(
    x @ frozen["features"]["kernel"] @ net["first"]["kernel"] + net["first"]["bias"][None]
  )
  return h @ net["out"]["kernel"] + net["out"]["bias"][None]


def plain_loss(params, frozen, batch, key, step):
  """No randomness: what a batch gives does not depend on how it is split."""
  x = batch["x"].astype(jnp.float32) / 255
  losses = jnp.square(predict(params, frozen, x) - jnp.sin(x[:, :2])).mean(axis=1)
  return losses, {"worst_half": losses.mean() / 2}


def noisy_loss(params, frozen, batch, key, step):
  noise = 0.1 * jax.random.normal(key, (len(batch["x"]), 2))
  losses, metrics = plain_loss(params, frozen, batch, key, step)
  x = batch["x"].astype(jnp.float32) / 255
  return losses + (predict(params, frozen, x) * noise).mean(axis=1), metrics


@jax.jit
def sample(ema, frozen, batch, key):
  x = batch["x"][:2].astype(jnp.float32) / 255
  clip = jnp.broadcast_to(predict(ema, frozen, x)[:, :1, None, None, None], (2, 3, 8, 8, 3))
  return {"clips": clip, "a still": clip[:, :1]}


def stage(loss=noisy_loss, **fields):
  frozen = {"features": {"kernel": np.eye(4, dtype=np.float32)}}
  return Stage(**{"init": init, "frozen": frozen, "loss": loss, "sample": sample} | fields)


def data(batch_size=8, seed=0):
  """A real Grain pipeline, shuffled and endless; "index" tells the order."""
  rows = np.random.default_rng(0).integers(0, 255, (24, 4), np.uint8)
  example = lambda i: {"x": rows[i], "index": np.int32(i)}
  dataset = grain.MapDataset.source(range(24)).seed(seed).shuffle().repeat().map(example)
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)  # the defaults read far ahead
  return iter(dataset.batch(batch_size).to_iter_dataset(reading))


class Clips:
  """The same from the trainer's own reader: this process's part of batches of 8."""

  def __init__(self):
    rows = np.random.default_rng(0).integers(0, 255, (24, 1, 2, 2, 3), np.uint8)
    records = [{"frames": row, "fps": np.float32(0), "caption": ""} for row in rows]
    source = Source("memory", (2, 2), records, np.ones(24, np.int32), np.zeros(24, np.float32))
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    size = 8 // jax.process_count()
    self.batches = batches(
      source, clip_inputs(ClipSpec(1, 1.0), (2, 2)), batch_size=size, seed=0, threads=1, **part
    )
    self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

  def __iter__(self):
    return self

  def __next__(self):
    frames = next(self.batches)["frames"]
    return {"x": frames.reshape(len(frames), -1)[:, :4]}


def validation():
  return itertools.islice(data(seed=7), 2)


def config(loop, optim=OPTIM):
  return json.dumps({"optim": dataclasses.asdict(optim), "loop": dataclasses.asdict(loop)})


def run(run_dir, num_steps, *, loss=noisy_loss, optim=OPTIM, batches=None, loop=None, **fields):
  loop = LoopConfig(**{"num_steps": num_steps, "log_every": 1, "save_every": 3} | (loop or {}))
  fields = {"stage": stage(loss), "config": config(loop, optim), "validation": validation} | fields
  fields = {"mesh": make_mesh(jax.devices()[:1])} | fields  # one device: Orbax is quicker with it
  return train(data=batches or data(), run_dir=run_dir, optim=optim, loop=loop, **fields)


class Slow:
  """Batches that take a while, so that a signal comes in the middle of a run."""

  def __init__(self, batches, seconds=0.01):
    self.batches, self.seconds = batches, seconds
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __iter__(self):
    return self

  def __next__(self):
    time.sleep(self.seconds)
    return next(self.batches)


def main(
  run_dir,
  num_steps,
  seconds="0.01",
  fsdp="1",
  coordinator="",
  processes="0",
  process="-1",
  then="0",
  refuses="-1",
):
  """A run, and one of `then` steps after it, half a second each; process `refuses` refuses it."""
  jax.config.update("jax_platforms", "cpu")
  placement.SMALL = 16  # so few numbers lie in pieces too, where they are asked to
  with together("tiny_run", coordinator, int(processes), int(process)):
    if jax.process_index() == int(refuses):
      raise InputError("records are missing here; copy them")
    train_one(pathlib.Path(run_dir), int(num_steps), float(seconds), int(fsdp))
    if int(then):
      train_one(pathlib.Path(f"{run_dir}_then"), int(then), 0.5, int(fsdp))


def train_one(run_dir, num_steps, seconds, fsdp):
  """As the command does: a run that was stopped ends the process with its signal's exit code."""
  slow = Slow(data() if jax.process_count() == 1 else Clips(), seconds)
  stop, mesh = StopSignal(), make_mesh(config=MeshConfig(fsdp=fsdp))
  state = run(run_dir, num_steps, batches=slow, mesh=mesh, stop=stop)
  if int(state.step) < num_steps:
    sys.exit(stop.exit_code)


if __name__ == "__main__":
  main(*sys.argv[1:])
