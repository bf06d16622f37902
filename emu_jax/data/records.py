"""The one layout in which every dataset of this project is packed, and how it is written.

A record is one stretch of video, or a picture:

  frames   uint8 [T, size, size, 3], zlib
  fps      float32, frames/s at which they are stored; 0 for a picture
  caption  text
  name     text, the file (and part) or the index that it came from
  truth    text: JSON of whatever else is known of it, "" where nothing is

A folder holds the ArrayRecord shards and descriptions of a TFDS dataset, `index.npz` (length and
rate of every record, so that a reader knows what fits before it opens one) and `report.json`. None
of it needs TensorFlow.
"""

import abc
import contextlib
import fcntl
import io
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from emu_jax.errors import InputError

REPORT, INDEX = "report.json", "index.npz"


def features(size: int) -> tfds.features.FeaturesDict:
  """The features of a record, as TFDS describes them."""
  frames = tfds.features.Tensor(shape=(None, size, size, 3), dtype=np.uint8, encoding="zlib")
  return tfds.features.FeaturesDict(
    {
      "frames": frames,
      "fps": tfds.features.Scalar(np.float32),
      "caption": tfds.features.Text(),
      "name": tfds.features.Text(),
      "truth": tfds.features.Text(),
    }
  )


def num_frames(record: dict) -> int:
  """Of a record of pixels, or of one that `encoded` describes."""
  return len(record["frames"] if "frames" in record else record["moments"])


def spread_key(row: int, num_rows: int, part: int = 0) -> int:
  """A record's key: grows with (row, part), and fills TFDS's 128 bits evenly.

  TFDS sorts by key in a thousand buckets on disk; small consecutive keys would all fall into the
  first, which is sorted in memory.
  """
  return (row << 128) // num_rows + part


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the builders of this project share: the layout, the order by key, the index.

  A subclass gives `splits`, `examples` and, where it can say more, `why_empty`.
  """

  VERSION = tfds.core.Version("1.0.0")
  # No checksums of downloads lie beside the code: there are no downloads. TFDS would look for them
  # through importlib_resources, which it does not itself require.
  code_path = None
  splits: tuple[str, ...] = ("train", "validation")

  def __init__(self, *, size: int, **kwargs):
    self.size = size
    self.index: dict[str, list[tuple[int, int, float]]] = {}  # key, frames, fps of each record
    super().__init__(**{"file_format": "array_record"} | kwargs)

  @abc.abstractmethod
  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Keys and records of a split, in the order of their keys."""

  def why_empty(self) -> str:
    """What to tell the user where no split has a record."""
    return f"{type(self).__name__}: 0 records were asked for; ask for at least 1"

  def _info(self) -> tfds.core.DatasetInfo:
    # Unshuffled: `index.npz` is in the records' order, and readers shuffle anyway.
    return tfds.core.DatasetInfo(
      builder=self, features=features(self.size), description=self.__doc__, disable_shuffling=True
    )

  def _split_generators(self, dl_manager) -> dict:
    streams = {}
    for split in self.splits:
      stream = self.examples(split)
      first = next(stream, None)
      if first is not None:  # TFDS cannot write a split without records
        streams[split] = self._generate_examples(split, itertools.chain([first], stream))
    if not streams:
      raise InputError(self.why_empty())
    return streams

  def _generate_examples(self, split: str, stream: Iterator[tuple[int, dict]]):
    rows = self.index.setdefault(split, [])
    for key, record in stream:
      rows.append((key, num_frames(record), float(record["fps"])))
      yield key, record


def write(make: Callable[..., RecordBuilder], folder: pathlib.Path) -> dict[str, int]:
  """Runs the builder `make(data_dir=...)` and leaves its dataset as `folder`'s own files.

  Returns the number of records a split.
  """
  folder.mkdir(parents=True, exist_ok=True)
  builder = make(data_dir=str(folder / "build"))
  tfds.display_progress_bar(False)  # ours counts clips towards a total; TFDS's shows its phases
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads: there are none
      builder.download_and_prepare()
  finally:
    tfds.display_progress_bar(True)
  for file in pathlib.Path(builder.data_path).iterdir():
    file.rename(folder / file.name)
  shutil.rmtree(folder / "build")
  for rows in builder.index.values():
    rows.sort()
  lengths = {split: [pair for _, *pair in rows] for split, rows in builder.index.items()}
  return write_index(folder, lengths)


def write_index(folder: pathlib.Path, lengths: dict[str, list]) -> dict[str, int]:
  """Writes `index.npz` from (frames, fps) of the records of each split, in order; counts them."""
  columns = {}
  for split, pairs in lengths.items():
    columns[f"{split}/num_frames"] = np.array([frames for frames, _ in pairs], np.int32)
    columns[f"{split}/fps"] = np.array([fps for _, fps in pairs], np.float32)
  np.savez(folder / INDEX, **columns)
  return {split: len(pairs) for split, pairs in lengths.items()}


def finished(
  out: pathlib.Path, arguments: dict, overwrite: bool, who: str = "prepare"
) -> dict | None:
  """The report of an earlier run with the same arguments; None where `out` is to be written.

  Args:
    who: the command that asks, for messages; here and below.

  Raises:
    InputError: `out` holds something else, or was prepared with other arguments and `overwrite` is
      off.
  """
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return None
  if not (out / REPORT).is_file():
    raise InputError(
      f"{who}: out={out} exists and was not made by {who}; name a new or an empty folder"
    )
  report = json.loads((out / REPORT).read_text())
  if overwrite:
    return None
  had = report["arguments"]
  if had == json.loads(json.dumps(arguments)):
    return report
  other = ", ".join(
    f"{name}={had.get(name)} there, {value} asked"
    for name, value in arguments.items()
    if had.get(name) != value
  )
  raise InputError(
    f"{who}: out={out} was {who}d from other arguments ({other}); "
    "name another folder, or overwrite it"
  )


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden folder beside `out` that takes its name when the block ends well.

  Removed when the block fails; what a killed process left is cleared by the next run. `out` never
  holds half of anything.
  """
  partial = out.with_name(f".{out.name}.partial")
  with _claimed(partial, out):
    try:
      _empty(partial, out)
      yield partial
      _replace(partial, out)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def resumable(out: pathlib.Path, job: dict, who: str = "prepare") -> Iterator[pathlib.Path]:
  """A hidden folder beside `out` that keeps its files until the same job has ended well.

  A killed or failed run leaves what it finished; another job, or bad input, empties the folder.
  The block leaves what is to become `out` in its subfolder `whole`.
  """
  partial = unfinished(out)
  with _claimed(partial, out, who):
    asked, began = json.dumps(job, sort_keys=True), partial / "job.json"
    if not began.is_file() or began.read_text() != asked:
      _empty(partial, out, who)
      began.write_text(asked)
    try:
      yield partial
      began.unlink()  # first, so that what a kill leaves from here on is not taken for unfinished
      _replace(partial / "whole", out)
    except InputError:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    shutil.rmtree(partial, ignore_errors=True)


def unfinished(out: pathlib.Path) -> pathlib.Path:
  """The hidden folder in which `resumable` works."""
  return out.with_name(f".{out.name}.unfinished")


@contextlib.contextmanager
def _claimed(partial: pathlib.Path, out: pathlib.Path, who: str = "prepare") -> Iterator[None]:
  """Makes the hidden folder and locks it against other live processes."""
  try:
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
  except OSError as error:
    raise _unwritable(out, error, who) from error
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel when its owner dies
    except BlockingIOError as error:
      raise _taken(out, who) from error
    except OSError as error:
      raise _unwritable(out, error, who) from error
    yield
  finally:
    os.close(lock)


def _empty(partial: pathlib.Path, out: pathlib.Path, who: str = "prepare") -> None:
  """Removes a dead process's files."""
  try:
    for left in partial.iterdir():
      shutil.rmtree(left) if left.is_dir() else left.unlink()
  except FileNotFoundError as error:
    raise _taken(out, who) from error
  except OSError as error:
    raise _unwritable(out, error, who) from error


def _taken(out: pathlib.Path, who: str) -> InputError:
  return InputError(f"{who}: out={out} is being written by another process; wait for it to end")


def _unwritable(out: pathlib.Path, error: OSError, who: str) -> InputError:
  return InputError(
    f"{who}: out={out} cannot be written ({error.strerror}); name a folder you may write to"
  )


def _replace(partial: pathlib.Path, out: pathlib.Path) -> None:
  old = out.with_name(f".{out.name}.old")
  if out.exists():
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
  partial.rename(out)
  shutil.rmtree(old, ignore_errors=True)
