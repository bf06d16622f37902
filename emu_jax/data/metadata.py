"""The lines that name the clips of a user's folder and caption them.

The folder is laid out as Hugging Face's VideoFolder: `metadata.jsonl` or `metadata.csv`, a line a
clip with the columns `file_name` (relative to the folder) and `text`. A column `<array>_file_name`,
such as `source_file_name`, names a further file of the same moments, which becomes that array of
the record. A column whose values are all numbers becomes a named number of the record. Columns that
name no file also become JSON, as they are.
"""

import csv
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emu_jax.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv")
REQUIRED = ("file_name", "text")
FILE_COLUMN = "_file_name"  # ends the name of a column of further files
RESERVED = ("frames", "moments", "size", "fps", "caption", "name", "truth", "numbers")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of metadata."""

  file_name: str
  text: str
  extra: str  # the other columns, as JSON; "" where there are none
  files: tuple[tuple[str, str], ...] = ()  # name and file of each further array
  numbers: tuple[tuple[str, float], ...] = ()  # NaN where the line has none


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the records of a folder have beside frames and caption."""

  arrays: tuple[str, ...]
  numbers: tuple[str, ...]

  @classmethod
  def of(cls, rows: Sequence[Row]) -> "Layout":
    """Of all lines together: a line that lacks an array of the others is no record of theirs."""
    arrays = dict.fromkeys(name for row in rows for name, _ in row.files)
    return cls(("frames", *arrays), tuple(name for name, _ in rows[0].numbers))


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
  try:
    lines = list(table)
  except (csv.Error, UnicodeDecodeError) as error:
    raise InputError(
      f"prepare: {found[0]} cannot be read ({error}); write it as UTF-8, a line a clip"
    ) from error
  if not lines:
    raise InputError(f"prepare: {found[0]} holds 0 clips; write a line for each")
  numeric = _numeric_columns([entry for _, entry in lines])
  rows = [_row(found[0], number, entry, numeric) for number, entry in lines]
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


def _numeric_columns(entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """The columns of which every value that is there is a number, or text that spells one."""
  columns = dict.fromkeys(name for entry in entries for name in entry)
  free = [
    name
    for name in columns
    if name not in REQUIRED and not name.endswith(FILE_COLUMN) and name.isidentifier()
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


def _row(path: pathlib.Path, number: int, entry: dict, numeric: Sequence[str]) -> Row:
  for column in REQUIRED:
    if not isinstance(entry.get(column), str):
      raise InputError(
        f"prepare: {path} line {number} has no text in the column {column!r}, its columns are "
        f"{sorted(entry)}; every line needs file_name and text"
      )
  files = []
  for column in (name for name in entry if name.endswith(FILE_COLUMN) and entry[name]):
    array = column.removesuffix(FILE_COLUMN)
    if not array.isidentifier() or array in RESERVED or not isinstance(entry[column], str):
      raise InputError(
        f"prepare: {path} line {number}: the column {column!r} does not name the file of an array; "
        f"write a file name into it, and call the array other than {', '.join(RESERVED)}"
      )
    files.append((array, entry[column]))
  kept = (*REQUIRED, *(name for name in entry if name.endswith(FILE_COLUMN)))
  extra = {name: value for name, value in entry.items() if name not in kept}
  nan = lambda value: math.nan if value is None else value
  numbers = tuple((name, nan(_number(entry.get(name)))) for name in numeric)
  try:
    "".join([entry["file_name"], entry["text"], *(file for _, file in files)]).encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f"prepare: {path} line {number} holds half of a character ({error.reason}); write whole ones"
    ) from error
  text = json.dumps(extra) if extra else ""
  return Row(entry["file_name"], entry["text"], text, tuple(files), numbers)


def fingerprint(folder: pathlib.Path, rows: Sequence[Row]) -> str:
  """Of names, texts and file sizes: a changed folder is not taken for the one packed before."""
  digest = hashlib.sha256()
  for row in rows:
    names = [row.file_name, *(file for _, file in row.files)]
    paths = [folder / name for name in names]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    digest.update(json.dumps([row.text, row.extra, row.files, names, sizes]).encode())
  return digest.hexdigest()[:16]
