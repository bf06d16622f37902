"""Averages of any length over a run's weights, made after it has ended.

A run that keeps `averages/<step>/` (snapshots of averages of a few lengths) holds enough to
approximate the average of another length, at any step up to the last snapshot.

Lengths are relative: the standard deviation of an average's weights over the steps, divided by the
number of steps. 0.05 and 0.10 serve most others up to 0.25.

Source: Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv:2312.02696, sec. 3
  and app. C.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from emu_jax.errors import InputError
from emu_jax.weights.arrays import load_numpy, stored_metadata

AVERAGES = "averages"
LONGEST = 0.28  # of an even average over all steps it is 0.289


def check_length(length: float, who: str) -> None:
  """Raises InputError unless a relative length can be had."""
  if not 0 < length <= LONGEST:
    raise InputError(f"{who}: {length} is not within 0..{LONGEST}; 0.05 and 0.10 are usual")


def exponent(length: float) -> float:
  """The power γ of an average whose weights grow as step^γ.

  Source: arXiv:2312.02696, eq. 17: length² = (γ + 1) / ((γ + 2)² (γ + 3)), solved for γ.
  """
  t = length**-2
  return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


@dataclasses.dataclass(frozen=True)
class Average:
  """An average over the weights after steps 1 to `step`, those after step s weighted by s^γ.

  Exactly, as a run updates it (`emu_jax.train.optimiser.average_weight`), their shares are
  (s / step)^(γ+1) - ((s - 1) / step)^(γ+1).
  """

  step: int
  length: float


def overlaps(a: Sequence[Average], b: Sequence[Average]) -> Float[np.ndarray, "A B"]:
  """Integrals over the steps of the products of two averages' weights.

  Source: arXiv:2312.02696, app. C.2; written so that no power overflows.
  """
  steps = [np.array([one.step for one in several], float) for several in (a, b)]
  powers = [np.array([exponent(one.length) for one in several]) for several in (a, b)]
  first, second = steps[0][:, None], steps[1][None]
  p, q = powers[0][:, None], powers[1][None]
  ratio = np.minimum(first, second) / np.maximum(first, second)
  beyond = np.where(first > second, p, q)  # the power of the average that reaches further
  scale = (p + 1) * (q + 1) / (p + q + 1)
  return scale * ratio**beyond / np.maximum(first, second)


def shares(snapshots: Sequence[Average], wanted: Average) -> tuple[np.ndarray, float]:
  """How much of each snapshot makes the wanted average, by least squares, and what is left out.

  Returns: shares [number of snapshots], and the norm of the difference of the two averages'
    weights over the steps, relative to that of the wanted one: 0 where it is exact.
  Source: arXiv:2312.02696, sec. 3.2 and app. C.2.
  """
  gram, target = overlaps(snapshots, snapshots), overlaps(snapshots, [wanted])[:, 0]
  found = np.linalg.lstsq(gram, target, rcond=1e-13)[0]
  whole = overlaps([wanted], [wanted])[0, 0]
  left = whole - 2 * found @ target + found @ gram @ found
  return found, float(np.sqrt(max(left, 0.0) / whole))


def snapshots(run_dir: pathlib.Path) -> dict[Average, pathlib.Path]:
  """The snapshots of a run, and the folder of each step's."""
  found = {}
  for folder in sorted((pathlib.Path(run_dir) / AVERAGES).glob("*")):
    if folder.name.isdigit():
      for length in stored_metadata(folder.absolute()):
        found[Average(int(folder.name), float(length))] = folder
  return found


def load_average(run_dir: pathlib.Path, length: float) -> dict[str, Any]:
  """The leaves that a run trains, averaged up to its last snapshot: float32 numpy arrays by tree.

  One snapshot is in memory at a time.

  Raises: InputError for a length that is none, a run without snapshots, and an average that they do
    not determine to a tenth.
  """
  check_length(length, "ema_length")
  stored = snapshots(run_dir)
  if not stored:
    raise InputError(
      f"{run_dir} has no {AVERAGES}/: an average of another length needs a run that was trained "
      "with --optim.ema-lengths; leave ema_length out"
    )
  last = max(one.step for one in stored)
  parts, error = shares(list(stored), Average(last, length))
  if error > 0.1:
    lengths = " or ".join(sorted({str(one.length) for one in stored}))
    raise InputError(
      f"{run_dir}: {len(stored)} snapshots leave {error:.0%} of an average of length {length} "
      f"open; choose a length near {lengths}"
    )
  total: Any = None
  for (one, folder), part in zip(stored.items(), parts, strict=True):
    tree = load_numpy(folder, [str(one.length)])[str(one.length)]
    scaled = jax.tree.map(lambda a, part=part: part * a.astype(np.float64), tree)
    total = scaled if total is None else jax.tree.map(np.add, total, scaled)
  return jax.tree.map(lambda a: a.astype(np.float32), total)
