"""Trees of parameters taken apart and put together by rules over their paths."""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.typing import Params


def partition(params: Params, rules: Sequence[tuple[str, str]]) -> dict[str, Params]:
  """Splits a tree into named ones: each leaf goes where the first glob that matches it says.

  `rules` are (glob over the path joined by "/", name of a tree). Each name gets a tree, empty where
  nothing matched.

  Raises: ValueError where no rule matches a leaf. Source: ours, after big_vision's strict rules.
  """
  parts = {name: {} for _, name in rules}
  for path, leaf in flatten_dict(params, sep="/").items():
    name = next((name for glob, name in rules if fnmatch.fnmatchcase(path, glob)), None)
    if name is None:
      raise ValueError(f"partition: no rule matches {path}; add one to {[g for g, _ in rules]}")
    parts[name][path] = leaf
  return {name: unflatten_dict(part, sep="/") for name, part in parts.items()}


def merge(*trees: Params) -> Params:
  """One tree with the leaves of several that share none.

  Raises: ValueError where two trees hold the same path.
  """
  merged = {}
  for tree in trees:
    for path, leaf in flatten_dict(tree, sep="/").items():
      if path in merged:
        raise ValueError(f"merge: two trees hold {path}")
      merged[path] = leaf
  return unflatten_dict(merged, sep="/")


def leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf by its path, such as `mid/conv/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def dtype_of(rules: Sequence[tuple[str, str]], path: str) -> Any:
  """The dtype that rules of (glob, dtype) give a leaf; the first that matches decides.

  Raises: ValueError where none does.
  """
  for glob, dtype in rules:
    if fnmatch.fnmatchcase(path, glob):
      return jnp.dtype(dtype)
  raise ValueError(f"dtype_of: no rule covers {path}; add one to {[g for g, _ in rules]}")
