"""Where parameters, optimiser, frozen trees and batches lie on the mesh."""

import fnmatch
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

WHOLE = ()
# (glob over "/" and the path of a leaf, axes that may be split, counted from the end). The first
# rule that matches decides; a leaf that none matches is an error, so that what a new network adds
# is placed by decision and not by chance. The paths of optimiser and average end like the
# parameters' own, so that the same rules place them alike: an update needs no communication.
RULES = (
  ("*/kernel", (-2, -1)),  # of a product or a convolution: channels in, channels out
  # Features of a table, not its rows: looking a row up is then the same program on every device.
  ("*/embedding", (-1,)),
  # A few numbers a channel: gathering them would cost a message each and save nothing.
  ("*/bias", WHOLE),
  ("*/scale", WHOLE),
  ("*/shift", WHOLE),  # of latents
  ("*/position", WHOLE),  # of tokens: CLIP, prior, vision
  ("*/positions", WHOLE),  # of frames: AnimateDiff
  ("*/class", WHOLE),  # vision's first token
  ("*/query", WHOLE),  # the prior's last token
  ("*/mean", WHOLE),  # of the prior's embeddings
  ("*/std", WHOLE),
  ("*/table", WHOLE),  # six modulations a DiT block
  ("*/final_table", WHOLE),
  ("*/factor", WHOLE),  # one number: the share of temporal layers
  ("*/mix", WHOLE),
  ("*/step", WHOLE),  # of a train state
  ("*/count", WHOLE),  # of an optimiser
)
# Elements below which a leaf is whole on every device: 64 kB take longer to ask for than to send.
SMALL = 2**14


def tree_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
  """A NamedSharding for every leaf of a tree of parameters, of an optimiser or of a train state.

  Of the axes that its rule allows, a leaf is split along the largest that `fsdp` divides: pieces
  are then equal, nothing is padded, and an axis too short to be worth it is seldom the one. Of two
  equal ones it is the first, so that the last, which hardware reads in long rows, stays whole.

  Args:
    tree: arrays or their shapes (`jax.eval_shape`).
  Raises: ValueError naming a leaf that no rule covers.
  """

  def place(path, leaf):
    return leaf_sharding(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh)

  return jax.tree_util.tree_map_with_path(place, tree)


def leaf_sharding(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Where one leaf lies, by its path (`mid/conv/kernel`) and shape."""
  return NamedSharding(mesh, leaf_spec(path, shape, mesh.shape["fsdp"]))


def leaf_spec(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
  """Of one leaf by its path (`mid/conv/kernel`) and shape; `fsdp` is the size of that axis."""
  axes = RULES[matching_rule(path)][1]
  fitting = [len(shape) + a for a in axes if -a <= len(shape) and shape[a] % fsdp == 0]
  if fsdp == 1 or not fitting or math.prod(shape) < SMALL:
    return PartitionSpec()
  split = max(fitting, key=lambda axis: shape[axis])
  return PartitionSpec(*("fsdp" if axis == split else None for axis in range(len(shape))))


def matching_rule(path: str) -> int:
  """Index of the first of `RULES` that covers a leaf; ValueError where none does."""
  for i, (glob, _) in enumerate(RULES):
    if fnmatch.fnmatchcase(f"/{path}", glob):
      return i
  raise ValueError(f"tree_shardings: no rule covers {path}; add one to parallel.placement.RULES")


def with_shardings(tree: Any, mesh: Mesh) -> Any:
  """Shapes, dtypes and placement of a tree of arrays or shapes, without any array."""
  struct = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
  return jax.tree.map(struct, tree, tree_shardings(tree, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
  """Arrays that every process holds whole, each device given its part."""
  if jax.process_count() > 1:  # only host arrays can go to another process's devices
    tree = jax.tree.map(np.asarray, tree)
  return jax.device_put(tree, tree_shardings(tree, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Split along the first axis over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def on_host(array: jax.Array) -> np.ndarray:
  """All of an array, in every process."""
  if jax.process_count() > 1:
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(jax.device_get(array))


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """The batch that all processes hold together, as arrays split over `data` and `fsdp`.

  Args:
    batch: this process's part: a tree of numpy arrays with one first axis, the same in every
      process.
  """
  local = mesh.local_mesh.shape
  shards = local["data"] * local["fsdp"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(leaf) == 0 or len(leaf) % shards:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"global_batch: {name} of shape {np.shape(leaf)} does not split over the {shards} devices"
        f" of this process; choose a batch size that is a multiple of {shards}"
      )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
