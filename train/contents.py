"""What the paths of a config led to when its run began: they may move, what they lead to may not.

A run notes a digest of each in `began_with.json`. Records are read again whenever it continues, so
theirs must be the same wherever they lie. Everything else was read once and lies in the run's own
folder since: where it is missing by now, nothing is lost.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from emu_jax.checkpoints.run import complete, latest_step, read_config
from emu_jax.checkpoints.stored import newest_run
from emu_jax.data.index import FILE as INDEX
from emu_jax.data.latent_records import ENCODING
from emu_jax.errors import InputError
from emu_jax.train.checkpoint import TodaysForm, replace_text

NOTE = "began_with.json"
SOURCES = "data.sources"
TEXTS, SMALL = (".json", ".txt", ".model"), 2**16  # suffixes and bytes of files that are read


def paths(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """The fields of config.json that name files, and what they name."""
  data, begins = values["data"], values["init_from"]
  return {
    SOURCES: tuple(data["sources"]),
    "data.tokenizers": tuple(data["tokenizers"]),
    "init_from": (begins,) if begins else (),
    "init_trees": tuple(values["init_trees"]),
  }


def digests(path: str | pathlib.Path) -> tuple[str, ...]:
  """Equal for copies of one thing, and found without reading records or weights; () of nothing.

  A run has one of each checkpoint, the newest first, of the times at which it was written; records
  one of their index and the lengths of their files; anything else one of its small files.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return ()
  if (path / INDEX).is_file():
    return (records_digest(path),)
  run = newest_run(path)
  if latest_step(run) is not None:
    found = [p for p in (run / "checkpoints").iterdir() if p.name.isdigit() and complete(p)]
    newest = sorted(found, key=lambda p: -int(p.name))
    written = [p / "_CHECKPOINT_METADATA" for p in newest]
    return tuple(_digest([file], run, [file]) for file in written)
  files = [path] if path.is_file() else _files(path)
  small = [file for file in files if file.suffix in TEXTS or file.stat().st_size <= SMALL]
  return (_digest(files, path, small),)


def records_digest(folder: pathlib.Path) -> str:
  """Of packed records: captions, names, sizes and lengths in their order, and files' lengths."""
  described = [folder / INDEX, *folder.glob(ENCODING)]
  files = [file for file in _files(folder) if ".array_record" in file.name]
  return _digest([*described, *files], folder, described)


def note(run_dir: pathlib.Path, config: str) -> None:
  """Writes down what a run begins with; of one that has checkpoints, only where that is missing.

  Args:
    config: the whole experiment, as config.json has it.
  """
  if jax.process_index() == 0 and (latest_step(run_dir) is None or not (run_dir / NOTE).is_file()):
    found = {name: [_noted(text) for text in texts] for name, texts in _paths(config).items()}
    replace_text(run_dir / NOTE, json.dumps(found, indent=1) + "\n")


def moved(run_dir: pathlib.Path, config: str, todays_form: TodaysForm) -> tuple[str, ...]:
  """Fields whose paths may differ from those that a run began with.

  Args:
    config: as of `note`.
    todays_form: as of `emu_jax.train.checkpoint.claim`.
  Raises: InputError where one leads to something else by now.
  """
  values = read_config(run_dir)
  if latest_step(run_dir) is None or values is None:
    return ()
  began = paths(todays_form(values, str(run_dir / "config.json")))
  noted = json.loads((run_dir / NOTE).read_text()) if (run_dir / NOTE).is_file() else {}
  fields = []
  for name, now in _paths(config).items():
    was = began[name]
    if [_tree(text) for text in was] != [_tree(text) for text in now]:
      continue  # not the same things in other places
    known = noted.get(name) or [None] * len(now)
    for before, after, digest in zip(was, now, known, strict=True):
      if before != after or name == SOURCES:
        _check(run_dir, name, before, after, digest)
    fields.append(name)
  return tuple(fields)


def _check(run_dir: pathlib.Path, name: str, before: str, after: str, digest: str | None) -> None:
  found = digests(_path(after))
  known = (digest,) if digest else digests(_path(before))
  if set(known) & set(found):
    return
  if name == SOURCES:
    raise InputError(
      f"{run_dir}: began with other records than {after} holds: their digest is "
      f"{', '.join(known) or 'unknown'} there and {', '.join(found) or 'none'} here; give those "
      f"it began with ({before}), or choose another directory"
    )
  if known and found:
    raise InputError(
      f"{run_dir}: began with {name}={before}, and {after} holds something else; a run that "
      "continues reads neither: give the same, or choose another directory"
    )


def _paths(config: str) -> dict[str, tuple[str, ...]]:
  return paths(json.loads(config))


def _noted(text: str) -> str | None:
  return next(iter(digests(_path(text))), None)


def _path(text: str) -> str:
  """Of `folder` and of `tree=folder`."""
  return text.rpartition("=")[2]


def _tree(text: str) -> str:
  return text.rpartition("=")[0]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(file for file in folder.rglob("*") if file.is_file())


def _digest(
  files: Sequence[pathlib.Path], folder: pathlib.Path, read: Collection[pathlib.Path]
) -> str:
  """Of names and lengths of files, and of the bytes of those to `read`."""
  total = hashlib.sha256()
  for file in files:
    name = file.relative_to(folder) if file != folder else file.name
    total.update(f"{name} {file.stat().st_size}\n".encode())
    if file in read:
      total.update(file.read_bytes())
  return total.hexdigest()[:16]
