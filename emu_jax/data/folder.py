"""A user's folder of captioned clips -> packed records, decoded in parallel, once."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from emu_jax.data import decode, records
from emu_jax.data.metadata import Row, fingerprint, read_metadata
from emu_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Options:
  """How clips are stored; part of what makes two runs of `prepare_folder` the same."""

  size: int
  fps: float = 0.0  # frames/s to store at most; 0 keeps each file's own
  max_seconds: float = (
    10.0  # ours: longer clips become records read apart, so that reading stays cheap
  )
  validation_fraction: float = 0.05

  def __post_init__(self):
    for name, least in (("size", 8), ("fps", 0), ("max_seconds", 0.1)):
      if getattr(self, name) < least:
        raise InputError(f"prepare: {name}={getattr(self, name)} is below {least}; raise it")
    if not 0 <= self.validation_fraction < 1:
      raise InputError(
        f"prepare: validation_fraction={self.validation_fraction} is not in [0, 1); try 0.05"
      )


@dataclasses.dataclass(frozen=True)
class Skipped:
  file_name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of a folder; `report.json` holds the same."""

  out: str
  arguments: dict
  num_clips: int  # lines of metadata
  num_records: dict[str, int]  # a split; a long clip is several records
  skipped: tuple[Skipped, ...]
  seconds: float
  existing: bool = False  # an earlier run with the same arguments had made it: nothing was done

  def write(self, folder: pathlib.Path) -> None:
    """As `report.json` of a folder."""
    (folder / records.REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1))


def prepare_folder(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  size: int,
  fps: float = 0.0,
  max_seconds: float = 10.0,
  validation_fraction: float = 0.05,
  workers: int | None = None,
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Packs a folder of captioned clips into `out`; a rerun with the same arguments changes nothing.

  Decoding processes are spawned: a script that calls this with workers > 1 needs the usual
  `if __name__ == "__main__":`.

  Args:
    size: pixels a side of the stored square.
    fps: frames/s to store at; 0 keeps each file's own, which also bounds it, since frames that a
      file does not have are never made up.
    max_seconds: a longer clip is cut into consecutive records of equal length below this.
    validation_fraction: of the files, chosen by a hash of their names.
    workers: decoding processes; None takes a core each, 1 decodes in this process.

  Raises:
    InputError: nothing usable in `folder`, or `out` is in the way.
  """
  began = time.monotonic()
  folder, out = pathlib.Path(folder), pathlib.Path(out)
  options = Options(size, fps, max_seconds, validation_fraction)
  rows, arguments, earlier = asked(folder, out, options, overwrite)
  if earlier is not None:
    return earlier
  skipped = []
  with records.staged(out) as partial, _submitter(workers, len(rows)) as submit:
    bar = tqdm(total=len(rows), desc="packing", unit="clip", disable=not progress)
    with bar:
      make = functools.partial(
        ClipFolder,
        size=size,
        folder=folder,
        rows=rows,
        options=options,
        submit=submit,
        skipped=skipped,
        progress=bar,
      )
      num_records = records.write(make, partial)
    seconds = round(time.monotonic() - began, 3)
    report = Report(str(out), arguments, len(rows), num_records, tuple(skipped), seconds)
    report.write(partial)
  return report


def asked(
  folder: pathlib.Path, out: pathlib.Path, options: Options, overwrite: bool
) -> tuple[list[Row], dict, Report | None]:
  """The lines of metadata, what tells one run from another, and the report where it is done."""
  rows = read_metadata(folder)
  arguments = dataclasses.asdict(options) | {"contents": fingerprint(folder, rows)}
  earlier = records.finished(out, arguments, overwrite)
  if earlier is None:
    return rows, arguments, None
  skipped = tuple(Skipped(**entry) for entry in earlier.pop("skipped"))
  return (
    rows,
    arguments,
    Report(**earlier | {"out": str(out), "skipped": skipped, "existing": True}),
  )


class ClipFolder(records.RecordBuilder):
  """Captioned clips of a user's folder, cropped square, at one size."""

  def __init__(self, *, folder, rows, options, submit, skipped, progress, **kwargs):
    self._folder, self._rows, self._options = folder, rows, options
    self._submit, self._skipped, self._progress = submit, skipped, progress
    super().__init__(**kwargs)

  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Keys and records of a split, decoded a few files ahead; unreadable files go to the report."""
    numbers = [i for i, row in enumerate(self._rows) if split_of(row, self._options) == split]
    for i, part, result in _ahead(self._read, numbers):
      row = self._rows[i]
      self._progress.update(part == 0)
      if isinstance(result, str):
        self._skipped.append(Skipped(row.file_name, result))
        continue
      yield records.spread_key(i, len(self._rows), part), record_of(row, part, result)

  def why_empty(self) -> str:
    return none_read(self._folder, len(self._rows), self._skipped[0])

  def _read(self, i: int, part: int) -> Callable:
    return self._submit(read_part, self._folder / self._rows[i].file_name, part, self._options)


def none_read(folder: pathlib.Path, num_clips: int, first: Skipped) -> str:
  """What to tell the user whose clips are all unreadable."""
  return (
    f"prepare: none of the {num_clips} clips named by the metadata of {folder} can be read; "
    f"the first: {first.reason}"
  )


def split_of(row: Row, options: Options) -> str:
  """By the file's name alone, so that a grown folder keeps its split."""
  digest = hashlib.sha256(row.file_name.encode()).digest()
  held_back = int.from_bytes(digest[:8]) < options.validation_fraction * 2**64
  return "validation" if held_back else "train"


@dataclasses.dataclass(frozen=True)
class Part:
  """A stretch of a clip, as a decoding process hands it back."""

  frames: np.ndarray  # uint8 [T, size, size, 3]
  fps: float
  num_parts: int  # of the whole clip


def read_part(path: pathlib.Path, part: int, options: Options) -> Part | str:
  """Part number `part` of a clip, or the reason why it cannot be read."""
  try:
    if decode.is_picture(path):
      return Part(decode.picture(path, options.size), 0.0, 1)
    line = decode.timeline(path)
    asked_is_less = options.fps and options.fps < line.fps
    fps = float(options.fps) if asked_is_less else line.fps
    total = decode.fitting_frames(line, fps)
    num_parts = max(1, math.ceil(total / (fps * options.max_seconds) - 1e-6))
    first, end = (total * k // num_parts for k in (part, part + 1))
    times = np.arange(first, end) / fps
    return Part(decode.frames_at(path, times, options.size, line, threads=1), fps, num_parts)
  except InputError as error:
    return str(error)


def record_of(row: Row, part: int, result: Part) -> dict:
  """A record in the layout of `records`."""
  name = row.file_name if result.num_parts == 1 else f"{row.file_name}#{part}"
  record = {"frames": result.frames, "fps": result.fps}
  return record | {"caption": row.text, "name": name, "truth": row.extra}


def _ahead(read: Callable[[int, int], Callable], numbers: Sequence[int]) -> Iterator[tuple]:
  """Results of `read(i, part)` for every part of every i, at most `lookahead` of them held."""
  lookahead = 2 + (os.cpu_count() or 1)
  waiting = collections.deque((i, 0) for i in numbers)
  running = collections.deque()
  while waiting or running:
    while waiting and len(running) < lookahead:
      job = waiting.popleft()
      running.append((*job, read(*job)))
    i, part, result = running.popleft()
    result = result()
    if part == 0 and not isinstance(result, str):
      waiting.extendleft((i, k) for k in reversed(range(1, result.num_parts)))
    yield i, part, result


@contextlib.contextmanager
def _submitter(workers: int | None, num_clips: int) -> Iterator[Callable]:
  """`submit(f, *args)` -> a function that waits for the result and returns it."""
  workers = min(
    workers or os.cpu_count() or 1, math.ceil(num_clips / 8)
  )  # ours: a process costs 1 s
  if workers <= 1:
    yield functools.partial
    return
  spawn = multiprocessing.get_context("spawn")  # forking a process that runs JAX can deadlock
  pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
  try:
    yield lambda f, *args: pool.submit(f, *args).result
  except BrokenProcessPool as error:
    raise InputError(
      "prepare: a decoding process died (out of memory, a file that crashes FFmpeg, or a script "
      "without its __main__ guard); try again with fewer workers, or workers=1 to see at which file"
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
  """A killed parent cannot end its decoding processes: each watches for it."""

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
