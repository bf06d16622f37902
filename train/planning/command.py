"""`emu-train plan`: what a training step will need of TPUs that are not there."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.config import override
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import with_shardings
from emu_jax.train.config import Experiment, load_stages
from emu_jax.train.planning import compiling, piecewise, report, search, topologies
from emu_jax.train.planning.programs import Program, Sampling, Training
from emu_jax.train.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Plan:
  """Compiles a config's training step for TPUs and says what fits, what it sends and how long.

  Needs no TPU, but libtpu: pip install -r requirements-plan.txt. Every field of the config is an
  option too: `--data.batch_size 32 --mesh.fsdp 16`. All figures of time are the compiler's
  estimates; docs/plans.md says what each figure comes from.
  """

  config: pathlib.Path
  """Python file that defines STAGES, or the name of a config that ships, such as shapes_64."""
  topology: str
  """Chip and grid of a slice: v5e:4x4, v6e:16x16, v5p:4x4x4, v4:2x2x1, 7x:2x2x1."""
  slices: int = 1
  """Equal slices, joined by the data centre's network."""
  stage: str = ""
  """Only this stage; empty: all."""
  sample: bool = False
  """Plan sampling a batch, all steps and decoding, instead of a training step."""
  encoded: bool = False
  """Plan the step for records of `emu-train encode`: without autoencoder and text encoders."""
  search: bool = False
  """Look for the cheapest mesh of the topology and the largest batch that fits there; the config's
  mesh, batch size and micro-batches do not matter."""
  whole: bool = False
  """Compile one program, which takes 20 GB and more from some billion parameters on; otherwise each
  distinct block is compiled by itself and all are added up."""
  memory_only: bool = False
  """Compile with low effort: a third of the time and memory, and no estimate of time."""
  json: pathlib.Path | None = None
  """File for all figures, those of every block too."""


@dataclasses.dataclass(frozen=True)
class Work:
  """How a stage is planned.

  Attributes:
    program: of an experiment and a mesh: `programs.Training` or `programs.Sampling`.
    say: prints a line of progress.
  """

  program: Callable[[Experiment, Mesh], Program]
  topology: Topology
  whole: bool
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
  if arguments.search and (arguments.sample or arguments.whole):
    raise InputError("--search: plans training by blocks; leave out --sample and --whole")
  if arguments.encoded and (arguments.sample or not all(e.definition.encoders for e in chosen)):
    raise InputError(
      "--encoded: is for training on latents; leave out --sample, and choose a stage that does so "
      "with --stage"
    )
  if arguments.json and not arguments.json.parent.is_dir():
    raise InputError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
  jax.config.update("jax_platforms", "cpu")  # what is not compiled ahead runs here
  devices = topologies.devices(topology)
  program = Sampling if arguments.sample else functools.partial(Training, encoded=arguments.encoded)
  # Of all stages before the first is compiled: a mesh that does not suit one is said at once.
  ready = [] if arguments.search else [program(e, make_mesh(devices, e.mesh)) for e in chosen]
  plans = []
  for i, experiment in enumerate(chosen):
    began = time.monotonic()
    say = lambda text, began=began, stage=experiment.run_name: tell(f"{stage}: {text}", began)
    work = Work(program, topology, arguments.whole, arguments.memory_only, say)
    found = searched(work, experiment, devices) if arguments.search else [plan(work, ready[i])]
    given = {"config": arguments.config.stem, "options": " ".join(words)}
    found = [given | each for each in found]
    plans += found
    for each in found:
      print("\n".join(printed_lines(each)), flush=True)
  if arguments.json:
    partial = arguments.json.with_name(f"{arguments.json.name}.{os.getpid()}")
    partial.write_text(json.dumps(plans, indent=1))
    partial.rename(arguments.json)


def plan(work: Work, program: Program) -> dict[str, Any]:
  """The figures of one stage, and what they are of."""
  measured, pieces = (
    planned_whole(work, program) if work.whole else planned_by_blocks(work, program)
  )
  work.say("counting the model's arithmetic")
  flops = program.flops()
  work.say("done")
  return {
    "stage": program.experiment.run_name,
    "program": program.name,
    "topology": work.topology.name,
    "slices": work.topology.slices,
    "mesh": dict(program.mesh.shape),
    "batch": program.experiment.data.batch_size,
    "accumulate": program.accumulate,
    "encoded": program.encoded,
    "whole": work.whole,
  } | report.figures(measured, work.topology, flops, pieces)


def searched(work: Work, experiment: Experiment, devices: Sequence[Any]) -> list[dict[str, Any]]:
  """Plans of a short list of meshes, each with its largest batch; the cheapest an example first."""
  topology, num = work.topology, len(devices)
  one = search.with_mesh(experiment, MeshConfig(num), 1)
  work.say(f"tracing one example for each of {num} devices")
  program = work.program(one, make_mesh(devices, one.mesh))
  kept = search.kept_bytes(program.calls()) / num
  state, frozen, batch = program.arguments
  fitting = []
  for config in search.candidates(num, experiment.num_frames):
    if fitting and config.frames > fitting[0].mesh.frames:
      break
    placed = with_shardings((state, frozen), make_mesh(devices, config))
    most = search.most_examples(
      topology.chip.memory,
      piecewise.tree_share(placed),
      piecewise.tree_share(placed[0].params),
      kept / config.frames + piecewise.tree_share(batch),
    )
    work.say(f"{config}: at most {most} examples by bytes alone")
    fitting += [search.Candidate(config, most)] if most else []
  if not fitting:
    raise InputError(
      f"--topology {topology.name}: no mesh of {num} devices holds the state, the gradients and "
      "one example of this stage; take more devices, or a chip with more memory"
    )
  found = []
  for candidate in search.short_list(fitting):
    examples, plans = candidate.examples, []
    while examples and not (plans and plans[-1]["fits"]):
      smaller = search.with_mesh(experiment, candidate.mesh, examples)
      plans.append(plan(work, work.program(smaller, make_mesh(devices, candidate.mesh))))
      examples //= 2
    found.append(plans[-1])
  return sorted(found, key=lambda each: (not each["fits"], cost(each)))


def cost(found: dict[str, Any]) -> float:
  """Seconds of a step an example; 0 where there is no estimate."""
  return (found.get("seconds") or 0.0) / found["batch"]


def printed_lines(found: dict[str, Any]) -> list[str]:
  """The lines that are printed of a plan."""
  axes = " ".join(f"{name}={size}" for name, size in found["mesh"].items())
  data = " on encoded records" * found["encoded"]
  title = (
    f"{found['stage']}, {found['program']}{data}, on {found['slices']} x {found['topology']}, "
    f"{axes}, batch {found['batch']}:"
  )
  return [title, *(f"  {line}" for line in report.lines(found))]


def planned_whole(work: Work, program: Program) -> tuple[compiling.Measured, tuple]:
  """As one program."""
  work.say(f"tracing for {program.mesh.size} devices")
  lowered = program.lower()
  work.say("compiling the whole (kept for the next time)")
  return compiling.compiled(lowered, work.topology, work.memory_only), ()


def planned_by_blocks(
  work: Work, program: Program
) -> tuple[compiling.Measured, list[piecewise.Piece]]:
  """As the sum of its blocks."""
  mesh, topology, accumulate = program.mesh, work.topology, program.accumulate
  work.say(f"tracing for {mesh.size} devices")
  calls = program.calls()
  pieces = piecewise.measure(calls, mesh, topology, work.memory_only, work.say, accumulate)
  # Gradients are read twice, the rest (4 arrays) is read and written; sums of several
  # micro-batches are read and written for each.
  several, trained = accumulate > 1, piecewise.tree_share(program.trained)
  measured = piecewise.total(
    calls,
    pieces,
    mesh,
    topology,
    arguments=piecewise.tree_share(program.arguments),
    update=(10 + several * 3 * accumulate) * trained,
    sums=several * trained,
    accumulate=accumulate,
  )
  return measured, pieces


def tell(words: str, began: float) -> None:
  """A line of progress, with the seconds since the beginning."""
  print(f"[{time.monotonic() - began:6.1f} s] {words}", file=sys.stderr, flush=True)
