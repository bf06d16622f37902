"""The real programs of a stage, its training step and its sampling, of shapes: no array is made.

Frozen trees are taken to be in their network's dtype, as `emu-train run` loads public ones. With
`encoded` the data is what `emu-train encode` leaves, and the step is without encoders.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from emu_jax import encoding
from emu_jax.data.encoded import Encoding
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.sharding import batch_sharding, replicated, with_shardings
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
  batch["moments"] = jax.eval_shape(partial(encoding.moments, image, STORED), trees, frames)
  if not experiment.trains_text:
    words = batch.pop("tokens"), batch.pop("masks")
    text = jax.eval_shape(partial(encoding.features, image), trees, words)
    stored = tuple(jax.ShapeDtypeStruct(a.shape, jnp.dtype(STORED)) for a in text.texts)
    batch["text"] = {"texts": stored, "masks": text.masks, "vectors": text.vectors}
  return batch


def stage_shapes(experiment: Experiment, encoded: bool = False) -> Stage:
  """The stage as it trains, its frozen trees as shapes."""
  text = "" if experiment.trains_text else "by these encoders"
  ahead = Encoding(experiment.model.image.size, {}, "by this one", text) if encoded else None
  return build(experiment, inherited_shapes(experiment), {}, ((), ()), encoding=ahead)


def lower(experiment: Experiment, mesh: Mesh, encoded: bool = False) -> jax.stages.Lowered:
  """The training step for a mesh, traced; state and frozen trees lie as `tree_shardings` says."""
  experiment.check_mesh(mesh.size)
  stage, key = stage_shapes(experiment, encoded), jax.random.key(0)
  state, frozen, batch = step_arguments(experiment, mesh, encoded)
  step = jitted_step(stage.loss, experiment.optim, experiment.loop.num_steps, state)
  with jax.set_mesh(mesh):  # networks pin their activations to it
    return step.func.lower(
      state,
      frozen,
      batch,
      jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh)),
      **step.keywords,
    )


def step_arguments(
  experiment: Experiment, mesh: Mesh, encoded: bool = False
) -> tuple[Any, Any, Any]:
  """Shapes and placement of the state, the frozen trees and the batch of a training step."""
  stage, key = stage_shapes(experiment, encoded), jax.random.key(0)
  batch = encoded_shapes(experiment) if encoded else batch_shapes(experiment)
  split = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh))
  return (
    abstract_state(stage, experiment.optim, key, mesh),
    with_shardings(stage.frozen, mesh),
    jax.tree.map(split, batch),
  )


def step_calls(experiment: Experiment, mesh: Mesh, encoded: bool = False) -> list[blocks.Call]:
  """The blocks of one micro-batch of a training step for a mesh, in their order."""
  experiment.check_mesh(mesh.size)
  traced = _loss(experiment, encoded)
  with jax.set_mesh(mesh):
    return blocks.trace(*traced)


def model_flops(experiment: Experiment, encoded: bool = False) -> int:
  """Operations of loss and gradient for the whole batch, none of them a recomputation."""
  loss, params, *others = _loss(experiment, encoded)
  kept = core.jaxpr_as_fun(flops.without_recomputation(jax.make_jaxpr(loss)(params, *others)))

  def scalar(params, others):
    return kept(*params, *others)[0]

  leaves = jax.tree.leaves(params), jax.tree.leaves(others)
  return experiment.optim.accumulate * flops.count(jax.value_and_grad(scalar), *leaves)


def _loss(experiment: Experiment, encoded: bool) -> tuple[Any, ...]:
  """The mean loss of a micro-batch and its arguments, of which the first trains."""
  stage, key = stage_shapes(experiment, encoded), jax.eval_shape(lambda: jax.random.key(0))
  micro = experiment.data.batch_size // experiment.optim.accumulate
  batch = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((micro, *a.shape[1:]), a.dtype),
    encoded_shapes(experiment) if encoded else batch_shapes(experiment),
  )

  def loss(params, frozen, batch, key):
    return stage.loss(params, frozen, batch, key, jnp.zeros((), jnp.int32))[0].mean()

  return loss, jax.eval_shape(stage.init, key), stage.frozen, batch, key


def sampling(experiment: Experiment, mesh: Mesh) -> tuple[Any, ...]:
  """What a stage samples with, for a batch of prompts: a function and its arguments, placed."""
  wanted = dataclasses.replace(experiment, num_samples=experiment.data.batch_size)
  tokens = tuple(np.zeros((1, t.max_length), np.int32) for t in experiment.model.image.text)
  masks = tuple(np.ones(a.shape, bool) for a in tokens)
  stage = build(wanted, inherited_shapes(wanted), {}, (tokens, masks))
  key = jax.eval_shape(lambda: jax.random.key(0))
  state, frozen, batch = step_arguments(wanted, mesh)
  return stage.sample, state.ema, frozen, batch, key


def sample_calls(experiment: Experiment, mesh: Mesh) -> list[blocks.Call]:
  """The blocks of sampling a batch on a mesh, of every step and of decoding, in their order."""
  experiment.check_mesh(mesh.size)
  sample, *arguments = sampling(experiment, mesh)
  with jax.set_mesh(mesh):
    return blocks.trace(lambda _, *others: sample(*others), None, *arguments)


def lower_sampling(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
  """Sampling a batch on a mesh, traced."""
  experiment.check_mesh(mesh.size)
  sample, *arguments, key = sampling(experiment, mesh)
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
  with jax.set_mesh(mesh):
    return sample.lower(*arguments, key)


def sampling_flops(experiment: Experiment, mesh: Mesh) -> int:
  """Operations of sampling the whole batch."""
  return flops.count(*sampling(experiment, mesh))


def _cast(tree: Params, dtype: str) -> Params:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype)), tree)
