"""The page that raters open: one folder that needs no server and no network."""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from emu_jax.errors import InputError
from emu_jax.evaluation.juice.pairs import Pair, comparable, measured
from emu_jax.evaluation.juice.study import (
  QUESTIONS,
  Item,
  Key,
  drawn_order,
  drawn_sides,
  key_bytes,
  key_path,
)
from emu_jax.weights import files

STATIC = importlib.resources.files("emu_jax.evaluation.juice") / "static"
Progress = Callable[[Sequence[Pair]], Iterable[Pair]]


def write_page(
  out: pathlib.Path,
  pairs: Sequence[Pair],
  names: tuple[str, str],
  seed: int,
  post_process: bool = True,
  progress: Progress = iter,
) -> Key:
  """Writes a study's folder and, beside it, the key; both appear, or neither.

  The same pairs and seed give the same bytes. Nothing in the folder tells the models apart: files
  are named by a digest of what they hold, and the pairs and their sides are shuffled.

  Args:
    names: of A and B in reports.
    post_process: bring both clips of a pair to the same shape, size, rate and length; off: copy the
      files, whose sizes or formats may tell raters which is which.
    progress: wraps the pairs as they are made.

  Raises:
    InputError: the folder or the key exists, or a clip cannot be read.
  """
  if key_path(out).exists():
    raise InputError(f"juice: {key_path(out)} exists; remove it or choose another name")
  sides, order = drawn_sides(len(pairs), seed), drawn_order(len(pairs), seed)
  with _key_writer(out) as write_key, files.staged(out, "juice") as folder:
    clips = {path: measured(path) for pair in pairs for path in (pair.a, pair.b)}
    (folder / "videos").mkdir()
    listed, items = [], []
    for side, pair in zip(sides, progress([pairs[i] for i in order]), strict=True):
      if post_process:
        made = [(data, ".mp4") for data in comparable(clips[pair.a], clips[pair.b])]
      else:
        made = [(path.read_bytes(), path.suffix.lower()) for path in (pair.a, pair.b)]
      left, right = (_store(folder, *clip) for clip in made[:: 1 if side == "left" else -1])
      content = {"prompt": pair.prompt, "left": left, "right": right}
      item_id = _digest([len(items), content])[:12]
      listed.append({"id": item_id} | content)
      items.append(Item(item_id, pair.prompt, side, str(pair.a), str(pair.b)))
    questions = [dataclasses.asdict(question) for question in QUESTIONS]
    key = Key(_digest([questions, listed])[:16], *names, seed, tuple(items))
    study = {"id": key.study, "questions": questions, "items": listed}
    for file in STATIC.iterdir():
      (folder / file.name).write_bytes(file.read_bytes())
    (folder / "study.js").write_text(f"const STUDY = {json.dumps(study, indent=1)};\n")
    write_key(key)
  return key


@contextlib.contextmanager
def _key_writer(out: pathlib.Path) -> Iterator[Callable[[Key], None]]:
  """A function that writes the key; taken away again where the folder could not get its name.

  Another's key, written meanwhile, is neither replaced nor taken away.
  """
  path, written = key_path(out), []

  def write(key: Key) -> None:
    try:
      with path.open("xb") as file:
        written.append(path)
        file.write(key_bytes(key))
    except FileExistsError as error:
      raise InputError(f"juice: {path} exists; remove it or choose another name") from error

  try:
    yield write
  except BaseException:
    for file in written:
      file.unlink(missing_ok=True)
    raise


def _store(folder: pathlib.Path, data: bytes, ending: str) -> str:
  """Writes a clip under a name that says nothing of where it came from."""
  name = f"videos/{hashlib.sha256(data).hexdigest()[:20]}{ending}"
  (folder / name).write_bytes(data)
  return name


def _digest(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
