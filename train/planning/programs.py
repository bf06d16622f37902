"""The real programs of a stage, its training step and its sampling, of shapes: no array is made.

Frozen trees are taken to be in their network's dtype, as `emu-train run` loads public ones.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from emu_jax import encoding
from emu_jax.data.latent_records import Encoding
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.parallel.placement import batch_sharding, replicated, with_shardings
from emu_jax.systems.emu import init_spatial, init_text
from emu_jax.systems.emu_video import init_temporal
from emu_jax.typing import Params
from train.config import Experiment
from train.planning import blocks, flops
from train.stage import Stage
from train.stages import NEEDS, build
from train.state import abstract_state
from train.step import jitted_step

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
    text = "" if self.experiment.trains_text else "by these encoders"
    size = self.experiment.model.image.size
    ahead = Encoding(size, {}, "by this one", text) if self.encoded else None
    return build(self.experiment, inherited_shapes(self.experiment), {}, ((), ()), encoding=ahead)

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
    step, key = jitted_step(self.stage.loss, optim, steps, state), _key(self.mesh)
    with jax.set_mesh(self.mesh):
      return step.func.lower(state, frozen, batch, key, **step.keywords)

  def flops(self) -> int:
    """Operations of loss and gradient for the whole batch, none of them a recomputation."""
    loss, params, *others = self._loss()
    kept = core.jaxpr_as_fun(flops.without_recomputation(jax.make_jaxpr(loss)(params, *others)))

    def scalar(params, others):
      return kept(*params, *others)[0]

    leaves = jax.tree.leaves(params), jax.tree.leaves(others)
    return self.accumulate * flops.count(jax.value_and_grad(scalar), *leaves)

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
    wanted = dataclasses.replace(self.experiment, num_samples=self.experiment.data.batch_size)
    return Training(wanted, self.mesh)

  @functools.cached_property
  def arguments(self) -> tuple[Any, Any, Any]:
    """Shapes and placement of the average, the frozen trees and the batch."""
    state, frozen, batch = self.training.arguments
    return state.ema, frozen, batch

  @functools.cached_property
  def sample(self) -> Callable:
    """The jitted function of `arguments` and a key."""
    wanted = self.training.experiment
    tokens = tuple(np.zeros((1, t.max_length), np.int32) for t in wanted.model.image.text)
    masks = tuple(np.ones(a.shape, bool) for a in tokens)
    return build(wanted, inherited_shapes(wanted), {}, (tokens, masks)).sample

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


def encoded_shapes(experiment: Experiment) -> dict[str, Any]:
  """Shapes of the same batch, encoded ahead."""
  image, trees, batch = (
    experiment.model.image,
    inherited_shapes(experiment),
    batch_shapes(experiment),
  )
  frames = batch.pop("frames")
  batch["moments"] = jax.eval_shape(
    functools.partial(encoding.moments, image, STORED), trees, frames
  )
  if not experiment.trains_text:
    words = batch.pop("tokens"), batch.pop("masks")
    text = jax.eval_shape(functools.partial(encoding.features, image), trees, words)
    stored = tuple(jax.ShapeDtypeStruct(a.shape, jnp.dtype(STORED)) for a in text.texts)
    batch["text"] = {"texts": stored, "masks": text.masks, "vectors": text.vectors}
  return batch


def _cast(tree: Params, dtype: str) -> Params:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype)), tree)
