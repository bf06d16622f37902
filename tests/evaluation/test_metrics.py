"""Each score says what its definition says, on cases small enough to count by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from emu_jax.data import shapes
from emu_jax.evaluation import metrics
from emu_jax.evaluation.oracle import Readings

WORDS = {
  "colour": "red",
  "shape": "circle",
  "size": "small",
  "texture": "plain",
  "background": "black",
}
TRUTH = {**WORDS, "direction": "left", "speed": "slowly"}


def readings_of(*clips, direction="left", speed="slowly"):
  """Readings of clips, lists of frames; a frame is WORDS with changes, or None: no object."""
  frames = {
    a: np.array([["none" if f is None else {**WORDS, **f}[a] for f in clip] for clip in clips])
    for a in WORDS
  }
  words = {a: np.array([max(row, key=list(row).count) for row in f]) for a, f in frames.items()}
  words |= {
    "direction": np.array([direction] * len(clips)),
    "speed": np.array([speed] * len(clips)),
  }
  valid = np.array([[f is not None for f in clip] for clip in clips])
  return Readings(frames, words, valid, np.zeros((*valid.shape, 2)), np.zeros(len(clips)))


def texture(height, width, seed=0):
  """A smooth random picture: every block of it matches itself only."""
  noise = np.random.default_rng(seed).normal(size=(height, width, 3))
  smooth = ndimage.gaussian_filter(noise, (1.5, 1.5, 0), mode="wrap")
  return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def panning(dx, dy, num_frames=5, side=64):
  """A window on a larger texture; its content moves by (dx, dy) a frame."""
  ground = texture(side + 80, side + 80)
  tops, lefts = (40 - step * np.arange(num_frames) for step in (dy, dx))
  return np.stack(
    [ground[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)]
  )


def motion_score(clip):
  return metrics.motion_score(metrics.block_motion(clip)[0])


def pixel_consistency(clip):
  return metrics.pixel_consistency(metrics.block_motion(clip)[1])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (256, 512), (1, 1)])
def test_proportion_is_wilsons_interval(hits, n):
  estimate = metrics.proportion(np.arange(n) < hits)
  interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
  np.testing.assert_allclose(
    (estimate.value, estimate.low, estimate.high), (hits / n, *interval), rtol=1e-6, atol=1e-12
  )
  assert estimate.n == n
  assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_wilsons_interval_covers_the_truth_at_its_rate():
  rng, p, n = np.random.default_rng(0), 0.97, 256  # where the plain normal interval fails
  ends = [metrics.proportion(rng.random(n) < p) for _ in range(2000)]
  coverage = np.mean([e.low <= p <= e.high for e in ends])
  assert coverage == pytest.approx(0.95, abs=0.02)  # 4 standard errors of 2000 draws


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean_and_repeats():
  values = np.random.default_rng(0).normal(3, 2, 400)
  estimate = metrics.mean(values)
  half = 1.96 * values.std() / 20
  np.testing.assert_allclose(
    (estimate.low, estimate.high), values.mean() + half * np.array([-1, 1]), atol=0.1 * half
  )
  assert (estimate.value, estimate.n) == (values.mean(), 400)
  assert metrics.mean(values) == estimate
  assert metrics.mean(values, seed=1) != estimate


def test_no_clips_give_no_number():
  for estimate in (metrics.proportion(np.zeros(0, bool)), metrics.mean(np.zeros(0))):
    assert estimate.n == 0
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)


def test_follows_asks_for_every_attribute_of_the_truth():
  readings = readings_of([{}], [{"colour": "blue"}], [{"texture": "striped"}])
  every = metrics.follows(readings, [TRUTH] * 3, metrics.APPEARANCE)
  np.testing.assert_array_equal(every, [True, False, False])
  colour = metrics.follows(readings, [TRUTH] * 3, ["colour"])
  np.testing.assert_array_equal(colour, [True, False, True])


def test_follows_takes_the_majority_or_the_first_frame():
  readings = readings_of([{"colour": "blue"}, {}, {}], [{}, {"colour": "blue"}, {"colour": "blue"}])
  np.testing.assert_array_equal(metrics.follows(readings, [TRUTH] * 2, ["colour"]), [True, False])
  np.testing.assert_array_equal(
    metrics.follows(readings, [TRUTH] * 2, ["colour"], first_frame=True), [False, True]
  )


def test_what_a_truth_does_not_say_is_not_judged():
  readings = readings_of(*[[{"texture": "striped"}]] * 3)
  silent = {k: v for k, v in TRUTH.items() if k != "texture"}
  truths = [silent, TRUTH, {**TRUTH, "texture": None, "centroid": [[1.0, 2.0]]}]
  np.testing.assert_array_equal(metrics.follows(readings, truths, ["texture"]), [False])
  np.testing.assert_array_equal(
    metrics.follows(readings, truths, metrics.APPEARANCE), [True, False, True]
  )


def test_motion_is_part_of_what_a_clip_must_follow():
  readings = readings_of([{}], direction="up")
  both = (*metrics.APPEARANCE, *metrics.MOTION)
  assert metrics.follows(readings, [TRUTH], metrics.APPEARANCE)[0]
  assert not metrics.follows(readings, [TRUTH], both)[0]
  assert metrics.follows(readings, [{**TRUTH, "direction": "up"}], both)[0]


def test_a_clip_without_an_object_follows_nothing():
  readings = readings_of([None])
  assert not any(metrics.follows(readings, [TRUTH], [a])[0] for a in metrics.APPEARANCE)


def test_object_consistency_is_the_share_of_frames_like_the_first():
  readings = readings_of(
    [{}] * 5,
    [{}, {"colour": "blue"}, {}, {"shape": "cross"}, {}],
    [{}, None, {}, {}, {}],
    [None, {}, {}, {}, {}],
    [None] * 5,
    [{}, {"texture": "striped"}, {"size": "large"}, {}, {}],
  )
  np.testing.assert_allclose(metrics.object_consistency(readings), [1, 0.5, 0.75, 0, 0, 1])
  colours = metrics.object_consistency(readings, ("colour",))
  np.testing.assert_allclose(colours, [1, 0.75, 0.75, 0, 0, 1])
  assert np.isnan(metrics.object_consistency(readings_of([{}]))).all()


@pytest.mark.parametrize("step", [(0, 0), (3, 0), (-4, 0), (0, 5), (2, -3)])
def test_block_matching_finds_the_pan(step):
  vectors, residual = metrics.block_motion(panning(*step))
  inner = vectors[:, 1:-1, 1:-1]  # blocks at the rim come in from outside
  np.testing.assert_array_equal(inner, np.broadcast_to(step, inner.shape))
  assert not residual[:, 1:-1, 1:-1].any()
  if step == (0, 0):
    assert motion_score(panning(*step)) == 0


def test_motion_score_is_the_mean_squared_vector():
  # One of 16 blocks holds texture that steps 3 pixels right and 2 down; the rest is flat. Blocks
  # that it enters or leaves may move too, so the object stays within its block's reach: 3 x 3 dots.
  clip = np.zeros((2, 32, 32, 3), np.uint8)
  clip[0, 9:12, 9:12] = texture(3, 3) | 128
  clip[1, 11:14, 12:15] = clip[0, 9:12, 9:12]
  assert motion_score(clip) == pytest.approx((3**2 + 2**2) / 16)


def test_noise_on_a_still_scene_is_not_motion():
  noise = np.random.default_rng(0).normal(0, 8, (4, 64, 64, 3))
  still = np.clip(100 + noise, 0, 255).astype(np.uint8)
  moving = np.clip(panning(2, 0, 4) + noise, 0, 255).astype(np.uint8)
  assert motion_score(still) < 0.05 * motion_score(moving)


def test_a_picture_has_no_motion_and_no_consistency():
  picture = panning(0, 0, 1)
  assert motion_score(picture) == metrics.h264_motion_score(picture, 8) == 0
  assert math.isnan(pixel_consistency(picture))


def test_pixel_consistency_forgives_motion_and_sees_flicker():
  still, moving = panning(0, 0), panning(2, 0)
  flicker = moving.copy()
  flicker[1::2] = np.clip(flicker[1::2].astype(int) + 20, 0, 255)
  assert pixel_consistency(still) == 1
  inner = pixel_consistency(moving)
  assert inner > 0.98  # only what enters at the rim is new
  # Every second frame is 20 of 255 levels brighter: about that much cannot be predicted.
  assert inner - pixel_consistency(flicker) == pytest.approx(20 / 255, rel=0.2)


def test_h264_vectors_measure_the_pan():
  scores = {step: metrics.h264_motion_score(panning(*step), 8) for step in [(0, 0), (2, 0), (0, 4)]}
  assert scores[0, 0] == 0
  # Rim blocks have nothing to point at, so the mean lies somewhat off the squared step.
  assert scores[2, 0] == pytest.approx(4, rel=0.1)
  assert scores[0, 4] == pytest.approx(16, rel=0.1)


def test_h264_tells_the_same_clip_the_same_every_time():
  """With x264's macroblock tree some 3 % of these 400 scores differed, in bursts."""
  clips = [shapes.draw(shapes.scene("videos", "test", i, 0), 32)[:32:4] for i in range(10)]
  scores = {tuple(metrics.h264_motion_score(clip, 4) for clip in clips) for _ in range(40)}
  assert len(scores) == 1


def test_h264_takes_odd_sides():
  assert metrics.h264_motion_score(panning(2, 0, side=33), 8) > 1


def test_psnr_is_its_definition():
  black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
  assert metrics.psnr(black, white) == 0
  assert metrics.psnr(black, black + np.uint8(16)) == pytest.approx(20 * math.log10(255 / 16))
  assert metrics.psnr(white, white) == math.inf
  with pytest.raises(ValueError, match=r"shapes \(2, 4, 4, 3\) and \(1, 4, 4, 3\) differ"):
    metrics.psnr(black, white[:1])


@pytest.mark.parametrize("shape", [(11, 11, 3), (2, 19, 14, 3), (2, 3, 12, 17, 1)])
def test_ssim_is_its_definition(shape):
  """Every window by itself, as the paper's equations 14 to 16 have it, with its own weights."""
  rng = np.random.default_rng(0)
  reference = rng.integers(0, 256, shape, np.uint8)
  clip = np.clip(reference + rng.normal(0, 40, shape), 0, 255).astype(np.uint8)
  taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
  weights = np.outer(taps, taps) / taps.sum() ** 2
  c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
  planes = [np.moveaxis(a, -1, -3).reshape(-1, *shape[-3:-1]).astype(float) for a in
            (clip, reference)]  # fmt: skip
  for a, b in zip(*planes, strict=True):
    windows = (np.lib.stride_tricks.sliding_window_view(p, (11, 11)).reshape(-1, 11, 11)
               for p in (a, b))  # fmt: skip
    for x, y in zip(*windows, strict=True):
      mx, my = (weights * x).sum(), (weights * y).sum()
      vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
      vxy = (weights * (x - mx) * (y - my)).sum()
      values.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
  assert metrics.ssim(clip, reference) == pytest.approx(np.mean(values), abs=1e-12)
  assert metrics.ssim(clip, clip) == 1


def test_ssim_of_flat_pictures_compares_their_brightness():
  low, high = np.full((12, 12, 3), 50, np.uint8), np.full((12, 12, 3), 200, np.uint8)
  c1 = (0.01 * 255) ** 2
  expected = (2 * 50 * 200 + c1) / (50**2 + 200**2 + c1)
  assert metrics.ssim(low, high) == pytest.approx(expected, abs=1e-9)
  with pytest.raises(ValueError, match=r"shapes \(12, 12, 3\) and \(11, 12, 3\) differ"):
    metrics.ssim(low, high[:11])
  with pytest.raises(ValueError, match="frames of 10 x 12 are smaller than the window of 11"):
    metrics.ssim(low[:10], high[:10])


def test_frames_smaller_than_a_block_are_refused():
  with pytest.raises(ValueError, match="frames of 4 x 4 are smaller than a block of 8"):
    metrics.block_motion(np.zeros((2, 4, 4, 3), np.uint8))
