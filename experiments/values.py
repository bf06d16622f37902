"""Measured values, kept: what was measured once of the same things is read, not measured again."""

import json
import os
import pathlib
import time
from importlib import metadata

import jax
import numpy as np

from benchmarks.basics import commit, processor, say
from emu_jax import media
from experiments.artefact import digest, made
from experiments.estimates import Values
from experiments.study import Cell, Results, Size, Study


def measured(study: Study, size: Size, seeds: int, root: pathlib.Path) -> Results:
  """Values of every arm and seed, measured where they are not kept below `root`.

  All arms of a seed come before the next seed.
  """
  arms: dict[str, list[Values]] = {}
  origins: set[str] = set()
  here = origin()  # of the code that runs, whatever the checkout becomes meanwhile
  for seed in range(seeds):
    for arm, cell in study.cells(size, seed).items():
      values, measured_by = _cell(study, arm, seed, cell, root, here)
      arms.setdefault(arm, []).append(values)
      origins.add(measured_by)
  return Results(arms, tuple(sorted(origins)))


def _cell(
  study: Study, arm: str, seed: int, cell: Cell, root: pathlib.Path, here: str
) -> tuple[Values, str]:
  identity = {
    "study": study.name,
    "version": study.version,
    "arm": arm,
    "seed": seed,
    "of": [artefact.name for artefact in cell.of],
    "options": dict(cell.options),
  }
  file = root / "values" / study.name / f"{digest(identity)}.json"
  if not file.is_file():
    say(f"{study.name}: {arm}, seed {seed}")
    folders = tuple(made(artefact, root) for artefact in cell.of)
    began = time.monotonic()
    values = {name: np.asarray(v, float).tolist() for name, v in cell.measure(folders).items()}
    kept = {"of": identity, "origin": here, "seconds": time.monotonic() - began}
    file.parent.mkdir(parents=True, exist_ok=True)
    media.write_whole(file, (json.dumps(kept | {"values": values}) + "\n").encode())
  found = json.loads(file.read_text())
  return {name: np.array(numbers) for name, numbers in found["values"].items()}, found["origin"]


def origin() -> str:
  """By which code, where and with what something is measured, in words."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  where, first = f"{cores} core(s) of {processor()}", jax.devices()[0]
  if first.platform != "cpu":
    where = f"{first.device_kind}, {where}"
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "numpy"))
  return f"at commit {commit()} on {where}; {versions}; float32"
