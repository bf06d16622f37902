"""The clips of a user's folder and what captions them, in each of the layouts that people keep.

  metadata.jsonl, .csv or .parquet   a line a clip, as Hugging Face's VideoFolder has it: a column
                                     with a file relative to the table, and one with its caption
  videos.txt and prompt.txt          a line a clip each, as finetrainers has them
  clip.txt beside clip.mp4           each line of it a caption of the clip, as kohya's trainers read

A clip has one caption or several: a table's column may hold a list of them. Folders within the
folder are read in turn where it has no table itself; where all files lie in folders called train,
validation and test, these are their splits.

A column `<array>_file_name`, such as `source_file_name`, names a further file of the same moments,
which becomes that array of the record. A column whose values are all numbers becomes a named number
of the record. Columns that name no file also become JSON, as they are.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emu_jax.data import decode, tables
from emu_jax.data.tables import Line
from emu_jax.errors import InputError

METADATA = tuple(f"metadata{suffix}" for suffix in tables.SUFFIXES)
FILES = ("file_name", "file", "filename", "file_path", "video", "video_path", "image", "image_path",
         "path")  # fmt: skip
TEXTS = ("text", "caption", "captions", "prompt", "prompts")
LISTED_FILES = ("videos.txt", "images.txt")
LISTED_TEXTS = ("prompt.txt", "prompts.txt")
FILE_COLUMN = "_file_name"  # ends the name of a column of further files
RESERVED = (
  "frames", "moments", "size", "fps", "caption", "captions", "name", "truth", "numbers"
)  # fmt: skip
VIDEO_SUFFIXES = (
  ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg",
  ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip
SPLIT_FOLDERS = {
  "train": "train", "training": "train", "test": "test",
  "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
  """One clip of a folder."""

  file_name: str
  texts: tuple[str, ...]  # its captions
  extra: str = ""  # the other columns, as JSON; "" where there are none
  files: tuple[tuple[str, str], ...] = ()  # name and file of each further array
  numbers: tuple[tuple[str, float], ...] = ()  # NaN where the line has none
  split: str = ""  # that its folder says; "" where none does
  fault: str = ""  # why it gives no record, where that is known before it is opened

  @property
  def text(self) -> str:
    """Its first caption."""
    return self.texts[0] if self.texts else ""


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the records of a folder have beside frames and caption."""

  arrays: tuple[str, ...]
  numbers: tuple[str, ...]
  captions: bool = False  # whether some have several

  @classmethod
  def of(cls, rows: Sequence[Row]) -> "Layout":
    """Of all lines together: a line that lacks an array of the others is no record of theirs."""
    arrays = dict.fromkeys(name for row in rows for name, _ in row.files)
    numbers = dict.fromkeys(name for row in rows for name, _ in row.numbers)
    return cls(("frames", *arrays), tuple(numbers), any(len(row.texts) > 1 for row in rows))


def read_metadata(folder: str | pathlib.Path) -> list[Row]:
  """The clips of a folder with their captions, checked as far as no clip has to be opened.

  Raises:
    InputError: no such folder, nothing in it, no captions in a layout above, two tables, a missing
      column, a line that cannot be read, a file outside of the folder, or no file that exists.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f"prepare: {folder} is not a folder; name the folder that holds the clips")
  if not any(folder.iterdir()):
    raise InputError(f"prepare: {folder} is empty; put clips and a metadata.jsonl in it")
  found = list(_lines(folder, pathlib.PurePath(), ()))
  captioned = [line for line in found if "fault" not in line.columns]
  if not captioned:
    raise InputError(
      f"prepare: {folder} holds no {', '.join(METADATA)}, and no clip with its caption in a text "
      f"file of its name; {_advice(folder)}"
    )
  numeric = _numeric_columns([line.columns for line in captioned])
  rows = [_row(line, numeric) for line in found]
  on_disk = _Names(folder)
  rows = [
    dataclasses.replace(
      row,
      file_name=on_disk.find(row.file_name),
      files=tuple((name, on_disk.find(file)) for name, file in row.files),
    )
    for row in rows
  ]
  if not any((folder / row.file_name).is_file() for row in rows):
    raise InputError(
      f"prepare: {folder} names {len(rows)} clips and none exists, the first being "
      f"{rows[0].file_name!r}; a file is named relative to the table that names it"
    )
  return _with_splits(rows)


def _lines(folder: pathlib.Path, inner: pathlib.PurePath, above: tuple) -> Iterator[Line]:
  """The clips of a folder, as lines of one table: "file_name" relative to the outermost folder.

  A clip that lacks a caption has the column "fault".
  """
  found = [folder / name for name in METADATA if (folder / name).is_file()]
  listed = [
    [folder / name for name in names if (folder / name).is_file()]
    for names in (LISTED_FILES, LISTED_TEXTS)
  ]
  if len(found) > 1:
    names = " and ".join(path.name for path in found)
    raise InputError(f"prepare: {folder} holds both {names}; keep one of them")
  if found:
    lines = map(_canonical, tables.read(found[0]))
  elif all(listed):
    lines = _paired_lines(listed[0][0], listed[1][0])
  else:
    yield from _captioned_files(folder, inner)
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
      if path.is_dir() and not path.name.startswith(".") and path.resolve() not in above:
        yield from _lines(path, inner / path.name, above)
    return
  for line in lines:
    names = {
      column: str(inner / _inside(line.place, value))
      for column, value in line.columns.items()
      if isinstance(value, str)
      and (column == "file_name" or column.endswith(FILE_COLUMN))
      and value
    }
    yield Line(line.place, line.columns | names)


def _inside(place: str, file: str) -> str:
  """A file's name; InputError where it leads out of the folder."""
  if os.path.isabs(file) or ".." in pathlib.PurePath(file).parts:
    raise InputError(
      f"prepare: {place} names {file!r}, which lies outside of the folder; put the file into the "
      "folder, and name it relative to it"
    )
  return file


def _canonical(line: Line) -> Line:
  """A table's line with its file and captions under the names "file_name" and "text"."""
  columns = dict(line.columns)
  for wanted, names, what in (("file_name", FILES, "file"), ("text", TEXTS, "caption")):
    name = next((name for name in names if name in columns), None)
    if name is None:
      raise InputError(
        f"prepare: {line.place} has no text in the column {wanted!r}, its columns are "
        f"{sorted(map(str, columns))}; name the clip's {what} in a column {wanted} (or "
        f"{', '.join(names[1:])})"
      )
    columns = {wanted: columns.pop(name)} | columns
  return Line(line.place, columns)


def _paired_lines(files: pathlib.Path, texts: pathlib.Path) -> Iterator[Line]:
  names, captions = (tables.utf8(path).rstrip().splitlines() for path in (files, texts))
  if len(names) != len(captions):
    raise InputError(
      f"prepare: {files} holds {len(names)} lines and {texts} {len(captions)}; write a line a clip "
      "into each"
    )
  for number, (name, caption) in enumerate(zip(names, captions, strict=True), 1):
    yield Line(f"{files} line {number}", {"file_name": name.strip(), "text": caption.strip()})


def _captioned_files(folder: pathlib.Path, inner: pathlib.PurePath) -> Iterator[Line]:
  """The clips of a folder, each with the lines of the text file of its name."""
  files = sorted(path for path in folder.iterdir() if path.is_file())
  files = [path for path in files if not path.name.startswith(".")]
  stem = lambda path: unicodedata.normalize("NFC", path.stem)
  texts = {stem(path): path for path in files if path.suffix.lower() == ".txt"}
  media = (*VIDEO_SUFFIXES, *decode.PICTURE_SUFFIXES)
  for path in files:
    if path.suffix.lower() == ".txt" or not (path.suffix.lower() in media or stem(path) in texts):
      continue
    columns = {"file_name": str(inner / path.name), "text": []}
    try:
      path.name.encode()
      text = tables.utf8(texts[stem(path)])
      columns["text"] = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    except UnicodeEncodeError:
      columns["file_name"] = columns["file_name"].encode("utf-8", "backslashreplace").decode()
      columns["fault"] = "its name is not UTF-8; rename it"
    except KeyError:
      columns["fault"] = f"has no caption; write it into {path.stem}.txt beside it"
    except (InputError, OSError) as error:
      columns["fault"] = str(error)
    yield Line(str(path), columns)


def _advice(folder: pathlib.Path) -> str:
  """How to convert what a folder holds instead."""
  found = sorted(path for path in folder.rglob("*") if path.is_file())
  for path in found:
    name = path.relative_to(folder)
    if path.suffix == ".tar":
      return f"unpack {name} (tar -xf), so that each clip lies beside its .txt"
    if path.suffix in tables.SUFFIXES:
      return f"rename {name} to metadata{path.suffix}, its columns file_name and text"
    if path.suffix in (".json", ".tsv", ".xlsx"):
      return f"write {name} as metadata.csv or metadata.jsonl, its columns file_name and text"
  return 'write a metadata.jsonl with a line {"file_name": ..., "text": ...} a clip'


def _numeric_columns(entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """The columns of which every value that is there is a number, or text that spells one."""
  columns = dict.fromkeys(name for entry in entries for name in entry)
  free = [
    name
    for name in columns
    if name not in ("file_name", "text") and not name.endswith(FILE_COLUMN) and name.isidentifier()
  ]
  values = {name: [e[name] for e in entries if e.get(name) not in (None, "")] for name in free}
  return [
    name
    for name, found in values.items()
    if found and all(_number(value) is not None for value in found)
  ]


def _number(value: object) -> float | None:
  """The finite number that a value is or spells."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  try:
    number = float(value)
  except (ValueError, OverflowError):
    return None
  return number if math.isfinite(number) else None


def _row(line: Line, numeric: Sequence[str]) -> Row:
  entry, place = line.columns, line.place
  if fault := entry.get("fault"):
    return Row(entry["file_name"], (), fault=fault)
  texts = [entry["text"]] if isinstance(entry["text"], str) else entry["text"]
  if not isinstance(entry["file_name"], str) or not entry["file_name"]:
    raise InputError(
      f"prepare: {place} has no file in the column 'file_name', but {entry['file_name']!r:.60}; "
      "name the clip's file"
    )
  if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
    raise InputError(
      f"prepare: {place} has no text in the column 'text', but {entry['text']!r:.60}; write a "
      "caption, or a list of them"
    )
  files = []
  for column in (name for name in entry if name.endswith(FILE_COLUMN) and entry[name]):
    array = column.removesuffix(FILE_COLUMN)
    if not array.isidentifier() or array in RESERVED or not isinstance(entry[column], str):
      raise InputError(
        f"prepare: {place}: the column {column!r} does not name the file of an array; "
        f"write a file name into it, and call the array other than {', '.join(RESERVED)}"
      )
    files.append((array, entry[column]))
  kept = ("file_name", "text", *(name for name in entry if name.endswith(FILE_COLUMN)))
  extra = {name: value for name, value in entry.items() if name not in kept}
  nan = lambda value: math.nan if value is None else value
  numbers = tuple((name, nan(_number(entry.get(name)))) for name in numeric)
  try:
    "".join([entry["file_name"], *texts, *(file for _, file in files)]).encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f"prepare: {place} holds half of a character ({error.reason}); write whole ones"
    ) from error
  text = json.dumps(extra, default=str) if extra else ""
  return Row(entry["file_name"], tuple(texts), text, tuple(files), numbers)


class _Names:
  """Names as they stand on the disk: macOS stores accents apart from their letters."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def find(self, name: str) -> str:
    """The name of an existing file that reads alike, else the one given."""
    if name.isascii() or os.path.lexists(self._folder / name):
      return name
    found = pathlib.PurePath()
    for part in pathlib.PurePath(name).parts:
      alike = self._listed(self._folder / found).get(unicodedata.normalize("NFC", part))
      if alike is None:
        return name
      found /= alike
    return str(found)

  @functools.cache  # noqa: B019 (lives as long as one reading of a folder)
  def _listed(self, folder: pathlib.Path) -> dict[str, str]:
    names = os.listdir(folder) if folder.is_dir() else ()
    return {unicodedata.normalize("NFC", name): name for name in names}


def _with_splits(rows: Sequence[Row]) -> list[Row]:
  """The rows with the splits of their folders, where all lie in folders that are called so."""
  tops = [pathlib.PurePath(row.file_name).parts for row in rows]
  splits = [SPLIT_FOLDERS.get(parts[0].lower()) if len(parts) > 1 else None for parts in tops]
  if None in splits or "train" not in splits:
    return list(rows)
  return [dataclasses.replace(row, split=split) for row, split in zip(rows, splits, strict=True)]


def fingerprint(folder: pathlib.Path, rows: Sequence[Row]) -> str:
  """Of names, texts and file sizes: a changed folder is not taken for the one packed before."""
  digest = hashlib.sha256()
  for row in rows:
    names = [row.file_name, *(file for _, file in row.files)]
    paths = [folder / name for name in names]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    text = row.text if len(row.texts) < 2 else row.texts
    digest.update(json.dumps([text, row.extra, row.files, names, sizes]).encode())
  return digest.hexdigest()[:16]
