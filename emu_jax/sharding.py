"""The mesh that every run uses, and where arrays live on it.

The mesh has the axes `data`, `fsdp` and `frames`. A batch is split over `data`; parameters,
optimiser and average are replicated. The axes are Auto: XLA propagates placements by itself.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "frames")


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of all `devices` (default: every device of every process) along `data`."""
  devices = jax.devices() if devices is None else devices
  # jax.make_mesh makes Explicit axes unless told otherwise, under which nothing is propagated.
  auto = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh((len(devices), 1, 1), AXES, axis_types=auto, devices=tuple(devices))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Split along the first axis over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Arrays that every process holds whole, placed on every device."""
  if jax.process_count() > 1:  # only host arrays can go to another process's devices
    tree = jax.tree.map(np.asarray, tree)
  return jax.device_put(tree, replicated(mesh))


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """The batch that all processes hold together, as arrays split over `data`.

  Args:
    batch: this process's part: a tree of numpy arrays with one first axis, the same in every
      process.
  """
  shards = mesh.local_mesh.shape["data"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(leaf) == 0 or len(leaf) % shards:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"global_batch: {name} of shape {np.shape(leaf)} does not split over the {shards} devices"
        f" of this process; choose a batch size that is a multiple of {shards}"
      )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
