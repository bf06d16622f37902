"""One file of video, animation or picture -> uint8 frames, through PyAV and Pillow.

Times are seconds after a file's first frame. A frame belongs to the time of its own timestamp, so
files of variable frame rate are read by time and never by counting. Frames are `T H W C`, uint8,
RGB, upright, with square pixels, and opaque: transparent pixels show `background`. Sizes are
(height, width). Nothing here imports JAX: packing processes start in a fraction of a second.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8
from PIL.Image import Resampling

from emu_jax.data import ffmpeg_files, pillow_files
from emu_jax.data.display import UPRIGHT, Matrix, Size, fitted, lies, resized
from emu_jax.data.pillow_files import BACKGROUND, Colour
from emu_jax.data.timelines import SAME_RATE, Timeline, fitting_frames, sample_times
from emu_jax.errors import InputError

__all__ = [
  "BACKGROUND", "PICTURE_SUFFIXES", "SAME_RATE", "Colour", "Size", "Timeline", "each_frame",
  "fitting_frames", "frames_at", "is_picture", "picture", "resized", "sample_times", "shown_size",
  "timeline",
]  # fmt: skip

PICTURE_SUFFIXES = pillow_files.SUFFIXES
# A frame's time, and what makes its pixels: those that are not taken are never converted.
Timed = tuple[float, Callable[[], PIL.Image.Image], float, Matrix]


def is_picture(path: str | pathlib.Path) -> bool:
  """Whether a file is a still picture: by its name, and without further frames to be shown."""
  return pillow_files.is_pillow_file(path) and not pillow_files.is_animated(path)


def timeline(path: str | pathlib.Path) -> Timeline:
  """When a file's frames are shown: what `each_frame` will find, whatever headers say.

  Read it once a file and hand it on: it costs a pass over the file.

  Raises:
    InputError: no such file, not a video, no frame, or cut short of what its header declares.
  """
  _check_file(path)
  return (pillow_files if pillow_files.is_pillow_file(path) else ffmpeg_files).timeline(path)


def frames_at(
  path: str | pathlib.Path,
  times: Sequence[float] | Float[np.ndarray, "T"],
  size: Size,
  line: Timeline,
  *,
  resampling: Resampling = Resampling.BICUBIC,
  threads: int = 0,
  background: Colour = BACKGROUND,
) -> UInt8[np.ndarray, "T H W 3"]:
  """Frames nearest to ascending times (the earlier one on a tie), cropped and resized.

  Args: as of `each_frame`.
  """
  out = np.empty((len(times), *size, 3), np.uint8)
  frames = each_frame(
    path, times, size, line, resampling=resampling, threads=threads, background=background
  )
  with contextlib.closing(frames):
    for i, frame in enumerate(frames):
      out[i] = frame
  return out


def each_frame(
  path: str | pathlib.Path,
  times: Sequence[float] | Float[np.ndarray, "T"],
  size: Size,
  line: Timeline,
  *,
  resampling: Resampling = Resampling.BICUBIC,
  threads: int = 0,
  background: Colour = BACKGROUND,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
  """The frame of each time, one after another, in one pass over the file.

  Starts at the keyframe before the first time and stops after the last; two decoded frames are held
  in memory.

  Args:
    size: height and width; the largest central part of that shape is resized to it.
    line: what `timeline(path)` returned.
    resampling: to resize, after a box reduction.
    threads: of the decoder; 0 lets FFmpeg choose.
    background: what lies behind transparent pixels.
  """
  _check_file(path)
  done, before = 0, None  # times answered; the frame before
  slack = 0.75 / line.fps  # past the last frame: half a frame, and rounding
  with contextlib.closing(_timed(path, line, times[0], threads, background)) as frames:
    for frame in frames:
      while done < len(times) and frame[0] >= times[done]:
        earlier = before is not None and times[done] - before[0] <= frame[0] - times[done] + 1e-6
        yield _pixels(before if earlier else frame, size, resampling)
        done += 1
      if done == len(times):
        return
      before = frame
    if before is None or times[-1] > before[0] + slack:
      got = "nothing" if before is None else f"no frame after {before[0]:g} s"
      raise InputError(
        f"decode: {path} decodes to {got}, {times[-1]:g} s was asked for; "
        "it is damaged: copy it again or remove it"
      )
    last = _pixels(before, size, resampling)
    for _ in times[done:]:
      yield last


def shown_size(path: str | pathlib.Path) -> Size:
  """Height and width of a video or picture as it is displayed: upright, with square pixels."""
  _check_file(path)
  if pillow_files.is_pillow_file(path):
    return pillow_files.shown_size(path)
  with contextlib.closing(ffmpeg_files.frames(path, Timeline.of([0.0]), 0.0, 1)) as frames:
    for frame in frames:
      size = (frame.stored.height, round(frame.stored.width * frame.aspect))
      return size[::-1] if lies(frame.matrix) else size
  raise InputError(f"decode: {path} decodes to nothing; it is damaged: copy it again or remove it")


def picture(
  path: str | pathlib.Path, size: Size, *, background: Colour = BACKGROUND
) -> UInt8[np.ndarray, "1 H W 3"]:
  """A picture as a clip of one frame: upright, its middle cut to shape, resized."""
  _check_file(path)
  with contextlib.closing(pillow_files.images(path, background)) as images:
    return resized(next(images), 1.0, *size)[None]


def _timed(
  path: str | pathlib.Path, line: Timeline, since: float, threads: int, background: Colour
) -> Iterator[Timed]:
  """The frames of a file from the keyframe before a time on."""
  if pillow_files.is_pillow_file(path):
    with contextlib.closing(pillow_files.images(path, background)) as images:
      for time, image in zip(line.times.tolist(), images, strict=False):
        yield time, lambda image=image: image, 1.0, UPRIGHT
    return
  with contextlib.closing(ffmpeg_files.frames(path, line, since, threads)) as frames:
    for frame in frames:
      pixels = lambda stored=frame.stored: ffmpeg_files.rgb(stored, background)
      yield frame.time, pixels, frame.aspect, frame.matrix


def _pixels(frame: Timed, size: Size, resampling: Resampling) -> UInt8[np.ndarray, "H W 3"]:
  _, image, aspect, matrix = frame
  return fitted(image(), aspect, matrix, size, resampling)


def _check_file(path: str | pathlib.Path) -> None:
  if not pathlib.Path(path).is_file():
    what = "a folder" if pathlib.Path(path).is_dir() else "missing"
    raise InputError(f"decode: {path} is {what}; name an existing file")
