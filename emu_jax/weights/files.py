"""Safetensors folders, whole or sharded, read a tensor at a time and written whole or not at all.

Nothing here unpickles or runs code. A file is opened anew for each tensor: its header is small, and
closing it gives the pages of the last tensor back, so that a host holds one copy of a model and a
few tensors more.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import ml_dtypes  # noqa: F401 (teaches numpy the name bfloat16)
import numpy as np
import safetensors
import safetensors.numpy

from emu_jax.errors import InputError
from emu_jax.weights.arrays import require_finite

STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers
VARIANTS = ("", ".fp16")  # float16 files are found, so that what is said of them is to the point
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# What a tokenizer, a scheduler and an image processor consist of; nothing that could run.
TEXT_FILES = (".json", ".txt", ".model")
SHARD_BYTES = 5 * 2**30  # as diffusers and transformers shard


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a tensor is and what it is."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: str  # as safetensors names it: F32, BF16, F16, I64, …


class Tensors(Mapping[str, Stored]):
  """The tensors of a folder (or of one file) by name; `read` brings one of them.

  Raises: InputError for a folder without safetensors, a file that is cut off, or a shard that the
    index names and the folder lacks.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    self._stored: dict[str, Stored] = {}
    for file in _files(self.path):
      with _opened(file) as f:
        for name in f.keys():  # noqa: SIM118 (no mapping)
          one = f.get_slice(name)
          self._stored[name] = Stored(file, tuple(one.get_shape()), one.get_dtype())

  def __getitem__(self, name: str) -> Stored:
    return self._stored[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._stored)

  def __len__(self) -> int:
    return len(self._stored)

  def read(self, name: str) -> np.ndarray:
    """The tensor, in its own dtype, copied out of the file.

    Raises: InputError where it holds numbers that are not finite.
    """
    with _opened(self[name].file) as f:
      return self._checked(name, f.get_tensor(name))

  def read_all(self, names: Collection[str]) -> dict[str, np.ndarray]:
    """Tensors by name, as `read`; each file is opened once, which many small ones need."""
    by_file: dict[pathlib.Path, list[str]] = {}
    for name in names:
      by_file.setdefault(self[name].file, []).append(name)
    found = {}
    for file, chosen in by_file.items():
      with _opened(file) as f:
        found |= {name: self._checked(name, f.get_tensor(name)) for name in chosen}
    return found

  def _checked(self, name: str, array: np.ndarray) -> np.ndarray:
    return require_finite(array, f"weights: {self.path}: {name}")


@contextlib.contextmanager
def _opened(file: pathlib.Path):
  try:
    with safetensors.safe_open(file, framework="numpy") as f:
      yield f
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(
      f"weights: {file} is no whole safetensors file ({error}); download or copy it again"
    ) from error


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if path.is_file():
    if path.suffix in PICKLES:
      raise InputError(
        f"weights: {path} is a pickle, which can run code when opened; convert it to .safetensors"
      )
    return [path]
  if not path.is_dir():
    raise InputError(f"weights: there is no folder {path}; give one that diffusers wrote")
  for variant in VARIANTS:
    for stem in STEMS:
      whole = path / f"{stem}{variant}.safetensors"
      index = path / f"{stem}.safetensors.index{variant}.json"
      if whole.is_file():
        return [whole]
      if index.is_file():
        return _shards(index)
  names = sorted(p.name for p in path.iterdir() if p.is_file())
  if any(name.endswith(PICKLES) for name in names):
    pickle = next(name for name in names if name.endswith(PICKLES))
    raise InputError(
      f"weights: {path / pickle} is a pickle, which can run code when opened; give a folder with "
      ".safetensors"
    )
  raise InputError(
    f"weights: {path} holds none of {', '.join(f'{s}.safetensors' for s in STEMS)}; give a "
    "model's own folder" + (f" (it holds {', '.join(names[:6])})" if names else "")
  )


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f"weights: {index} has no 'weight_map'; download or copy it again")
  away = [name for name in weight_map.values() if pathlib.Path(str(name)).name != str(name)]
  if away:
    raise InputError(
      f"weights: {index} names {away[0]}, which is no file beside it; download or copy it again"
    )
  shards = sorted({index.parent / str(name) for name in weight_map.values()})
  missing = [shard.name for shard in shards if not shard.is_file()]
  if missing:
    raise InputError(
      f"weights: {index} names {missing[0]}, which {index.parent} does not hold "
      f"({len(missing)} of {len(shards)} shards are missing); download it too"
    )
  return shards


def read_json(path: pathlib.Path) -> dict:
  """A JSON object of a file; InputError where it is none."""
  try:
    values = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(f"weights: {path} is missing; give a folder that diffusers wrote") from error
  except (OSError, ValueError) as error:
    raise InputError(f"weights: {path} is not JSON ({error}); download it again") from error
  if not isinstance(values, dict):
    raise InputError(f"weights: {path} holds no JSON object; download it again")
  return values


def write_json(path: pathlib.Path, values: dict) -> None:
  """Writes indented JSON, and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values, indent=2) + "\n")


def copy_texts(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a folder's files of text, such as a tokenizer's, into a new one."""
  target.mkdir(parents=True)
  for file in sorted(source.iterdir()):
    if file.is_file() and file.suffix in TEXT_FILES:
      shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def staged(folder: str | pathlib.Path, who: str = "weights") -> Iterator[pathlib.Path]:
  """A temporary folder beside `folder` that takes its name once the block has ended well.

  Raises: InputError where `folder` exists with something in it, or cannot be made.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f"{who}: {folder} exists and is not empty; remove it or choose another name")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")
  except OSError as error:
    raise InputError(f"{who}: {folder} cannot be written ({error}); choose another") from error
  try:
    with partial as name:
      inner = pathlib.Path(name) / folder.name
      inner.mkdir()
      yield inner
      if folder.exists():
        folder.rmdir()
      os.replace(inner, folder)
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(
      f"{who}: {folder} cannot be written ({error}); make room or choose another place"
    ) from error


def write(
  folder: pathlib.Path,
  stem: str,
  names: Sequence[str],
  tensor: Callable[[str], np.ndarray],
  nbytes: Callable[[str], int],
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes tensors as `<stem>.safetensors`, or as shards with an index where they are too many.

  Args:
    tensor: makes a tensor when its shard is written, so that the host holds one shard beside the
      model.
    nbytes: its size, without making it.
  """
  shards: list[list[str]] = [[]]
  room = shard_bytes
  for name in names:
    if shards[-1] and nbytes(name) > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= nbytes(name)
  files = [f"{stem}.safetensors"]
  if len(shards) > 1:
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards, strict=True):
    path = folder / file
    path.touch()
    readers = path.stat().st_mode  # the library renames a private file of its own to it
    # PyTorch's libraries refuse files that do not say "pt".
    safetensors.numpy.save_file(
      {name: tensor(name) for name in shard}, path, metadata={"format": "pt"}
    )
    path.chmod(readers)
  if len(shards) > 1:
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = {"total_size": sum(nbytes(name) for name in names)}
    index = json.dumps({"metadata": total, "weight_map": weight_map}, indent=2, sort_keys=True)
    (folder / f"{stem}.safetensors.index.json").write_text(index + "\n")
