"""The files of one line of metadata -> its records, one at a time, in one pass over each file."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emu_jax.data import codecs, decode, records
from emu_jax.data.decode import Size, Timeline
from emu_jax.data.metadata import Layout, Row
from emu_jax.data.motion import MOTION, motion_percent
from emu_jax.errors import InputError

LEAST_SIDE = 8  # pixels


@dataclasses.dataclass(frozen=True)
class Options:
  """How clips are stored; part of what makes two runs of a packer the same."""

  size: Size  # height and width of the stored frames; with buckets, one of them
  fps: float = 0.0  # frames/s to store at most; 0 keeps each file's own
  max_seconds: float = (
    10.0  # ours: longer clips become records read apart, so that reading stays cheap
  )
  validation_fraction: float = 0.05
  buckets: tuple[Size, ...] = ()  # each file is stored at the one whose aspect is nearest
  codec: str = codecs.DEFAULT
  lossless: tuple[str, ...] = ("mask", "depth")  # arrays stored without loss, whatever the codec
  motion: bool = False  # whether the number "motion" is measured

  def __post_init__(self):
    for size in (self.size, *self.buckets):
      if min(size) < LEAST_SIDE:
        raise InputError(
          f"prepare: size={min(size)} of {size[0]}x{size[1]} is below {LEAST_SIDE}; raise it"
        )
    for name, least in (("fps", 0), ("max_seconds", 0.1)):
      if getattr(self, name) < least:
        raise InputError(f"prepare: {name}={getattr(self, name)} is below {least}; raise it")
    if not 0 <= self.validation_fraction < 1:
      raise InputError(
        f"prepare: validation_fraction={self.validation_fraction} is not in [0, 1); try 0.05"
      )
    if self.buckets and self.size not in self.buckets:
      listed = " ".join(f"{height}x{width}" for height, width in self.buckets)
      raise InputError(
        f"prepare: size {self.size[0]}x{self.size[1]} is none of the buckets {listed}; name it "
        "among them, or one of them as the size"
      )
    codecs.check(self.codec)


@dataclasses.dataclass(frozen=True)
class Opened:
  """The files of a line of metadata, and how their frames become records."""

  paths: Mapping[str, pathlib.Path]  # by array
  lines: Mapping[str, Timeline]  # none for pictures
  size: Size
  fps: float  # frames/s stored
  bounds: tuple[int, ...]  # number of the first frame of each record, and of all frames at the end

  @property
  def num_parts(self) -> int:
    return len(self.bounds) - 1

  def times(self, part: int) -> np.ndarray:
    """Seconds of the frames from a part's first one to the last of all."""
    return np.arange(self.bounds[part], self.bounds[-1]) / self.fps


def clip_records(
  folder: pathlib.Path, row: Row, options: Options, layout: Layout
) -> Iterator[dict | str]:
  """The records of a line, or for each the reason why it cannot be made; raises no error.

  A file is demuxed once and decoded once, however many records it gives.
  """
  try:
    opened = open_files(folder, row, options, layout)
  except Exception as error:  # whatever a file can raise, the others are packed
    yield reason(error)
    return
  with contextlib.ExitStack() as stack:
    streams = None
    for part in range(opened.num_parts):
      try:
        streams = streams or _streams(opened, part, stack)
        made = _record(row, part, opened, streams, options, layout)
      except Exception as error:
        made, streams = reason(error), None  # the next part begins anew
      yield made


def reason(error: Exception) -> str:
  """One line that says what an error is."""
  if isinstance(error, InputError):
    return str(error)
  first = (str(error).strip().splitlines() or [""])[0]
  return f"{type(error).__name__}: {first}" if first else type(error).__name__


def open_files(folder: pathlib.Path, row: Row, options: Options, layout: Layout) -> Opened:
  """Reads when frames are shown and how large; decodes none but the first.

  Raises:
    InputError: a file cannot be read, or the further ones do not go with the first.
  """
  files = {"frames": row.file_name} | dict(row.files)
  if missing := [name for name in layout.arrays if name not in files]:
    raise InputError(f"metadata: {row.file_name} has no {missing[0]}_file_name, as others have")
  for name in files.values():
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
      raise InputError(f"metadata: {name} lies outside of the folder; put it there")
  paths = {name: folder / file for name, file in files.items()}
  pictures = {name: decode.is_picture(path) for name, path in paths.items()}
  if len(set(pictures.values())) > 1:
    raise InputError(
      f"metadata: {row.file_name} mixes pictures and videos {sorted(files.values())}"
    )
  if pictures["frames"]:
    return Opened(paths, {}, _bucket(paths["frames"], options), 0.0, (0, 1))
  lines = {name: decode.timeline(path) for name, path in paths.items()}
  line = lines["frames"]
  reduced = options.fps and options.fps < line.fps
  fps = float(options.fps) if reduced else line.fps
  total = decode.fitting_frames(line, fps)
  for name, other in lines.items():
    have = decode.fitting_frames(other, fps)
    if name != "frames" and (have < total or fps > other.fps * decode.SAME_RATE):
      raise InputError(
        f"metadata: {files[name]} gives {have} frames at {other.fps:g} fps, {row.file_name} has "
        f"{total} at {fps:g} fps; name a file as long and as fine"
      )
  num_parts = math.ceil(total / (fps * options.max_seconds) - 1e-6)
  num_parts = max(1, min(total, num_parts))  # slides may stay for longer than a part lasts
  bounds = tuple(total * part // num_parts for part in range(num_parts + 1))
  return Opened(paths, lines, _bucket(paths["frames"], options), fps, bounds)


def _bucket(path: pathlib.Path, options: Options) -> Size:
  """The bucket of the aspect nearest to a file's, the first of equals; without any, the size."""
  if not options.buckets:
    return options.size
  height, width = decode.shown_size(path)
  return min(options.buckets, key=lambda size: abs(math.log(size[0] * width / size[1] / height)))


def _streams(opened: Opened, part: int, stack: contextlib.ExitStack) -> dict[str, Iterator]:
  """The frames of every array from a part on."""
  if not opened.lines:
    return {n: iter(decode.picture(path, opened.size)) for n, path in opened.paths.items()}
  streams = {}
  for name, path in opened.paths.items():
    frames = decode.each_frame(path, opened.times(part), opened.size, opened.lines[name], threads=1)
    streams[name] = stack.enter_context(contextlib.closing(frames))
  return streams


def _record(
  row: Row,
  part: int,
  opened: Opened,
  streams: Mapping[str, Iterator],
  options: Options,
  layout: Layout,
) -> dict:
  """The next record of the streams, as it is serialized."""
  count = opened.bounds[part + 1] - opened.bounds[part]
  arrays = {n: np.stack(list(itertools.islice(streams[n], count))) for n in layout.arrays}
  numbers = dict(row.numbers)
  if options.motion:
    numbers[MOTION] = motion_percent(arrays["frames"], opened.fps)
  name = row.file_name if opened.num_parts == 1 else f"{row.file_name}#{part}"
  facts = {"fps": opened.fps, "caption": row.text, "name": name, "truth": row.extra}
  facts |= {"numbers": numbers} if numbers else {}
  return records.packed(arrays | facts, options.codec, options.lossless)


def skipped_parts(reasons: Sequence[tuple[int, str]], num_parts: int) -> str:
  """What to say of a file of which some records could not be made, by number and reason."""
  first = reasons[0][1]
  if len(reasons) == num_parts:
    return first
  left = ", ".join(str(part) for part, _ in reasons)
  return f"part {left} of {num_parts}: {first}"
