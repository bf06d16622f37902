"""Intervals over seeds, paired differences and win rates, against SciPy's own."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments import estimates
from experiments.study import Criterion, Results, average, verdict


def seeds(*means, n=50):
  """One value set a seed; the samples of arms with the same n pair."""
  rng = np.random.default_rng(3)
  return [{"score": rng.normal(mean, 1, n)} for mean in means]


def test_the_interval_over_seeds_is_students():
  figures = [0.4, 0.9, 0.5, 0.7]
  found = estimates.over_seeds(figures)
  low, high = stats.t.interval(0.95, 3, np.mean(figures), stats.sem(figures))
  np.testing.assert_allclose((found.value, found.low, found.high), (0.625, low, high))
  assert found.n == 4


def test_one_seed_decides_nothing():
  found = estimates.over_seeds([0.4])
  assert (found.value, found.low, found.high) == (0.4, -math.inf, math.inf)
  assert Criterion("", found, least=0.0).verdict == "not decided"
  assert Criterion("", estimates.over_seeds([math.nan, 1.0]), least=0.0).verdict == "not decided"


def test_a_difference_is_that_of_pairs():
  a, b = seeds(1, 1.2, 0.9), seeds(0, 0.1, 0)
  found = estimates.difference(a, b, "score")
  wanted = stats.ttest_1samp(
    [np.mean(x["score"] - y["score"]) for x, y in zip(a, b, strict=True)], 0
  )
  interval = wanted.confidence_interval()
  np.testing.assert_allclose((found.low, found.high), (interval.low, interval.high))
  same = estimates.difference(a, a, "score")  # shared noise cancels
  assert (same.value, same.low, same.high) == (0, 0, 0)
  with pytest.raises(ValueError, match="other samples"):
    estimates.difference(a, seeds(1, 1, 1, n=49), "score")


def test_a_win_rate_leaves_ties_out():
  a = [{"score": np.array([1.0, 2, 3, 0])}, {"score": np.array([1.0, 1, 1, 1])}]
  b = [{"score": np.array([1.0, 1, 4, -1])}, {"score": np.array([0.0, 0, 1, 2])}]
  found = estimates.wins(a, b, "score")
  wanted = stats.binomtest(4, 6).proportion_ci(method="wilson")
  np.testing.assert_allclose((found.value, found.low, found.high), (4 / 6, wanted.low, wanted.high))
  assert found.n == 6


def test_samples_are_resampled_in_pairs():
  a = seeds(0, 0, 0)
  b = [{"score": values["score"] - 0.5} for values in a]
  found = estimates.resampled(a, b, "score")
  np.testing.assert_allclose((found.value, found.low, found.high), 0.5)


@pytest.mark.parametrize(
  ("low", "high", "bounds", "expected"),
  [
    (0.1, 0.5, {"least": 0.0}, "holds"),
    (-0.1, 0.5, {"least": 0.0}, "not decided"),
    (-0.5, -0.1, {"least": 0.0}, "does not hold"),
    (0.1, 0.5, {"most": 0.05}, "does not hold"),
    (0.0, 0.0, {"most": 0}, "holds"),
    (0.1, 0.5, {"least": 0.0, "most": 0.4}, "not decided"),
  ],
)
def test_a_criterion_is_decided_by_the_whole_interval(low, high, bounds, expected):
  assert Criterion("", estimates.Estimate(0.2, low, high, 3), **bounds).verdict == expected


def test_a_claim_is_as_strong_as_its_weakest_criterion():
  holds, fails, open_ = (
    Criterion("", estimates.exactly(value), least=0.0) for value in (1.0, -1.0, math.nan)
  )
  assert verdict([holds, holds]) == "holds"
  assert verdict([holds, open_]) == "not decided"
  assert verdict([holds, open_, fails]) == "does not hold"


def test_results_summarise_each_seed_by_itself():
  results = Results({"a": seeds(1, 2, 3), "b": seeds(0, 0, 0)})
  per_seed = [values["score"].mean() for values in results.arms["a"]]
  assert results.mean("a", "score") == estimates.over_seeds(per_seed)
  spread = results.figure("a", lambda values: float(values["score"].std()))
  assert spread.value == pytest.approx(np.mean([v["score"].std() for v in results.arms["a"]]))
  assert math.isnan(average("none")(results.arms["a"][0]))
