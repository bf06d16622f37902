"""A training step on a CPU with and without huge pages for large arrays.

  python -m benchmarks.huge_pages --rounds 2 --out docs/results

XLA asks the C library for a program's working memory anew at every call, and the system clears each
page of it when it is first touched. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (glibc 2.35 or newer)
has pages of 2 MiB in place of 4 KiB where the system lets programs ask for them. The variable is
read when a process starts: each turn is a process of its own, A B B A a round.
"""

import argparse
import collections
import pathlib
import statistics

from benchmarks.basics import say, spread
from benchmarks.measuring import child, compilations_kept, machine, pin

VARIABLE, VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
ARMS = {"without": {}, "with": {VARIABLE: VALUE}}
ALLOWED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def report(found: dict[str, list[dict]], host: dict, arguments: argparse.Namespace) -> str:
  """The page."""
  values = {arm: {k: [one[k] for one in runs] for k in runs[0]} for arm, runs in found.items()}
  turns = zip(values["without"]["step_s"], values["with"]["step_s"], strict=True)
  versions = ", ".join(f"{name} {v}" for name, v in host["versions"].items())
  rows = [
    f"| {arm} | {spread(columns['step_s'])} | {tens(columns['peak_MiB'])} |"
    for arm, columns in values.items()
  ]
  return f"""# Huge pages on a CPU

`python -m benchmarks.huge_pages --size {arguments.size} --rounds {arguments.rounds}` on \
{host["date"]} at commit {host["commit"]}. {host["processor"]}, {host["cores"]} cores, \
{host["memory_GiB"]} GiB; {host["system"]}; {versions}; {host["dtype"]}. Before the run others \
used {host["busy_before"]:.0%} of the machine. `{ALLOWED}`: {ALLOWED.read_text().strip()}.

The training loop of {found["with"][0]["config"]}, {found["with"][0]["batch"]} clips a step, with \
and without `{VARIABLE}={VALUE}`; each turn a process of its own, in alternated order. Median \
(least to most).

| huge pages | seconds a step | largest resident set, MiB, compilation included |
|---|---|---|
{chr(10).join(rows)}

A step without takes {spread([a / b for a, b in turns])} times as long as one with.
"""


def tens(values: list[float]) -> str:
  """As `spread`, to the nearest ten."""
  middle, low, high = (round(f(values), -1) for f in (statistics.median, min, max))
  return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def main() -> None:
  """Measures, prints the page and, with --out, writes it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=("small", "default"), default="default")
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--out", type=pathlib.Path)
  arguments = parser.parse_args()
  if not ALLOWED.is_file():
    parser.error(f"{ALLOWED} is not there: this system has no huge pages to ask for")
  host, found = machine(pin(0)), collections.defaultdict(list)
  order = [*ARMS, *reversed(ARMS)] * arguments.rounds
  with compilations_kept():
    child("benchmarks.data_wait", arguments.size)  # compiles for the others
    for turn, arm in enumerate(order, 1):
      say(f"turn {turn} of {len(order)}: {arm}")
      found[arm].append(child("benchmarks.data_wait", arguments.size, environment=ARMS[arm]))
  text = report({arm: found[arm] for arm in ARMS}, host, arguments)
  print(text)
  if arguments.out:
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "huge_pages.md").write_text(text)


if __name__ == "__main__":
  main()
