"""`emu-train plan`: what a training step will need of TPUs that are not there."""

import dataclasses
import pathlib
import sys
import time

import jax

from emu_jax.config import override
from emu_jax.errors import InputError
from emu_jax.sharding import make_mesh
from train.config import load_stages
from train.planning import compiling, piecewise, report, topologies


@dataclasses.dataclass(frozen=True)
class Plan:
  """Compiles a config's training step for TPUs and says what fits, what it sends and how long.

  Needs no TPU, but libtpu: pip install -r requirements-plan.txt. Every field of the config is an
  option too: `--data.batch_size 32`. All figures of time are the compiler's estimates.
  """

  config: pathlib.Path
  """Python file that defines STAGES, such as those of configs/."""
  topology: str
  """Chip and grid of a slice: v5e:4x4, v6e:16x16, v5p:4x4x4, v4:2x2x1, 7x:2x2x1."""
  slices: int = 1
  """Equal slices, joined by the data centre's network."""
  stage: str = ""
  """Only this stage; empty: all."""
  whole: bool = False
  """Compile the step as one program, which takes 20 GB and more from some billion parameters on;
  otherwise each distinct block is compiled by itself and all are added up."""
  memory_only: bool = False
  """Compile with low effort: a third of the time and memory, and no estimate of time."""


def main(arguments: Plan, words: list[str]) -> None:
  """Prints the plan of each chosen stage."""
  topology = topologies.parse(arguments.topology, arguments.slices)
  stages = load_stages(str(arguments.config))
  names = [experiment.run_name for experiment in stages]
  if arguments.stage and arguments.stage not in names:
    raise InputError(
      f"--stage {arguments.stage}: {arguments.config} has no such stage; choose of "
      f"{', '.join(names)}"
    )
  jax.config.update("jax_platforms", "cpu")  # what is not compiled ahead runs here
  devices = topologies.devices(topology)
  for experiment in stages:
    if arguments.stage not in ("", experiment.run_name):
      continue
    experiment = override(experiment, words)
    mesh = make_mesh(devices, experiment.mesh)
    experiment.check_mesh(mesh.size)
    began = time.monotonic()
    say = lambda text, began=began, stage=experiment.run_name: tell(f"{stage}: {text}", began)
    plan = planned_whole if arguments.whole else planned_by_blocks
    measured = plan(experiment, mesh, topology, arguments.memory_only, say)
    say("counting the model's arithmetic")
    flops = compiling.model_flops(experiment)
    say("done")
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    print(
      f"{experiment.run_name} on {arguments.slices} x {topology.name}, {axes}, batch "
      f"{experiment.data.batch_size}:"
    )
    for line in report.lines(measured, topology, flops):
      print(f"  {line}", flush=True)


def planned_whole(experiment, mesh, topology, memory_only, say) -> compiling.Measured:
  """A training step as one program."""
  say(f"tracing for {mesh.size} devices")
  lowered = compiling.lower(experiment, mesh)
  say("compiling the whole (kept for the next time)")
  return compiling.compiled(lowered, topology, memory_only)


def planned_by_blocks(experiment, mesh, topology, memory_only, say) -> compiling.Measured:
  """A training step as the sum of its blocks."""
  say(f"tracing for {mesh.size} devices")
  calls = compiling.step_calls(experiment, mesh)
  pieces = piecewise.measure(calls, mesh, topology, memory_only, say)
  state, frozen, batch = compiling.step_arguments(experiment, mesh)
  accumulate = experiment.optim.accumulate
  return piecewise.total(
    calls,
    pieces,
    mesh,
    topology,
    arguments=sum(map(piecewise.tree_share, (state, frozen, batch))),
    # Gradients are read twice, the rest (4 arrays) is read and written; sums of several
    # micro-batches are read and written for each.
    update=piecewise.tree_share(state.params) * (10 + (3 * accumulate if accumulate > 1 else 0)),
    accumulate=accumulate,
  )


def tell(words: str, began: float) -> None:
  """A line of progress, with the seconds since the beginning."""
  print(f"[{time.monotonic() - began:6.1f} s] {words}", file=sys.stderr, flush=True)
