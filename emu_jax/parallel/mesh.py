"""The mesh that every run uses.

It has the axes `data`, `fsdp` and `frames`:

  data     examples of a batch; every parameter is whole along it
  fsdp     examples too, and parameters, optimiser and average in pieces, gathered where used
  frames   frames of a clip, or rows of its pixels (emu_jax.parallel.activations)

The axes are Auto: XLA propagates placements by itself from what is said here and there.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from emu_jax.errors import InputError
from emu_jax.parallel.activations import AXES


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; 0 = what the other axes leave, for one of them."""

  data: int = 0  # devices that share a batch; 0: what the others leave
  fsdp: int = 1  # devices that share parameters, too
  frames: int = 1  # devices that share the frames of a clip

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
