"""A trained model in one small folder, to be handed on: any number of stages, no trainer's state.

config.json            {"version": …, "system": …}, as of a run, and "fits": a digest of that system
                       and of the tensors' names and shapes, which were compared as it was written
model.safetensors      every tree; a tensor's name is the tree's and the path in it
tokenizers/<i>/        one a text encoder

Weights are stored in float32 or, half as large, in bfloat16, and read as the model's config has
them. Where several stages are held, one folder is what `emu-jax sample` needs of them all.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.checkpoints.run import read_config
from emu_jax.errors import InputError
from emu_jax.systems.registry import from_config
from emu_jax.systems.system import check_trees
from emu_jax.typing import Params
from emu_jax.weights import files

STEM = "model"


def is_release(folder: str | pathlib.Path) -> bool:
  """Whether a folder holds such a model."""
  folder = pathlib.Path(folder)
  if not (folder / f"{STEM}.safetensors").is_file():
    return False
  return not {"system", "model"}.isdisjoint(read_config(folder) or {})  # "model" before version 2


def release_names(folder: str | pathlib.Path) -> tuple[str, ...]:
  """Names of the trees in a release."""
  return tuple(dict.fromkeys(name.split("/")[0] for name in files.Tensors(pathlib.Path(folder))))


def release_fits(folder: str | pathlib.Path) -> bool:
  """Whether tensors and system are still those that were compared when they were written."""
  folder = pathlib.Path(folder)
  config = read_config(folder) or {}
  shapes = {name: stored.shape for name, stored in files.Tensors(folder).items()}
  return "fits" in config and config["fits"] == _digest(config.get("system"), shapes)


def _digest(system: Any, shapes: Mapping[str, Sequence[int]]) -> str:
  """Of the JSON of a system, and of every tensor's name and shape."""
  both = [system, sorted((name, list(shape)) for name, shape in shapes.items())]
  return hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()[:16]


def load_release(folder: str | pathlib.Path, names: Collection[str] | None = None) -> Params:
  """Trees of a release by name, float32 numpy arrays on this host.

  Args:
    names: of the trees; None: all.
  Raises: InputError for a file that is cut off, or numbers that are not finite.
  """
  tensors = files.Tensors(pathlib.Path(folder))
  wanted = [name for name in tensors if names is None or name.split("/")[0] in names]
  flat = {name: array.astype(np.float32) for name, array in tensors.read_all(wanted).items()}
  return unflatten_dict(flat, sep="/")


def write_release(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  trees: Params,
  tokenizers: Sequence[pathlib.Path] = (),
) -> None:
  """Writes a model: what `config.json` says, trees by name as they are, and tokenizers' files.

  Args:
    config: {"version": …, "system": …}.
  Raises: InputError for trees that are not those of the system.
  """
  check_trees(from_config(dict(config), str(folder)), trees, "release")
  shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(dict(trees), sep="/").items()}
  fits = {"fits": _digest(config["system"], shapes)}
  files.write_json(folder / "config.json", dict(config) | fits)
  write_weights(folder, trees)
  for i, tokenizer in enumerate(tokenizers):
    files.copy_texts(tokenizer, folder / "tokenizers" / str(i))


def write_weights(folder: pathlib.Path, trees: Params) -> None:
  """Writes `model.safetensors` of trees by name."""
  flat = flatten_dict(jax.tree.map(np.asarray, dict(trees)), sep="/")
  bad = next(
    (name for name, a in flat.items() if not np.isfinite(a.astype(np.float32)).all()), None
  )
  if bad is not None:
    raise InputError(f"release: {bad} holds numbers that are not finite; take another checkpoint")
  # One file, whatever its size: it is what tells a release.
  files.write(folder, STEM, sorted(flat), flat.__getitem__, lambda name: 0)
