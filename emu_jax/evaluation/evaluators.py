"""What can be measured of a model by drawing fixed prompts, by name: for runs that still train."""

import dataclasses
from collections.abc import Callable, Collection

from emu_jax.errors import InputError
from emu_jax.evaluation import shapes_benchmark
from emu_jax.model import Model

BATCH = 16  # clips that are drawn at a time


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """One way to measure a model.

  Attributes:
    reads: model, which needs no weights -> names of the trees that are needed; raises InputError
      where it cannot be measured so.
    values: (model, number of prompts) -> numbers by name. Prompts and seeds are the same each time.
  """

  reads: Callable[[Model], Collection[str]]
  values: Callable[[Model, int], dict[str, float]]


def _shapes_reads(model: Model) -> Collection[str]:
  request = model.request(shapes_benchmark.TASK, prompt="")
  steps = model.steps(shapes_benchmark.TASK, request)
  shapes_benchmark.check(model, request)
  return {name for step in steps for name in step.reads}


def _shapes_values(model: Model, num_prompts: int) -> dict[str, float]:
  batch = min(BATCH, num_prompts)
  found = shapes_benchmark.measure(
    model, num_prompts=num_prompts, batch_size=batch, split="validation"
  ).reports["generated"]
  # "FID-o (shape features of frames)": the name before what it is of.
  distances = {name.partition(" (")[0]: d for name, d in found.distances.items() if "," not in name}
  return {name: float(one.value) for name, one in {**found.estimates, **distances}.items()}


# A model of the moving shapes: what the pixel oracle reads, and Fréchet distances in the features
# that tell shapes apart.
EVALUATORS = {"shapes": Evaluator(_shapes_reads, _shapes_values)}


def evaluator(name: str) -> Evaluator:
  """An evaluator by its name. Raises: InputError with the names that there are."""
  if name not in EVALUATORS:
    raise InputError(f"evaluator {name!r}: is unknown; choose of {', '.join(EVALUATORS)}")
  return EVALUATORS[name]
