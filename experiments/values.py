"""Measured values, kept: what was measured once of the same things is read, not measured again."""

import json
import pathlib
import time

import numpy as np

from benchmarks.basics import commit, say
from emu_jax import media
from experiments.artefact import digest, made
from experiments.estimates import Values
from experiments.study import Cell, Results, Size, Study


def measured(study: Study, size: Size, seeds: int, root: pathlib.Path) -> Results:
  """Values of every arm and seed, measured where they are not kept below `root`.

  All arms of a seed come before the next seed.
  """
  arms: dict[str, list[Values]] = {}
  for seed in range(seeds):
    for arm, cell in study.cells(size, seed).items():
      arms.setdefault(arm, []).append(_cell(study, arm, seed, cell, root))
  return Results(arms)


def _cell(study: Study, arm: str, seed: int, cell: Cell, root: pathlib.Path) -> Values:
  asked = {
    "study": study.name,
    "version": study.version,
    "arm": arm,
    "seed": seed,
    "of": [artefact.name for artefact in cell.of],
    "options": dict(cell.options),
  }
  file = root / "values" / study.name / f"{digest(asked)}.json"
  if not file.is_file():
    say(f"{study.name}: {arm}, seed {seed}")
    folders = tuple(made(artefact, root) for artefact in cell.of)
    began = time.monotonic()
    values = {name: np.asarray(v, float).tolist() for name, v in cell.measure(folders).items()}
    kept = {"asked": asked, "commit": commit(), "seconds": time.monotonic() - began}
    file.parent.mkdir(parents=True, exist_ok=True)
    media.write_whole(file, (json.dumps(kept | {"values": values}) + "\n").encode())
  found = json.loads(file.read_text())["values"]
  return {name: np.array(numbers) for name, numbers in found.items()}
