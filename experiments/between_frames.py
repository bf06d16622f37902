"""Frames between and around key frames: the plain ways to make them, and how wrong frames are."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from emu_jax.conditioning import KnownFrames, every_fourth
from emu_jax.data import shapes
from emu_jax.evaluation.metrics import Clips

KNOWN: KnownFrames = every_fourth()
FIRST, LAST = KNOWN.positions[0], KNOWN.positions[-1]
BETWEEN = tuple(i for i in range(FIRST, LAST) if i not in KNOWN.positions)
OUTSIDE = (*range(FIRST), *range(LAST + 1, KNOWN.num_frames))


def repeated(keys: Clips) -> Clips:
  """Each frame is the nearest key; half way it is the earlier one."""
  at = np.arange(KNOWN.num_frames)[:, None] - np.array(KNOWN.positions)
  return keys[:, np.abs(at).argmin(axis=1)]


def blended(keys: Clips) -> Clips:
  """Between keys a straight line, pixel by pixel; beyond the ends the end key."""
  place = np.interp(np.arange(KNOWN.num_frames), KNOWN.positions, range(keys.shape[1]))
  low = np.minimum(np.floor(place).astype(int), keys.shape[1] - 2)
  weight = (place - low)[:, None, None, None]
  mixed = (1 - weight) * keys[:, low].astype(float) + weight * keys[:, low + 1]
  return np.round(mixed).astype(np.uint8)


def corrupted(keys: Clips, levels: float, seed: int) -> Clips:
  """Keys with normal noise of so many grey levels."""
  noise = np.random.default_rng(seed).normal(0, levels, keys.shape)
  return np.clip(np.round(keys + noise), 0, 255).astype(np.uint8)


def shares(clip: Float[np.ndarray, "T H W 3"], scene: shapes.Scene) -> Float[np.ndarray, "T H W"]:
  """How much of each pixel is the scene's plain shape, 0 to 1, by its two colours."""
  ground = np.array(shapes.BACKGROUNDS[scene.background], float)
  towards = np.array(shapes.COLOURS[scene.colour], float) - ground
  return np.clip(((clip - ground) @ towards) / (towards @ towards), 0, 1)


def centroids(share: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T 2"]:
  """x and y in pixels of where the shape's share lies; NaN where there is none of it.

  Shares up to a fifth are noise, and do not count.
  """
  mass = np.where(share > 0.2, share, 0.0)
  total = mass.sum(axis=(1, 2))
  x, y = np.arange(share.shape[2]), np.arange(share.shape[1])
  with np.errstate(invalid="ignore", divide="ignore"):
    places = np.stack([mass.sum(axis=1) @ x, mass.sum(axis=2) @ y], axis=1) / total[:, None]
  return places


def colour_steps(clip: Float[np.ndarray, "T H W 3"], scene: shapes.Scene) -> tuple[float, float]:
  """How far the shape's mean colour moves from a frame to the next, in grey levels (RGB distance).

  A pixel is the shape's by three quarters of its share at least.

  Returns: the mean over steps that begin or end at a key, and the mean over all others.
  """
  inside = shares(clip, scene) > 0.75
  with np.errstate(invalid="ignore", divide="ignore"):
    colours = (clip * inside[..., None]).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))[:, None]
  steps = np.linalg.norm(np.diff(colours, axis=0), axis=1)
  keys = np.isin(np.arange(len(clip)), KNOWN.positions)
  at_key = keys[1:] | keys[:-1]
  return float(np.nanmean(steps[at_key])), float(np.nanmean(steps[~at_key]))


def off_path(
  places: Float[np.ndarray, "T 2"], keys: Float[np.ndarray, "8 2"]
) -> Float[np.ndarray, " T"]:
  """How far each frame's place is from an even motion along the keys' places, in pixels.

  The motion is the line through space and time with the least squares to the keys that are seen;
  NaN where a place is not, and everywhere if fewer than two keys are. Ours: the scenes move evenly,
  and clips that a model drew have no true frames to compare with.
  """
  seen = np.isfinite(keys).all(axis=1)
  if seen.sum() < 2:
    return np.full(len(places), np.nan)
  line = np.polyfit(np.array(KNOWN.positions)[seen], keys[seen], 1)
  return np.linalg.norm(places - (np.arange(len(places))[:, None] * line[0] + line[1]), axis=1)


def rms(off: Float[np.ndarray, " T"], where: Sequence[int], side: int) -> float:
  """Root mean square over some frames of distances in pixels; half a side where there is none."""
  chosen = np.where(np.isfinite(off), off, side / 2)[list(where)]
  return float(np.sqrt(np.square(chosen).mean()))


def ghost(share: Float[np.ndarray, "T H W"]) -> float:
  """How much of the shape is half there: 0 for full or absent pixels, 1 for half ones.

  A blend of two places shows the shape twice, faintly: a pixel's share s counts as 4 s (1 - s),
  relative to all that is seen of the shape. Its edges score too: compare with real clips.
  """
  total = share.sum()
  return float((4 * share * (1 - share)).sum() / total) if total else float("nan")


def long_scene(seed: int) -> shapes.Scene:
  """A slow scene whose path stays on the canvas for two clips of 40 frames, one after the other."""
  rng = np.random.default_rng(seed)
  pick = lambda words: list(words)[rng.integers(len(words))]
  direction = pick(shapes.DIRECTIONS)
  size = "small"
  near = shapes.SIZES[size] / 2 + shapes.MARGIN
  travel = 2 * shapes.NUM_FRAMES / shapes.FPS * shapes.SPEEDS["slowly"]
  start = []
  for step in shapes.DIRECTIONS[direction]:
    low, high = near - min(step * travel, 0.0), 1 - near - max(step * travel, 0.0)
    start.append(float(rng.uniform(low, high)))
  return shapes.Scene(
    pick(shapes.VIDEO_COLOURS), pick(shapes.VIDEO_SHAPES), size, "plain", pick(shapes.BACKGROUNDS),
    direction, "slowly", tuple(start),
  )  # fmt: skip


def long_clip(scene: shapes.Scene, size: int) -> Clips:
  """80 frames at 16 a second of a `long_scene`."""
  seconds = shapes.NUM_FRAMES / shapes.FPS
  step = np.array(shapes.DIRECTIONS[scene.direction]) * shapes.SPEEDS[scene.speed] * seconds
  later = dataclasses.replace(scene, start=tuple((np.array(scene.start) + step).tolist()))
  return np.concatenate([shapes.draw(scene, size), shapes.draw(later, size)])


def spike(share: Float[np.ndarray, "T H W"]) -> float:
  """The largest step of the shape's centroid over its median step; 1 for an even motion."""
  steps = np.linalg.norm(np.diff(centroids(share), axis=0), axis=1)
  middle = np.nanmedian(steps)
  return float(np.nanmax(steps) / middle) if middle > 0 else float("nan")
