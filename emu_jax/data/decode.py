"""One file of video or one picture -> uint8 frames, through PyAV and Pillow.

Times are seconds after a file's first frame. A frame belongs to the time of its own timestamp, so
files of variable frame rate are read by time and never by counting. Frames are `T H W C`, uint8,
RGB, upright, with square pixels; sizes are (height, width). Nothing here imports JAX: packing
processes start in a fraction of a second.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float, UInt8
from PIL.Image import Resampling

from emu_jax.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Size = tuple[int, int]  # height and width, pixels
EXIF_ORIENTATION = 0x0112
Matrix = tuple[int, int, int, int]  # a turn or mirroring of what is stored
SAME_RATE = 1.002  # ours: rates this close count as equal, so that 23.976 passes for 24


@dataclasses.dataclass(frozen=True)
class Timeline:
  """When the frames of a file are shown, read from its packets without decoding any."""

  num_frames: int
  fps: float  # frames/s, the mean where the rate varies; 0 for a picture
  span: float  # s, from the first frame to the last
  origin: float  # s, the first frame on the file's own clock


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


def is_picture(path: str | pathlib.Path) -> bool:
  """Whether a file's name is one of a still picture."""
  return pathlib.Path(path).suffix.lower() in PICTURE_SUFFIXES


def timeline(path: str | pathlib.Path) -> Timeline:
  """Reads every packet of a file, none decoded: exact where headers are wrong or absent.

  Raises:
    InputError: no such file, not a video, no frame, or cut short of what its header declares.
  """
  with _opened(path) as (container, stream):
    times, rate, corrupt, last = [], stream.average_rate or stream.guessed_rate, False, 0.0
    declared = _declared_seconds(container, stream)
    for packet in container.demux(stream):
      # The flushing packet at the end; and what an edit list hides, as that of a clip which was cut
      # without encoding it again: the decoder needs it and never gives it out.
      if not packet.size or packet.is_discard:
        continue
      corrupt |= packet.is_corrupt
      stamp = packet.dts if packet.pts is None else packet.pts  # AVI holds decoding times alone
      if stamp is None:
        raise InputError(
          f"decode: {path} holds frames without timestamps; remux it into MP4 with ffmpeg"
        )
      times.append(float(stamp * packet.time_base))
      last = max(last, float((stamp + (packet.duration or 0)) * packet.time_base))
  if not times:
    raise InputError(f"decode: {path} holds 0 frames; remove it or its line of metadata")
  span = max(times) - min(times)
  end = max(span, last - min(times))
  fps = _mean_rate(len(times), span, rate)
  # ours: headers count the last frame's time differently; less than a few frames short is no cut.
  if corrupt or end < declared - max(0.25, 2.5 / fps, 0.02 * declared):
    raise InputError(
      f"decode: {path} is truncated: its header declares {declared:g} s, its frames end at "
      f"{end:g} s ({len(times)} frames); copy it again or remove it"
    )
  return Timeline(len(times), fps, span, min(times))


def frames_at(
  path: str | pathlib.Path,
  times: Sequence[float] | Float[np.ndarray, "T"],
  size: Size,
  line: Timeline,
  *,
  resampling: Resampling = Resampling.BICUBIC,
  threads: int = 0,
) -> UInt8[np.ndarray, "T H W 3"]:
  """Frames nearest to ascending times (the earlier one on a tie), cropped and resized.

  Args: as of `each_frame`.
  """
  out = np.empty((len(times), *size, 3), np.uint8)
  frames = each_frame(path, times, size, line, resampling=resampling, threads=threads)
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
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
  """The frame of each time, one after another, in one pass over the file.

  Starts at the keyframe before the first time and stops after the last; two decoded frames are held
  in memory.

  Args:
    size: height and width; the largest central part of that shape is resized to it.
    line: what `timeline(path)` returned.
    resampling: to resize, after a box reduction.
    threads: of the decoder; 0 lets FFmpeg choose.
  """
  done, before = 0, None  # times answered; the frame before, with its time
  slack = 0.75 / line.fps if line.fps else 0.0  # past the last frame: half a frame, and rounding
  with contextlib.closing(_decoded(path, times[0] + line.origin, threads)) as frames:
    for frame, aspect in frames:
      now = frame.time - line.origin
      while done < len(times) and now >= times[done]:
        earlier = before is not None and times[done] - before[0] <= now - times[done] + 1e-6
        yield _fitted(before[1] if earlier else frame, aspect, *size, resampling)
        done += 1
      if done == len(times):
        return
      before = (now, frame)
    if before is None or times[-1] > before[0] + slack:
      got = "nothing" if before is None else f"no frame after {before[0]:g} s"
      raise InputError(
        f"decode: {path} decodes to {got}, {times[-1]:g} s was asked for; "
        "it is damaged: copy it again or remove it"
      )
    last = _fitted(before[1], aspect, *size, resampling)
    for _ in times[done:]:
      yield last


def shown_size(path: str | pathlib.Path) -> Size:
  """Height and width of a video or picture as it is displayed: upright, with square pixels."""
  if is_picture(path):
    with _picture(path) as image:
      turned = image.getexif().get(EXIF_ORIENTATION, 1) > 4
      return image.size if turned else image.size[::-1]
  with contextlib.closing(_decoded(path, 0.0, 1)) as frames:
    for frame, aspect in frames:
      size = (frame.height, round(frame.width * aspect))
      return size[::-1] if _lies(_matrix(frame)) else size
  raise InputError(f"decode: {path} decodes to nothing; it is damaged: copy it again or remove it")


def picture(path: str | pathlib.Path, size: Size) -> UInt8[np.ndarray, "1 H W 3"]:
  """A picture as a clip of one frame: upright, its middle cut to shape, resized."""
  with _picture(path) as opened:
    image = PIL.ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
      image = image.convert("RGBA")
      white = PIL.Image.new("RGBA", image.size, "white")
      image = PIL.Image.alpha_composite(white, image)
    return resized(image.convert("RGB"), 1.0, *size)[None]


@contextlib.contextmanager
def _picture(path: str | pathlib.Path) -> Iterator[PIL.Image.Image]:
  """A picture, opened; Pillow's errors become one line."""
  _check_file(path)
  try:
    with PIL.Image.open(path) as opened:
      yield opened
  except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Pillow's own kinds
    raise InputError(
      f"decode: {path} is no picture that Pillow can read ({error}); use a PNG or JPEG file"
    ) from error


def _check_file(path: str | pathlib.Path) -> None:
  if not pathlib.Path(path).is_file():
    what = "a folder" if pathlib.Path(path).is_dir() else "missing"
    raise InputError(f"decode: {path} is {what}; name an existing file")


@contextlib.contextmanager
def _opened(path: str | pathlib.Path) -> Iterator[tuple]:
  """The container and its first video stream; FFmpeg's errors become one line."""
  _check_file(path)
  try:
    with av.open(str(path)) as container:
      # FFmpeg draws text files as a terminal's screen ("tty"): nobody's clip.
      if not container.streams.video or container.format.name == "tty":
        raise InputError(f"decode: {path} has no video stream; remove it or its line of metadata")
      yield container, container.streams.video[0]
  except av.FFmpegError as error:
    raise InputError(
      f"decode: {path} cannot be read as video ({error.strerror}): it is truncated, damaged or "
      "no video; copy it again or remove it"
    ) from error


def _declared_seconds(container, stream) -> float:
  """What the header says the video lasts; 0 where it says nothing of the video alone."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  tag = stream.metadata.get("DURATION", "")  # Matroska keeps it as a tag, H:M:S
  if tag.count(":") == 2:
    hours, minutes, seconds = tag.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
  return 0.0


def _mean_rate(num_frames: int, span: float, declared) -> float:
  """Frames a second: the declared rate where the timestamps bear it out, else theirs."""
  declared = float(declared or 0)
  if num_frames == 1 or span == 0:
    return declared or 1.0  # ours: one frame has no rate, and 0 would divide
  # Timestamps are rounded to the container's clock, 1 ms in Matroska: less than half a frame.
  agrees = declared and abs(span * declared - (num_frames - 1)) < 0.5
  return declared if agrees else (num_frames - 1) / span


def _decoded(path: str | pathlib.Path, since: float, threads: int) -> Iterator[tuple]:
  """Frames from the keyframe before `since` (s, the file's clock) on, with the pixel's aspect."""
  with _opened(path) as (container, stream):
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    aspect = float(stream.sample_aspect_ratio or 1)
    sought = since > 0 and _seek(container, stream, since)
    for frame in container.decode(stream):
      if frame.time is None:  # not placeable in time
        continue
      if sought and frame.time > since + 1e-6:  # landed late: some indices do; begin again
        break
      sought = False
      yield frame, aspect
    else:
      return
  yield from _decoded(path, 0.0, threads)


def _seek(container, stream, since: float) -> bool:
  try:
    container.seek(int(since / stream.time_base), stream=stream)
  except av.FFmpegError:  # a container without an index: read it from its start
    container.seek(0)
    return False
  return True


def _fitted(
  frame: av.VideoFrame, aspect: float, height: int, width: int, resampling: Resampling
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Central part of one frame, resized, then turned upright (the two commute)."""
  image = PIL.Image.fromarray(frame.to_ndarray(format="rgb24"))
  matrix = _matrix(frame)
  stored = (width, height) if _lies(matrix) else (height, width)
  return _upright(resized(image, aspect, *stored, resampling), matrix)


def resized(
  image: PIL.Image.Image,
  aspect: float,
  height: int,
  width: int,
  resampling: Resampling = Resampling.BICUBIC,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Box reduction, then an antialiased bicubic, of the largest central part of a shape.

  Args:
    aspect: width of a stored pixel over its height; the shape is that of what is displayed.
    resampling: another filter than the bicubic.
  Source: "box + bicubic resize, centre crop", Emu Video, arXiv:2311.10709, table 3.
  """
  # Of the part, in stored pixels, which need not be square.
  tall = min(image.width * aspect * height / width, image.height)
  wide = min(tall * width / height / aspect, image.width)  # rounding must not leave the picture
  left, top = (image.width - wide) / 2, (image.height - tall) / 2
  box = (left, top, left + wide, top + tall)
  return np.asarray(image.resize((width, height), resampling, box=box, reducing_gap=3.0))


def _matrix(frame: av.VideoFrame) -> Matrix:
  """How a stored frame is to be displayed: x' = a x + c y, y' = b x + d y, as (a, b, c, d)."""
  try:
    stored = frame.side_data.get("DISPLAYMATRIX")
  except ValueError:  # PyAV does not know the kind of what else the frame has, such as EXIF
    return _turn(frame.rotation)
  if stored is None:
    return 1, 0, 0, 1
  a, b, _, c, d, *_ = np.frombuffer(bytes(stored), np.int32).tolist()
  return a, b, c, d


def _turn(degrees: int) -> Matrix:
  """The matrix of a turn by so many degrees against the clock."""
  cosine, sine = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
  return cosine, -sine, sine, cosine


def _lies(matrix: Matrix) -> bool:
  """Whether a frame is stored on its side: a quarter turn displays it."""
  a, b, c, d = matrix
  return abs(a) + abs(d) < abs(b) + abs(c)


def _upright(pixels: UInt8[np.ndarray, "h w 3"], matrix: Matrix) -> UInt8[np.ndarray, "H W 3"]:
  """Applies a display matrix of quarter turns and mirrorings."""
  a, b, c, d = matrix
  if _lies(matrix):
    pixels, a, d = pixels.swapaxes(0, 1), c, b
  return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
