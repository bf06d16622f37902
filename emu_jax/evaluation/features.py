"""Features of clips or of their frames, a batch at a time by one program, on one device or many."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from emu_jax.evaluation import frechet, i3d, inception
from emu_jax.evaluation.frechet import Accumulated
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.mesh import on
from emu_jax.parallel.placement import global_batch, replicated
from emu_jax.typing import Params

Clip = UInt8[np.ndarray, "T H W 3"]
Pixels = Float[Array, "B H W 3"] | Float[Array, "B T H W 3"]


@dataclasses.dataclass(frozen=True)
class Features:
  """What a distance compares: a function of parameters and pixels, and what it is called.

  Distances of the published networks alone are called FID and FVD; what others give is of another
  scale, and the name says which features it is of.
  """

  name: str  # of the distance, as a table has it
  unit: Literal["frames", "clips"]
  dims: int
  params: Params
  apply: Callable[[Params, Pixels], Float[Array, "B D"]]  # pixels in [-1, 1]
  least_frames: int = 1


def fid(path: str | pathlib.Path) -> Features:
  """The 2048 features of FID, by a user's own copy of the network's weights."""
  params = inception.load(path)
  return Features("FID", "frames", 2048, params, inception.features)


def fvd(path: str | pathlib.Path) -> Features:
  """The 400 logits of FVD, by a user's own copy of the network's weights."""
  return Features("FVD", "clips", 400, i3d.load(path), i3d.features, i3d.LEAST_FRAMES)


class Stream:
  """Turns clips into features, a batch of one size at a time, and hands them on.

  The last batch is filled up, and its filling thrown away. With a mesh a batch is split over its
  axes `data` and `fsdp`; the parameters lie whole on every device.

  Args:
    batch_size: clips, or frames where the features are of frames, at a time.
    sink: takes rows of features, in order, and the index of the clip that each row is of.
  """

  def __init__(
    self,
    features: Features,
    batch_size: int,
    sink: Callable[[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]], None],
    mesh: Mesh | None = None,
  ):
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    self._size = -(-batch_size // shards) * shards
    self._features, self._sink, self._mesh = features, sink, mesh
    self._params = jax.device_put(features.params, mesh and replicated(mesh))
    self._pending, self._running = [], None

  def take(self, clip: Clip, index: int) -> None:
    """The next clip; all have one shape."""
    items = clip if self._features.unit == "frames" else [clip]
    self._pending.extend((item, index) for item in items)
    while len(self._pending) >= self._size:
      self._start()

  def finish(self) -> None:
    """Hands on what is left."""
    if self._pending:
      self._start()
    self._hand_on()

  def _start(self) -> None:
    batch, self._pending = self._pending[: self._size], self._pending[self._size :]
    pixels, members = (np.stack(part) for part in zip(*batch, strict=True))
    filled = np.concatenate([pixels, pixels[-1:].repeat(self._size - len(pixels), axis=0)])
    with on(self._mesh):
      placed = jnp.asarray(filled) if self._mesh is None else global_batch(filled, self._mesh)
      result = _features(self._features.apply, self._params, placed)
    self._hand_on()  # of the batch before: the device computes while the host reads
    self._running = result, members

  def _hand_on(self) -> None:
    if self._running is not None:
      (result, members), self._running = self._running, None
      self._sink(np.asarray(result)[: len(members)], members)


@functools.partial(Jit, static_argnums=0)
def _features(apply: Callable, params: Params, pixels: UInt8[Array, "..."]) -> Array:
  # Accelerators' usual products of fewer digits would give distances of their own.
  with jax.default_matmul_precision("highest"):
    return apply(params, pixels.astype(jnp.float32) / 127.5 - 1).astype(jnp.float32)


def accumulated(
  features: Features, clips: Iterable[Clip], batch_size: int, mesh: Mesh | None = None
) -> Accumulated:
  """The features of a set of clips."""
  gathered = Accumulated(features.dims)
  stream = Stream(features, batch_size, gathered.add, mesh)
  for index, clip in enumerate(clips):
    stream.take(clip, index)
  stream.finish()
  return gathered


def distances(
  name: str, generated: Accumulated, reference: Accumulated
) -> dict[str, frechet.Distance]:
  """Fréchet and kernel distance of two sets, by their names."""
  return {
    name: frechet.frechet(generated, reference),
    f"{name}, kernel distance x 1000": frechet.kernel(generated, reference),
  }
