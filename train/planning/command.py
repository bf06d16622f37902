"""`emu-train plan`: what a training step will need of TPUs that are not there."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.config import override
from emu_jax.errors import InputError
from emu_jax.sharding import make_mesh
from train.config import Experiment, load_stages
from train.planning import compiling, piecewise, programs, report, topologies
from train.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Plan:
  """Compiles a config's training step for TPUs and says what fits, what it sends and how long.

  Needs no TPU, but libtpu: pip install -r requirements-plan.txt. Every field of the config is an
  option too: `--data.batch_size 32 --mesh.fsdp 16`. All figures of time are the compiler's
  estimates; docs/plans.md says what each figure comes from.
  """

  config: pathlib.Path
  """Python file that defines STAGES, such as those of configs/."""
  topology: str
  """Chip and grid of a slice: v5e:4x4, v6e:16x16, v5p:4x4x4, v4:2x2x1, 7x:2x2x1."""
  slices: int = 1
  """Equal slices, joined by the data centre's network."""
  stage: str = ""
  """Only this stage; empty: all."""
  sample: bool = False
  """Plan sampling a batch, all steps and decoding, instead of a training step."""
  whole: bool = False
  """Compile one program, which takes 20 GB and more from some billion parameters on; otherwise each
  distinct block is compiled by itself and all are added up."""
  memory_only: bool = False
  """Compile with low effort: a third of the time and memory, and no estimate of time."""
  json: pathlib.Path | None = None
  """File for all figures, those of every block too."""


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be planned.

  Attributes:
    say: prints a line of progress.
  """

  experiment: Experiment
  mesh: Mesh
  topology: Topology
  sample: bool
  memory_only: bool
  say: Callable[[str], None]


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
  chosen = [
    override(experiment, words)
    for experiment in stages
    if arguments.stage in ("", experiment.run_name)
  ]
  jax.config.update("jax_platforms", "cpu")  # what is not compiled ahead runs here
  devices = topologies.devices(topology)
  meshes = [make_mesh(devices, experiment.mesh) for experiment in chosen]
  for experiment, mesh in zip(chosen, meshes, strict=True):
    experiment.check_mesh(mesh.size)
  plans = []
  for experiment, mesh in zip(chosen, meshes, strict=True):
    began = time.monotonic()
    say = lambda text, began=began, stage=experiment.run_name: tell(f"{stage}: {text}", began)
    work = Work(experiment, mesh, topology, arguments.sample, arguments.memory_only, say)
    plans.append(plan(work, arguments.whole))
    for line in shown(plans[-1]):
      print(line, flush=True)
  if arguments.json:
    arguments.json.write_text(json.dumps(plans, indent=1))


def plan(work: Work, whole: bool) -> dict[str, Any]:
  """The figures of one stage, and what they are of."""
  measured, pieces = planned_whole(work) if whole else planned_by_blocks(work)
  work.say("counting the model's arithmetic")
  count = programs.sampling_flops if work.sample else programs.model_flops
  flops = count(work.experiment, work.mesh)
  work.say("done")
  return {
    "stage": work.experiment.run_name,
    "program": "sampling" if work.sample else "training step",
    "topology": work.topology.name,
    "slices": work.topology.slices,
    "mesh": dict(work.mesh.shape),
    "batch": work.experiment.data.batch_size,
    "accumulate": work.experiment.optim.accumulate,
    "whole": whole,
  } | report.figures(measured, work.topology, flops, pieces)


def shown(found: dict[str, Any]) -> list[str]:
  """The lines that are printed of a plan."""
  axes = " ".join(f"{name}={size}" for name, size in found["mesh"].items())
  title = (
    f"{found['stage']}, {found['program']}, on {found['slices']} x {found['topology']}, {axes}, "
    f"batch {found['batch']}:"
  )
  return [title, *(f"  {line}" for line in report.lines(found))]


def planned_whole(work: Work) -> tuple[compiling.Measured, tuple]:
  """As one program."""
  work.say(f"tracing for {work.mesh.size} devices")
  lower = programs.lower_sampling if work.sample else programs.lower
  lowered = lower(work.experiment, work.mesh)
  work.say("compiling the whole (kept for the next time)")
  return compiling.compiled(lowered, work.topology, work.memory_only), ()


def planned_by_blocks(work: Work) -> tuple[compiling.Measured, list[piecewise.Piece]]:
  """As the sum of its blocks."""
  experiment, mesh = work.experiment, work.mesh
  work.say(f"tracing for {mesh.size} devices")
  trace = programs.sample_calls if work.sample else programs.step_calls
  calls = trace(experiment, mesh)
  pieces = piecewise.measure(calls, mesh, work.topology, work.memory_only, work.say)
  state, frozen, batch = programs.step_arguments(experiment, mesh)
  if work.sample:
    needed, update, accumulate = (state.ema, frozen, batch), 0, 1
  else:
    needed, accumulate = (state, frozen, batch), experiment.optim.accumulate
    # Gradients are read twice, the rest (4 arrays) is read and written; sums of several
    # micro-batches are read and written for each.
    passes = 10 + (3 * accumulate if accumulate > 1 else 0)
    update = passes * piecewise.tree_share(state.params)
  measured = piecewise.total(
    calls,
    pieces,
    mesh,
    work.topology,
    arguments=sum(map(piecewise.tree_share, needed)),
    update=update,
    accumulate=accumulate,
  )
  return measured, pieces


def tell(words: str, began: float) -> None:
  """A line of progress, with the seconds since the beginning."""
  print(f"[{time.monotonic() - began:6.1f} s] {words}", file=sys.stderr, flush=True)
