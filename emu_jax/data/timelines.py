"""When the frames of a file are shown, and at which rates a clip can be taken from them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

REPEATS = 0.05  # ours: the share of frames that may repeat, as where a recorder lost one in 20
SAME_RATE = 1.002  # ours: rates this close count as equal, so that 23.976 passes for 24


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
  """When the frames of a file are shown; read once a file, and handed to whatever reads a part."""

  times: Float[np.ndarray, "T"]  # s after the first frame, ascending
  fps: float  # frames/s: the highest constant rate at which frames do not repeat
  origin: float = 0.0  # s, the first frame on the file's own clock
  counted: bool = False  # the decoder's timestamps are out of order; frame i has times[i]

  @property
  def num_frames(self) -> int:
    return len(self.times)

  @property
  def span(self) -> float:
    """Seconds from the first frame to the last."""
    return float(self.times[-1])

  @classmethod
  def of(
    cls, stamps: Sequence[float], declared: Sequence[float] = (), *, counted: bool = False
  ) -> "Timeline":
    """From the frames' timestamps, in any order, and the rates that the file declares, frames/s."""
    stamps = np.sort(np.asarray(stamps, float))
    times = stamps - stamps[0]
    return cls(times, constant_rate(times, declared), float(stamps[0]), counted)


def constant_rate(times: Float[np.ndarray, "T"], declared: Sequence[float] = ()) -> float:
  """The highest rate, frames/s, at which the nearest frames of a uniform grid do not repeat.

  A declared rate, or the mean one, is taken where each frame lies nearest to its own point of the
  grid. Where the rate varies, the highest at which `REPEATS` holds is taken.

  Args:
    times: seconds of the frames, the first at 0, ascending.
    declared: rates to prefer, frames/s; 0 stands for none.
  """
  if len(times) == 1 or times[-1] == 0:
    return next((rate for rate in declared if rate), 1.0)  # ours: one frame has no rate
  mean = (len(times) - 1) / times[-1]
  for rate in (*declared, mean):
    if rate and np.all(np.abs(times - np.arange(len(times)) / rate) < 0.5 / rate):
      return float(rate)
  gaps = np.diff(times)
  gaps = np.unique(np.quantile(gaps[gaps > 0], np.linspace(0, 1, 101)))
  # A rate above the mean one repeats at least its excess: not worth a trial.
  tried = (1 / gap for gap in gaps if mean * gap > 1 - 2 * REPEATS)
  return next((float(rate) for rate in tried if _repeats(times, rate) <= REPEATS), 1 / gaps[-1])


def _repeats(times: Float[np.ndarray, "T"], rate: float) -> float:
  """The share of a grid's points whose nearest frame is that of the point before."""
  grid = np.arange(math.floor(times[-1] * rate + 0.5 + 1e-6) + 1) / rate
  middles = (times[1:] + times[:-1]) / 2
  nearest = np.searchsorted(middles, grid - 1e-6)
  return 1 - len(np.unique(nearest)) / len(grid)


def sample_times(
  span: float,
  num_frames: int,
  fps: float,
  start: float | np.random.Generator = 0.0,
  *,
  slop: float = 0.0,
) -> Float[np.ndarray, "T"]:
  """Times of the frames of one clip: start + i / fps.

  Source: Emu Video's "uniform clip and frame sampler", arXiv:2311.10709, table 3.

  Args:
    span: seconds from the first frame to the last of what is sampled from.
    start: seconds; a generator draws it uniformly over every start that fits.
    slop: seconds that the last frame may lie past the end: half a frame for a reader by nearest
      time.
  """
  room = span - (num_frames - 1) / fps
  if isinstance(start, np.random.Generator):
    offset = start.uniform(0.0, max(room, 0.0))
  else:
    offset = start
  if offset < 0 or offset > room + slop + 1e-6:
    raise ValueError(
      f"sample_times: {num_frames} frames at {fps:g} fps from {offset:g} s take "
      f"{offset + (num_frames - 1) / fps:g} s, there are {span:g} s; "
      "ask for fewer frames, a higher rate or an earlier start"
    )
  return offset + np.arange(num_frames) / fps


def fitting_frames(line: Timeline, fps: float, start: float = 0.0) -> int:
  """How many frames at `fps` a file gives from `start` on, none past half of its last one."""
  return max(0, math.floor((line.span + 0.5 / line.fps - start) * fps) + 1)
