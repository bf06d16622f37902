"""Runs the studies: trains what is missing, measures what is not measured, and says what holds.

  python -m experiments.run                       # every study
  python -m experiments.run brightness --seeds 3  # one of them

Each has a page, and `studies.md` a table of all. One command regenerates every number: what is
trained lies in folders named by all that it is made of (`--runs`), and so do the values; a killed
command goes on with the same words.
"""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from benchmarks.basics import say
from emu_jax import media
from emu_jax.cli import failures
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import enable_cache
from experiments import report
from experiments.artefact import StoppedError
from experiments.studies import STUDIES
from experiments.study import Size
from experiments.values import measured


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Runs studies and writes their pages."""

  names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  """Studies to run; none given: all of them."""
  size: Size = "default"
  """tiny: seconds a study, to see that everything runs; its figures say nothing."""
  seeds: int = 3
  """Training and sampling runs of each arm; an interval needs two."""
  out: pathlib.Path = pathlib.Path("docs/results")
  """Folder of the pages."""
  runs: pathlib.Path = pathlib.Path("runs/experiments")
  """Folder of what is trained and measured."""


def main(words: list[str] | None = None) -> None:
  """Runs the named studies in order."""
  given = sys.argv[1:] if words is None else words
  arguments = tyro.cli(Arguments, prog="python -m experiments.run", args=given)
  enable_cache()
  with failures.errors("experiments"):
    for name in chosen(arguments):
      try:
        results = measured(STUDIES[name], arguments.size, arguments.seeds, arguments.runs)
      except StoppedError as stopped:
        say(f"{stopped}: stopped; the same command continues")
        raise SystemExit(1) from None
      arguments_used = {"command": command(given), "size": arguments.size, "seeds": arguments.seeds}
      criteria = report.write(STUDIES[name], results, arguments.out, arguments_used)
      print(f"{name}: the claim {report.said(criteria)}; see {arguments.out / name}.md")
      table = "\n".join(
        ["# The papers' claims", "", *report.overview(STUDIES.values(), arguments.out)]
      )
      media.write_whole(arguments.out / "studies.md", f"{table}\n".encode())


def chosen(arguments: Arguments) -> tuple[str, ...]:
  """The names, checked. Raises: InputError."""
  for name in arguments.names:
    if name not in STUDIES:
      raise InputError(f"{name}: there is no such study; choose of {', '.join(STUDIES)}")
  if arguments.seeds < 1:
    raise InputError(f"--seeds {arguments.seeds}: is below 1; give 1 or more")
  return arguments.names or tuple(STUDIES)


def command(given: list[str]) -> str:
  """What to type for the same page; where it was written does not matter."""
  plain = tyro.cli(Arguments, args=given)
  words = ["python -m experiments.run", *plain.names]
  if plain.size != "default":
    words.append(f"--size {plain.size}")
  return " ".join([*words, f"--seeds {plain.seeds}"])


if __name__ == "__main__":
  main()
