"""What is remembered of a stored tree is what lies there now."""

import shutil

import numpy as np
import orbax.checkpoint as ocp

from emu_jax.checkpoints.run import stored_metadata


def shape_stored(folder, shape):
  """The shape that is read of an array, after one of `shape` was written."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, {"net": np.zeros(shape, np.float32)})
  return tuple(stored_metadata(folder)["net"].shape)


def test_a_tree_that_is_written_again_is_read_again(tmp_path):
  folder = tmp_path / "frozen"
  assert shape_stored(folder, (3, 2)) == (3, 2)
  shutil.rmtree(folder)
  assert shape_stored(folder, (5,)) == (5,)
