"""A trained model in one small folder, to be handed on: any number of stages, no trainer's state.

config.json            {"version": …, "system": …}, as of a run
model.safetensors      every tree; a tensor's name is the tree's and the path in it
tokenizers/<i>/        one a text encoder

Weights are stored in float32 or, half as large, in bfloat16, and read as the model's config has
them. Where several stages are held, one folder is what `emu-jax sample` needs of them all.
"""

import json
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.checkpoints.run import read_config
from emu_jax.errors import InputError
from emu_jax.typing import Params
from emu_jax.weights import files

STEM = "model"
# What a tokenizer, a scheduler and an image processor consist of; nothing that could run.
TEXT_FILES = (".json", ".txt", ".model")


def is_release(folder: str | pathlib.Path) -> bool:
  """Whether a folder holds such a model."""
  folder = pathlib.Path(folder)
  if not (folder / f"{STEM}.safetensors").is_file():
    return False
  return not {"system", "model"}.isdisjoint(read_config(folder) or {})  # "model" before version 2


def release_names(folder: str | pathlib.Path) -> tuple[str, ...]:
  """Names of the trees in a release."""
  return tuple(dict.fromkeys(name.split("/")[0] for name in files.Tensors(pathlib.Path(folder))))


def load_release(folder: str | pathlib.Path, names: Collection[str] | None = None) -> Params:
  """Trees of a release by name, float32 numpy arrays on this host.

  Args:
    names: of the trees; None: all.
  Raises: InputError for a file that is cut off.
  """
  tensors = files.Tensors(pathlib.Path(folder))
  wanted = [name for name in tensors if names is None or name.split("/")[0] in names]
  flat = {name: tensors.read(name).astype(np.float32) for name in wanted}
  return unflatten_dict(flat, sep="/")


def write_release(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  trees: Params,
  tokenizers: Sequence[pathlib.Path] = (),
  dtype: str | None = None,
) -> None:
  """Writes a model: what `config.json` says, trees by name and tokenizers' files.

  Args:
    config: {"version": …, "system": …}.
    dtype: as `write_weights`.
  """
  write_json(folder / "config.json", dict(config))
  write_weights(folder, trees, dtype)
  for i, tokenizer in enumerate(tokenizers):
    copy_texts(tokenizer, folder / "tokenizers" / str(i))


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


def write_weights(folder: pathlib.Path, trees: Params, dtype: str | None) -> None:
  """Writes `model.safetensors` of trees by name.

  Args:
    dtype: stored precision; None: float32. The latents' statistics stay float32, being few.
  """
  flat = flatten_dict(jax.tree.map(np.asarray, dict(trees)), sep="/")
  bad = next(
    (name for name, a in flat.items() if not np.isfinite(a.astype(np.float32)).all()), None
  )
  if bad is not None:
    raise InputError(f"release: {bad} holds numbers that are not finite; take another checkpoint")

  def tensor(name):
    precision = np.float32 if dtype is None or name.startswith("latents/") else dtype
    return flat[name].astype(precision)

  # One file, whatever its size: it is what tells a release.
  files.write(folder, STEM, sorted(flat), tensor, lambda name: 0)
