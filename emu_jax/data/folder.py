"""A user's folder of captioned clips -> packed records, decoded in parallel, once.

The folder is laid out as Hugging Face's VideoFolder: `metadata.jsonl` or `metadata.csv`, a line a
clip with the columns `file_name` (relative to the folder) and `text`; other columns become JSON.
"""

import collections
import contextlib
import csv
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
from emu_jax.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv")
REQUIRED = ("file_name", "text")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of metadata."""

  file_name: str
  text: str
  extra: str  # the other columns, as JSON; "" where there are none


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
  rows = read_metadata(folder)
  arguments = dataclasses.asdict(options) | {"contents": _fingerprint(folder, rows)}
  earlier = records.finished(out, arguments, overwrite)
  if earlier is not None:
    skipped = tuple(Skipped(**entry) for entry in earlier.pop("skipped"))
    return Report(**earlier | {"out": str(out), "skipped": skipped, "existing": True})
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
    (partial / records.REPORT).write_text(json.dumps(dataclasses.asdict(report), indent=1))
  return report


class ClipFolder(records.RecordBuilder):
  """Captioned clips of a user's folder, cropped square, at one size."""

  def __init__(self, *, folder, rows, options, submit, skipped, progress, **kwargs):
    self._folder, self._rows, self._options = folder, rows, options
    self._submit, self._skipped, self._progress = submit, skipped, progress
    super().__init__(**kwargs)

  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Keys and records of a split, decoded a few files ahead; unreadable files go to the report."""
    numbers = [i for i, row in enumerate(self._rows) if self._split_of(row) == split]
    for i, part, result in _ahead(self._read, numbers):
      row = self._rows[i]
      self._progress.update(part == 0)
      if isinstance(result, str):
        self._skipped.append(Skipped(row.file_name, result))
        continue
      name = row.file_name if result.num_parts == 1 else f"{row.file_name}#{part}"
      record = {"frames": result.frames, "fps": result.fps}
      record |= {"caption": row.text, "name": name, "truth": row.extra}
      yield records.spread_key(i, len(self._rows), part), record

  def why_empty(self) -> str:
    return (
      f"prepare: none of the {len(self._rows)} clips named by the metadata of {self._folder} can "
      f"be read; the first: {self._skipped[0].reason}"
    )

  def _read(self, i: int, part: int) -> Callable:
    return self._submit(read_part, self._folder / self._rows[i].file_name, part, self._options)

  def _split_of(self, row: Row) -> str:
    """By the file's name alone, so that a grown folder keeps its split."""
    digest = hashlib.sha256(row.file_name.encode()).digest()
    held_back = int.from_bytes(digest[:8]) < self._options.validation_fraction * 2**64
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


def read_metadata(folder: str | pathlib.Path) -> list[Row]:
  """The lines of a folder's metadata, checked.

  Raises:
    InputError: no such folder, nothing in it, no metadata or two of them, a missing column, a line
      that cannot be read, or no file that exists.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f"prepare: {folder} is not a folder; name the folder that holds the clips")
  if not any(folder.iterdir()):
    raise InputError(f"prepare: {folder} is empty; put clips and a metadata.jsonl in it")
  found = [folder / name for name in METADATA if (folder / name).is_file()]
  if len(found) != 1:
    what = "both metadata.jsonl and metadata.csv" if found else "no metadata.jsonl or metadata.csv"
    raise InputError(
      f"prepare: {folder} holds {what}; keep one file with the columns file_name and text"
    )
  table = _json_lines(found[0]) if found[0].suffix == ".jsonl" else _csv_lines(found[0])
  rows = [_row(found[0], number, entry) for number, entry in table]
  if not rows:
    raise InputError(f"prepare: {found[0]} holds 0 clips; write a line for each")
  if not any((folder / row.file_name).is_file() for row in rows):
    raise InputError(
      f"prepare: {found[0]} names {len(rows)} clips and none exists, the first being "
      f"{rows[0].file_name!r}; file_name is relative to {folder}"
    )
  return rows


def _json_lines(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
  with path.open(encoding="utf-8-sig") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        yield number, dict(json.loads(line))
      except (ValueError, TypeError) as error:
        raise InputError(
          f"prepare: {path} line {number} is not a JSON object ({error}); "
          'write {"file_name": ..., "text": ...}'
        ) from error


def _csv_lines(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
  with path.open(encoding="utf-8-sig", newline="") as lines:
    reader = csv.DictReader(lines)
    for entry in reader:
      # A short line leaves None, a long one a list under None: both mean a stray or missing comma.
      if None in entry or None in entry.values():
        raise InputError(
          f"prepare: {path} line {reader.line_num} has not the {len(reader.fieldnames)} columns of "
          "its header; put quotation marks around text that holds commas"
        )
      yield reader.line_num, entry


def _row(path: pathlib.Path, number: int, entry: dict) -> Row:
  for column in REQUIRED:
    if not isinstance(entry.get(column), str):
      raise InputError(
        f"prepare: {path} line {number} has no text in the column {column!r}, its columns are "
        f"{sorted(entry)}; every line needs file_name and text"
      )
  extra = {name: value for name, value in entry.items() if name not in REQUIRED}
  return Row(entry["file_name"], entry["text"], json.dumps(extra) if extra else "")


def _fingerprint(folder: pathlib.Path, rows: Sequence[Row]) -> str:
  """Of names, texts and file sizes: a changed folder is not taken for the one packed before."""
  digest = hashlib.sha256()
  for row in rows:
    path = folder / row.file_name
    size = path.stat().st_size if path.is_file() else -1
    digest.update(json.dumps([row.file_name, row.text, row.extra, size]).encode())
  return digest.hexdigest()[:16]
