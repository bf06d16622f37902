"""Distances between two sets of pictures or clips, by the features of their members.

Fréchet distance (Heusel et al., arXiv:1706.08500, eq. 6): of the Gaussians with the sets' means and
covariances, |m - m'|² + tr(C + C' - 2 (C^½ C' C^½)^½). Its estimate from n samples is biased
upwards by about a / n, and a depends on the model (Chong and Forsyth, arXiv:1911.07023), so that
two distances compare only at one n.

Kernel distance (Bińkowski et al., arXiv:1801.01401): the squared maximum mean discrepancy under the
kernel (x·y / D + 1)³, by the estimator that leaves out the pairs of a sample with itself. It has no
bias, at any n. Ours: pairs of frames of one clip are left out too, since they are not independent.

Intervals (ours: the jackknife over groups, Efron and Tibshirani 1993, chapter 11): members are
dealt into K = 10 groups in turn; with θ of all and θ_k of all but group k,

  variance = (K - 1) / K Σ (θ_k - mean θ_k)²,   bias = (K - 1) (mean θ_k - θ),

summed over the two sets, which are independent, and value ± t √variance, t of K - 1 degrees. A
bootstrap would draw members twice, whose covariance lies in fewer directions: the distance is
biased up by that once more, and its percentiles may lie above the value itself. Groups need their
moments alone, so nothing is kept of the samples. The interval is of what the estimate scatters by
at these n; the bias stands beside it and is not taken out, so that values are those of other
programs. Near a distance of 0 the distance is quadratic in what is estimated, and the interval a
rough one.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats

from emu_jax.errors import InputError

GROUPS = 10  # ours: few enough for 2 x 10 distances of 2048 features in minutes
KEPT = 10_000  # members of which features are kept for the kernel distance: 80 MB at 2048
KERNEL_SCALE = 1000  # papers give the kernel distance times this

Features = Num[np.ndarray, "N D"]


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and summed outer products of deviations from it, float64: enough for a Gaussian.

  `a + b` is the moments of both samples together.
  """

  n: int
  mean: Float[np.ndarray, "D"]
  scatter: Float[np.ndarray, "D D"]

  def __add__(self, other: "Moments") -> "Moments":
    """Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"."""
    n = self.n + other.n
    if not n:
      return self
    apart = other.mean - self.mean
    mean = self.mean + apart * (other.n / n)
    scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.n * other.n / n)
    return Moments(n, mean, scatter)

  @property
  def covariance(self) -> Float[np.ndarray, "D D"]:
    """Unbiased: over n - 1."""
    return self.scatter / (self.n - 1)


def moments(features: Features) -> Moments:
  """Of some samples; of none, zero."""
  x = np.asarray(features, np.float64)
  mean = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
  centred = x - mean
  return Moments(len(x), mean, centred.T @ centred)


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """Mean, trace of the covariance, and its symmetric root."""

  mean: Float[np.ndarray, "D"]
  trace: float
  root: Float[np.ndarray, "D D"]


def gaussian(sample: Moments) -> Gaussian:
  """Of a sample's moments; of fewer samples than features it is a singular one.

  Eigenvalues that rounding alone could have made are 0: √ε would be no small root.
  """
  covariance = sample.covariance
  values, vectors = np.linalg.eigh(covariance)
  noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
  root = (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T
  return Gaussian(sample.mean, float(np.trace(covariance)), root)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
  """tr (C^½ C' C^½)^½ is the sum of the singular values of C^½ C'^½: nothing is squared first."""
  apart = a.mean - b.mean
  spread = a.trace + b.trace - 2 * np.linalg.svd(a.root @ b.root, compute_uv=False).sum()
  return float(apart @ apart + max(spread, 0.0))  # not negative but for rounding


@dataclasses.dataclass(frozen=True)
class Distance:
  """A distance, the ends of its 95 % interval, and what it was estimated from.

  `low` and `high` are NaN where a set has too few members for groups. `bias` is what of the value
  is there because the sets are small, by the same jackknife: None of an estimator that has none.
  """

  value: float
  low: float
  high: float
  n: int  # members of the generated set, and of the reference
  n_reference: int
  dims: int
  bias: float | None = None
  notice: str = ""  # what a reader must know; "" where nothing


class Accumulated:
  """What is kept of a set's features as they come: moments of each group, and the first members.

  A member (a clip, or the frames of one together) is dealt to group `index % K`, whatever the
  batches were, so that distances and intervals do not depend on them.
  """

  def __init__(self, dims: int):
    self.dims = dims
    self._groups = [moments(np.zeros((0, dims))) for _ in range(GROUPS)]
    self._kept: list[np.ndarray] = []
    self._kept_members: list[np.ndarray] = []
    self._room = KEPT

  def add(self, features: Features, members: Int[np.ndarray, "N"]) -> None:
    """Takes rows; `members` says of which member each is."""
    if not np.isfinite(features).all():
      raise ValueError(
        f"Accumulated: {int((~np.isfinite(features)).any(axis=1).sum())} of {len(features)} rows "
        "of features are not finite; look at the frames that they are of, and at the weights"
      )
    group = np.asarray(members) % GROUPS
    for k in np.unique(group):
      self._groups[k] = self._groups[k] + moments(features[group == k])
    if self._room > 0:
      self._kept.append(np.asarray(features[: self._room], np.float32))
      self._kept_members.append(np.asarray(members[: self._room]))
      self._room -= len(self._kept[-1])

  @property
  def n(self) -> int:
    """Rows taken."""
    return sum(group.n for group in self._groups)

  def all(self) -> Moments:
    """Moments of every row."""
    return functools.reduce(operator.add, self._groups)

  def all_but_each_group(self) -> Iterator[Moments]:
    """K moments, each of all rows but a group's."""
    for k in range(GROUPS):
      yield functools.reduce(operator.add, self._groups[:k] + self._groups[k + 1 :])

  @property
  def filled(self) -> int:
    """Groups that have rows: of fewer members than groups, their number."""
    return sum(group.n > 0 for group in self._groups)

  def kept(self) -> tuple[Features, Int[np.ndarray, "N"]]:
    """The first rows, at most `KEPT`, and the member that each is of."""
    return np.concatenate(self._kept), np.concatenate(self._kept_members)


def frechet(generated: Accumulated, reference: Accumulated) -> Distance:
  """The Fréchet distance of two sets with its interval and bias.

  Raises: InputError where a set has fewer than 2 members.
  """
  _check(generated, reference)
  a, b = gaussian(generated.all()), gaussian(reference.all())
  value, dims, bias, half = frechet_distance(a, b), generated.dims, None, math.nan
  if generated.filled == reference.filled == GROUPS:
    left_out = (
      [frechet_distance(gaussian(part), b) for part in generated.all_but_each_group()],
      [frechet_distance(a, gaussian(part)) for part in reference.all_but_each_group()],
    )
    half = _half_width(left_out)
    bias = float(sum((GROUPS - 1) * (np.mean(values) - value) for values in left_out))
  fewest = min(generated.n, reference.n)
  notice = (
    f"{fewest} samples of {dims} features: a covariance of rank {fewest - 1}, mostly bias; compare "
    "at equal n only"
    if fewest <= dims
    else ""
  )
  low = max(0.0, value - half) if half == half else math.nan
  return Distance(value, low, value + half, generated.n, reference.n, dims, bias, notice)


def kernel(generated: Accumulated, reference: Accumulated) -> Distance:
  """The kernel distance of the rows kept, times 1000, with its interval; it may be negative.

  Raises: InputError where a set has fewer than 2 members.
  """
  _check(generated, reference)
  x, y = generated.kept(), reference.kept()
  xx, yy, xy = _kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y)

  def distance(keep_x: np.ndarray, keep_y: np.ndarray) -> float:
    """With the groups that are 1."""

    def mean(of_pairs, a, b):
      values, pairs = of_pairs
      return float(a @ values @ b / (a @ pairs @ b))

    within = mean(xx, keep_x, keep_x) + mean(yy, keep_y, keep_y)
    return KERNEL_SCALE * (within - 2 * mean(xy, keep_x, keep_y))

  every, half = np.ones(GROUPS), math.nan
  if generated.filled == reference.filled == GROUPS:
    but = 1 - np.eye(GROUPS)
    half = _half_width([[distance(k, every) for k in but], [distance(every, k) for k in but]])
  value = distance(every, every)
  counts = (len(x[0]), len(y[0]))
  cut = counts != (generated.n, reference.n)
  notice = f"of the first {KEPT} rows of a set" if cut else ""
  return Distance(value, value - half, value + half, *counts, generated.dims, None, notice)


def _kernel_sums(x: tuple, y: tuple, tile: int = 1000) -> tuple[np.ndarray, np.ndarray]:
  """Of each pair of groups: the kernel's sum over pairs of rows, and how many they are."""
  (rows_x, members_x), (rows_y, members_y) = x, y
  sums, pairs = np.zeros((GROUPS, GROUPS)), np.zeros((GROUPS, GROUPS))
  columns, of_y = rows_y.T.astype(np.float64), np.eye(GROUPS)[members_y % GROUPS]
  for start in range(0, len(rows_x), tile):
    part, members = rows_x[start : start + tile].astype(np.float64), members_x[start : start + tile]
    values = (part @ columns / len(columns) + 1) ** 3
    counted = np.ones(values.shape)
    if x is y:
      counted[members[:, None] == members_y[None]] = 0
    of_x = np.eye(GROUPS)[members % GROUPS].T
    sums += of_x @ (values * counted) @ of_y
    pairs += of_x @ counted @ of_y
  return sums, pairs


def _half_width(left_out: Sequence[Sequence[float]]) -> float:
  """Half of the 95 % interval from what each set gives without each of its groups."""
  variance = sum((GROUPS - 1) / GROUPS * np.square(v - np.mean(v)).sum() for v in left_out)
  return float(stats.t.ppf(0.975, GROUPS - 1) * math.sqrt(variance))


def _check(generated: Accumulated, reference: Accumulated) -> None:
  if generated.dims != reference.dims:
    raise ValueError(
      f"frechet: {generated.dims} and {reference.dims} features; compare features of one network"
    )
  for name, part in (("generated", generated), ("reference", reference)):
    if part.filled < 2:
      raise InputError(
        f"distance: the {name} set has {part.filled} members, and one alone has no covariance; "
        "give 2 or more"
      )
