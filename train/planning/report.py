"""A plan's figures: what a step needs of a device and what bounds it."""

import dataclasses

from train.planning.compiling import Measured
from train.planning.topologies import GIB, Topology


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds a step by what it takes; None where the compiler made no estimate.

  Attributes:
    arithmetic: the compiler's cycles over the clock; memory inside fusions is in it.
    memory: bytes moved over the bandwidth.
    exchange: bytes of collectives over the links of a chip, as if none hid behind another.
  """

  arithmetic: float | None
  memory: float
  exchange: float

  @property
  def bound(self) -> str:
    """Which is the longest."""
    known = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
    return max(known, key=known.get)

  @property
  def step(self) -> float | None:
    """The longest: what a step takes if the rest hides behind it."""
    return None if self.arithmetic is None else max(dataclasses.astuple(self))


def times(measured: Measured, topology: Topology) -> Times:
  chip = topology.chip
  exchanged = sum(size for _, size in measured.exchanges.values())
  cycles = measured.cycles
  return Times(
    arithmetic=None if cycles is None else cycles / chip.clock,
    memory=measured.moved / chip.bandwidth,
    exchange=exchanged / chip.links,
  )


def lines(measured: Measured, topology: Topology, flops: int) -> list[str]:
  """The report of one stage, a device of the topology.

  Args:
    flops: of the model, all devices together.
  """
  chip, each = topology.chip, flops / topology.num_devices
  if measured.shortage:
    return [f"does not fit: {measured.shortage}"]
  fits = measured.peak <= chip.memory
  t = times(measured, topology)
  found = [
    f"{'fits' if fits else 'does not fit'}: peak {gib(measured.peak)} of {gib(chip.memory)} GiB"
    f" (arguments {gib(measured.arguments)}, temporaries {gib(measured.temporaries)})",
    f"model: {each / 1e12:.4g} TFLOP a device and step (products and convolutions, no recomputing)",
    f"moved: {measured.moved / 1e9:.4g} GB to and from memory (loop bodies counted once)",
  ]
  for kind, (count, size) in measured.exchanges.items():
    found.append(f"{kind}: {count} with results of {size / 1e9:.4g} GB")
  if t.step is None:
    return [*found, "time: not estimated, compiled with low effort"]
  parts = f"arithmetic {t.arithmetic:.4g}, memory {t.memory:.4g}, exchange {t.exchange:.4g} s"
  found.append(f"time: {t.step:.4g} s estimated, bound by {t.bound} ({parts})")
  found.append(
    f"utilisation: {100 * each / (t.step * chip.flops):.3g} % of {chip.flops / 1e12:.4g} TFLOP/s "
    "bfloat16, an estimate of the compiler's"
  )
  if measured.unknown_loops:
    found.append(f"note: {measured.unknown_loops} loops of unknown length count once")
  return found


def gib(size: float | int) -> str:
  return f"{size / GIB:.3f}"
