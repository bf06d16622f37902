"""Programs compiled for a topology: what the compiler says of them, kept on disk."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import warnings

import jax

from emu_jax.parallel.compilation import TPU_OPTIONS
from emu_jax.train.planning import hlo
from emu_jax.train.planning.topologies import Topology

REVISION = 3  # of what is kept of a compiled program; raise it when `Measured` changes


@dataclasses.dataclass(frozen=True)
class Measured:
  """What the compiler says of one device's program; bytes, and operations a step.

  Attributes:
    peak: arguments, temporaries and results at the fullest moment.
    moved: to and from memory by XLA's cost analysis, which counts the body of a loop once, and
      what stays on the chip too.
    cycles: the compiler's estimate, with the time that memory takes; None where it makes none.
    products: those of them that programs take which use the matrix units.
    shortage: the compiler's words where the program does not fit; the rest is then 0.
  """

  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  moved: float = 0.0
  cycles: int | None = None
  products: int | None = None
  exchanges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  unknown_loops: int = 0
  shortage: str = ""


def compiled(lowered: jax.stages.Lowered, topology: Topology, memory_only: bool) -> Measured:
  """What the compiler says of a lowered program; kept on disk, since JAX's own cache refuses these.

  (JAX 0.10.2 cannot read back a program that was compiled without its hardware.)
  """
  versions = [importlib.metadata.version(name) for name in ("jax", "libtpu")]
  options = (topology.name, topology.slices, memory_only, sorted(TPU_OPTIONS.items()))
  words = (REVISION, lowered.as_text(), options, *versions)
  name = hashlib.sha256(repr(words).encode()).hexdigest()[:32]
  file = pathlib.Path.home() / ".cache" / "emu_jax" / "plans" / f"{name}.json"
  if file.is_file():
    kept = json.loads(file.read_text())
    exchanges = {kind: tuple(pair) for kind, pair in kept["exchanges"].items()}
    return Measured(**kept | {"exchanges": exchanges})
  found = _compile(lowered, topology, memory_only)
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix(f".{os.getpid()}")
  partial.write_text(json.dumps(dataclasses.asdict(found)))
  partial.rename(file)
  return found


def _compile(lowered: jax.stages.Lowered, topology: Topology, memory_only: bool) -> Measured:
  efforts = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
  before = {name: getattr(jax.config, name) for name in efforts}
  try:
    if memory_only:
      for name in efforts:
        jax.config.update(name, -1.0)
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
      program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    # E1000 is what later compilers call it.
    if not re.search("RESOURCE_EXHAUSTED|E1000", str(error)):
      raise
    return Measured(shortage=str(error).splitlines()[0][:300])
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
  memory, costs = program.memory_analysis(), program.cost_analysis() or {}
  reading = hlo.read(program.as_text())
  needed = (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  return Measured(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    # Small programs report temporaries of 0 and a peak above it, others the other way round.
    peak=max(needed, getattr(memory, "peak_memory_in_bytes", 0)),
    moved=float(costs.get("bytes accessed", 0.0)),
    cycles=None if memory_only else reading.cycles,
    products=None if memory_only else reading.products,
    exchanges={kind: (e.count, e.bytes) for kind, e in reading.exchanges.items()},
    unknown_loops=reading.unknown_loops,
  )
