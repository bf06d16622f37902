"""Packs those training clips of a folder that move most: data for a high-motion fine-tune.

  python -m experiments.lively --clips data/shapes_64/videos --out data/shapes_64/lively

Source: Emu Video, arXiv:2311.10709, sec. 3.3: the smallest motion within six frames on end.
Differs: the paper keeps what passes a threshold, of H.264's vectors and of CLIP and taste besides;
  here a number of clips is asked for, by block matching, and drawn clips need no more.
"""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import tyro

from emu_jax.cli import failures
from emu_jax.data import records
from emu_jax.data.batches import open_source
from emu_jax.errors import InputError
from emu_jax.train.contents import records_digest
from experiments.chosen_clips import ChosenClips, scores


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Packs the clips that move most."""

  clips: pathlib.Path
  """Folder of packed clips of moving shapes."""
  out: pathlib.Path
  """Folder to write, packed like `clips`."""
  num: int = 1000
  """Clips to keep for training; all of the validation clips are kept."""
  overwrite: bool = False
  """Replace what other arguments chose there."""


def main(words: list[str] | None = None) -> None:
  """Chooses, packs, and prints the least motion that was chosen."""
  a = tyro.cli(Arguments, prog="python -m experiments.lively", args=words)
  with failures.errors("lively"):
    source = open_source(a.clips, "train")
    if not 1 <= a.num <= len(source.records):
      raise InputError(
        f"--num {a.num}: choose 1 to {len(source.records)} of the clips of {a.clips}"
      )
    arguments = {"clips": records_digest(a.clips), "num": a.num}
    report = records.finished(a.out, arguments, a.overwrite)
    if report is None:
      found = scores(a.clips)
      chosen = np.sort(np.argsort(-found, kind="stable")[: a.num])
      least, middle = float(found[chosen].min()), float(np.median(found))
      report = {"arguments": arguments, "of": len(found), "least": least, "median": middle}
      build = functools.partial(
        ChosenClips, size=source.size, source=str(a.clips), chosen=tuple(chosen.tolist())
      )
      with records.staged(a.out) as folder:
        records.write(build, folder)
        (folder / records.REPORT).write_text(json.dumps(report, indent=1))
  print(
    f"{a.out}: {a.num} of {report['of']} clips, those with {report['least']:.2f} px² or more "
    f"(all: median {report['median']:.2f})"
  )


if __name__ == "__main__":
  main()
