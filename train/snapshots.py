"""Snapshots of averages, `averages/<step>/` of a run: emu_jax.checkpoints.averages reads them.

A snapshot is whole before the checkpoint of its step is begun, so that a run which was killed at
any moment and continues ends with the snapshots of one that was not.
"""

import pathlib
import shutil

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emu_jax.checkpoints.averages import AVERAGES
from emu_jax.train.checkpoint import written
from emu_jax.typing import Params


def save_snapshot(run_dir: pathlib.Path, step: int, averages: Params) -> None:
  """Writes averages by their lengths, in the pieces that they lie in, and waits.

  One that is there already is kept: a run that continues comes to the same.

  Raises:
    FaultError: it did not fit on the disk or could not be written for another reason.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  folder = run_dir / AVERAGES / str(step)
  if folder.is_dir():
    return
  with written(run_dir, "a snapshot of averages"), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, averages)


def discard_after(run_dir: pathlib.Path, step: int) -> None:
  """Removes snapshots of later steps, which a run that continues from `step` makes anew."""
  folder = pathlib.Path(run_dir) / AVERAGES
  if jax.process_index() == 0 and folder.is_dir():
    for path in folder.iterdir():
      if not path.name.isdigit() or int(path.name) > step:  # or was not written whole
        shutil.rmtree(path)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("later snapshots removed")
