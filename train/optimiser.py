"""AdamW, its learning rate and the weight of the moving average, as functions of the step.

`step` is the number of updates already done; the train state owns it, not the optimiser, so that a
skipped update does not shift the schedule against the data.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from emu_jax.checkpoints.averages import check_length, exponent
from emu_jax.config import from_dict
from emu_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """How parameters follow their gradients."""

  peak_lr: float = 1e-4  # learning rate after the warmup
  warmup_steps: int = 1000  # updates of linear warmup; 0 = none
  decay: Literal["constant", "cosine"] = "constant"  # cosine reaches 0 at the end of the run
  weight_decay: float = 0.01  # on arrays of two axes or more: kernels, not biases or scales
  betas: tuple[float, float] = (0.9, 0.999)  # of Adam's averages of gradients and of their squares
  eps: float = 1e-8  # added to the root of the averaged squares
  clip_norm: float = 1.0  # largest norm of the gradient of each trained tree; 0 = off
  ema_decay: float = 0.9999  # of the moving average that samples are drawn with; 0 = no average
  # Relative lengths of further averages, such as 0.05 0.10, of which `loop.average_every` keeps
  # snapshots: averages of any length can then be had afterwards (emu_jax.checkpoints.averages).
  ema_lengths: tuple[float, ...] = ()
  accumulate: int = 1  # micro-batches a step; the batch is split into so many
  on_non_finite: Literal["raise", "skip"] = "raise"  # skip leaves the state and counts it
  # Who adds up the gradients of devices: the compiler, wherever they come up, or the step itself,
  # once at its end and in this precision. bfloat16 sends half as much, for slices that a slow
  # network joins. Needs parameters that are whole on every device, and draws other noise.
  reduce: Literal["compiler", "float32", "bfloat16"] = "compiler"

  def __post_init__(self):
    for name in ("peak_lr", "warmup_steps", "weight_decay", "clip_norm"):
      if getattr(self, name) < 0:
        raise InputError(f"OptimConfig: {name}={getattr(self, name)} is negative; give 0 or more")
    for name, value in (("ema_decay", self.ema_decay), *(("betas", b) for b in self.betas)):
      if not 0 <= value < 1:
        raise InputError(f"OptimConfig: {name}={value} is outside [0, 1); choose e.g. 0.999")
    for length in self.ema_lengths:
      check_length(length, "OptimConfig: ema_lengths")
    if len(set(self.ema_lengths)) < len(self.ema_lengths):
      raise InputError(f"OptimConfig: ema_lengths={self.ema_lengths} name a length twice")
    if self.accumulate < 1:
      raise InputError(f"OptimConfig: accumulate={self.accumulate} is below 1; 1 = the whole batch")


def learning_rate(config: OptimConfig, num_steps: int, step: ArrayLike) -> jax.Array:
  """Float32 learning rate of the update that follows `step` updates.

  Linear from peak_lr / warmup_steps at the first update to peak_lr at update `warmup_steps`; then
  constant, or half a cosine down to 0 at `num_steps`.
  """
  step = jnp.asarray(step, jnp.float32)
  rate = config.peak_lr * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
  if config.decay == "constant":
    return rate
  progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
  return rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def rate_change(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str | None:
  """A line where a run that continues at a step does so with another learning rate than planned.

  Args:
    before: values of config.json: OptimConfig's in "optim", and "num_steps" in "loop".
    now: the same of the continuation.
  """
  rates = []
  for values in (before, now):
    try:
      optim, num_steps = values["optim"], values["loop"]["num_steps"]
      config = from_dict(optim, OptimConfig, "config.json: optim")
    except (KeyError, TypeError, InputError):
      return None  # of a trainer that has a config of another form
    rates.append(float(learning_rate(config, num_steps, step)))
  planned, rate = rates
  if abs(rate - planned) <= 1e-3 * max(rates):
    return None
  return (
    f"the learning rate at step {step} is {rate:.3g} and not {planned:.3g}, as planned before: a "
    "cosine ends at loop.num_steps, and loop.num_steps, optim.peak_lr, optim.warmup_steps and "
    "optim.decay decide it"
  )


def optimiser(config: OptimConfig) -> optax.GradientTransformation:
  """Gradients -> AdamW's direction, before it is multiplied by minus the learning rate.

  Source: Decoupled weight decay, arXiv:1711.05101, algorithm 2; clipping to a norm before.
  Differs: biases and normalisation scales do not decay; each trained tree is clipped to the norm by
    itself, so that a discriminator's large gradients do not shrink the autoencoder's to nothing.
  """
  b1, b2 = config.betas
  return optax.chain(
    clip_each_tree(config.clip_norm) if config.clip_norm else optax.identity(),
    optax.scale_by_adam(b1, b2, config.eps),
    optax.add_decayed_weights(
      config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
  )


def clip_each_tree(max_norm: float) -> optax.GradientTransformation:
  """Scales each of the trees (the top-level entries) down to a norm of at most `max_norm`."""

  def update(grads, state, params=None):
    del params
    norms = {name: optax.tree.norm(tree) for name, tree in grads.items()}
    factors = {name: jnp.minimum(1.0, max_norm / (norm + 1e-12)) for name, norm in norms.items()}
    return {n: optax.tree.scale(factors[n], tree) for n, tree in grads.items()}, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ema_decay(config: OptimConfig, step: ArrayLike) -> jax.Array:
  """Float32 weight of the old average in the update that follows `step` updates.

  min(decay, (1 + step) / (10 + step)): a short average at first, so that the initial weights are
  forgotten within the first tenth of any run and not after 1 / (1 - decay) updates.
  Source: the common warm start of moving averages, as in TensorFlow's ExponentialMovingAverage.
  """
  step = jnp.asarray(step, jnp.float32)
  return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


def average_weight(length: float, step: ArrayLike) -> jax.Array:
  """Float32 weight of the old average of a relative length in the update after `step` updates.

  (1 - 1 / t)^(γ + 1) with t = step + 1: 0 at the first update, so that the initial weights have no
  share. Source: arXiv:2312.02696, eq. 127.
  """
  t = jnp.asarray(step, jnp.float32) + 1
  return (1 - 1 / t) ** (exponent(length) + 1)
