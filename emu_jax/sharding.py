"""The mesh that every run uses, and where arrays live on it.

The mesh has the axes `data`, `fsdp` and `frames`:

  data     examples of a batch; every parameter is whole along it
  fsdp     examples too, and parameters, optimiser and average in pieces, gathered where used
  frames   frames of a clip, or rows of its pixels (emu_jax.placement)

The axes are Auto: XLA propagates placements by itself from what is said here and there.
"""

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from emu_jax.errors import InputError
from emu_jax.placement import AXES

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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; 0 = what the other axes leave, for one of them."""

  data: int = 0
  fsdp: int = 1
  frames: int = 1

  def __post_init__(self):
    values = dataclasses.asdict(self)
    for name, value in values.items():
      if value < 0:
        raise InputError(f"MeshConfig: {name}={value}; give a number of devices, or 0 for the rest")
    if sum(value < 1 for value in values.values()) > 1:
      raise InputError(
        f"MeshConfig: {values} leaves two axes open; give numbers for all axes but one"
      )

  def shape(self, num_devices: int) -> tuple[int, int, int]:
    """Devices along data, fsdp and frames.

    Raises: InputError with both numbers where so many devices do not make this mesh.
    """
    given = dataclasses.astuple(self)
    named = math.prod(value for value in given if value > 0)
    wanted = " x ".join(f"{name}={value}" for name, value in zip(AXES, given, strict=True))
    if num_devices % named or (min(given) > 0 and named != num_devices):
      raise InputError(
        f"MeshConfig: {wanted} takes {named} devices, or a multiple where one is 0, and there are"
        f" {num_devices}; choose axes whose product is {num_devices}"
      )
    return tuple(value if value > 0 else num_devices // named for value in given)


def make_mesh(devices: Sequence[Any] | None = None, config: MeshConfig = MeshConfig()) -> Mesh:
  """A mesh of all `devices` (default: every device of every process) in the shape of `config`.

  Neighbours along `frames` are nearest to each other, then those along `fsdp`: what these axes
  exchange is asked for in every layer, the sums over `data` once a step. Several slices of TPUs are
  apart along `data` alone.

  Raises: InputError where the devices do not make this shape, or where one process's share of the
    batch would be another's too.
  """
  devices = jax.devices() if devices is None else devices
  shape = config.shape(len(devices))
  processes = len({device.process_index for device in devices})
  if shape[0] * shape[1] % processes:
    raise InputError(
      f"MeshConfig: data x fsdp = {shape[0]} x {shape[1]} does not split over {processes}"
      " processes, each of which reads examples of its own; choose a smaller frames axis"
    )
  auto = (AxisType.Auto,) * len(AXES)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices > 1:  # of TPUs, which only the data centre's network joins
    if shape[0] % slices:
      raise InputError(
        f"MeshConfig: data={shape[0]} does not split over {slices} slices, between which only whole"
        f" examples and gradients are sent; choose a multiple of {slices}"
      )
    inside = (shape[0] // slices, *shape[1:])
    ordered = mesh_utils.create_hybrid_device_mesh(
      inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, AXES, axis_types=auto)
  try:
    ordered = mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError:  # no product of the chips' axes is one of these: 16 of 8 x 8 x 4
    ordered = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(ordered, AXES, axis_types=auto)


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
  """Networks that are traced inside pin their activations to the mesh, if there is one."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def sampling_mesh(config: MeshConfig) -> Mesh | None:
  """A mesh of the first devices that make this shape, or of all where an axis is 0; None: of one.

  Raises: InputError where there are fewer.
  """
  devices = jax.devices()
  wanted = math.prod(dataclasses.astuple(config))
  mesh = make_mesh(devices[:wanted] if wanted else devices, config)
  return mesh if mesh.size > 1 else None


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
  raise ValueError(f"tree_shardings: no rule covers {path}; add one to emu_jax.sharding.RULES")


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
