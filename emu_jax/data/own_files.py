"""A user's own picture or clip as the frames that a model is given, without packing."""

import pathlib

import numpy as np
from jaxtyping import UInt8

from emu_jax.data import decode
from emu_jax.data.batches import ClipSpec
from emu_jax.errors import InputError


def load_picture(
  path: str | pathlib.Path, height: int, width: int | None = None
) -> UInt8[np.ndarray, "1 {height} W 3"]:
  """The user's own picture as a clip of one frame: upright, square or of a width, resized."""
  return decode.picture(path, height, width)


def load_clip(
  path: str | pathlib.Path, spec: ClipSpec, size: int, *, start: float = 0.0
) -> UInt8[np.ndarray, "T {size} {size} 3"]:
  """A clip of the user's own file, its first frame at `start` seconds.

  Raises:
    InputError: the file cannot be read, or is shorter or of a lower rate than asked.
  """
  if decode.is_picture(path):
    if spec.num_frames > 1:
      raise InputError(
        f"load_clip: {path} is a picture of 1 frame, {spec.num_frames} are needed; name a video"
      )
    return decode.picture(path, size)
  line = decode.timeline(path)
  if spec.num_frames > 1 and spec.fps > line.fps * decode.SAME_RATE:
    raise InputError(
      f"load_clip: {path} has {line.fps:g} fps, {spec.fps:g} are needed and frames would repeat; "
      "ask for a lower rate"
    )
  rate = min(spec.fps, line.fps)
  have = decode.fitting_frames(line, rate, start)
  if have < spec.num_frames:
    raise InputError(
      f"load_clip: {path} lasts {line.span + 1 / line.fps:.4g} s and gives {have} frames "
      f"at {spec.fps:g} fps from {start:g} s, {spec.num_frames} are needed; use a longer clip or "
      "ask for fewer frames"
    )
  times = decode.sample_times(line.span, spec.num_frames, rate, start, slop=0.5 / line.fps)
  return decode.frames_at(path, times, size, line)
