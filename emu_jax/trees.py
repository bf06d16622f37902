"""Trees of parameters taken apart and put together by rules over their paths."""

import fnmatch
import functools
from collections.abc import Sequence
from typing import TypeVar

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.typing import Params

Value = TypeVar("Value")


def partition(params: Params, rules: Sequence[tuple[str, str]]) -> dict[str, Params]:
  """Splits a tree into named ones: each leaf goes where the first glob that matches it says.

  `rules` are (glob over the path joined by "/", name of a tree). Each name gets a tree, empty where
  nothing matched.

  Raises: ValueError where no rule matches a leaf. Source: ours, after big_vision's strict rules.
  """
  parts = {name: {} for _, name in rules}
  for path, leaf in flatten_dict(params, sep="/").items():
    parts[first_match(rules, path)][path] = leaf
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


def first_match(rules: Sequence[tuple[str, Value]], path: str) -> Value:
  """What rules of (glob, value) say of a leaf by its path; the first glob that matches decides.

  Raises: ValueError where none does.
  """
  for glob, value in rules:
    if fnmatch.fnmatchcase(path, glob):
      return value
  raise ValueError(f"first_match: no rule covers {path}; add one to {[g for g, _ in rules]}")
