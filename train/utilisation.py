"""What share of the devices' arithmetic a run uses, by the operations of its model."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.parallel.mesh import make_mesh
from emu_jax.train.planning import flops
from emu_jax.train.planning.topologies import CHIPS
from emu_jax.train.stage import Loss
from emu_jax.typing import Params

# (pattern of `Device.device_kind`, dense bfloat16 operations a second). The first that is found
# decides.
PEAKS = (
  (r"TPU v4$", CHIPS["v4"].flops),
  (r"TPU v5( lite|e)", CHIPS["v5e"].flops),
  (r"TPU v5p?$", CHIPS["v5p"].flops),
  (r"TPU v6( lite|e)", CHIPS["v6e"].flops),
  (r"TPU ?7x", CHIPS["7x"].flops),
  (r"A100", 312e12),
  (r"H100 PCIe", 756e12),
  (r"(H100|H200) NVL", 835e12),
  (r"H100|H200|GH200", 989e12),
)


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 operations a second of one device; None for one that is not known.

  Sources: of TPUs the maker's pages, as in emu_jax.train.planning.topologies; NVIDIA's datasheets
  of A100, H100 (SXM, PCIe, NVL) and H200 (SXM, NVL), which print twice as much, of sparse matrices.
  """
  return next((peak for pattern, peak in PEAKS if re.search(pattern, device_kind)), None)


@functools.lru_cache(maxsize=64)
def _step_flops(loss: Loss, accumulate: int, structure: Any, leaves: tuple) -> int:
  params, frozen, batch, key = jax.tree.unflatten(
    structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves]
  )
  micro = lambda a: jax.ShapeDtypeStruct((a.shape[0] // accumulate, *a.shape[1:]), a.dtype)

  def mean_loss(params, frozen, batch, key):
    return loss(params, frozen, batch, key, jnp.zeros((), jnp.int32))[0].mean()

  # Of one device, else parts of arrays would be counted; of a processor, for which nothing is
  # fused into kernels whose products cannot be seen.
  with jax.set_mesh(make_mesh([_processor()])):
    batch = jax.tree.map(micro, batch)
    return accumulate * flops.of_gradient(mean_loss, params, frozen, batch, key)


def _processor() -> jax.Device:
  """A device of this host: its processor, unless JAX_PLATFORMS leaves it out."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return jax.local_devices()[0]


def step_flops(
  loss: Loss, params: Params, frozen: Params, batch: Any, key: Any, accumulate: int
) -> int:
  """Model operations of one update, over all devices.

  Products and convolutions of the loss and its gradient, forward and backward, for the whole batch:
  a product and a sum are two operations, what is recomputed in the backward pass
  (`jax.checkpoint`) counts once, and the optimiser is left out. Counted of the traced loss, once
  for each shape of a batch; the arguments may be shapes, and no array is made.
  """
  leaves, structure = jax.tree.flatten((params, frozen, batch, key))
  return _step_flops(loss, accumulate, structure, tuple((a.shape, a.dtype) for a in leaves))


class Utilisation:
  """Model operations of a run's steps, and the rates that they are done at."""

  def __init__(self, loss: Loss, accumulate: int, devices: Any):
    self._loss, self._accumulate = loss, accumulate
    self._num_devices, self._kind = len(devices), devices[0].device_kind
    self._peak = peak_flops(self._kind)
    self._flops: dict[Any, int] = {}  # of a step, by the shapes of its batch
    self._since_lap: list[int] = []

  def flops(self, params: Params, frozen: Params, batch: Any, key: Any) -> int:
    """Model operations of a step; counted where its shapes are new."""
    shapes = tuple(a.shape for a in jax.tree.leaves(batch))
    if shapes not in self._flops:
      self._flops[shapes] = step_flops(self._loss, params, frozen, batch, key, self._accumulate)
    return self._flops[shapes]

  def add(self, flops: int) -> None:
    """Takes the operations of a step that is done and was timed."""
    self._since_lap.append(flops)

  def rates(self, times: dict[str, float]) -> dict[str, float]:
    """Of the steps since the last call: TFLOP/s a device, and their share of its peak if known.

    Args:
      times: what emu_jax.train.progress.Clock.lap gave; nothing comes of an empty one.
    """
    flops, self._since_lap = self._since_lap, []
    if not times or not flops:
      return {}
    rate = sum(flops) / len(flops) / times["time/step_s"] / self._num_devices
    share = {} if self._peak is None else {"time/flops_utilisation": rate / self._peak}
    return {"time/model_tflops_per_device": rate / 1e12, **share}

  def describe(self, step: int) -> str:
    """A line that names what the rates are of.

    Args:
      step: operations of one.
    """
    devices = f"{self._num_devices} x {self._kind}"
    counted = f"a step is {step / 1e12:.4g} model TFLOP (forward and backward, nothing twice)"
    if self._peak is None:
      return f"{counted}; the peak of {devices} is not known, so no utilisation is logged"
    return (
      f"{counted}; flops_utilisation is of {devices} x {self._peak / 1e12:.4g} TFLOP/s (bfloat16, "
      "dense)"
    )
