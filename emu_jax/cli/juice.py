"""The commands `emu-jax juice make` and `juice score`: people compare two models' videos."""

import pathlib
from collections.abc import Callable
from typing import Annotated

import tyro
from rich.console import Console

from emu_jax import media
from emu_jax.cli.options import deferred
from emu_jax.cli.progress import counted
from emu_jax.errors import InputError
from emu_jax.evaluation.juice import answers, pairs, report, study
from emu_jax.evaluation.juice.page import write_page


def make_study(
  *,
  a: pathlib.Path,
  b: pathlib.Path,
  prompts: pathlib.Path,
  out: pathlib.Path,
  seed: int = 0,
  post_process: bool = True,
) -> None:
  """Makes a page on which raters compare two folders of videos, pair by pair.

  Args:
    a: folder of one model's clips: .mp4, .webm, .gif or .webp.
    b: folder of the other's. Clips of one name are a pair; where no name is in both folders, the
      order of the names decides.
    prompts: .txt with a line a pair, in the order of A's names (2 before 10), or .jsonl with a line
      {"file_name": ..., "text": ...} for each of A's names.
    out: new folder for the page, to be given to raters whole. OUT.key.json is written beside it:
      keep it, it says which side is whose.
    seed: of sides and order, 0 or more.
    post_process: bring both clips of a pair to the same shape, size, rate and length, and to mp4;
      off: raters see the files as they are.
  """
  if seed < 0:
    raise InputError(f"seed={seed} is negative; give 0 or more")
  found, matching = pairs.matched(a, b, prompts)
  print(f"{len(found)} pairs, matched {matching}")
  key = write_page(
    out, found, (str(a), str(b)), seed, post_process,
    lambda made: counted(made, "copying", "pairs"),
  )  # fmt: skip
  print(f"{out}: open index.html (study {key.study})")
  print(f"{study.key_path(out)}: which side is whose; not for raters")


def score_study(
  key: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")],
  files: Annotated[
    tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ANSWERS")
  ],
  /,
  out: pathlib.Path | None = None,
  unfinished: bool = False,
) -> None:
  """Says which model raters preferred, why, and how far they agree.

  Args:
    key: the .key.json file of the study.
    files: what raters saved, a file a rater; an odd number of raters cannot tie.
    out: .json or .md file for the report; it is printed in any case.
    unfinished: take files in which answers are missing, for what they hold.
  """
  if out is not None:
    media.check_output(out, report.ENDINGS)
  its_key = study.read_key(key)
  found = report.scored(its_key, answers.read_votes(its_key, files, unfinished))
  console = Console(width=120)
  console.print(report.heading(found), highlight=False, markup=False)
  for table in report.tables(found):
    console.print(table)
  if out is not None:
    report.save(out, found)


Call = Callable[[], None]
MAKE = tyro.conf.subcommand("make", prefix_name=False, constructor=deferred(make_study))
SCORE = tyro.conf.subcommand("score", prefix_name=False, constructor=deferred(score_study))
COMMANDS = Annotated[Call, MAKE] | Annotated[Call, SCORE]


def juice(command: Annotated[COMMANDS, tyro.conf.arg(name="")]) -> None:
  """Human evaluation: makes a page that compares two models' videos, and scores its answers."""
  command()
