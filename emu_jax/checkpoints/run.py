"""What a run of emu-train leaves on disk, read without the trainer.

config.json            what the run is
frozen/                trees that did not train and that no earlier run holds
inherited.json         trees that an earlier run holds: which, where, and the digest of each
checkpoints/<step>/    state, ema (averages of what trained), data (position)
tokenizers/<i>/        one a text encoder

Of a tree that trained in some of its leaves, the average holds these, and frozen/ or an earlier run
the rest.
Runs of before version 2 hold every tree themselves, some in encoders/.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.errors import InputError
from emu_jax.weights.arrays import load_numpy, stored_metadata

FROZEN, ENCODERS, INHERITED = "frozen", "encoders", "inherited.json"


def latest_step(run_dir: str | pathlib.Path) -> int | None:
  """The newest complete checkpoint of a run; None where there is none."""
  folder = pathlib.Path(run_dir) / "checkpoints"
  steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit() and complete(p)]
  return max(steps, default=None)


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a tree lies that a run inherited.

  Attributes:
    run: the folder that holds it, relative to the folder of the run that inherited it.
    item: what of it: "frozen", "encoders" or "checkpoints/<step>/ema".
    digest: of the tree's names, shapes, dtypes and bytes.
  """

  run: str
  item: str
  digest: str


def origins(run_dir: str | pathlib.Path) -> dict[str, Origin]:
  """Where the trees of a run lie that it inherited from others, by name."""
  path = pathlib.Path(run_dir) / INHERITED
  if not path.is_file():
    return {}
  try:
    return {name: Origin(**values) for name, values in json.loads(path.read_text()).items()}
  except (ValueError, TypeError, AttributeError) as error:
    raise InputError(f"{path} cannot be read ({error}); copy it from the original run") from error


def write_origins(run_dir: pathlib.Path, found: Mapping[str, Origin]) -> None:
  """Writes what `origins` reads, whole or not at all."""
  path = run_dir / INHERITED
  part = path.with_name(path.name + ".part")
  values = {name: dataclasses.asdict(origin) for name, origin in found.items()}
  part.write_text(json.dumps(values, indent=1) + "\n")
  os.replace(part, path)


def items(run_dir: str | pathlib.Path, step: int | None = None) -> dict[str, tuple[str, ...]]:
  """Which items of a run hold leaves of each tree that lies in its own folder, by the tree's name.

  Args:
    step: of the checkpoint; None: the newest.
  Raises: InputError where it holds no checkpoint.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  step = latest_step(run_dir) if step is None else step
  if step is None:
    raise InputError(
      f"{run_dir} holds no checkpoint; give the folder of a run of emu-train, one with"
      " checkpoints/<step>/ in it"
    )
  ema = f"checkpoints/{step}/ema"
  if not (run_dir / ema).is_dir():
    raise InputError(f"{run_dir / ema} is missing by now; try again, with the newest checkpoint")
  found: dict[str, tuple[str, ...]] = {}
  for item in (FROZEN, ENCODERS, ema):
    for name in stored_metadata(run_dir / item) if (run_dir / item).is_dir() else ():
      found[name] = (*found.get(name, ()), item)
  return found


def origin_of(
  run_dir: str | pathlib.Path, name: str, tree: Any, step: int | None = None
) -> Origin | None:
  """Where a run's tree lies, as an absolute path; None where several places hold parts of it.

  Args:
    tree: as it was loaded.
    step: of the checkpoint that it was loaded of; None: the newest.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  stored_items, inherited = items(run_dir, step).get(name, ()), origins(run_dir).get(name)
  if len(stored_items) + bool(inherited) > 1:
    return None
  if stored_items:
    return Origin(str(run_dir), *stored_items, digest(tree))
  return dataclasses.replace(inherited, run=str((run_dir / inherited.run).resolve()))


def load_trees(
  run_dir: str | pathlib.Path, names: Collection[str] | None = None, step: int | None = None
) -> dict[str, Any]:
  """Trees of a run as numpy arrays on this host: averages of what trained, and what it inherited.

  Args:
    names: of the trees; None: all.
    step: of the checkpoint; None: the newest.

  Raises: InputError where a tree is missing, or is not what the run began with.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  stored_items, inherited = items(run_dir, step), origins(run_dir)
  wanted = set(stored_items) | set(inherited) if names is None else set(names)
  trees = {name: _inherited(run_dir, name, inherited[name]) for name in wanted & set(inherited)}
  used = {item for several in stored_items.values() for item in several}
  for item in sorted(used, key=lambda item: item.startswith("checkpoints")):  # averages last
    chosen = [name for name in wanted if item in stored_items.get(name, ())]
    for name, tree in load_numpy(run_dir / item, chosen).items() if chosen else ():
      trees[name] = overlaid(trees[name], tree) if name in trees else tree
  return trees


def load_ema(run_dir: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """A run's config.json, as some version wrote it, and all of its trees, as `load_trees`."""
  trees, config = load_trees(run_dir), read_config(pathlib.Path(run_dir))
  if config is None:
    raise InputError(f"{run_dir} holds no config.json; copy it from the original run")
  return config, trees


def tree_names(run_dir: str | pathlib.Path) -> tuple[str, ...]:
  """Names of all trees that a run has, its own and inherited ones."""
  return tuple(dict.fromkeys([*items(run_dir), *origins(run_dir)]))


def overlaid(base: Any, top: Any) -> Any:
  """A tree with the leaves of another in the place of its own."""
  return unflatten_dict(flatten_dict(base, sep="/") | flatten_dict(top, sep="/"), sep="/")


def _inherited(run_dir: pathlib.Path, name: str, origin: Origin) -> Any:
  folder = (run_dir / origin.run).resolve() / origin.item
  who = f"{run_dir}: its tree {name!r} lies in {folder}"
  if not folder.is_dir():
    raise InputError(f"{who}, which is missing; restore it, or move both folders together")
  found = load_numpy(folder, [name])
  if name not in found or digest(found[name]) != origin.digest:
    raise InputError(
      f"{who}, which holds another one by now (its digest is not {origin.digest}); restore it"
    )
  return found[name]


def digest(tree: Any) -> str:
  """Of a tree of arrays: names, shapes, dtypes and bytes."""
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    total.update(array.reshape(-1).view(np.uint8))
  return total.hexdigest()[:16]


def read_config(run_dir: pathlib.Path) -> dict | None:
  """config.json of a run; None where there is none."""
  path = pathlib.Path(run_dir) / "config.json"
  try:
    config = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:  # of JSON and of its encoding
    raise InputError(f"{path} is not JSON ({error}); restore it or choose another run") from error
  if not isinstance(config, dict):
    raise InputError(f"{path} holds no JSON object; restore it or choose another run")
  return config


def complete(folder: pathlib.Path) -> bool:
  """Whether a checkpoint's folder has all its parts."""
  parts = ("_CHECKPOINT_METADATA", "state/_METADATA", "ema/_METADATA", "data/metadata")
  return all((folder / part).is_file() for part in parts)
