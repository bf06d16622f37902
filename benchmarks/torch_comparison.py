"""emu_jax against the same mathematics in PyTorch: speed, memory, and time spent waiting for data.

  python -m benchmarks.torch_comparison --out docs/results

Two tasks, a training step and a guided sampling run, in one process and on the same cores. First
the two sides must agree to float32 rounding (benchmarks/agreement.py). Then they take turns, A B B
A a round, so that a machine that becomes slower meanwhile slows both. Needs requirements-reference.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Literal

import tyro

from benchmarks import with_jax, with_torch
from benchmarks.agreement import agreement, disagreements
from benchmarks.basics import say
from benchmarks.measuring import child, compilations_kept, machine, pin, timed, warm
from benchmarks.problem import inputs
from benchmarks.report import report

TASKS = ("training", "sampling")
ALONE = "benchmarks.without_torch"  # followed by a module and its arguments


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Compares emu_jax with diffusers' U-Net and temporal layers of the same size in PyTorch."""

  rounds: int = 5  # each A B B A
  threads: int = 0  # cores for either side; 0 = all of this process's
  small: bool = False  # a network and clips small enough to try this command
  compile: bool = False  # torch.compile as a third contender; minutes more
  layout: Literal["contiguous", "channels_last"] = "contiguous"  # of PyTorch's arrays
  out: pathlib.Path | None = None  # folder for torch_comparison.json and .md; default: only print

  def __post_init__(self):
    if self.rounds < 1:
      raise ValueError(f"torch_comparison: rounds={self.rounds} is below 1; give 1 or more")


def main() -> None:
  """Runs everything and prints the report; exits with 1 where the two sides disagree."""
  arguments = tyro.cli(Arguments, prog="python -m benchmarks.torch_comparison")
  threads = pin(arguments.threads)
  case = with_jax.small() if arguments.small else with_jax.Case()
  results = {"machine": machine(threads), "arguments": settings(arguments)}
  results["configuration"] = case.problem().describe()
  results["clips"] = {"training": case.batch, "sampling": case.sampled}

  size = "small" if arguments.small else "default"
  with compilations_kept():  # a process that compiles to measure memory does so for the others too
    results["memory"] = memory(case, size, arguments.layout, threads)
    measure(results, case, arguments)
  say("a short run of the training loop")
  results["loop"] = child(ALONE, "benchmarks.data_wait", size)

  text = report(results)
  print(text)
  if arguments.out:
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "torch_comparison.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "torch_comparison.md").write_text(text)


def measure(results: dict, case: with_jax.Case, arguments: Arguments) -> None:
  """Adds agreement and times."""
  say("checking that both compute the same")
  results["agreement"] = agreement(case, layout=arguments.layout)
  if problems := disagreements(results["agreement"]):
    sys.exit("torch_comparison: the two sides disagree, nothing was timed\n" + "\n".join(problems))
  contenders, results["compile"] = prepared(case, arguments)
  results["times"] = {task: timed(task, contenders[task], arguments.rounds) for task in TASKS}


def prepared(case: with_jax.Case, arguments: Arguments) -> tuple[dict, str]:
  """Each task of each contender, warmed up, and what became of torch.compile."""
  problem, flat = case.problem(), with_jax.weights(case)
  arrays, fate = inputs(problem), "not tried"

  def make(task, compiled):
    model = with_torch.Model(problem, flat, arguments.layout, compiled)
    return warm(with_torch.TASKS[task](model, arrays))

  contenders = {}
  for task in TASKS:
    say(f"preparing {task}")
    contenders[task] = {
      "emu_jax": warm(with_jax.TASKS[task](case, arrays, flat)),
      "torch": make(task, False),
    }
  if arguments.compile:
    try:
      for task in TASKS:
        say(f"torch.compile of {task}")
        contenders[task]["torch.compile"] = make(task, True)
      fate = "works"
    except (RuntimeError, TypeError) as error:  # what Dynamo and Inductor raise derives from these
      fate = f"fails: {str(error).strip().splitlines()[0]}"
      for task in TASKS:
        contenders[task].pop("torch.compile", None)
  return contenders, fate


def memory(case: with_jax.Case, size: str, layout: str, threads: int) -> dict:
  """High-water marks in MiB, each task of each side in a process of its own."""
  found = {}
  for task in TASKS:
    say(f"memory of {task}")
    problem = case.problem().to_json()
    ours = child(ALONE, "benchmarks.with_jax", task, size, "1")
    theirs = child("benchmarks.with_torch", task, layout, str(threads), "1", given=problem)
    found[task] = {"emu_jax": ours, "torch": theirs}
  return found


def settings(arguments: Arguments) -> dict:
  return {k: v for k, v in dataclasses.asdict(arguments).items() if k != "out"}


if __name__ == "__main__":
  main()
