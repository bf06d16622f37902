"""How much moves in a clip, by block matching in whole pixels."""

import math

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8

Clip = UInt8[np.ndarray, "T H W 3"]

MOTION = "motion"  # the number of a record that says it
BLOCK = 8  # side of a motion block, pixels
REACH = 7  # longest motion that is searched along each axis, pixels a frame
# ours: grey levels that a vector must win, for being one and for each pixel of its length. On flat
# ground with noise every vector matches about as well as none, and the score would measure noise.
PRICE, PRICE_OF_PIXEL = 1.5, 0.5

# ours: what bounds the work for a record, whatever its size and length, and the motion that is
# found: 7 pixels of 64 in an eighth of a second are 87 % of the shorter side a second.
SIDE = 64  # pixels, of the shorter side of the pictures that are compared
PAIRS_PER_SECOND = 8
PAIRS = 16  # of a record, evenly spread


def motion_percent(clip: Clip, fps: float) -> float:
  """Mean displacement over a clip's blocks, in percent of the shorter side a second.

  Of at most 16 pairs of frames an eighth of a second apart, or as near as the rate allows, reduced
  to 64 pixels of the shorter side; 0 for a picture and for frames narrower than a block.

  Source: ours, after the motion-vector scores that data sets are chosen by (Emu Video,
    arXiv:2311.10709, sec. 3.3) and that condition SVD (arXiv:2311.15127, "motion bucket").
  """
  step = max(1, round(fps / PAIRS_PER_SECOND))
  last = len(clip) - 1 - step  # first frame of the last pair
  if not fps or len(clip) < 2:
    return 0.0
  step, last = (step, last) if last >= 0 else (len(clip) - 1, 0)
  firsts = np.unique(np.linspace(0, last, min(PAIRS, last + 1)).round().astype(int))
  lengths, side = [], SIDE
  for first in firsts:
    pair = np.stack([_reduced(clip[first]), _reduced(clip[first + step])])
    side = min(pair.shape[1:3])
    if side < BLOCK:
      return 0.0
    lengths.append(np.linalg.norm(block_motion(pair)[0], axis=-1).mean())
  return float(100 * np.mean(lengths) / side * fps / step)


def _reduced(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
  height, width, _ = frame.shape
  side = min(height, width)
  if side <= SIDE:
    return frame
  size = (round(width * SIDE / side), round(height * SIDE / side))
  return np.asarray(PIL.Image.fromarray(frame).resize(size, PIL.Image.Resampling.BOX))


def block_motion(
  clip: Clip,
) -> tuple[Int[np.ndarray, "pairs rows cols 2"], Float[np.ndarray, "pairs rows cols"]]:
  """Motion (x, y) of every 8 x 8 block since the frame before, and the error that is left.

  Full search within 7 pixels for the smallest mean absolute difference over pixels and channels,
  plus the vector's price; the shortest vector wins a tie. The part of the picture that fills
  no block is left out; what comes from outside the picture is its edge.
  """
  T, H, W, _ = clip.shape
  rows, cols = H // BLOCK, W // BLOCK
  if not rows or not cols:
    raise ValueError(
      f"block_motion: frames of {H} x {W} are smaller than a block of {BLOCK} pixels"
    )
  now = clip[1:, : rows * BLOCK, : cols * BLOCK]
  before = np.pad(clip[:-1], ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)), mode="edge")
  best = np.full((T - 1, rows, cols), np.inf, np.float32)
  residual, vectors = best.copy(), np.zeros((*best.shape, 2), int)
  steps = range(-REACH, REACH + 1)
  for dx, dy in sorted(((x, y) for x in steps for y in steps), key=lambda v: v[0] ** 2 + v[1] ** 2):
    # A block that moved by (dx, dy) is found at minus that in the frame before.
    top, left = REACH - dy, REACH - dx
    moved = before[:, top : top + rows * BLOCK, left : left + cols * BLOCK]
    # In whole numbers, and the long axis summed last: bit for bit the mean in float32, in less
    # than half its time.
    apart = np.maximum(now, moved) - np.minimum(now, moved)
    lines = apart.reshape(T - 1, rows, BLOCK, cols * BLOCK * 3).sum(axis=2, dtype=np.uint16)
    sums = lines.reshape(T - 1, rows, cols, BLOCK * 3).sum(axis=3, dtype=np.uint32)
    error = sums.astype(np.float32) / np.float32(BLOCK * BLOCK * 3)
    cost = error + (PRICE + PRICE_OF_PIXEL * math.hypot(dx, dy) if dx or dy else 0)
    better = cost < best
    best = np.where(better, cost, best)
    residual = np.where(better, error, residual)
    vectors[better] = dx, dy
  return vectors, residual
