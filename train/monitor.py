"""What a person sees of a run beside its losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from emu_jax.errors import InputError
from emu_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Look:
  """Something that is drawn or measured between steps.

  Attributes:
    name: what is noted where a run stops before it is done.
    every: steps.
    run: (step, averaged trainable, frozen, log of emu_jax.train.log) -> what was measured, by name.
  """

  name: str
  every: int
  run: Callable[[int, Params, Params, Any], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
  """What is logged, drawn and measured while a run trains; nothing of it changes what it learns."""

  wandb: str = ""  # project of Weights & Biases that gets what TensorBoard gets; empty: none
  # File of requests as of `emu-jax sample --prompts`, drawn by the averaged weights with the same
  # seeds each time; empty: none.
  prompts: str = ""
  prompts_every: int = 0  # steps; 0 = loop.sample_every
  task: str = ""  # whose requests they are; empty: the model's first
  evaluators: tuple[str, ...] = ()  # names of emu_jax.evaluation.evaluators
  evaluate_every: int = 0  # steps
  evaluate_prompts: int = 64  # that an evaluator draws, the same ones each time
  # Metric that decides which checkpoint is kept beside the newest ones, such as validation/loss;
  # empty: none.
  best: str = ""
  best_is: Literal["lowest", "highest"] = "lowest"  # whether small or large values are good
  profile_steps: tuple[int, int] = (0, 0)  # first and last step of a trace; 0 0 = none

  def __post_init__(self):
    for name in ("prompts_every", "evaluate_every"):
      if getattr(self, name) < 0:
        raise InputError(f"MonitorConfig: {name}={getattr(self, name)} is negative; 0 = never")
    if self.evaluate_prompts < 1:
      raise InputError(f"MonitorConfig: evaluate_prompts={self.evaluate_prompts} is below 1")
    if bool(self.evaluators) != bool(self.evaluate_every):
      raise InputError(
        f"MonitorConfig: evaluators={self.evaluators} and evaluate_every={self.evaluate_every} go "
        "together; give both, or none"
      )
    first, last = self.profile_steps
    if self.profile_steps != (0, 0) and not 2 <= first <= last:
      raise InputError(
        f"MonitorConfig: profile_steps={first} {last} are no first and last step; give two from 2 "
        "on, since the first step compiles"
      )
