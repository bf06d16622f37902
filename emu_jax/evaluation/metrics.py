"""Numbers that say how well clips follow their captions, each with its interval and its count.

What a clip shows is read by `emu_jax.evaluation.oracle`; what it should show is a truth, a mapping
from attributes to their words, such as `emu_jax.data.shapes.prompts` gives. An attribute that a
truth lacks or leaves None (its caption did not say it) is not judged for that clip; other keys are
ignored. A score function returns one value a clip; `proportion` and `mean` turn those into an
`Estimate`.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from emu_jax.data.motion import block_motion as block_motion
from emu_jax.evaluation.oracle import Readings

Clips = UInt8[np.ndarray, "B T H W 3"]
Clip = UInt8[np.ndarray, "T H W 3"]
Truths = Sequence[Mapping[str, Any]]

APPEARANCE = ("colour", "shape", "size", "texture", "background")
MOTION = ("direction", "speed")

SSIM_WINDOW = 11  # side, pixels


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over `n` clips and the ends of its 95 % confidence interval; NaN where n is 0."""

  value: float
  low: float
  high: float
  n: int


def proportion(hits: Bool[np.ndarray, "B"], z: float = 1.959964) -> Estimate:
  """The share of hits with Wilson's score interval, which holds near 0 and 1 and for few clips.

  Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
  """
  n = len(hits)
  if not n:
    return Estimate(math.nan, math.nan, math.nan, 0)
  p = float(np.mean(hits))
  centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  # The ends are exactly 0 at p = 0 and 1 at p = 1; rounding must not carry them past.
  return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def mean(values: Float[np.ndarray, "B"], num_resamples: int = 2000, seed: int = 0) -> Estimate:
  """The mean with a percentile-bootstrap interval; the same values and seed give the same ends.

  Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
  """
  n = len(values)
  if not n:
    return Estimate(math.nan, math.nan, math.nan, 0)
  drawn = np.random.default_rng(seed).integers(0, n, (num_resamples, n))
  low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
  return Estimate(float(values.mean()), float(low), float(high), n)


def judged(truths: Truths, attributes: Sequence[str]) -> list[int]:
  """Indices of the clips whose truth says something about at least one of the attributes."""
  return [i for i, truth in enumerate(truths) if _words(truth, attributes)]


def follows(
  readings: Readings, truths: Truths, attributes: Sequence[str], first_frame: bool = False
) -> Bool[np.ndarray, "judged"]:
  """Whether each judged clip shows all of the attributes that its truth gives.

  A clip's word for an attribute is the most frequent one among its frames with a valid object;
  `first_frame` asks frame 1 alone, which is what the image model of a factorized system made.
  A clip (or first frame) without a valid object follows nothing.
  """
  hits = []
  for i in judged(truths, attributes):
    words = _words(truths[i], attributes)
    hits.append(all(_read(readings, a, i, first_frame) == word for a, word in words.items()))
  return np.array(hits, bool)


def _words(truth: Mapping[str, Any], attributes: Sequence[str]) -> dict[str, str]:
  return {a: truth[a] for a in attributes if truth.get(a) is not None}


def _read(readings: Readings, attribute: str, clip: int, first_frame: bool) -> str:
  if first_frame and attribute not in MOTION:
    return str(readings.frames[attribute][clip, 0])
  return str(readings.clips[attribute][clip])


def object_consistency(
  readings: Readings, attributes: Sequence[str] = ("colour", "shape")
) -> Float[np.ndarray, "B"]:
  """Share of the frames after the first whose attributes are the first frame's.

  A frame without a valid object agrees with nothing; a clip of one frame scores NaN. A still clip
  scores 1: read it beside the motion score.
  """
  if readings.valid.shape[1] < 2:
    return np.full(len(readings.valid), np.nan)
  agree = readings.valid[:, 1:] & readings.valid[:, :1]
  for attribute in attributes:
    words = readings.frames[attribute]
    agree = agree & (words[:, 1:] == words[:, :1])
  return agree.mean(axis=1)


def pixel_consistency(residual: Float[np.ndarray, "pairs rows cols"]) -> float:
  """1 minus the mean error, in units of white, of predicting each frame from the one before.

  `residual` is the second part of `block_motion`: the prediction moves blocks to where they match
  best, so motion by whole pixels costs nothing and flicker, new colours and popping do. NaN for a
  clip of one frame.

  Source: ours: the residual of a block-matching video coder.
  """
  return 1 - float(residual.mean()) / 255 if residual.size else math.nan


def motion_score(vectors: Int[np.ndarray, "pairs rows cols 2"]) -> float:
  """Mean squared block-matching vector, pixels squared a frame; 0 for a clip of one frame.

  `vectors` is the first part of `block_motion`. The score grows with the picture's side and falls
  with the frame rate: compare clips of one size and rate only, and never with the motion scores of
  papers, which read H.264's vectors.

  Source: ours, after the mean motion-vector energy of Emu Video (arXiv:2311.10709, appendix).
  """
  return float(np.square(vectors, dtype=float).sum(axis=-1).mean()) if vectors.size else 0.0


def h264_motion_score(clip: Clip, fps: float | int) -> float:
  """Mean energy of H.264 motion vectors, pixels squared a frame; 0 for one frame.

  The clip is encoded in memory by libx264 (crf 18, each frame told from the one before it) and its
  vectors are read back and weighted by the area that they move; blocks without a vector count as
  still. The value depends on the encoder's version and settings, on the size and on the rate.

  Source: Emu Video (arXiv:2311.10709, appendix): mean energy of a clip's motion vectors.
  Differs: the paper's encoder settings are not published; these are ours.
  """
  if len(clip) < 2:
    return 0.0
  energies = [_frame_energy(frame) for frame in _decoded_with_vectors(_h264(clip, fps))]
  return float(np.mean(energies[1:]))


def _h264(clip: np.ndarray, fps: float | int) -> io.BytesIO:
  H, W = clip.shape[1:3]
  clip = np.pad(clip, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")
  buffer = io.BytesIO()
  # One keyframe, at the start, and no scene cuts: every later frame is told by its motion, and from
  # the frame before it, since a vector to an older one would count as more. No macroblock tree: on
  # frames of few macroblocks x264 reads memory there that nobody wrote, and one call in thirty
  # found other vectors for the same clip.
  options = {"crf": "18", "bf": "0", "refs": "1", "mbtree": "0"}
  options |= {"g": str(len(clip) + 1), "sc_threshold": "0"}
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=max(1, round(fps)), options=options)
    stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
    stream.thread_count = 1  # clips are small; threads cost more than they save
    for frame in clip:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  buffer.seek(0)
  return buffer


def _decoded_with_vectors(buffer: io.BytesIO) -> list[av.VideoFrame]:
  with av.open(buffer) as container:
    stream = container.streams.video[0]
    stream.codec_context.options = {"flags2": "+export_mvs"}  # before the first decode, or nothing
    return list(container.decode(stream))


def _frame_energy(frame: av.VideoFrame) -> float:
  side_data = frame.side_data.get("MOTION_VECTORS")
  if side_data is None:
    return 0.0
  v = side_data.to_ndarray()
  dx, dy = v["motion_x"] / v["motion_scale"], v["motion_y"] / v["motion_scale"]
  area = v["w"].astype(float) * v["h"]
  return float(np.sum((dx**2 + dy**2) * area) / (frame.width * frame.height))


def psnr(clip: UInt8[np.ndarray, "..."], reference: UInt8[np.ndarray, "..."]) -> float:
  """Peak signal-to-noise ratio in dB over all pixels; infinite where the two are equal."""
  if clip.shape != reference.shape:
    raise ValueError(
      f"psnr: shapes {clip.shape} and {reference.shape} differ; compare like with like"
    )
  error = np.mean(np.square(clip.astype(np.float64) - reference.astype(np.float64)))
  return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(clip: UInt8[np.ndarray, "..."], reference: UInt8[np.ndarray, "..."]) -> float:
  """Structural similarity: the mean of its map over positions, channels and frames; 1 if equal.

  Local statistics are those of a Gaussian window of 11 x 11 pixels and sigma 1.5 that lies wholly
  in the picture: nothing is padded.

  Args:
    clip: H W C, with any axes before them.
  Source: Wang et al. 2004, "Image quality assessment", eqs. 13 to 16, with K1 = 0.01, K2 = 0.03.
  Differs: of each colour channel by itself, then their mean; the paper has grey pictures only.
  Raises: ValueError where shapes differ or a side is shorter than the window.
  """
  if clip.shape != reference.shape:
    raise ValueError(
      f"ssim: shapes {clip.shape} and {reference.shape} differ; compare like with like"
    )
  if min(clip.shape[-3:-1]) < SSIM_WINDOW:
    raise ValueError(
      f"ssim: frames of {clip.shape[-3]} x {clip.shape[-2]} are smaller than the window "
      f"of {SSIM_WINDOW} pixels"
    )
  frames = zip(_frames(clip), _frames(reference), strict=True)  # one at a time: maps are float64
  return float(np.mean([_ssim_map(x, y).mean() for x, y in frames]))


def _frames(clip: np.ndarray) -> np.ndarray:
  return clip.reshape(-1, *clip.shape[-3:])


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  x, y = x.astype(np.float64), y.astype(np.float64)
  mean_x, mean_y = _windowed(x), _windowed(y)
  var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
  covariance = _windowed(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def _windowed(x: np.ndarray) -> np.ndarray:
  """Gaussian means of [H W C] where the window fits."""
  edge = SSIM_WINDOW // 2
  blurred = ndimage.gaussian_filter(x, 1.5, radius=edge, axes=(0, 1))
  return blurred[edge:-edge, edge:-edge]
