"""One update: a pure function of the state, the frozen trees, the batch and the run's key."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.placement import replicated
from emu_jax.train.optimiser import OptimConfig, average_weight, ema_decay, learning_rate, optimiser
from emu_jax.train.stage import Loss, Rates
from emu_jax.train.state import TrainState
from emu_jax.trees import first_match
from emu_jax.typing import Params

TRAINER_METRICS = ("loss", "lr", "grad_norm", "param_norm", "update_norm", "skipped")


def train_step(
  state: TrainState,
  frozen: Params,
  batch: Any,
  seed_key: jax.Array,
  *,
  loss: Loss,
  config: OptimConfig,
  num_steps: int,
  rates: Rates = (("*", 1.0),),
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
  """Returns the next state, scalar float32 metrics (means over the global batch) and a fault.

  The step's key is a function of the run's seed and the step number alone, so a run that stops and
  resumes draws the same noise as one that never stopped.

  Returns:
    The fault is an int32: -1 where loss and gradient are finite, else the index of the first
    parameter (in the order of `jax.tree.leaves`) whose gradient is not, or the number of
    parameters where the loss alone is not.
  """
  key = jax.random.fold_in(seed_key, state.step)
  (value, metrics), grads = mean_gradients(
    loss, state.params, frozen, batch, key, state.step, config.accumulate, config.reduce
  )
  squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
  fault = first_fault(value, squares)

  direction, opt_state = optimiser(config).update(grads, state.opt_state, state.params)
  rate = learning_rate(config, num_steps, state.step)
  updates = jax.tree_util.tree_map_with_path(lambda p, d: -_rate(rates, p, rate) * d, direction)
  params = optax.apply_updates(state.params, updates)
  ema = moved(state.ema, params, ema_decay(config, state.step))
  new = TrainState(state.step + 1, params, ema, opt_state)
  if config.on_non_finite == "skip":
    # The step still counts: the next one draws other noise and other data.
    old = TrainState(state.step + 1, state.params, state.ema, state.opt_state)
    new = jax.tree.map(lambda n, o: jnp.where(fault < 0, n, o), new, old)
    metrics["skipped"] = (fault >= 0).astype(jnp.float32)
  averages = {
    length: moved(tree, new.params, average_weight(float(length), state.step))
    for length, tree in state.averages.items()
  }
  new = dataclasses.replace(new, averages=averages)
  metrics |= {"loss": value, "lr": rate, "grad_norm": jnp.sqrt(squares.sum())}
  metrics |= {"param_norm": optax.tree.norm(new.params), "update_norm": optax.tree.norm(updates)}
  return new, metrics, fault


def moved(average: Params, params: Params, keep: jax.Array) -> Params:
  """A moving average after one more step: `keep` of itself, the rest of the parameters."""
  return jax.tree.map(lambda e, p: e + (1 - keep) * (p - e), average, params)


def _rate(rates: Rates, path: Any, rate: jax.Array) -> jax.Array:
  """The learning rate of a leaf."""
  factor = first_match(rates, jax.tree_util.keystr(path, simple=True, separator="/"))
  return rate if factor == 1 else factor * rate


def jitted_step(
  loss: Loss,
  config: OptimConfig,
  num_steps: int,
  like: TrainState,
  rates: Rates = (("*", 1.0),),
) -> Callable:
  """`train_step` of state, frozen, batch and seed key, whose state is donated to the next one.

  Args:
    like: the state, or its shapes with their shardings: where the next state goes. Activations
      are placed where the step is traced under `jax.set_mesh`.
  """
  shardings = jax.tree.map(lambda a: a.sharding, like)
  whole = replicated(shardings.step.mesh)
  step = Jit(
    train_step,
    static_argnames=("loss", "config", "num_steps", "rates"),
    donate_argnums=0,
    out_shardings=(shardings, whole, whole),
  )
  # Static arguments and not a closure: a second run in one process reuses the program.
  return functools.partial(step, loss=loss, config=config, num_steps=num_steps, rates=rates)


def first_fault(loss: jax.Array, squares: jax.Array) -> jax.Array:
  """-1, or the first index whose sum of squares is not finite, or their number for the loss."""
  bad = ~jnp.isfinite(jnp.append(squares, loss))
  return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


def mean_gradients(
  loss: Loss,
  params: Params,
  frozen: Params,
  batch: Any,
  key: jax.Array,
  step: jax.Array,
  accumulate: int,
  reduce: str = "compiler",
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
  """((mean loss, mean metrics), gradients) of the global batch; `reduce` as in OptimConfig."""
  local = functools.partial(local_gradients, loss, accumulate=accumulate)
  if reduce == "compiler":
    return local(params, frozen, batch, key, step)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size != mesh.shape["data"]:
    raise InputError(
      f"--optim.reduce {reduce}: needs a mesh of the axis data alone, not {dict(mesh.shape)}; set "
      "the other axes to 1, or --optim.reduce compiler"
    )

  def of_one_device(params, frozen, batch, key, step):
    key = jax.random.fold_in(key, jax.lax.axis_index("data"))
    result, grads = local(params, frozen, batch, key, step)
    grads = jax.tree.map(lambda g: g.astype(reduce), grads)
    result, grads = jax.lax.pmean((result, grads), "data")
    return result, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)

  everywhere, split = PartitionSpec(), PartitionSpec("data")
  return jax.shard_map(
    of_one_device,
    in_specs=(everywhere, everywhere, split, everywhere, everywhere),
    out_specs=everywhere,
    check_vma=False,  # else the gradient of a copy on every device is their sum already
  )(params, frozen, batch, key, step)


def local_gradients(
  loss: Loss,
  params: Params,
  frozen: Params,
  batch: Any,
  key: jax.Array,
  step: jax.Array,
  *,
  accumulate: int,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
  """((mean loss, mean metrics), gradients) of a batch taken in `accumulate` micro-batches.

  Micro-batch i takes every `accumulate`-th example from the i-th on, so that each device keeps the
  examples it holds, and the key `fold_in(key, i)`. Noise is therefore another one for another
  number of micro-batches; all else equals the undivided batch up to the order of float32 sums.
  """

  def mean_loss(params, batch, key):
    losses, metrics = loss(params, frozen, batch, key, step)
    if losses.ndim != 1:
      raise ValueError(f"Stage.loss: losses of shape {losses.shape} are not one an example, [B]")
    return losses.mean(dtype=jnp.float32), scalars(metrics)

  gradients = jax.value_and_grad(mean_loss, has_aux=True)
  if accumulate == 1:
    return gradients(params, batch, jax.random.fold_in(key, 0))

  micro = jax.tree.map(lambda a: micro_batches(a, accumulate), batch)
  shapes = jax.eval_shape(gradients, params, jax.tree.map(lambda a: a[0], micro), key)
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

  def add(total, inputs):
    batch, i = inputs
    new = gradients(params, batch, jax.random.fold_in(key, i))
    return jax.tree.map(jnp.add, total, new), None

  total, _ = jax.lax.scan(add, zeros, (micro, jnp.arange(accumulate)))
  return jax.tree.map(lambda a: a / accumulate, total)


def micro_batches(a: jax.Array, num: int) -> jax.Array:
  """[num * B, ...] -> [num, B, ...]; row i holds examples i, i + num, i + 2 num, ..."""
  if a.shape[0] % num:
    raise ValueError(
      f"train_step: a batch of {a.shape[0]} does not split into accumulate={num} micro-batches;"
      f" choose a batch size that is a multiple of {num}"
    )
  return a.reshape(a.shape[0] // num, num, *a.shape[1:]).swapaxes(0, 1)


def scalars(metrics: dict[str, ArrayLike]) -> dict[str, jax.Array]:
  """A stage's metrics in float32, checked."""
  for name, value in metrics.items():
    if name in TRAINER_METRICS:
      raise ValueError(f"Stage.loss: metric {name!r} is one of the trainer's own; rename it")
    if jnp.shape(value):
      raise ValueError(f"Stage.loss: metric {name!r} has shape {jnp.shape(value)}; average it")
  return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def validation_step(
  ema: Params, frozen: Params, batch: Any, key: jax.Array, step: jax.Array, *, loss: Loss
) -> dict[str, jax.Array]:
  """The stage's mean loss and metrics on one batch, without an update."""
  losses, metrics = loss(ema, frozen, batch, key, step)
  return scalars(metrics) | {"loss": losses.mean(dtype=jnp.float32)}
