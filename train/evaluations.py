"""Evaluators that measure a run's averaged weights while it trains."""

from collections.abc import Callable, Mapping

from emu_jax.errors import InputError
from emu_jax.evaluation.evaluators import Evaluator, evaluator
from emu_jax.train.config import Experiment
from emu_jax.train.live_model import LiveModel
from emu_jax.train.log import Log
from emu_jax.train.monitor import Look
from emu_jax.typing import Params


def evaluation_looks(
  experiment: Experiment, live: LiveModel, say: Callable[[str], None]
) -> tuple[Look, ...]:
  """What measures by the evaluators of an experiment, as evaluation/<evaluator>/<name>.

  Args:
    say: takes a line for each that the run's model cannot be measured by.
  Raises: InputError for an evaluator that there is not.
  """
  looks = []
  for name in experiment.monitor.evaluators:
    chosen = evaluator(name)
    try:
      reads = chosen.reads(live.outline())
    except InputError as error:
      say(f"evaluator {name!r} does not measure this run: {error}")
      continue
    looks.append(_look(experiment, name, chosen, live.maker(reads)))
  return tuple(looks)


def _look(experiment: Experiment, name: str, chosen: Evaluator, made: Callable) -> Look:
  def measure(step: int, ema: Params, frozen: Params, log: Log) -> Mapping[str, float]:
    values = chosen.values(made(ema, frozen), experiment.monitor.evaluate_prompts)
    return {f"evaluation/{name}/{key}": value for key, value in values.items()}

  return Look(f"evaluator {name}", experiment.monitor.evaluate_every, measure)
