"""What the trainer knows of a stage: how its trees begin, its loss and its samples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

from emu_jax.typing import Params

# trainable, frozen, batch, key, step -> losses [B], metrics by name (scalars)
Loss = Callable[[Params, Params, Any, jax.Array, jax.Array], tuple[jax.Array, dict[str, ArrayLike]]]
# averaged trainable, frozen, batch, key -> videos [B, T, H, W, C] in [-1, 1] by name
Sample = Callable[[Params, Params, Any, jax.Array], dict[str, jax.Array]]
Rates = tuple[tuple[str, float], ...]  # (glob over "tree/path", factor of the learning rate)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One thing to train. Stages differ in these fields and never in the loop.

  Attributes:
    init: key -> the trainable tree; it is called under jit.
    frozen: arrays that do not train: no gradient, no optimiser slot, no average. The step takes
      them as an argument, so that they are not constants of the compiled program.
    loss: per-example losses and scalar metrics; it is called under jit and differentiated with
      respect to the trainable tree. An adversarial stage returns the sum of its players' losses,
      each with the other player under `stop_gradient`.
    sample: jitted by the stage; None draws no samples.
    init_frozen: key -> those of the frozen trees that begin from nothing, of which `frozen` holds
      shapes; it is called under jit, with the key of `init`. None: all of them are arrays.
    rates: factor of the learning rate of each leaf that trains; the first glob decides.
  """

  init: Callable[[jax.Array], Params]
  frozen: Params
  loss: Loss
  sample: Sample | None = None
  rates: Rates = (("*", 1.0),)
  init_frozen: Callable[[jax.Array], Params] | None = None
