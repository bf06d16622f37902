"""Many requests in one call: a file of prompts becomes a folder of clips, in batches.

<line>_<sample>.mp4    of line 0, 1, … of the file, sample 0, 1, … of each
metadata.jsonl         {"file_name", "text", "seed", …} of every file that is there
request.json           what was asked for: another request does not go into the same folder

A file that is there is whole, and is not made again: the same command continues what was begun.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from emu_jax import media
from emu_jax.checkpoints.stored import Stored
from emu_jax.cli.options import Output, plain
from emu_jax.cli.output import check, enlarged, hint
from emu_jax.cli.progress import Counter, working
from emu_jax.config import to_dict
from emu_jax.errors import InputError
from emu_jax.model import PER_EXAMPLE, Model, loaded, outlined
from emu_jax.systems import fields as requests
from emu_jax.weights.files import read_json

METADATA, REQUEST = "metadata.jsonl", "request.json"
BETWEEN_WRITES = 10.0  # seconds between two versions of the metadata


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a file of requests.

  Attributes:
    where: the file and the line's number in it, for messages.
    fields: of the request.
    text: what the example is of, where the request has no prompt.
    names: of the fields that the line itself sets.
  """

  where: str
  fields: Mapping[str, Any]
  text: str = ""
  names: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Example:
  """One file to make: a request for one example, and what the metadata says of it."""

  file: str
  request: Any
  row: Mapping[str, Any]


def run(
  found: Stored,
  task: str,
  fields: Mapping[str, Any],
  output: Output,
  loading: Mapping[str, Any],
  precision: str | None,
) -> None:
  """Makes every example of a file of requests that is not there yet.

  Args:
    fields: that every line begins with.
    loading: options of `emu_jax.model.loaded`.
    precision: as it was asked for; files of another one do not lie in one folder.
  """
  out = output.out
  suffix = output.suffix or found.system.tasks()[task].suffix
  if out.suffix.lower() in media.ENDINGS:
    raise InputError(f"output {out}: many examples go to a folder; give a name without an ending")
  if out.exists() and not out.is_dir():
    raise InputError(f"output {out}: is a file; give the name of a folder")
  media.check_output(out.with_name(f"{out.name}{suffix}"))
  with working() as say:
    say("checking")
    model = outlined(found)
    lines = read_lines(found.system.tasks()[task].request, output.prompts, fields)
    groups = planned(model, task, lines, out, output.samples, suffix, output.enlarge)
    examples = [example for group in groups for example in group]
    claim(out, _request_record(found, task, examples, output, suffix, precision))
    missing = [example for example in examples if not (out / example.file).is_file()]
    hint(model, (example.request for example in missing))
    if missing:
      say(f"loading {found.where}")
      model = loaded(found, **loading)
      say(f"making {len(missing)} of {len(examples)} examples")
      _make(model, task, groups, out, output)
    write_metadata(out, examples)
  print(f"{out}: {len(examples)} files, {len(missing)} of them new; {METADATA} names them")


def read_lines(request: type, path: pathlib.Path | None, fields: Mapping[str, Any]) -> list[Line]:
  """The lines of a file of requests, each with the fields that all have; without a file one line.

  Empty lines do not count. Files that a line names are relative to the file's folder.

  Raises: InputError for a file that cannot be read, or a line that is no such request.
  """
  if path is None:
    return [Line("", fields)]
  table = {field.name for field in dataclasses.fields(request)}
  try:
    text = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"prompts {path}: cannot be read ({error}); name a text file") from error
  kind = path.suffix.lower()
  if kind not in (".txt", ".jsonl"):
    raise InputError(f"prompts {path}: the ending {path.suffix!r} is not .txt or .jsonl")
  if kind == ".txt" and "prompt" not in table:
    raise InputError(
      f"prompts {path}: the request has no prompt; name a .jsonl file with {', '.join(table)}"
    )
  lines = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      where = f"prompts {path} line {number}"
      row = {"prompt": line.strip()} if kind == ".txt" else _object(line, where)
      lines.append(_line(request, row, where, path.parent, fields))
  if not lines:
    raise InputError(f"prompts {path}: holds no line; write one for each request")
  for name in dict.fromkeys(["prompt", *requests.positional(request)]):
    if fields.get(name) and all(name in line.names for line in lines):
      raise InputError(
        f"prompts {path}: every line has a {name!r}, so {str(fields[name])!r} is never used; leave "
        "one of them out"
      )
  return lines


def _object(line: str, where: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise InputError(f"{where}: is not JSON ({error}); write an object with fields") from error
  if not isinstance(row, dict):
    raise InputError(f'{where}: is no JSON object; write one such as {{"prompt": "..."}}')
  return row


def _line(
  request: type, row: dict[str, Any], where: str, folder: pathlib.Path, fields: Mapping[str, Any]
) -> Line:
  table = [field.name for field in dataclasses.fields(request)]
  text = row.pop("text", None) if "text" not in table else None
  if text is not None and "prompt" in table:
    row = {"prompt": text, **row}
  if unknown := [name for name in row if name not in table]:
    raise InputError(f"{where}: has the field {unknown[0]!r}; a request has {', '.join(table)}")
  for name in requests.files(request):
    if name in row and row[name] is not None:
      if not isinstance(row[name], str):
        raise InputError(f"{where}: {name}={row[name]!r} is no file; give its name")
      row[name] = folder / row[name]
  if absent := [n for n in requests.required(request) if n not in row and n not in fields]:
    raise InputError(f"{where}: has no field {absent[0]!r}; write it, or give it to all lines")
  return Line(where, {**fields, **row}, str(text or ""), tuple(row))


def planned(
  model: Model,
  task: str,
  lines: Sequence[Line],
  out: pathlib.Path,
  samples: int,
  suffix: str,
  enlarge: int,
) -> list[list[Example]]:
  """The examples of all lines, those together that one program makes in one batch.

  Sample j of line i has the seed `seed + i samples + j`; a line with a seed `seed + j`. A line with
  media of which every example is there is a group of its own, so that they are not read again.

  Raises: InputError, with the line, for what the model cannot do.
  """
  groups: dict[Any, list[Example]] = {}
  for i, line in enumerate(lines):
    try:
      first = model.request(task, **line.fields)
      files = [f"{i:05d}_{j:02d}{suffix}" for j in range(samples)]
      media_given = any(getattr(first, name) is not None for name in requests.files(type(first)))
      if media_given and all((out / file).is_file() for file in files):
        key = i
      else:
        arrays = check(model, task, first, enlarge)
        if len(arrays["seeds"]) != 1:
          raise InputError(f"{task}: a line is one example; write a line for each prompt")
        key = (model.steps(task, first), _shared(arrays))
      shift = 0 if "seed" in line.names else i * samples
      for j, file in enumerate(files):
        request = first
        row = {"text": getattr(first, "prompt", line.text)}
        if hasattr(first, "seed"):
          request = dataclasses.replace(first, seed=first.seed + shift + j)
          row["seed"] = request.seed
        row |= {n: v for n, v in plain(line.fields).items() if n not in ("prompt", "seed")}
        groups.setdefault(key, []).append(Example(file, request, {"file_name": file, **row}))
    except InputError as error:
      raise InputError(f"{line.where}: {error}" if line.where else str(error)) from error
  return list(groups.values())


def _shared(arrays: Mapping[str, Any]) -> tuple:
  """What the examples of one batch have in common: numbers, and the shapes of what is not."""
  found = []
  for name, value in sorted(arrays.items()):
    if name in PER_EXAMPLE:
      continue
    is_media = np.ndim(value) == 5
    found.append((name, value.shape[1:] if is_media else np.asarray(value).tobytes()))
  return tuple(found)


def _request_record(
  found: Stored,
  task: str,
  examples: Sequence[Example],
  output: Output,
  suffix: str,
  precision: str | None,
) -> dict[str, Any]:
  """What a folder was made of, as JSON; nothing in it depends on how examples are batched."""
  every = [plain(vars(example.request)) | {"file": example.file} for example in examples]
  every.sort(key=lambda fields: fields["file"])
  system = json.dumps(to_dict(found.system), sort_keys=True)
  return {
    "task": task,
    "checkpoint": str(pathlib.Path(found.where).absolute()),
    "step": found.step,
    "system": _digest(system),
    "precision": precision,
    "samples": output.samples,
    "suffix": suffix,
    "enlarge": output.enlarge,
    "requests": _digest(json.dumps(every, sort_keys=True, default=str)),
  }


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(out: pathlib.Path, wanted: Mapping[str, Any]) -> None:
  """Makes a folder that belongs to a request.

  Raises: InputError for a folder of another request, or with other files in it.
  """
  path = out / REQUEST
  if path.is_file():
    before = read_json(path)
    if other := [name for name in wanted if before.get(name) != wanted[name]]:
      names = ", ".join(other)
      raise InputError(
        f"{out}: holds the examples of another request ({names}); give another folder"
      )
    return
  if out.is_dir() and any(out.iterdir()):
    raise InputError(f"{out}: holds other files; give a new folder")
  out.mkdir(exist_ok=True)
  media.write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _make(
  model: Model,
  task: str,
  groups: Sequence[Sequence[Example]],
  out: pathlib.Path,
  output: Output,
) -> None:
  """Writes what is missing of each group, a batch at a time."""
  batches = [batch for group in groups for batch in _batches(group, out, output.batch_size)]
  everything = [example for group in groups for example in group]
  written = time.monotonic()
  total = sum(number for _, number in batches)
  try:
    with Counter("making", "examples", total) as counter:
      for k, (batch, number) in enumerate(batches, 1):
        where = f"batch {k} of {len(batches)}"
        clips = model.run_all(
          task,
          [example.request for example in batch],
          progress=lambda step, where=where: counter.says(f"{where}, {step}"),
        )
        counter.says(f"{where}, writing")
        for example, frames in zip(batch[:number], clips.frames[:number], strict=True):
          media.save_video(out / example.file, enlarged(frames, output.enlarge)[0], clips.fps)
        counter.add(number)
        if time.monotonic() - written > BETWEEN_WRITES:
          write_metadata(out, everything)
          written = time.monotonic()
  finally:  # an interruption leaves a folder that can be used
    write_metadata(out, everything)


def _batches(
  group: Sequence[Example], out: pathlib.Path, batch_size: int
) -> Iterator[tuple[list[Example], int]]:
  """Batches of one size, the last filled up with its last example, and how many of each count."""
  size = min(batch_size, len(group))  # of the whole group, so that continuing compiles nothing
  missing = [example for example in group if not (out / example.file).is_file()]
  for start in range(0, len(missing), size):
    batch = missing[start : start + size]
    yield batch + batch[-1:] * (size - len(batch)), len(batch)


def write_metadata(out: pathlib.Path, examples: Sequence[Example]) -> None:
  """Names the files that are there, in the order of their names."""
  there = sorted(
    (example for example in examples if (out / example.file).is_file()), key=lambda e: e.file
  )
  lines = "".join(json.dumps(dict(example.row), ensure_ascii=False) + "\n" for example in there)
  media.write_whole(out / METADATA, lines.encode())
