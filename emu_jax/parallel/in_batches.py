"""A function of batches of one size applied to any number of rows: one program, whatever comes."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


def in_batches(apply: Callable[[Any], Any], stream: Iterable[Any], size: int) -> Iterator[Any]:
  """What `apply` gives for the rows of each tree of a stream, though it takes `size` at a time.

  Args:
    apply: a function of rows: a tree of arrays [size, ...] to one of arrays [size, ...].
    stream: trees of numpy arrays with one first axis each, of any length. The last batch is filled
      with its own last row.
  """
  lengths, rest, done = collections.deque(), None, []
  for item in itertools.chain(stream, [None]):
    if item is not None:
      lengths.append(_length(item))
      rest = item if rest is None else _join([rest, item])
    while rest is not None and (_length(rest) >= size or (item is None and _length(rest))):
      piece, rest = _rows(rest, 0, size), _rows(rest, size, None)
      num_rows = _length(piece)
      made = apply(_filled(piece, size))
      done.append(made if num_rows == size else _rows(made, 0, num_rows))
    while lengths and sum(map(_length, done)) >= lengths[0]:
      whole, length = _join(done), lengths.popleft()
      done = [_rows(whole, length, None)]
      yield _rows(whole, 0, length)


def _length(tree: Any) -> int:
  return len(jax.tree.leaves(tree)[0])


def _rows(tree: Any, first: int, end: int | None) -> Any:
  return jax.tree.map(lambda a: a[first:end], tree)


def _join(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *a: np.concatenate(a), *trees)


def _filled(tree: Any, size: int) -> Any:
  missing = size - _length(tree)
  fill = lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) if missing else a
  return jax.tree.map(fill, tree)
