"""Tables of plans: what `emu-train plan --json FILE` wrote, as Markdown.

  emu-train plan --config configs/emu_video_4b3.py --topology v5e:16x16 --json plans/v5e.json
  python -m benchmarks.plan_table plans/*.json

The first table has a row a plan; the second compares plans of one stage on growing slices of one
chip, with as many examples a device (weak scaling).
"""

import argparse
import collections
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

Plan = dict[str, Any]
GIB = 2**30


def devices(plan: Plan) -> int:
  return math.prod(plan["mesh"].values())


def row(plan: Plan) -> tuple[str, ...]:
  """What a plan says, a cell a column of `HEAD`."""
  mesh = " x ".join(str(plan["mesh"][axis]) for axis in ("data", "fsdp", "frames"))
  where = f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"]
  stage = plan["stage"] + ", encoded ahead" * plan["encoded"]
  head = (plan["config"], stage, where, mesh, f"{plan['batch']} / {plan['accumulate']}")
  options = f"`{plan['options']}`" if plan["options"] else ""
  if "shortage" in plan:
    return (*head, "no", "", "", "", "", options)
  memory = f"{plan['peak'] / GIB:.1f} of {plan['memory'] / GIB:.1f}"
  fits = "yes" if plan["fits"] else "no"
  if plan["seconds"] is None:
    return (*head, fits, memory, "", "", "", options)
  share = f"{100 * plan['utilisation']:.0f} %"
  return (*head, fits, memory, f"{plan['seconds']:.3f}", share, plan["bound"], options)


HEAD = (
  "config", "stage", "topology", "data x fsdp x frames", "batch / accumulate", "fits",
  "GiB a device", "s a step", "utilisation", "bound by", "options",
)  # fmt: skip


def weak_scaling(plans: Iterable[Plan]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
  """Head and rows: seconds and utilisation of a stage by the number of devices.

  Only plans with an estimate of time, and rows with two sizes or more.
  """
  groups = collections.defaultdict(dict)
  for plan in plans:
    if plan.get("seconds") is not None:
      chip, each = plan["topology"].split(":")[0], plan["batch"] / devices(plan)
      groups[*row(plan)[:2], chip, each][devices(plan)] = plan
  groups = {key: group for key, group in groups.items() if len(group) > 1}
  sizes = sorted({size for group in groups.values() for size in group})
  cell = lambda plan: f"{plan['seconds']:.3f} s, {100 * plan['utilisation']:.0f} %" if plan else ""
  rows = [
    (config, stage, chip, f"{each:g}", *(cell(group.get(size)) for size in sizes))
    for (config, stage, chip, each), group in groups.items()
  ]
  head = ("config", "stage", "chip", "examples a device", *(f"{size} devices" for size in sizes))
  return head, rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(plans: Sequence[Plan]) -> str:
  """Both tables."""
  head, rows = weak_scaling(plans)
  parts = [markdown(HEAD, map(row, plans)), *([markdown(head, rows)] if rows else [])]
  return "\n\n".join(parts)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("files", nargs="+", type=pathlib.Path, help="JSON of emu-train plan")
  plans = [plan for file in parser.parse_args().files for plan in json.loads(file.read_text())]
  print(tables(plans))


if __name__ == "__main__":
  main()
