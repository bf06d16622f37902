"""What a training step is spared whose data was encoded ahead (`emu-train encode`).

For each config's video stage: operations of loss and gradient, and weights that the step holds, on
clips and on encoded records. With --steps also the processors' seconds of real steps, both taken in
turn on the first config; weights are drawn at random, which time does not depend on.

  python -m benchmarks.encoded configs/shapes_32.py configs/emu_video_sd15_256.py --steps 10
"""

import argparse
import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.latent_records import Encoding
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import place
from emu_jax.systems.emu import text_features
from emu_jax.systems.latent import posterior
from train.config import Experiment, load_stages
from train.planning import flops
from train.planning.compiling import batch_shapes, inherited_shapes
from train.stage import Stage
from train.stages import build, pixels
from train.state import initial_state
from train.step import jitted_step


def video_stage(path: str) -> Experiment:
  """A config's video stage, without recomputation, which would count twice."""
  (found,) = (e for e in load_stages(path) if e.stage == "video")
  image = found.model.image
  unet = dataclasses.replace(image.unet, remat=False)
  model = dataclasses.replace(found.model, image=dataclasses.replace(image, unet=unet))
  return dataclasses.replace(found, model=model)


def encoded(experiment: Experiment, trees: dict, batch: dict) -> dict:
  """The same batch as `emu-train encode` and the reader would give it."""
  image = experiment.model.image
  made = posterior(image.autoencoder, trees, pixels(batch))
  text = text_features(image, trees, batch["tokens"], batch["masks"])
  half = lambda a: a.astype(jnp.float16)
  return {
    "moments": half(jnp.concatenate([made.mean, made.log_var], axis=-1)),
    "text": {"texts": jax.tree.map(half, text.texts), "masks": text.masks, "vectors": text.vectors},
    "image_dropped": batch["image_dropped"],
  }


def stages(experiment: Experiment, trees: dict) -> dict[str, Stage]:
  """The stage on clips and on encoded records."""
  alike = Encoding(experiment.model.image.size, {}, "", "told")
  return {
    "clips": build(experiment, trees, {}, ((), ())),
    "encoded": build(experiment, trees, {}, ((), ()), encoding=alike),
  }


def operations(stage: Stage, batch: dict) -> int:
  """Of loss and gradient for a whole batch."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  loss = lambda params, frozen, batch, key: stage.loss(params, frozen, batch, key, 0)[0].mean()
  params = jax.eval_shape(stage.init, key)
  return flops.count(jax.value_and_grad(loss), params, stage.frozen, batch, key)


def drawn(shapes: Any, seed: int = 0) -> Any:
  """Arrays of these shapes: small normal weights, random pixels, token 1 everywhere."""
  rng = np.random.default_rng(seed)

  def draw(a):
    if a.dtype == np.uint8:
      return rng.integers(0, 256, a.shape, np.uint8)
    if np.issubdtype(a.dtype, np.floating):
      return (0.05 * rng.standard_normal(a.shape)).astype(a.dtype)
    return np.ones(a.shape, a.dtype)

  return jax.tree.map(draw, shapes)


def seconds(experiment: Experiment, steps: int) -> dict[str, tuple[float, float]]:
  """(processors' seconds, wall) of a step, medians, the two kinds in turn."""
  mesh, key = make_mesh(jax.devices()[:1]), jax.random.key(0)
  trees = place(drawn(inherited_shapes(experiment)), mesh)
  batch = jax.device_put(drawn(batch_shapes(experiment)))
  batches = {"clips": batch, "encoded": jax.jit(lambda b: encoded(experiment, trees, b))(batch)}
  runs, taken = {}, {"clips": [], "encoded": []}
  with jax.set_mesh(mesh):
    for kind, stage in stages(experiment, trees).items():
      state = initial_state(stage, experiment.optim, key, mesh)
      runs[kind] = [jitted_step(stage.loss, experiment.optim, 1000, state), state, stage.frozen]
    for i in range(steps + 1):
      for kind, run in runs.items():
        cpu, wall = time.process_time(), time.perf_counter()
        run[1], _, _ = jax.block_until_ready(run[0](run[1], run[2], batches[kind], key))
        if i:  # the first compiles
          taken[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
  return {kind: tuple(map(statistics.median, zip(*t, strict=True))) for kind, t in taken.items()}


def main() -> None:
  """Prints a table a config."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("configs", nargs="+")
  parser.add_argument("--steps", type=int, default=0)
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  for number, path in enumerate(arguments.configs):
    experiment = video_stage(path)
    shapes, batch = inherited_shapes(experiment), batch_shapes(experiment)
    batches = {"clips": batch}
    batches["encoded"] = jax.eval_shape(lambda t, b, e=experiment: encoded(e, t, b), shapes, batch)
    timed = number == 0 and arguments.steps
    times = seconds(experiment, arguments.steps) if timed else {}
    print(f"{path}, batch {experiment.data.batch_size}")
    for kind, stage in stages(experiment, shapes).items():
      count = operations(stage, batches[kind]) / 1e12
      bytes_of = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
      held, read = bytes_of(stage.frozen) / 1e6, bytes_of(batches[kind]) / 1e6
      line = f"  {kind}: {count:.4g} TFLOP, frozen {held:.1f} MB, batch {read:.3g} MB"
      if kind in times:
        line += f", {times[kind][0]:.3f} processor s a step, {times[kind][1]:.3f} s wall"
      print(line, flush=True)
  if arguments.steps:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
  main()
