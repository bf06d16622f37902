"""A table of metadata, a line a clip: `.jsonl`, `.csv` or `.parquet` -> columns by line.

All of a table is read and checked before a clip is opened; what is wrong with it is told by file
and line.
"""

import csv
import dataclasses
import importlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from emu_jax.errors import InputError

SUFFIXES = (".jsonl", ".csv", ".parquet")
DELIMITERS = ",;\t"  # spreadsheets write the one of their language
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a table."""

  place: str  # file and number, for messages
  columns: dict[str, Any]


def read(path: pathlib.Path) -> list[Line]:
  """The lines of a table.

  Raises: InputError, in one line, for a table that cannot be read whole.
  """
  readers = {".jsonl": _json_lines, ".csv": _csv_lines, ".parquet": _parquet_lines}
  try:
    lines = list(readers[path.suffix](path))
  except OSError as error:
    raise InputError(f"prepare: {path} cannot be read ({error}); see to the file") from error
  if not lines:
    raise InputError(f"prepare: {path} holds 0 clips; write a line for each")
  return lines


def utf8(path: pathlib.Path) -> str:
  """The text of a file.

  Raises: InputError that names the first line that is not UTF-8; OSError.
  """
  data = path.read_bytes()
  line = None
  try:
    text = data.decode("utf-8-sig")
    if "\0" in text:
      line, reason = text.count("\n", 0, text.index("\0")) + 1, "it holds zero bytes, as UTF-16 has"
  except UnicodeDecodeError as error:
    line, reason = data.count(b"\n", 0, error.start) + 1, f"byte {data[error.start]:#x}"
  if data.startswith(UTF16_MARKS):
    line, reason = 1, "it begins as UTF-16 does"
  if line:
    raise InputError(f"prepare: {path} line {line} is not UTF-8 ({reason}); save the file as UTF-8")
  return text


def _json_lines(path: pathlib.Path) -> Iterator[Line]:
  for number, line in enumerate(utf8(path).split("\n"), 1):
    if not line.strip():
      continue
    place = f"{path} line {number}"
    try:
      yield Line(place, dict(json.loads(line)))
    except (ValueError, TypeError, RecursionError) as error:
      raise InputError(
        f'prepare: {place} is not a JSON object ({error}); write {{"file_name": ..., "text": ...}}'
      ) from error


def _csv_lines(path: pathlib.Path) -> Iterator[Line]:
  text = utf8(path)
  first = text.split("\n", 1)[0]
  delimiter = max(DELIMITERS, key=first.count)
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  header, begins = None, 1
  try:
    for cells in reader:
      place, begins = f"{path} line {begins}", reader.line_num + 1
      if not cells:
        continue
      if header is None:
        header = cells
        if len(set(header)) < len(header):
          raise InputError(f"prepare: {place} names a column twice: {header}; rename one")
        continue
      # Both a short line and a long one mean a stray or missing comma.
      if len(cells) != len(header):
        raise InputError(
          f"prepare: {place} has not the {len(header)} columns of its header; put quotation marks "
          "around text that holds commas"
        )
      if any(_swallows(cell, cells, delimiter) for cell in cells):
        raise InputError(
          f"prepare: {place} begins a text that runs over the lines after it, which look like "
          "clips of their own; close its quotation mark"
        )
      yield Line(place, dict(zip(header, cells, strict=True)))
  except csv.Error as error:
    raise InputError(
      f"prepare: {path} line {begins} cannot be read ({error}); close its quotation marks, and "
      'write "" for one within a text'
    ) from error


def _swallows(cell: str, cells: list[str], delimiter: str) -> bool:
  """Whether a quoted text holds the end of one line of the table and the beginning of the next.

  That is: a line of it has a delimiter and a cell that ends as a file name of the same line does.
  """
  if "\n" not in cell:
    return False
  endings = {os.path.splitext(other)[1].lower() for other in cells if "\n" not in other}
  endings |= {ending for part in cell.split(delimiter) if (ending := _file_ending(part))}
  endings.discard("")
  later = [line.split(delimiter) for line in cell.split("\n")[1:] if delimiter in line]
  return any(part.strip().lower().endswith(tuple(endings)) for parts in later for part in parts)


def _file_ending(text: str) -> str:
  """The ending of what may be a file's name at the end of a text."""
  ending = os.path.splitext(text.strip())[1].lower()
  return ending if 3 <= len(ending) <= 5 and ending[1:].isalnum() else ""


def _parquet_lines(path: pathlib.Path) -> Iterator[Line]:
  try:
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
  except ImportError as error:
    raise InputError(
      f"prepare: {path} needs the package pyarrow ({error}); install it, or write metadata.csv"
    ) from error
  try:
    schema = parquet.read_schema(path)
    whole = [f.name for f in schema if _holds_bytes(pyarrow, f.type)]
    if whole:
      raise InputError(
        f"prepare: {path} holds bytes in the column(s) {', '.join(whole)}; write each clip to a "
        "file, and the file's name into a column file_name"
      )
    rows = parquet.read_table(path).to_pylist()
  except pyarrow.ArrowException as error:
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(f"prepare: {path} is no Parquet file ({reason}); write it again") from error
  for number, columns in enumerate(rows, 1):
    yield Line(f"{path} row {number}", columns)


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
  types = pyarrow.types
  return types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)
