"""What a training step is spared whose data was encoded ahead (`emu-train encode`).

For each config's video stage: operations of loss and gradient, and weights that the step holds, on
clips and on encoded records. With --steps also the processors' seconds of real steps, both taken in
turn on the first config; weights are drawn at random, which time does not depend on.

  python -m benchmarks.encoded configs/shapes_32.py configs/emu_video_sd15_256.py --steps 10
"""

import argparse
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import batch_sharding, place
from emu_jax.train.config import load_stages
from emu_jax.train.planning.programs import Training
from emu_jax.train.state import initial_state
from emu_jax.train.step import jitted_step


def programs(path: str, mesh: Mesh) -> dict[str, Training]:
  """The training step of a config's video part, on clips and on encoded records."""
  found = next(e for e in load_stages(path) if e.part == "video")
  return {"clips": Training(found, mesh), "encoded": Training(found, mesh, encoded=True)}


def drawn(shapes: Any, seed: int = 0) -> Any:
  """Arrays of these shapes: small normal weights, random pixels, token 1 everywhere."""
  rng = np.random.default_rng(seed)

  def draw(a):
    if a.dtype == np.uint8:
      return rng.integers(0, 256, a.shape, np.uint8)
    if jnp.issubdtype(a.dtype, jnp.floating):
      return (0.05 * rng.standard_normal(a.shape)).astype(a.dtype)
    return np.ones(a.shape, a.dtype)

  return jax.tree.map(draw, shapes)


def seconds(found: dict[str, Training], mesh: Mesh, steps: int) -> dict[str, tuple[float, float]]:
  """(processors' seconds, wall) of a step, medians, the two kinds in turn."""
  key = jax.random.key(0)
  runs, taken = {}, {kind: [] for kind in found}
  with jax.set_mesh(mesh):
    for kind, training in found.items():
      stage, optim = training.stage, training.experiment.optim
      state = initial_state(stage, optim, key, mesh)
      update = jitted_step(stage.loss, optim, 1000, state, stage.rates)
      batch = jax.device_put(drawn(training.batch), batch_sharding(mesh))
      runs[kind] = [update, state, place(drawn(stage.frozen), mesh), batch]
    for i in range(steps + 1):
      for kind, run in runs.items():
        update, state, frozen, batch = run
        cpu, wall = time.process_time(), time.perf_counter()
        run[1], _, _ = jax.block_until_ready(update(state, frozen, batch, key))
        if i:  # the first compiles
          taken[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
  return {kind: tuple(map(statistics.median, zip(*t, strict=True))) for kind, t in taken.items()}


def megabytes(tree: Any) -> float:
  """Of the arrays of these shapes."""
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)) / 1e6


def main() -> None:
  """Prints a table a config."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("configs", nargs="+")
  parser.add_argument("--steps", type=int, default=0)
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  mesh = make_mesh(jax.devices()[:1])
  for number, path in enumerate(arguments.configs):
    found = programs(path, mesh)
    timed = number == 0 and arguments.steps
    times = seconds(found, mesh, arguments.steps) if timed else {}
    print(f"{path}, batch {found['clips'].experiment.data.batch_size}")
    for kind, training in found.items():
      line = f"  {kind}: {training.flops() / 1e12:.4g} TFLOP"
      line += f", frozen {megabytes(training.stage.frozen):.1f} MB"
      line += f", batch {megabytes(training.batch):.3g} MB"
      if kind in times:
        line += f", {times[kind][0]:.3f} processor s a step, {times[kind][1]:.3f} s wall"
      print(line, flush=True)
  if arguments.steps:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
  main()
