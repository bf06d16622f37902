"""A user's own picture or clip as the frames that a model is given, without packing."""

import pathlib

import numpy as np
from jaxtyping import UInt8

from emu_jax.data import decode
from emu_jax.data.inputs import ClipSpec
from emu_jax.errors import InputError


def load_picture(path: str | pathlib.Path, size: tuple[int, int]) -> UInt8[np.ndarray, "1 H W 3"]:
  """The user's own picture as a clip of one frame: upright, cut to (height, width), resized."""
  return decode.picture(path, size)


def load_clip(
  path: str | pathlib.Path, spec: ClipSpec, size: tuple[int, int], *, start: float = 0.0
) -> UInt8[np.ndarray, "T H W 3"]:
  """A clip of the user's own file, its first frame at `start` seconds, cut to (height, width).

  Of several rates of `spec` the first is taken.

  Raises:
    InputError: the file cannot be read, or is shorter or of a lower rate than asked.
  """
  if decode.is_picture(path):
    if spec.num_frames > 1:
      raise InputError(
        f"load_clip: {path} is a picture of 1 frame, {spec.num_frames} are needed; name a video"
      )
    return decode.picture(path, size)
  line, fps = decode.timeline(path), spec.rates[0]
  if spec.num_frames > 1 and fps > line.fps * decode.SAME_RATE:
    raise InputError(
      f"load_clip: {path} has {line.fps:g} fps, {fps:g} are needed and frames would repeat; "
      "ask for a lower rate"
    )
  rate = min(fps, line.fps)
  have = decode.fitting_frames(line, rate, start)
  if have < spec.num_frames:
    raise InputError(
      f"load_clip: {path} lasts {line.span + 1 / line.fps:.4g} s and gives {have} frames "
      f"at {fps:g} fps from {start:g} s, {spec.num_frames} are needed; use a longer clip or "
      "ask for fewer frames"
    )
  times = decode.sample_times(line.span, spec.num_frames, rate, start, slop=0.5 / line.fps)
  return decode.frames_at(path, times, size, line)
