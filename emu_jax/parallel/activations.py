"""Where activations live on a mesh: pinned, and exchanged between frames and space.

Networks know nothing of meshes: they say which layout a layer computes in, and what that means is
given from outside, by `jax.set_mesh`. Without a mesh, with a mesh of one device, or inside a
`shard_map`, whose arrays are parts already, every function here gives back its argument.

A layer that treats every frame by itself has the frames over the mesh axis `frames`; a layer that
looks across frames has rows of pixels over it. Channels are never split: a norm or a convolution
then needs no other device, and the partitioner has to gather weights instead of activations. The
batch lies over `data` and `fsdp`, as far as it divides.

Pinned layouts cost least where each device holds one example of the batch: frames and pixels join
the batch axis inside the layers, and of several examples a device would hold pieces apart there.
"""

import math
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

AXES = ("data", "fsdp", "frames")
Layout = Literal["frames", "space"]
BATCHES = (("data", "fsdp"), ("data",), ("fsdp",))  # the first that divides a batch holds it


def pin(x: Float[Array, "B T H W C"], layout: Layout = "frames") -> Float[Array, "B T H W C"]:
  """x, laid out for layers of single frames ("frames") or across frames ("space").

  An axis that does not divide is left whole on every device.
  """
  mesh = spread_mesh()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, video_spec(mesh, x.shape, layout))


def exchange(x: Float[Array, "B T H W C"], to: Layout) -> Float[Array, "B T H W C"]:
  """The same array from the other layout into this one: one all-to-all over `frames`.

  Written out, since the partitioner may as well gather all frames and throw most of them away.
  Where frames or rows do not divide, it is `pin`, and the partitioner finds its way.
  """
  mesh = spread_mesh()
  if mesh is None or mesh.shape["frames"] == 1:
    return pin(x, to)
  frames, space = (video_spec(mesh, x.shape, layout) for layout in ("frames", "space"))
  split = next((axis for axis in (2, 3) if space[axis]), None)
  if frames[1] is None or split is None:
    return pin(x, to)
  source, target = (frames, space) if to == "space" else (space, frames)
  gathered, scattered = (1, split) if to == "space" else (split, 1)

  def swap(part):
    return jax.lax.all_to_all(part, "frames", scattered, gathered, tiled=True)

  return jax.shard_map(swap, mesh=mesh, in_specs=source, out_specs=target)(x)


def video_spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], layout: Layout) -> PartitionSpec:
  """Of an array [B, T, H, W, C]; `frames` lies on T, or on H, or on W where H does not divide."""
  spec = [_batch_axes(mesh, shape[0]), None, None, None, None]
  candidates = (1,) if layout == "frames" else (2, 3)
  axis = next((a for a in candidates if shape[a] % mesh.shape["frames"] == 0), None)
  if axis is not None and mesh.shape["frames"] > 1:
    spec[axis] = "frames"
  return PartitionSpec(*spec)


def shares(shape: tuple[int, ...]) -> tuple[int, int]:
  """Into how many parts the mesh cuts the examples and the frames of a video [B, T, H, W, C].

  Parts of the batch are on different devices, and so are parts of the frames; (1, 1) without a
  mesh.
  """
  mesh = spread_mesh()
  if mesh is None:
    return 1, 1
  frames = video_spec(mesh, shape, "frames")[1]  # of one axis a spec keeps the name alone
  sizes = [mesh.shape[axis] for axis in _batch_axes(mesh, shape[0]) or ()]
  return math.prod(sizes), mesh.shape["frames"] if frames else 1


def per_device(sequences: int) -> int:
  """How many of so many sequences, frames or pixels of examples, a device of the mesh holds."""
  mesh = spread_mesh()
  return sequences if mesh is None else -(-sequences // mesh.size)


def platform() -> str:
  """Of the devices that a program is traced for: "cpu", "gpu" or "tpu".

  Those of the mesh of `jax.set_mesh`, be they of another machine; else those of this process.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform


def spread_mesh() -> AbstractMesh | None:
  """The mesh of `jax.set_mesh`, where it is one of ours that XLA partitions for; or None."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes or mesh.axis_names != AXES:
    return None
  return mesh


def _batch_axes(mesh: Mesh | AbstractMesh, batch: int) -> tuple[str, ...] | None:
  for axes in BATCHES:
    size = 1
    for axis in axes:
      size *= mesh.shape[axis]
    if batch % size == 0:
      return axes
  return None
