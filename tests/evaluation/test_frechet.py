"""Laws of the distances between sets, and scipy as their oracle."""

import math

import numpy as np
import pytest
from scipy import linalg

from emu_jax.errors import InputError
from emu_jax.evaluation import frechet
from emu_jax.evaluation.frechet import (
  GROUPS,
  Accumulated,
  frechet_distance,
  gaussian,
  moments,
)


def samples(n, dims, seed, shift=0.0, scale=1.0):
  """Correlated Gaussian features."""
  rng = np.random.default_rng(seed)
  mix = np.random.default_rng(99).normal(size=(dims, dims)) / math.sqrt(dims)
  return shift + scale * rng.normal(size=(n, dims)) @ mix


def accumulated(x, batch=7, members=None):
  members = np.arange(len(x)) if members is None else members
  gathered = Accumulated(x.shape[1])
  for start in range(0, len(x), batch):
    gathered.add(x[start : start + batch], members[start : start + batch])
  return gathered


def distance(x, y):
  return frechet_distance(gaussian(moments(x)), gaussian(moments(y)))


def oracle(x, y):
  """The published formula, with scipy's root of a matrix."""
  a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  difference = x.mean(axis=0) - y.mean(axis=0)
  return difference @ difference + np.trace(a + b) - 2 * np.trace(linalg.sqrtm(a @ b)).real


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_parts_add_up_to_those_of_the_whole(offset):
  """Far from zero too, where sums of squares would lose all digits: 1e12 · 2e-16 · n."""
  x = offset + samples(301, 5, 0)
  whole = moments(x)
  for cuts in ([], [1], [17, 18, 200], list(range(10, 300, 10))):
    parts = [moments(part) for part in np.split(x, cuts)]
    merged = sum(parts[1:], parts[0])
    assert merged.n == 301
    # Rounding of values as large as the offset, of n of them at most.
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-15 * 30, atol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=0, atol=1e-8)
    if not offset:
      np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), atol=1e-13)


def test_moments_of_whole_numbers_merge_without_any_rounding():
  x = np.random.default_rng(0).integers(-8, 8, (64, 3)).astype(float) * 64
  parts = [moments(part) for part in np.split(x, 4)]
  merged, whole = (parts[0] + parts[1]) + (parts[2] + parts[3]), moments(x)
  np.testing.assert_array_equal(merged.mean, whole.mean)
  np.testing.assert_array_equal(merged.scatter, whole.scatter)
  empty = moments(np.zeros((0, 3)))
  for both in (empty + whole, whole + empty):
    assert both.n == 64
    np.testing.assert_array_equal(both.scatter, whole.scatter)


@pytest.mark.parametrize(("dims", "seed"), [(1, 0), (3, 1), (24, 2)])
def test_the_distance_is_the_published_formula(dims, seed):
  x, y = samples(200, dims, seed), samples(150, dims, seed + 10, shift=0.3, scale=1.4)
  y = y * np.linspace(0.5, 2, dims)  # covariances that do not commute
  y = np.concatenate([y, y[:3]])
  expected = oracle(x, y) if dims > 1 else _in_one_dimension(x, y)
  assert distance(x, y) == pytest.approx(expected, rel=1e-9)


def _in_one_dimension(x, y):
  return (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2


def test_the_distance_is_one_that_has_to_be():
  x, y, z = samples(60, 6, 0), samples(80, 6, 1, 1.0), samples(70, 6, 2, -2.0, 3.0)
  assert distance(x, x) == pytest.approx(0, abs=1e-12)
  assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
  # Its root is a metric (Wasserstein's, of Gaussians).
  assert math.sqrt(distance(x, z)) <= math.sqrt(distance(x, y)) + math.sqrt(distance(y, z))
  assert distance(x, x + 2) == pytest.approx(4 * 6, rel=1e-12)
  turn = linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
  assert distance(x @ turn, y @ turn) == pytest.approx(distance(x, y), rel=1e-10)
  assert distance(2 * x, 2 * y) == pytest.approx(4 * distance(x, y), rel=1e-12)


def test_of_singular_covariances_the_distance_is_that_in_the_space_they_span():
  """20 samples of 50 features; the roots of rounded zeros would add up to 1e-8 of its scale."""
  x, y = samples(20, 4, 0), samples(20, 4, 1, 0.5, 2.0)
  frame = linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))[0][:4]
  assert distance(x @ frame, y @ frame) == pytest.approx(distance(x, y), rel=1e-12)


def test_rounding_of_what_a_small_set_does_not_span_does_not_add_up():
  """20 samples against 200 of 50 features. Oracle: the singular values of the product of centred
  samples, which needs no root. Roots of eigenvalues of 1e-17, kept, would be 30 of some 3e-9."""
  x, y = samples(20, 50, 0), samples(200, 50, 1, 0.5)
  a, b = x - x.mean(axis=0), y - y.mean(axis=0)
  common = linalg.svdvals(a @ b.T).sum() / math.sqrt(19 * 199)
  mean_term = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
  expected = mean_term + np.square(a).sum() / 19 + np.square(b).sum() / 199 - 2 * common
  assert distance(x, y) == pytest.approx(expected, rel=1e-11)


def test_distances_do_not_depend_on_batches():
  x, y = samples(103, 5, 0), samples(90, 5, 1, 0.5)
  found = [
    (frechet.frechet(a, b), frechet.kernel(a, b))
    for a, b in ((accumulated(x, size), accumulated(y, 2 * size)) for size in (1, 7, 64, 200))
  ]
  for one, two in found[1:]:
    for batched, first in ((one, found[0][0]), (two, found[0][1])):
      assert batched.value == pytest.approx(first.value, rel=1e-10)
      assert (batched.low, batched.high) == pytest.approx((first.low, first.high), rel=1e-8)
      assert (batched.n, batched.n_reference, batched.dims) == (103, 90, 5)


def test_the_jackknife_is_its_definition():
  x, y = samples(50, 3, 0), samples(41, 3, 1, 0.5)
  found = frechet.frechet(accumulated(x), accumulated(y))
  value, variance, bias = distance(x, y), 0.0, 0.0
  for a, b in ((x, y), (y, x)):
    without = [distance(a[np.arange(len(a)) % GROUPS != k], b) for k in range(GROUPS)]
    variance += (GROUPS - 1) / GROUPS * sum((v - np.mean(without)) ** 2 for v in without)
    bias += (GROUPS - 1) * (np.mean(without) - value)
  assert found.value == pytest.approx(value, rel=1e-10)
  assert found.bias == pytest.approx(bias, rel=1e-6)
  assert found.high - found.value == pytest.approx(2.262157 * math.sqrt(variance), rel=1e-6)


def test_intervals_cover_and_the_bias_is_what_it_says():
  """400 pairs of sets whose distance is known: N(0, 1) and N(1/2, 1) in 3 dimensions, 0.75."""
  rng, n, covered, values, biases = np.random.default_rng(0), 60, 0, [], []
  pairs = [(rng.normal(size=(n, 3)), rng.normal(0.5, 1, (n, 3))) for _ in range(400)]
  for x, y in pairs:
    values.append(distance(x, y))
  expected = np.mean(values)  # what the estimate scatters about
  for x, y in pairs[:100]:
    found = frechet.frechet(accumulated(x, n), accumulated(y, n))
    covered += found.low <= expected <= found.high
    biases.append(found.bias)
  # 95 of 100, give or take 4 standard errors; more is no fault of an interval with 9 degrees.
  assert covered >= 95 - 4 * math.sqrt(100 * 0.95 * 0.05)
  # Means of 400 and of 100 draws, 4 standard errors of each.
  slack = 4 * np.std(values) / 20 + 4 * np.std(biases) / 10
  assert np.mean(biases) == pytest.approx(expected - 0.75, abs=slack)
  assert np.mean(biases) > slack / 2


def test_a_notice_says_that_samples_are_too_few():
  few = frechet.frechet(accumulated(samples(20, 24, 0)), accumulated(samples(40, 24, 1)))
  assert "20 samples of 24 features: a covariance of rank 19" in few.notice
  assert math.isfinite(few.value)
  enough = frechet.frechet(accumulated(samples(25, 24, 0)), accumulated(samples(40, 24, 1)))
  assert not enough.notice


def test_sets_too_small_for_groups_have_no_interval_and_one_member_no_distance():
  a, b = accumulated(samples(9, 2, 0)), accumulated(samples(30, 2, 1))
  for found in (frechet.frechet(a, b), frechet.kernel(a, b)):
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert found.bias is None
  with pytest.raises(
    InputError, match="the reference set has 1 members, and one alone has no covariance"
  ):
    frechet.frechet(b, accumulated(samples(1, 2, 1)))
  with pytest.raises(ValueError, match="2 and 3 features; compare features of one network"):
    frechet.frechet(a, accumulated(samples(9, 3, 0)))
  with pytest.raises(ValueError, match="1 of 9 rows of features are not finite"):
    accumulated(np.where(np.arange(18).reshape(9, 2) == 5, np.nan, 1.0), 9)


def test_frames_of_a_clip_are_left_out_together():
  """Frames all alike in a clip: as wide an interval as that of the clips alone, not of 8 times."""
  x, y = samples(60, 3, 0), samples(60, 3, 1, 0.5)
  clips = frechet.frechet(accumulated(x), accumulated(y))
  of = np.arange(60).repeat(8)
  frames = [accumulated(s.repeat(8, axis=0), 50, of) for s in (x, y)]
  together = frechet.frechet(*frames)
  assert together.n == 480
  assert together.high - together.value == pytest.approx(clips.high - clips.value, rel=0.05)


def test_the_kernel_distance_is_its_definition_and_without_bias():
  x, y = samples(23, 4, 0), samples(31, 4, 1, 0.5)
  k = lambda a, b: (a @ b / 4 + 1) ** 3
  within = lambda s: np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
  expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
  found = frechet.kernel(accumulated(x), accumulated(y))
  # Features are kept in float32: 6e-8 of values up to some 10, cubed.
  assert found.value == pytest.approx(1000 * expected, rel=1e-4)
  assert found.bias is None
  same = [
    frechet.kernel(accumulated(samples(20, 4, s)), accumulated(samples(20, 4, 1000 + s))).value
    for s in range(60)
  ]
  assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(60)


def test_the_kernel_distance_leaves_a_group_out_as_the_definition_does():
  x, y = samples(33, 4, 0), samples(42, 4, 1, 0.5)
  found = frechet.kernel(accumulated(x), accumulated(y))
  variance = 0.0
  for a, b in ((x, y), (y, x)):
    without = [
      frechet.kernel(accumulated(a[np.arange(len(a)) % GROUPS != k]), accumulated(b)).value
      for k in range(GROUPS)
    ]
    variance += (GROUPS - 1) / GROUPS * sum((v - np.mean(without)) ** 2 for v in without)
  assert found.high - found.value == pytest.approx(2.262157 * math.sqrt(variance), rel=1e-3)


def test_the_kernel_distance_of_frames_leaves_out_pairs_of_one_clip():
  """Frames all alike in a clip: the distance of the clips alone, where every pair is of two."""
  x, y = samples(30, 3, 0), samples(30, 3, 1, 0.5)
  clips = frechet.kernel(accumulated(x), accumulated(y))
  of = np.arange(30).repeat(4)
  frames = frechet.kernel(*(accumulated(s.repeat(4, axis=0), 50, of) for s in (x, y)))
  assert frames.value == pytest.approx(clips.value, rel=1e-9)
  assert frames.high == pytest.approx(clips.high, rel=1e-9)


def test_rows_beyond_those_kept_are_said_to_be_left_out(monkeypatch):
  monkeypatch.setattr(frechet, "KEPT", 20)
  a, b = accumulated(samples(33, 3, 0)), accumulated(samples(20, 3, 1))
  found = frechet.kernel(a, b)
  assert (found.n, found.n_reference) == (20, 20)
  assert found.notice == "of the first 20 rows of a set"
  assert found.value == frechet.kernel(accumulated(samples(33, 3, 0)[:20]), b).value
  assert frechet.frechet(a, b).n == 33
