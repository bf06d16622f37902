"""Trees of arrays as Orbax stores them, read as numpy arrays on this host; none without a value."""

import functools
import logging
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from emu_jax.errors import InputError

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


def stored_metadata(folder: pathlib.Path) -> Any:
  """Shapes and dtypes of a stored tree."""
  written = folder / "_METADATA"
  return _metadata(folder, written.stat().st_mtime_ns if written.is_file() else None)


@functools.lru_cache(maxsize=256)
def _metadata(folder: pathlib.Path, written_ns: int | None) -> Any:
  """Read once of what was written then: Orbax opens every array for it, and a run asks often."""
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder).item_metadata
  if metadata is None:
    raise InputError(f"{folder} cannot be read; copy it again from the run")
  return metadata.tree


def require_finite(array: np.ndarray, name: str) -> np.ndarray:
  """The array. Raises: InputError, beginning with `name`, where it holds NaN or infinity.

  As integers all of these are above every other number of their sign: two maxima tell, of any
  width, without a second array of its size.
  """
  if not jnp.issubdtype(array.dtype, np.floating) or not array.size:
    return array
  signed, unsigned = (f"{kind}{array.dtype.itemsize}" for kind in "iu")
  plus, minus = (np.array(value, array.dtype) for value in (np.inf, -np.inf))
  finite = array.view(signed).max() < plus.view(signed)
  if not finite or array.view(unsigned).max() >= minus.view(unsigned):
    bad = np.count_nonzero(~np.isfinite(array))
    raise InputError(
      f"{name} holds {bad} of {array.size} numbers that are NaN or infinite; copy or download it "
      "again, or take another checkpoint"
    )
  return array


def load_numpy(folder: pathlib.Path, names: Collection[str] | None = None) -> dict[str, Any]:
  """A stored tree, or those of its branches that are named, as numpy arrays.

  Raises: InputError where it cannot be read, or holds numbers that are not finite.
  """
  folder = pathlib.Path(folder).absolute()  # Orbax takes no other
  try:
    stored = stored_metadata(folder)
    wanted = {name: stored[name] for name in stored if names is None or name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with ocp.PyTreeCheckpointer() as checkpointer:
      args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
      found = checkpointer.restore(folder, args=args)
  except InputError:
    raise
  except (OSError, ValueError, KeyError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    raise InputError(f"{folder} cannot be read: {reason}; copy it again from the run") from error
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    require_finite(leaf, f"{folder}: {jax.tree_util.keystr(path, simple=True, separator='/')}")
  return found
