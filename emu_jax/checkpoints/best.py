"""Which checkpoint of a run was its best, by the metric that the run was told to watch.

best.json: {"metric", "is": "lowest" or "highest", "best": {"step", "value"}, "before": the best one
before it, or null}. It names a checkpoint before that is written; until then the one before counts.
"""

import json
import pathlib
from typing import Any

from emu_jax.checkpoints.run import complete
from emu_jax.errors import InputError

BEST = "best.json"


def read_best(run_dir: str | pathlib.Path) -> dict[str, Any] | None:
  """What best.json of a run says; None where there is none.

  Raises: InputError where it cannot be read.
  """
  path = pathlib.Path(run_dir) / BEST
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error}); remove it, or restore it") from error


def at_step(folder: str | pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """A folder and the step that its name asks for: `RUN/best` is the best checkpoint of RUN.

  Returns: a folder as it is and None where the name asks for no step.
  Raises: InputError where best.json names no checkpoint that is whole.
  """
  folder = pathlib.Path(folder)
  if folder.name != "best" or folder.exists() or read_best(folder.parent) is None:
    return folder, None
  entry = best_entry(folder.parent)
  if entry is None:
    raise InputError(f"{folder}: the checkpoint that {BEST} names is missing; name the run itself")
  return folder.parent, entry["step"]


def best_entry(run_dir: str | pathlib.Path) -> dict[str, Any] | None:
  """Step and value of the best checkpoint that is whole; None where there is none."""
  found = read_best(run_dir) or {}
  folder = pathlib.Path(run_dir) / "checkpoints"
  entries = [entry for name in ("best", "before") if (entry := found.get(name))]
  return next((entry for entry in entries if complete(folder / str(entry["step"]))), None)
