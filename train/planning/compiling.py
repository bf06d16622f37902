"""The real training step of a stage, compiled for a topology: no array is made.

Frozen trees are taken to be in their network's dtype, as `emu-train run` loads public ones.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax.models.autoencoder import Autoencoder
from emu_jax.sharding import batch_sharding, replicated, with_shardings
from emu_jax.systems.emu import init_spatial, init_text
from emu_jax.systems.emu_video import init_temporal
from emu_jax.typing import Params
from train.config import Experiment
from train.planning import blocks, flops, hlo
from train.planning.topologies import Topology
from train.stage import Stage
from train.stages import NEEDS, build
from train.state import abstract_state
from train.step import jitted_step

REVISION = 1  # of what is kept of a compiled program; raise it when `Measured` changes


@dataclasses.dataclass(frozen=True)
class Measured:
  """What the compiler says of one device's program; bytes, and operations a step.

  Attributes:
    peak: arguments, temporaries and results at the fullest moment.
    moved: to and from memory by XLA's cost analysis, which counts the body of a loop once.
    shortage: the compiler's words where the program does not fit; the rest is then 0.
  """

  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  moved: float = 0.0
  cycles: int | None = None
  exchanges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  unknown_loops: int = 0
  shortage: str = ""


def inherited_shapes(experiment: Experiment) -> Params:
  """Shapes of the trees that a stage finds, as the stages before leave them."""
  model, key = experiment.model, jax.random.key(0)
  image = model.image
  z = jax.ShapeDtypeStruct((image.autoencoder.z_channels,), jnp.float32)
  frame = jnp.zeros((1, 1, image.size, image.size, 3))
  make = {
    "autoencoder": lambda key: Autoencoder(image.autoencoder).init(key, frame)["params"],
    "text": lambda key: init_text(image, key),
    "spatial": lambda key: init_spatial(image, key),
    "temporal": lambda key: init_temporal(model, key),
  }
  needed = set(NEEDS[experiment.stage]) | ({"text"} if experiment.stage == "image" else set())
  if experiment.stage == "image" and experiment.train_text:
    needed -= {"text"}
  shapes = {name: jax.eval_shape(make[name], key) for name in make if name in needed}
  dtypes = {"autoencoder": image.autoencoder.dtype, "spatial": image.unet.dtype}
  for name, dtype in dtypes.items():
    if name in shapes:
      shapes[name] = _cast(shapes[name], dtype)
  if "text" in shapes:
    shapes["text"] = {
      name: _cast(tree, image.text[int(name)].dtype) for name, tree in shapes["text"].items()
    }
  return shapes | (
    {"latents": {"shift": z, "scale": z}} if experiment.stage != "autoencoder" else {}
  )


def batch_shapes(experiment: Experiment) -> dict[str, Any]:
  """Shapes of a step's batch, over all devices."""
  B, size = experiment.data.batch_size, experiment.model.image.size
  T = 1 if experiment.known is None else experiment.known.num_frames
  lengths = [encoder.max_length for encoder in experiment.model.image.text]
  return {
    "frames": jax.ShapeDtypeStruct((B, T, size, size, 3), jnp.uint8),
    "tokens": tuple(jax.ShapeDtypeStruct((B, n), jnp.int32) for n in lengths),
    "masks": tuple(jax.ShapeDtypeStruct((B, n), jnp.bool_) for n in lengths),
    "image_dropped": jax.ShapeDtypeStruct((B,), jnp.bool_),
  }


def stage_shapes(experiment: Experiment) -> Stage:
  """The stage as it trains, its frozen trees as shapes."""
  return build(experiment, inherited_shapes(experiment), {}, ((), ()))


def lower(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
  """The training step for a mesh, traced; state and frozen trees lie as `tree_shardings` says."""
  experiment.check_mesh(mesh.size)
  stage, key = stage_shapes(experiment), jax.random.key(0)
  state, frozen, batch = step_arguments(experiment, mesh)
  step = jitted_step(stage.loss, experiment.optim, experiment.loop.num_steps, state)
  with jax.set_mesh(mesh):  # networks pin their activations to it
    return step.func.lower(
      state,
      frozen,
      batch,
      jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh)),
      **step.keywords,
    )


def step_calls(experiment: Experiment, mesh: Mesh) -> list[blocks.Call]:
  """The blocks of one micro-batch of a training step for a mesh, in their order."""
  experiment.check_mesh(mesh.size)
  stage, key = stage_shapes(experiment), jax.eval_shape(lambda: jax.random.key(0))
  micro = experiment.data.batch_size // experiment.optim.accumulate
  batch = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((micro, *a.shape[1:]), a.dtype), batch_shapes(experiment)
  )

  def loss(params, frozen, batch, key):
    return stage.loss(params, frozen, batch, key, jnp.zeros((), jnp.int32))[0]

  with jax.set_mesh(mesh):
    return blocks.trace(loss, jax.eval_shape(stage.init, key), stage.frozen, batch, key)


def step_arguments(experiment: Experiment, mesh: Mesh) -> tuple[Any, Any, Any]:
  """Shapes and placement of the state, the frozen trees and the batch of a training step."""
  stage, key = stage_shapes(experiment), jax.random.key(0)
  split = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh))
  return (
    abstract_state(stage, experiment.optim, key, mesh),
    with_shardings(stage.frozen, mesh),
    jax.tree.map(split, batch_shapes(experiment)),
  )


def model_flops(experiment: Experiment) -> int:
  """Operations of loss and gradient for the whole batch, none of them a recomputation."""
  unet = dataclasses.replace(experiment.model.image.unet, remat=False)
  autoencoder = dataclasses.replace(experiment.model.image.autoencoder, remat=False)
  image = dataclasses.replace(experiment.model.image, unet=unet, autoencoder=autoencoder)
  model = dataclasses.replace(experiment.model, image=image)
  plain = dataclasses.replace(experiment, model=model)
  stage, key = stage_shapes(plain), jax.eval_shape(lambda: jax.random.key(0))

  def loss(params, frozen, batch, key):
    return stage.loss(params, frozen, batch, key, jnp.zeros((), jnp.int32))[0].mean()

  params = jax.eval_shape(stage.init, key)
  return flops.count(jax.value_and_grad(loss), params, stage.frozen, batch_shapes(plain), key)


def compiled(lowered: jax.stages.Lowered, topology: Topology, memory_only: bool) -> Measured:
  """What the compiler says of a lowered step; kept on disk, since JAX's own cache refuses these.

  (JAX 0.10.2 cannot read back a program that was compiled without its hardware.)
  """
  versions = [importlib.metadata.version(name) for name in ("jax", "libtpu")]
  words = (REVISION, lowered.as_text(), topology.name, topology.slices, memory_only, *versions)
  name = hashlib.sha256(repr(words).encode()).hexdigest()[:32]
  file = pathlib.Path.home() / ".cache" / "emu_jax" / "plans" / f"{name}.json"
  if file.is_file():
    return Measured(**json.loads(file.read_text()))
  found = _compile(lowered, topology, memory_only)
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix(f".{os.getpid()}")
  partial.write_text(json.dumps(dataclasses.asdict(found)))
  partial.rename(file)
  return found


def _compile(lowered: jax.stages.Lowered, topology: Topology, memory_only: bool) -> Measured:
  efforts = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
  before = {name: getattr(jax.config, name) for name in efforts}
  try:
    if memory_only:
      for name in efforts:
        jax.config.update(name, -1.0)
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
      program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    # E1000 is what later compilers call it.
    if not re.search("RESOURCE_EXHAUSTED|E1000", str(error)):
      raise
    return Measured(shortage=str(error).splitlines()[0][:300])
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
  memory, costs = program.memory_analysis(), program.cost_analysis() or {}
  reading = hlo.read(program.as_text())
  needed = (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  return Measured(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    # Small programs report temporaries of 0 and a peak above it, others the other way round.
    peak=max(needed, getattr(memory, "peak_memory_in_bytes", 0)),
    moved=float(costs.get("bytes accessed", 0.0)),
    cycles=None if memory_only else reading.cycles,
    exchanges={kind: (e.count, e.bytes) for kind, e in reading.exchanges.items()},
    unknown_loops=reading.unknown_loops,
  )


def _cast(tree: Params, dtype: str) -> Params:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype)), tree)
