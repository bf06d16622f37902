"""Means with intervals that account for seeds, paired differences and win rates.

A seed is one training and one sampling run. A figure is computed for each seed by itself, and its
95 % interval is Student's over the seeds: with three of them it is wide, and rightly so. What
resampling the samples of the given seeds says stands beside it in reports and decides nothing: it
knows nothing of what another training run would have given.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from emu_jax.evaluation.metrics import Estimate, mean, proportion

Values = dict[str, np.ndarray]  # by metric, one number a sample


def over_seeds(figures: Sequence[float]) -> Estimate:
  """The mean of one figure a seed with Student's 95 % interval, which a single seed leaves open."""
  found = np.asarray(figures, float)
  n = len(found)
  if n < 2 or not np.isfinite(found).all():
    return Estimate(float(found.mean()), -math.inf, math.inf, n)
  half = stats.t.ppf(0.975, n - 1) * found.std(ddof=1) / math.sqrt(n)
  return Estimate(float(found.mean()), float(found.mean() - half), float(found.mean() + half), n)


def exactly(value: float) -> Estimate:
  """A figure that no seed changes."""
  return Estimate(value, value, value, 1)


def differences(a: Sequence[Values], b: Sequence[Values], metric: str) -> list[np.ndarray]:
  """a - b of each pair of samples, one array a seed.

  Raises: ValueError where the samples do not pair.
  """
  pairs = [(one[metric], other[metric]) for one, other in zip(a, b, strict=True)]
  if any(one.shape != other.shape for one, other in pairs):
    raise ValueError(f"differences: {metric} has other samples in one arm than in the other")
  return [one - other for one, other in pairs]


def difference(a: Sequence[Values], b: Sequence[Values], metric: str) -> Estimate:
  """Mean of a - b, over seeds."""
  return over_seeds([d.mean() for d in differences(a, b, metric)])


def resampled(a: Sequence[Values], b: Sequence[Values], metric: str) -> Estimate:
  """Mean of a - b with the bootstrap interval of these seeds' pairs of samples."""
  return mean(np.concatenate(differences(a, b, metric)))


def wins(a: Sequence[Values], b: Sequence[Values], metric: str) -> Estimate:
  """Share of the pairs without a tie in which a is the higher, with Wilson's interval."""
  found = np.concatenate(differences(a, b, metric))
  return proportion(found[found != 0] > 0)
