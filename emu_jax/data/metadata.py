"""The lines that name the clips of a user's folder and caption them.

The folder is laid out as Hugging Face's VideoFolder: `metadata.jsonl` or `metadata.csv`, a line a
clip with the columns `file_name` (relative to the folder) and `text`; other columns become JSON.
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from emu_jax.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv")
REQUIRED = ("file_name", "text")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of metadata."""

  file_name: str
  text: str
  extra: str  # the other columns, as JSON; "" where there are none


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


def fingerprint(folder: pathlib.Path, rows: Sequence[Row]) -> str:
  """Of names, texts and file sizes: a changed folder is not taken for the one packed before."""
  digest = hashlib.sha256()
  for row in rows:
    path = folder / row.file_name
    size = path.stat().st_size if path.is_file() else -1
    digest.update(json.dumps([row.file_name, row.text, row.extra, size]).encode())
  return digest.hexdigest()[:16]
