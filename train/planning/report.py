"""A plan's figures: what a program needs of a device and what bounds it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from emu_jax.train.planning.compiling import Measured
from emu_jax.train.planning.piecewise import Piece
from emu_jax.train.planning.topologies import GIB, Topology

LONGEST = 8  # pieces that a report shows
SURE = 0.8  # of the memory: the peak of a sum of blocks was found a seventh too low


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds a step by what takes them; None where the compiler made no estimate.

  Attributes:
    products: the compiler's cycles over the clock, of programs that use the matrix units.
    memory: of all others, which memory and the vector unit bound; the update is among them.
    exchange: bytes of collectives over the links of a chip, as if none hid behind another.
  """

  products: float | None
  memory: float | None
  exchange: float

  @property
  def bound(self) -> str:
    """What a step takes longest for."""
    if self.step in (None, self.exchange):
      return "exchange"
    return "products" if self.products > self.memory else "memory"

  @property
  def step(self) -> float | None:
    """What a step takes if exchange and computing hide behind one another."""
    return None if self.products is None else max(self.products + self.memory, self.exchange)


def times(measured: Measured, topology: Topology) -> Times:
  chip = topology.chip
  exchange = sum(size for _, size in measured.exchanges.values()) / chip.links
  if measured.cycles is None:
    return Times(None, None, exchange)
  products = measured.products / chip.clock
  return Times(products, measured.cycles / chip.clock - products, exchange)


def figures(
  measured: Measured, topology: Topology, flops: int, pieces: Sequence[Piece] = ()
) -> dict[str, Any]:
  """The report as JSON-able values, of one device; seconds, bytes, operations.

  Args:
    flops: of the model, all devices together.
    pieces: what `measured` is the sum of, where it is one.
  """
  chip, each = topology.chip, flops / topology.num_devices
  if measured.shortage:
    return {"fits": False, "shortage": measured.shortage, "model_flops": each}
  t = times(measured, topology)
  return {
    "fits": measured.peak <= chip.memory,
    "memory": chip.memory,
    "peak": measured.peak,
    "arguments": measured.arguments,
    "temporaries": measured.temporaries,
    "model_flops": each,
    "peak_flops": chip.flops,
    "moved": measured.moved,
    "exchanges": measured.exchanges,
    "seconds": t.step,
    "bound": t.bound if t.step else None,
    "seconds_by": dataclasses.asdict(t),
    "utilisation": None if t.step is None else each / (t.step * chip.flops),
    "unknown_loops": measured.unknown_loops,
    "pieces": [of_piece(piece, topology) for piece in pieces],
  }


def of_piece(piece: Piece, topology: Topology) -> dict[str, Any]:
  """A block's figures: seconds and operations of all its calls together, on one device."""
  chip, cycles = topology.chip, piece.measured.cycles
  seconds = None if cycles is None else piece.calls * cycles / chip.clock
  flops = piece.calls * piece.flops / topology.num_devices
  return {
    "kind": piece.call.kind,
    "name": piece.call.name,
    "shape": piece.call.activations[0].shape if piece.call.activations else (),
    "calls": piece.calls,
    "seconds": seconds,
    "model_flops": flops,
    "utilisation": flops / (seconds * chip.flops) if seconds else None,
    "beside_arguments": piece.measured.peak - piece.measured.arguments,
    "exchanges": piece.measured.exchanges,
  }


def lines(found: dict[str, Any]) -> list[str]:
  """The report of one stage from its `figures`."""
  each, room = found["model_flops"], found.get("memory", 0)
  if "shortage" in found:
    return [f"does not fit: {found['shortage']}"]
  said = [
    f"{'fits' if found['fits'] else 'does not fit'}: peak {gib(found['peak'])} of "
    f"{gib(found['memory'])} GiB (arguments {gib(found['arguments'])}, temporaries "
    f"{gib(found['temporaries'])})",
    f"model: {each / 1e12:.4g} TFLOP a device (products and convolutions, no recomputing)",
    f"moved: {found['moved'] / 1e9:.4g} GB by XLA's count (what stays on the chip too; bodies of "
    "loops once)",
  ]
  if found["pieces"] and SURE * room < found["peak"] <= room:
    said.insert(
      1,
      "note: the peak of a sum of blocks is about a seventh too low; above "
      f"{gib(SURE * room)} GiB it may not fit (--whole is exact)",
    )
  for kind, (count, size) in found["exchanges"].items():
    said.append(f"{kind}: {count} with results of {size / 1e9:.4g} GB")
  if found["seconds"] is None:
    return [*said, "time: the compiler made no estimate (low effort, or a chip it has none for)"]
  parts = ", ".join(f"{name} {value:.4g}" for name, value in found["seconds_by"].items())
  said.append(f"time: {found['seconds']:.4g} s estimated, bound by {found['bound']} ({parts} s)")
  said.append(
    f"utilisation: {100 * found['utilisation']:.3g} % of {found['peak_flops'] / 1e12:.4g} TFLOP/s "
    "bfloat16, an estimate of the compiler's"
  )
  said += of_pieces(found)
  if found["unknown_loops"]:
    said.append(f"note: {found['unknown_loops']} loops of unknown length count once")
  return said


def of_pieces(found: dict[str, Any]) -> list[str]:
  """The longest blocks, and how much of the model's arithmetic all of them hold."""
  pieces = sorted(found["pieces"], key=lambda piece: -piece["seconds"])
  if not pieces:
    return []
  share = sum(piece["model_flops"] for piece in pieces) / found["model_flops"]
  said = [f"by blocks, which hold {100 * share:.4g} % of the model's arithmetic; the longest:"]
  for piece in pieces[:LONGEST]:
    said.append(
      f"  {piece['seconds']:.4g} s, {100 * piece['utilisation']:.3g} %: {piece['kind']} "
      f"{piece['name']} of {list(piece['shape'])}, {piece['calls']} calls"
    )
  return said


def gib(size: float | int) -> str:
  return f"{size / GIB:.3f}"
