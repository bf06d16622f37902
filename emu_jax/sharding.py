"""The mesh that every run uses, and where arrays live on it.

The mesh has the axes `data`, `fsdp` and `frames`. A batch is split over `data` and `fsdp`; of
`tree_shardings`, parameters, optimiser and average lie in pieces over `fsdp`. The axes are Auto:
XLA propagates placements by itself.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emu_jax.errors import InputError

AXES = ("data", "fsdp", "frames")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; data=0: what the other two leave."""

  data: int = 0
  fsdp: int = 1
  frames: int = 1


def make_mesh(devices: Sequence[Any] | None = None, config: MeshConfig = MeshConfig()) -> Mesh:
  """A mesh of all `devices` (default: every device of every process).

  Raises: InputError where the devices do not make this mesh.
  """
  devices = jax.devices() if devices is None else devices
  rest = max(config.fsdp * config.frames, 1)
  data = config.data or len(devices) // rest
  if min(config.fsdp, config.frames) < 1 or data * rest != len(devices):
    raise InputError(
      f"MeshConfig: data={config.data}, fsdp={config.fsdp}, frames={config.frames} do not make a "
      f"mesh of {len(devices)} devices; choose axes whose product is {len(devices)}"
    )
  # jax.make_mesh makes Explicit axes unless told otherwise, under which nothing is propagated.
  auto = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(
    (data, config.fsdp, config.frames), AXES, axis_types=auto, devices=tuple(devices)
  )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every leaf: its largest axis that `fsdp` divides is split, if any."""
  fsdp = mesh.shape["fsdp"]

  def place(leaf):
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
    if fsdp == 1 or not fitting:
      return replicated(mesh)
    split = max(fitting, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * split, "fsdp"))

  return jax.tree.map(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Split along the first axis over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


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
  shards = mesh.local_mesh.shape["data"] * mesh.local_mesh.shape["fsdp"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(leaf) == 0 or len(leaf) % shards:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"global_batch: {name} of shape {np.shape(leaf)} does not split over the {shards} devices"
        f" of this process; choose a batch size that is a multiple of {shards}"
      )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
