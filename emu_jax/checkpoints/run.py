"""What a run of emu-train leaves on disk, read without the trainer.

config.json            what the run is
frozen/                arrays that did not train
encoders/              those of them that the data was encoded with ahead, which the steps lacked
checkpoints/<step>/    state, ema (averages of what trained), data (position)
tokenizers/<i>/        one a text encoder
"""

import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from emu_jax.errors import InputError

ENCODERS = "encoders"

# Orbax warns of each metadata file that a folder of a single item does not have, of folders that
# it cannot read, and, with a traceback, of writes that failed; the last two are errors here.
_EXPECTED = (
  "Metadata file does not exist",
  "Failed to get item metadata",
  "_SignalingThread.run() raised an exception",
  "Commit callback in background save thread",
  "Save Finalize thread",
  "one or more items may not be finalized",
)
logging.getLogger("absl").addFilter(
  lambda record: not any(text in record.getMessage() for text in _EXPECTED)
)


def latest_step(run_dir: str | pathlib.Path) -> int | None:
  """The newest complete checkpoint of a run; None where there is none."""
  folder = pathlib.Path(run_dir) / "checkpoints"
  steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit() and complete(p)]
  return max(steps, default=None)


def load_ema(run_dir: str | pathlib.Path) -> tuple[dict, dict]:
  """A run's config and its trees: the frozen ones and the averages of the trained ones.

  Returns:
    config.json as a dict, and the trees by name as numpy arrays on this host, so that a caller
    may cast and place them before a device holds any.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  step = latest_step(run_dir)
  if step is None:
    raise InputError(
      f"load_ema: {run_dir} holds no checkpoint; give the folder of a run of emu-train,"
      " one with checkpoints/<step>/ in it"
    )
  config = read_config(run_dir)
  if config is None:
    raise InputError(f"load_ema: {run_dir} holds no config.json; copy it from the original run")
  parts = (run_dir / "frozen", run_dir / ENCODERS)
  frozen = [load_numpy(part) for part in parts if part.is_dir()]
  ema = load_numpy(run_dir / "checkpoints" / str(step) / "ema")
  return config, {name: tree for trees in (*frozen, ema) for name, tree in trees.items()}


def read_config(run_dir: pathlib.Path) -> dict | None:
  """config.json of a run; None where there is none."""
  path = pathlib.Path(run_dir) / "config.json"
  try:
    config = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:  # of JSON and of its encoding
    raise InputError(f"{path} is not JSON ({error}); restore it or choose another run") from error
  if not isinstance(config, dict):
    raise InputError(f"{path} holds no JSON object; restore it or choose another run")
  return config


def complete(folder: pathlib.Path) -> bool:
  """Whether a checkpoint's folder has all its parts."""
  parts = ("_CHECKPOINT_METADATA", "state/_METADATA", "ema/_METADATA", "data/metadata")
  return all((folder / part).is_file() for part in parts)


def stored_metadata(folder: pathlib.Path) -> Any:
  """Shapes and dtypes of a stored tree."""
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder).item_metadata
  if metadata is None:
    raise InputError(f"{folder} cannot be read; copy it again from the run")
  return metadata.tree


def load_numpy(folder: pathlib.Path) -> dict:
  try:
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored_metadata(folder)
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
      return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  except InputError:
    raise
  except (OSError, ValueError, KeyError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    raise InputError(f"{folder} cannot be read: {reason}; copy it again from the run") from error
