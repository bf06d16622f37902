"""What is known of every record without opening it: a table beside the records, a column a fact.

`index.npz` holds for each split num_frames, fps, sizes (height, width), captions, names and the
named numbers of the records in their order, and for all of them the layout's version, the arrays
that a record has and the size that they were packed for. Where a record has several captions all
of them lie on end, with their numbers by record. Texts lie as UTF-8 bytes on end with the
places where they end, so that nothing is unpickled and a long caption costs the others nothing.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from emu_jax.errors import InputError

FILE = "index.npz"
LAYOUT = 2  # 1: a record's frames were one array, deflated; there was no text in the index

Size = tuple[int, int]  # height and width, pixels


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the index holds of one record."""

  num_frames: int
  fps: float  # frames/s; 0 for a picture
  size: Size
  captions: tuple[str, ...]
  name: str
  numbers: Mapping[str, float]

  @classmethod
  def of(cls, record: Mapping, num_frames: int) -> "Entry":
    """Of a record as `records.packed` gives it."""
    size = tuple(int(side) for side in record["size"])
    numbers = {name: float(value) for name, value in record.get("numbers", {}).items()}
    name = record["name"]
    name = name.decode() if isinstance(name, bytes) else name
    captions = tuple(text_captions(record))
    return cls(num_frames, float(record["fps"]), size, captions, name, numbers)


def text_captions(record: Mapping) -> list[str]:
  """All captions of a record, in their order."""
  texts = record["captions"] if "captions" in record else [record["caption"]]
  return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


@dataclasses.dataclass(frozen=True)
class Index:
  """The rows of one split."""

  num_frames: Int32[np.ndarray, "N"]
  fps: Float32[np.ndarray, "N"]
  sizes: Int32[np.ndarray, "N 2"]
  captions: Sequence[str]  # of each, the first
  all_captions: Sequence[str]  # of one record after another
  names: Sequence[str]
  numbers: Mapping[str, np.ndarray]  # float32 [N]; NaN where a record has none
  arrays: tuple[str, ...]  # of every record
  size: Size  # that the records were packed for; theirs may be of another aspect


class Texts(Sequence):
  """The texts of a column; read from the file when the first one is taken.

  Args:
    rows: which of the column's texts these are; None: all.
  """

  def __init__(self, file: pathlib.Path, column: str, count: int, rows: np.ndarray | None = None):
    self._file, self._column, self._count, self._rows = file, column, count, rows

  @functools.cached_property
  def _column_text(self) -> tuple[bytes, list[int]]:
    with np.load(self._file, allow_pickle=False) as columns:
      ends = columns[f"{self._column}/ends"].tolist()
      return columns[f"{self._column}/utf8"].tobytes(), [0, *ends]

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, i):
    if isinstance(i, slice):
      return [self[k] for k in range(*i.indices(self._count))]
    text, ends = self._column_text
    i = range(self._count)[i]
    i = i if self._rows is None else self._rows[i]
    return text[ends[i] : ends[i + 1]].decode()


def write(
  folder: pathlib.Path,
  entries: Mapping[str, Sequence[Entry]],
  *,
  arrays: Iterable[str],
  numbers: Iterable[str] = (),
  size: Size,
) -> dict[str, int]:
  """Writes the index of the records of each split, in order; returns their counts."""
  columns = {"layout": np.array(LAYOUT), "arrays": np.array([*arrays]), "size": np.array(size)}
  numbers = tuple(numbers)
  columns["numbers"] = np.array(numbers, dtype=np.str_)
  for split, rows in entries.items():
    columns[f"{split}/num_frames"] = np.array([row.num_frames for row in rows], np.int32)
    columns[f"{split}/fps"] = np.array([row.fps for row in rows], np.float32)
    columns[f"{split}/sizes"] = np.array([row.size for row in rows], np.int32).reshape(-1, 2)
    if any(len(row.captions) != 1 for row in rows):
      counts = np.array([len(row.captions) for row in rows], np.int32)
      columns[f"{split}/captions/counts"] = counts
    for column, texts in (
      ("captions", [caption.encode() for row in rows for caption in row.captions]),
      ("names", [row.name.encode() for row in rows]),
    ):
      columns[f"{split}/{column}/utf8"] = np.frombuffer(b"".join(texts), np.uint8)
      columns[f"{split}/{column}/ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
    for name in numbers:
      columns[f"{split}/numbers/{name}"] = np.array([row.numbers[name] for row in rows], np.float32)
  np.savez(folder / FILE, **columns)
  return {split: len(rows) for split, rows in entries.items()}


def read(folder: pathlib.Path, split: str) -> Index:
  """The index of a split that `write` wrote.

  Raises:
    InputError: there is none, or one of another layout.
  """
  file = folder / FILE
  if file.is_file():
    with np.load(file, allow_pickle=False) as columns:
      if "layout" in columns and columns["layout"] == LAYOUT:
        num_frames = columns[f"{split}/num_frames"]
        total, firsts = len(num_frames), None
        if f"{split}/captions/counts" in columns:
          counts = columns[f"{split}/captions/counts"]
          total, firsts = int(counts.sum()), np.cumsum(counts) - counts
        return Index(
          num_frames,
          columns[f"{split}/fps"],
          columns[f"{split}/sizes"],
          Texts(file, f"{split}/captions", len(num_frames), firsts),
          Texts(file, f"{split}/captions", total),
          Texts(file, f"{split}/names", len(num_frames)),
          {name: columns[f"{split}/numbers/{name}"] for name in columns["numbers"].tolist()},
          tuple(columns["arrays"].tolist()),
          tuple(columns["size"].tolist()),
        )
  raise InputError(
    f"open_source: {folder} was packed by an earlier version or by another program; pack it again "
    "with `emu-train prepare` (or `encode`)"
  )
