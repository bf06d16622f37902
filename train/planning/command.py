"""`emu-train plan`: what a training step will need of TPUs that are not there."""

import dataclasses
import pathlib
import sys
import time

import jax

from emu_jax.config import override
from emu_jax.errors import InputError
from emu_jax.sharding import MeshConfig, make_mesh
from train.config import load_stages
from train.planning import compiling, report, topologies


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
  fsdp: int = 1
  """Devices among which parameters and optimiser are split; the rest is data parallel."""
  memory_only: bool = False
  """Compile with low effort: a third of the time and memory, and no estimate of time."""


def main(arguments: Plan, words: list[str]) -> None:
  """Prints the plan of each chosen stage."""
  topology = topologies.parse(arguments.topology, arguments.slices)
  stages = load_stages(str(arguments.config))
  names = [experiment.stage for experiment in stages]
  if arguments.stage and arguments.stage not in names:
    raise InputError(
      f"--stage {arguments.stage}: {arguments.config} has no such stage; choose of "
      f"{', '.join(names)}"
    )
  jax.config.update("jax_platforms", "cpu")  # what is not compiled ahead runs here
  mesh = make_mesh(topologies.devices(topology), MeshConfig(fsdp=arguments.fsdp))
  for experiment in stages:
    if arguments.stage not in ("", experiment.stage):
      continue
    experiment = override(experiment, words)
    began = time.monotonic()
    tell(f"{experiment.stage}: tracing for {mesh.size} devices", began)
    lowered = compiling.lower(experiment, mesh)
    flops = compiling.model_flops(experiment)
    tell(f"{experiment.stage}: compiling (kept for the next time)", began)
    measured = compiling.compiled(lowered, topology, arguments.memory_only)
    tell(f"{experiment.stage}: done", began)
    print(
      f"{experiment.stage} on {arguments.slices} x {topology.name}, data={mesh.shape['data']} "
      f"fsdp={mesh.shape['fsdp']}, batch {experiment.data.batch_size}:"
    )
    for line in report.lines(measured, topology, flops):
      print(f"  {line}")


def tell(words: str, began: float) -> None:
  """A line of progress, with the seconds since the beginning."""
  print(f"[{time.monotonic() - began:6.1f} s] {words}", file=sys.stderr, flush=True)
