"""The real programs of a part, its training step and its sampling, of shapes: no array is made.

Frozen trees are in their network's dtype, by the function that casts them for a run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.data.latent_records import Encoding
from emu_jax.errors import InputError
from emu_jax.parallel.placement import batch_sharding, replicated, with_shardings
from emu_jax.systems.system import tree_shapes
from emu_jax.train.config import Experiment
from emu_jax.train.frozen_encoders import stored_moments
from emu_jax.train.parts import Split, build, frozen_as_read
from emu_jax.train.planning import blocks, flops
from emu_jax.train.stage import Stage
from emu_jax.train.state import abstract_state
from emu_jax.train.step import jitted_step
from emu_jax.typing import Params

STORED = "float16"  # what `emu-train encode` stores unless told otherwise


@dataclasses.dataclass(frozen=True)
class Training:
  """A stage's training step on a mesh.

  Attributes:
    encoded: its data is what `emu-train encode` leaves.
  """

  experiment: Experiment
  mesh: Mesh
  encoded: bool = False

  def __post_init__(self):
    self.experiment.check_mesh(self.mesh.size)

  name = "training step"

  @functools.cached_property
  def stage(self) -> Stage:
    """The stage as it trains, its frozen trees as shapes."""
    size = self.experiment.definition.inputs.first.size
    ahead = Encoding(size, {}, "by this one", "by these encoders") if self.encoded else None
    shapes = inherited_shapes(self.experiment)
    return build(self.experiment, shapes, empty_shapes(self.experiment), encoding=ahead)

  @functools.cached_property
  def batch(self) -> dict[str, Any]:
    """Shapes of a step's batch, over all devices."""
    return (encoded_shapes if self.encoded else batch_shapes)(self.experiment)

  @functools.cached_property
  def arguments(self) -> tuple[Any, Any, Any]:
    """Shapes and placement of the state, the frozen trees and the batch."""
    split = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(self.mesh))
    return (
      abstract_state(self.stage, self.experiment.optim, jax.random.key(0), self.mesh),
      with_shardings(self.stage.frozen, self.mesh),
      jax.tree.map(split, self.batch),
    )

  @property
  def trained(self) -> Params:
    """Shapes and placement of what the update writes."""
    return self.arguments[0].params

  @property
  def accumulate(self) -> int:
    """Micro-batches of a step."""
    return self.experiment.optim.accumulate

  def calls(self) -> list[blocks.Call]:
    """The blocks of one micro-batch, in their order."""
    traced = self._loss()  # before the mesh is set: devices that are not here make no array
    with jax.set_mesh(self.mesh):  # networks pin their activations to it
      return blocks.trace(*traced)

  def lower(self) -> jax.stages.Lowered:
    """The step as one program, traced."""
    state, frozen, batch = self.arguments
    optim, steps = self.experiment.optim, self.experiment.loop.num_steps
    step = jitted_step(self.stage.loss, optim, steps, state, self.stage.rates)
    key = _key(self.mesh)
    with jax.set_mesh(self.mesh):
      return step.func.lower(state, frozen, batch, key, **step.keywords)

  def flops(self) -> int:
    """Operations of loss and gradient for the whole batch, none of them a recomputation."""
    return self.accumulate * flops.of_gradient(*self._loss())

  def _loss(self) -> tuple[Any, ...]:
    """The mean loss of a micro-batch and its arguments, of which the first trains."""
    stage, key = self.stage, _key()
    micro = self.experiment.data.batch_size // self.accumulate
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((micro, *a.shape[1:]), a.dtype), self.batch)

    def loss(params, frozen, batch, key):
      return stage.loss(params, frozen, batch, key, jnp.zeros((), jnp.int32))[0].mean()

    return loss, jax.eval_shape(stage.init, key), stage.frozen, batch, key


@dataclasses.dataclass(frozen=True)
class Sampling:
  """What a stage samples with, for a batch of prompts: every step, and decoding."""

  experiment: Experiment
  mesh: Mesh

  name = "sampling"
  encoded = False
  accumulate = 1
  trained = ()

  @functools.cached_property
  def training(self) -> Training:
    """The stage's step on as many examples."""
    loop = dataclasses.replace(self.experiment.loop, num_samples=self.experiment.data.batch_size)
    return Training(dataclasses.replace(self.experiment, loop=loop), self.mesh)

  @functools.cached_property
  def arguments(self) -> tuple[Any, Any, Any]:
    """Shapes and placement of the average, the frozen trees and the batch."""
    state, frozen, batch = self.training.arguments
    return state.ema, frozen, batch

  @functools.cached_property
  def sample(self) -> Callable:
    """The jitted function of `arguments` and a key."""
    wanted = self.training.experiment
    sample = build(wanted, inherited_shapes(wanted), empty_shapes(wanted)).sample
    if sample is None:
      raise InputError(f"--sample: part {wanted.part!r} draws no samples; plan another one")
    return sample

  def calls(self) -> list[blocks.Call]:
    """The blocks of all steps and of decoding, in their order."""
    sample, arguments = self.sample, (*self.arguments, _key())
    with jax.set_mesh(self.mesh):
      return blocks.trace(lambda _, *others: sample(*others), None, *arguments)

  def lower(self) -> jax.stages.Lowered:
    """All of it as one program, traced."""
    sample, arguments = self.sample, (*self.arguments, _key(self.mesh))
    with jax.set_mesh(self.mesh):
      return sample.lower(*arguments)

  def flops(self) -> int:
    """Operations of sampling the whole batch."""
    return flops.count(self.sample, *self.arguments, _key())


Program = Training | Sampling


def _key(mesh: Mesh | None = None) -> jax.ShapeDtypeStruct:
  """A key's shape; with a mesh, whole on every device."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=mesh and replicated(mesh))


def inherited_shapes(experiment: Experiment) -> Params:
  """Shapes of the trees that a part finds, as the parts before leave them."""
  part = experiment.definition
  trained = Split(experiment.system, experiment.part).trained_trees
  names = {name for name in part.reads if name not in trained}
  names |= {part.begins[name] for name in trained if name in part.begins}
  return {name: tree_shapes(experiment.system, name) for name in sorted(names)}


def empty_shapes(experiment: Experiment) -> dict[str, Any]:
  """The empty prompt as arrays of the right shape, one example."""
  lengths = [encoder.max_length for encoder in experiment.definition.texts]
  tokens = tuple(np.zeros((1, length), np.int32) for length in lengths)
  return {"tokens": tokens, "masks": tuple(np.ones(a.shape, bool) for a in tokens)}


def batch_shapes(experiment: Experiment) -> dict[str, Any]:
  """Shapes of a step's batch, over all devices."""
  B, part = experiment.data.batch_size, experiment.definition
  arrays = {
    name: jax.ShapeDtypeStruct((B, frames.clip.num_frames, *frames.size, 3), jnp.uint8)
    for name, frames in part.inputs.frames.items()
  }
  numbers = dict.fromkeys((*part.inputs.numbers, "fps"), jax.ShapeDtypeStruct((B,), jnp.float32))
  lengths = [encoder.max_length for encoder in part.texts]
  return {
    **arrays,
    **numbers,
    "tokens": tuple(jax.ShapeDtypeStruct((B, n), jnp.int32) for n in lengths),
    "masks": tuple(jax.ShapeDtypeStruct((B, n), jnp.bool_) for n in lengths),
    "image_dropped": jax.ShapeDtypeStruct((B,), jnp.bool_),
  }


def encoded_shapes(experiment: Experiment) -> dict[str, Any]:
  """Shapes of the same batch, encoded ahead."""
  part, batch = experiment.definition, batch_shapes(experiment)
  trees = frozen_as_read(experiment.system, inherited_shapes(experiment))
  frames = batch.pop("frames")
  moments = functools.partial(stored_moments, part, STORED)
  batch["moments"] = jax.eval_shape(moments, trees, frames)
  if "captions" in part.encoders:
    words = batch.pop("tokens"), batch.pop("masks")
    text = jax.eval_shape(part.encoders["captions"].apply, trees, words)
    half = tuple(jax.ShapeDtypeStruct(a.shape, jnp.dtype(STORED)) for a in text.texts)
    batch["text"] = {"texts": half, "masks": text.masks, "vectors": text.vectors}
  return batch
