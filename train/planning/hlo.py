"""What a compiled TPU program says of itself: collectives, and the cycles that XLA expects.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("convolution", "dot")  # the TPU compiler makes the former of the latter
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "token": 0}  # others: the digits of the name / 8
SENTINEL = 10**12  # cycles: no estimate was made (low effort), or a program of a quarter of an hour

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"^[su]32\[\]\S* constant\((\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(-?\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Exchange:
  """Collectives of one kind in one execution of the program, on one device."""

  count: int
  bytes: int  # of their results; of the largest array where there are several


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a program's text says.

  Attributes:
    cycles: expected, collectives not among them; None where the compiler made no estimate.
    products: those of them in programs that use the matrix units.
    unknown_loops: loops whose number of rounds the text does not tell; they count once.
  """

  cycles: int | None
  products: int | None
  exchanges: dict[str, Exchange]
  unknown_loops: int


def read(text: str) -> Reading:
  """Reads the text of a compiled program (`compiled.as_text()`)."""
  entry, computations = _computations(text)
  rounds, fused, unknown = _rounds(entry, computations)
  multiplies = functools.cache(lambda name: _multiplies(name, computations))
  cycles, products, sentinel, found = 0, 0, False, {}
  for name, instructions in computations.items():
    if not rounds[name]:
      continue
    for line in instructions:
      operation = _operation(line)
      kind = next((kind for kind in COLLECTIVES if operation in (kind, f"{kind}-start")), None)
      if kind:
        # Start, middle and end of one that runs beside arithmetic are three fusions, one channel.
        channel = _CHANNEL.search(line)
        key = (kind, channel[1] if channel else line)
        size = max(map(_size, _ARRAY.findall(line.split(f" {operation}(")[0])), default=0)
        found[key] = max(found.get(key, (0, 0)), (rounds[name], size))
      estimate = _CYCLES.search(line)
      if estimate and name not in fused:
        sentinel |= not 0 <= int(estimate[1]) < SENTINEL
        cycles += rounds[name] * int(estimate[1])
        if operation in PRODUCTS or any(map(multiplies, _CALLED.findall(line))):
          products += rounds[name] * int(estimate[1])
  totals = collections.defaultdict(lambda: [0, 0])
  for (kind, _), (count, size) in found.items():
    totals[kind][0] += count
    totals[kind][1] += count * size
  exchanges = {kind: Exchange(*totals[kind]) for kind in COLLECTIVES if kind in totals}
  known = (None, None) if sentinel else (cycles, products)
  return Reading(*known, exchanges, unknown)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """Name of the entry, and the instructions of each computation."""
  entry, name, computations = "", "", {}
  for line in text.splitlines():
    if header := _HEADER.match(line):
      name = header[2]
      computations[name] = []
      entry = name if header[1] else entry
    elif name and (instruction := _INSTRUCTION.match(line)):
      computations[name].append(instruction[1])
  return entry, computations


def _rounds(entry: str, computations: dict[str, list[str]]) -> tuple[dict[str, int], set[str], int]:
  """How often each computation runs, which lie inside fusions, and the loops of unknown length."""
  rounds, fused, unknown = collections.Counter(), set(), 0

  def visit(name, times, inside):
    nonlocal unknown
    rounds[name] += times
    if inside:
      fused.add(name)
    for line in computations[name]:
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [branch.strip().lstrip("%") for branch in branches.split(",")]
      if not called:
        continue
      operation, each = _operation(line), times
      if operation == "while":
        trips = _trips(line, computations)
        unknown += trips is None
        each = times * (1 if trips is None else trips)
      inner = inside or operation not in ("while", "call", "conditional", "async-start")
      for other in called:
        if other in computations:
          visit(other, each, inner)

  visit(entry, 1, False)
  return rounds, fused, unknown


def _multiplies(name: str, computations: dict[str, list[str]]) -> bool:
  """Whether a computation, or one that it calls, uses the matrix units."""
  lines = computations.get(name, [])
  inner = (called for line in lines for called in _CALLED.findall(line))
  return any(_operation(line) in PRODUCTS for line in lines) or any(
    _multiplies(called, computations) for called in inner
  )


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
  """Rounds of a loop: as the text tells, or the one number that its condition counts up to.

  Scans and loops of a fixed length count from 0 by 1; the TPU compiler's text tells no more.
  """
  if matched := _TRIPS.search(line):
    return int(matched[1])
  condition = _CONDITION.search(line)
  lines = computations.get(condition[1], []) if condition else []
  limits = [int(limit) for each in lines for limit in _LIMIT.findall(each)]
  counts_up = any("direction=LT" in each for each in lines)
  return limits[0] if counts_up and len(limits) == 1 else None


def _operation(line: str) -> str:
  """`fusion` of `bf16[8]{0:T(8)} fusion(%a), ...`: layouts hold parentheses, but in capitals."""
  match = _OPERATION.search(line)
  return match[1] if match else ""


def _size(array: tuple[str, str]) -> int:
  kind, dims = array
  width = BYTES.get(kind)
  if width is None:
    width = max(1, int(re.search(r"\d+", kind)[0]) // 8)
  return width * math.prod(int(d) for d in dims.split(",") if d)
