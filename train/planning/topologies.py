"""TPU chips by the names that their makers use, and topologies of them for the compiler.

A device is what JAX calls one: a chip, but half a chip of TPU 7x; the two cores of v4 and v5p chips
work as one (megacore). Peak arithmetic and bandwidths are the makers' published figures; the clock
is what makes them one: peak = clock x 2 x multipliers of all matrix units. The memory is what the
compiler itself says is available (libtpu 0.0.42.1), but for TPU 7x, where it is half the published
192 GB.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from jax.experimental import topologies

from emu_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of device. Source of the rates: cloud.google.com/tpu/docs, the page of each version."""

  platform: str  # as the compiler calls it
  axes: int  # of a topology: 2 or 3
  flops: float  # bfloat16 operations a second, dense
  memory: float  # bytes that a program may use
  bandwidth: float  # bytes a second to and from the memory
  links: float  # bytes a second to other chips of the slice, all links, one direction
  multipliers: int  # of all matrix units together
  devices: int = 1  # a chip
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def clock(self) -> float:
    """Cycles a second."""
    return self.flops / (2 * self.multipliers)


CHIPS = {
  "v4": Chip(
    "v4", 3, 275e12, 30.75 * GIB, 1.2e12, 300e9, 8 * 128**2,
    options=(("chip_config_name", "megacore"),),
  ),
  "v5e": Chip("v5e", 2, 197e12, 15.75 * GIB, 819e9, 200e9, 4 * 128**2),
  "v5p": Chip("v5p", 3, 459e12, 95.74 * GIB, 2.765e12, 600e9, 8 * 128**2),
  "v6e": Chip("v6e", 2, 918e12, 31.25 * GIB, 1.64e12, 448e9, 4 * 256**2),
  "7x": Chip("tpu7x", 3, 1153.5e12, 96e9, 3.69e12, 600e9, 4 * 256**2, devices=2),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """`slices` equal slices of chips on a grid."""

  name: str
  chip: Chip
  grid: tuple[int, ...]
  slices: int = 1

  @property
  def num_devices(self) -> int:
    return math.prod(self.grid) * self.chip.devices * self.slices


def parse(name: str, slices: int = 1) -> Topology:
  """The topology `v5e:4x4`, `v5p:4x4x4`. Raises: InputError for one that there is not."""
  match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", name)
  if match is None or match[1] not in CHIPS:
    raise InputError(
      f"--topology {name}: is not a chip of {', '.join(CHIPS)}, a colon and a grid; give one such "
      "as v5e:4x4 or v5p:4x4x4"
    )
  chip, grid = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
  if len(grid) != chip.axes or min(grid) < 1:
    raise InputError(
      f"--topology {name}: a grid of {match[1]} has {chip.axes} axes of 1 or more; give e.g. "
      f"{match[1]}:{'x'.join('4' * chip.axes)}"
    )
  if slices < 1:
    raise InputError(f"--slices {slices}: is below 1; give the number of slices")
  return Topology(name, chip, grid, slices)


def devices(topology: Topology) -> list[Any]:
  """The compiler's devices of a topology; no hardware is touched.

  Raises: InputError where libtpu is missing or does not know this grid.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      "plan: the compiler of TPUs is not installed; pip install -r requirements-plan.txt"
    )
  # Without these libtpu asks a metadata server, and waits for other processes that plan.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  grid = "x".join(map(str, topology.grid))
  several = {"num_slices": topology.slices} if topology.slices > 1 else {}
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{topology.chip.platform}:{grid}",
      **dict(topology.chip.options),
      **several,
    ).devices
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0][:200]
    raise InputError(
      f"--topology {topology.name}: the compiler refuses it ({reason}); give a grid that is sold"
    ) from error
  if len(found) != topology.num_devices:
    raise InputError(
      f"--topology {topology.name}: the compiler sees {len(found)} devices, not "
      f"{topology.num_devices}; give a grid that is sold"
    )
  return list(found)
