"""The one layout in which every dataset of this project is packed, and how it is written.

A record is one stretch of video, or a picture:

  frames   [T] byte strings, a frame each (emu_jax.data.codecs): a few are read without the others
  ...      further arrays of frames of the same moments, such as "source", "mask" or "depth"
  size     int32 [2], height and width of the frames in pixels
  fps      float32, frames/s at which they are stored; 0 for a picture
  caption  text
  captions texts: all captions of the record, the one above first; absent where none has several
  name     text, the file (and part) or the index that it came from
  truth    text: JSON of whatever else is known of it, "" where nothing is
  numbers  named float32 scalars, such as "motion"; absent where there are none

A folder holds the ArrayRecord shards and descriptions of a TFDS dataset, the index of all records
(emu_jax.data.index) and `report.json`. None of it needs TensorFlow.
"""

import abc
import contextlib
import dataclasses
import fcntl
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from emu_jax.data import codecs, index
from emu_jax.data.codecs import StoredFrames
from emu_jax.errors import InputError

REPORT = "report.json"
LOCK = "lock"
NOTES = 2  # layout of what is noted of finished work (emu_jax.data.shards)
VERSION = tfds.core.Version(f"{index.LAYOUT}.0.0")
FACTS = (
  "size",
  "fps",
  "caption",
  "captions",
  "name",
  "truth",
  "numbers",
)  # all of a record but its arrays


class StoppedError(InputError):
  """Work that ended before its time; what was finished is kept for the next call."""


def features(
  arrays: Iterable[str] = ("frames",), numbers: Iterable[str] = (), captions: bool = False
) -> tfds.features.FeaturesDict:
  """The features of a record, as TFDS describes them.

  Args:
    captions: whether the records have several.
  """
  strings = {name: tfds.features.Tensor(shape=(None,), dtype=np.object_) for name in arrays}
  return tfds.features.FeaturesDict(strings | facts(numbers, captions))


def facts(numbers: Iterable[str] = (), captions: bool = False) -> dict[str, Any]:
  """The features of all of a record but its arrays; arguments as of `features`."""
  named = {name: tfds.features.Scalar(np.float32) for name in numbers}
  several = {"captions": tfds.features.Tensor(shape=(None,), dtype=np.object_)}
  return (
    {
      "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
      "fps": tfds.features.Scalar(np.float32),
      "caption": tfds.features.Text(),
      "name": tfds.features.Text(),
      "truth": tfds.features.Text(),
    }
    | ({"numbers": tfds.features.FeaturesDict(named)} if named else {})
    | (several if captions else {})
  )


def packed(
  record: Mapping[str, Any], codec: str = codecs.LOSSLESS, lossless: Iterable[str] = ()
) -> dict[str, Any]:
  """A record as it is serialized: its arrays of frames as byte strings, and their size.

  Args:
    record: arrays uint8 [T, H, W, 3], or frames of another record, whose strings are kept.
    lossless: arrays that are stored without loss, whatever `codec` is.
  """
  strings, sizes = {}, set()
  for name in (name for name in record if name not in FACTS):
    frames = record[name]
    sizes.add(tuple(int(side) for side in frames.shape[1:3]))
    if isinstance(frames, StoredFrames):
      strings[name] = list(frames.strings)
    else:
      strings[name] = codecs.encode(frames, codecs.LOSSLESS if name in lossless else codec)
  if len(sizes) > 1 or len({len(frames) for frames in strings.values()}) > 1:
    raise ValueError(
      f"packed: the arrays {sorted(strings)} differ in size or number of frames; give them alike"
    )
  (size,) = sizes
  return dict(record) | strings | {"size": np.array(size, np.int32)}


@dataclasses.dataclass(frozen=True)
class Table:
  """The records of a split by number, their arrays as frames that are decoded when taken."""

  rows: Any  # TFDS's data source
  arrays: tuple[str, ...]
  decode: Callable[[dict], Callable[[bytes], np.ndarray]]  # of a record: what decodes its frames
  name: str = "records"  # folder and split, for messages

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, i: int) -> dict:
    """Raises InputError, now or where a frame is taken, for a record whose bytes are damaged."""
    try:
      record = self.rows[int(i)]
      decode = functools.partial(_checked, self.decode(record), f"{self.name} record {int(i)}")
      return record | {name: StoredFrames(record[name].tolist(), decode) for name in self.arrays}
    except Exception as error:  # whatever the reader of a damaged file raises
      raise damaged(f"{self.name} record {int(i)}", error) from error

  def __iter__(self) -> Iterator[dict]:
    return (self[i] for i in range(len(self)))

  def __repr__(self) -> str:
    return f"Table({len(self)} records)"


def _checked(decode: Callable[[bytes], np.ndarray], place: str, string: bytes) -> np.ndarray:
  """A frame; InputError where its bytes are none."""
  try:
    return decode(string)
  except Exception as error:  # whatever a codec raises
    raise damaged(place, error) from error


def damaged(place: str, error: Exception) -> InputError:
  """What to say of records that cannot be read, whatever their reader raised."""
  reason = (str(error).strip().splitlines() or [""])[0][:200]
  return InputError(
    f"{place} cannot be read ({type(error).__name__}: {reason}): its file is damaged; copy the "
    "records again, or pack them again with --overwrite"
  )


def decoder(record: dict) -> Callable[[bytes], np.ndarray]:
  """What decodes the frames of a record of pixels."""
  return codecs.decode


def num_frames(record: Mapping[str, Any]) -> int:
  """Of a record of pixels, or of one that `latent_records` describes."""
  return len(record["frames"] if "frames" in record else record["moments"])


def spread_key(row: int, num_rows: int, part: int = 0) -> int:
  """A record's key: grows with (row, part), and fills TFDS's 128 bits evenly.

  TFDS sorts by key in a thousand buckets on disk; small consecutive keys would all fall into the
  first, which is sorted in memory.
  """
  return (row << 128) // num_rows + part


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the builders of this project share: the layout, the order by key, the index.

  A subclass gives `splits`, `examples` and, where it can say more, `why_empty`, `arrays`,
  `numbers` and `codec`.
  """

  VERSION = VERSION
  # No checksums of downloads lie beside the code: there are no downloads. TFDS would look for them
  # through importlib_resources, which it does not itself require.
  code_path = None
  splits: tuple[str, ...] = ("train", "validation")
  arrays: tuple[str, ...] = ("frames",)
  numbers: tuple[str, ...] = ()
  codec = codecs.LOSSLESS

  def __init__(self, *, size: int | index.Size, **kwargs):
    self.size = size
    self.index: dict[str, list[tuple[int, index.Entry]]] = {}  # key and entry of each record
    super().__init__(**{"file_format": "array_record"} | kwargs)

  @abc.abstractmethod
  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Keys and records of a split, in the order of their keys; arrays uint8 [T, H, W, 3]."""

  def why_empty(self) -> str:
    """What to tell the user where no split has a record."""
    return f"{type(self).__name__}: 0 records were asked for; ask for at least 1"

  def _info(self) -> tfds.core.DatasetInfo:
    # Unshuffled: `index.npz` is in the records' order, and readers shuffle anyway.
    return tfds.core.DatasetInfo(
      builder=self,
      features=features(self.arrays, self.numbers),
      description=self.__doc__,
      disable_shuffling=True,
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
      serializable = packed(record, self.codec)
      rows.append((key, index.Entry.of(serializable, len(serializable[self.arrays[0]]))))
      yield key, serializable


def both_sides(size: int | index.Size) -> index.Size:
  """Height and width; one number is a square's."""
  return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


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
  entries = {
    split: [entry for _, entry in sorted(rows, key=lambda row: row[0])]
    for split, rows in builder.index.items()
  }
  return index.write(
    folder,
    entries,
    arrays=builder.arrays,
    numbers=builder.numbers,
    size=both_sides(builder.size),
  )


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
  if overwrite:
    return None
  try:
    report = json.loads((out / REPORT).read_text())
    had = report["arguments"]
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{who}: {out / REPORT} cannot be read ({type(error).__name__}); overwrite the folder"
    ) from error
  now = json.loads(json.dumps(arguments))  # tuples are lists there
  if had == now:
    return report
  other = ", ".join(
    f"{name}={had.get(name)} there, {now.get(name)} asked"
    for name in dict.fromkeys([*now, *had])
    if had.get(name) != now.get(name)
  )
  raise InputError(
    f"{who}: out={out} was {who}d from other arguments ({other}); "
    "name another folder, or overwrite it"
  )


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden folder that takes the name of `out` when the block ends well.

  Removed when the block fails; what a killed process left is cleared by the next run. `out` never
  holds half of anything.
  """
  partial = out.with_name(f".{out.name}.partial")
  with _claimed(partial, out):
    try:
      _empty(partial, out)
      whole = partial / "whole"
      whole.mkdir()
      yield whole
      _replace(whole, out)
    except OSError as error:
      raise _unwritable(out, error, "prepare") from error
    finally:
      shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def resumable(out: pathlib.Path, job: dict, who: str = "prepare") -> Iterator[pathlib.Path]:
  """A hidden folder beside `out` that keeps its files until the same job has ended well.

  A run that was killed, failed or stopped (`StoppedError`, which a full disk becomes too) leaves
  what it finished; another job, or bad input, empties the folder.
  The block leaves what is to become `out` in its subfolder `whole`.
  """
  partial = unfinished(out)
  with _claimed(partial, out, who):
    job_text = json.dumps(job | {"notes": NOTES}, sort_keys=True)
    began = partial / "job.json"
    if not began.is_file() or began.read_text() != job_text:
      _empty(partial, out, who)
      began.write_text(job_text)
    try:
      yield partial
      began.unlink()  # first, so that what a kill leaves from here on is not taken for unfinished
      _replace(partial / "whole", out)
    except StoppedError:
      raise
    except InputError:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    except OSError as error:
      raise StoppedError(
        f"{who}: out={out} cannot be written ({error.strerror or error}); make room, and give the "
        "same command: it goes on from what is finished"
      ) from error
    shutil.rmtree(partial, ignore_errors=True)


def unfinished(out: pathlib.Path) -> pathlib.Path:
  """The hidden folder in which `resumable` works."""
  return out.with_name(f".{out.name}.unfinished")


@contextlib.contextmanager
def _claimed(partial: pathlib.Path, out: pathlib.Path, who: str = "prepare") -> Iterator[None]:
  """Makes the hidden folder, and holds it against other live processes by the lock of a file.

  Not of the folder: network file systems share the locks of files alone.
  """
  try:
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
      if left.name == LOCK:
        continue
      shutil.rmtree(left) if left.is_dir() else left.unlink()
  except FileNotFoundError as error:
    raise _taken(out, who) from error
  except OSError as error:
    raise _unwritable(out, error, who) from error


def _taken(out: pathlib.Path, who: str) -> InputError:
  return InputError(f"{who}: out={out} is being written by another process; wait for it to end")


def _unwritable(out: pathlib.Path, error: OSError, who: str) -> InputError:
  return InputError(
    f"{who}: out={out} cannot be written ({error.strerror or error}); make room, or name a "
    "folder you may write to"
  )


def _replace(partial: pathlib.Path, out: pathlib.Path) -> None:
  old = out.with_name(f".{out.name}.old")
  if out.exists():
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
  partial.rename(out)
  shutil.rmtree(old, ignore_errors=True)
