"""Where each of our parameters lies in a public checkpoint: one table serves import and export.

A table is a tuple of rules `(ours, theirs)` or `(ours, theirs, layout)`. A parameter's path is read
from the left: the first rule whose `ours` covers the path's next components gives the next part of
the public name, until the path is used up. `{i}` in `ours` stands for a number, which `theirs` may
repeat; `{-i}` there is the number counted from the other end of the network's levels. `theirs` may
be empty. What is left of a path when only its leaf remains follows `LEAVES`.

A layout is an einops pattern from our array to theirs; read backwards it is the import. Several of
our arrays may share one public tensor (`Part`): the channels that a U-Net reads beside x_t.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import einops
import numpy as np
from flax.traverse_util import flatten_dict

from emu_jax.typing import Params

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
KERNELS = {
  2: "i o -> o i",
  3: "k i o -> o i k",
  4: "h w i o -> o i h w",
  5: "t h w i o -> o i t h w",
}
FRAMES_3D = "k i o -> o i k 1 1"  # a convolution over frames, public as a 3-D one


@dataclasses.dataclass(frozen=True)
class Part:
  """A layout of arrays that stand one behind the other along an axis of one public tensor."""

  order: int  # 0: the first
  axis: int  # of the public tensor
  pattern: str | None = None  # None: as the leaf's default


Layout = str | Part | None
Rule = tuple[str, str] | tuple[str, str, Layout]


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our arrays in a public checkpoint."""

  path: str  # ours, joined by "/"
  name: str  # theirs
  shape: tuple[int, ...]  # ours
  pattern: str | None  # ours -> theirs; None: as it is
  order: int = 0
  axis: int | None = None  # None: the whole of the public tensor

  @property
  def public_shape(self) -> tuple[int, ...]:
    """The shape of this array's part of the public tensor."""
    if self.pattern is None:
      return self.shape
    left, right = self.pattern.split(" -> ")
    sizes = dict(zip(left.split(), self.shape, strict=True)) | {"1": 1}
    return tuple(sizes[axis] for axis in right.split())

  def to_public(self, array: np.ndarray) -> np.ndarray:
    """Our array as it lies in the public tensor."""
    return array if self.pattern is None else einops.rearrange(array, self.pattern)

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_public`."""
    if self.pattern is None:
      return array
    left, right = self.pattern.split(" -> ")
    return einops.rearrange(array, f"{right} -> {left}")


def rows(params: Params, rules: Sequence[Rule], levels: int = 0) -> tuple[Row, ...]:
  """The row of each leaf of `params`, which may be shapes.

  Args:
    levels: of the network, for `{-i}`.
  Raises: ValueError where no rule leads on, or two leaves claim the same public tensor.
  """
  compiled = tuple(_compiled(*rule) for rule in rules)
  found = tuple(
    _row(path, tuple(leaf.shape), compiled, levels)
    for path, leaf in flatten_dict(params, sep="/").items()
  )
  taken: dict[tuple[str, int], str] = {}
  for row in found:
    other = taken.setdefault((row.name, row.order), row.path)
    if other != row.path:
      raise ValueError(f"rows: {row.path} and {other} both become {row.name}")
  return found


def by_tensor(found: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
  """The rows of each public tensor, in the order in which they lie in it."""
  groups: dict[str, list[Row]] = {}
  for row in sorted(found, key=lambda row: row.order):
    groups.setdefault(row.name, []).append(row)
  return {name: tuple(group) for name, group in groups.items()}


def tensor_shape(group: Sequence[Row]) -> tuple[int, ...]:
  """The shape of the public tensor that a group of rows makes up."""
  shape = list(group[0].public_shape)
  if group[0].axis is not None:
    shape[group[0].axis] = sum(row.public_shape[row.axis] for row in group)
  return tuple(shape)


def join(group: Sequence[Row], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """The public tensor of a group; `arrays` are ours by path."""
  parts = [row.to_public(arrays[row.path]) for row in group]
  joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=group[0].axis)
  return np.ascontiguousarray(joined)


def split(group: Sequence[Row], tensor: np.ndarray) -> dict[str, np.ndarray]:
  """Our arrays, by path, of a public tensor; the inverse of `join`."""
  if len(group) == 1:
    return {group[0].path: np.ascontiguousarray(group[0].to_ours(tensor))}
  axis = group[0].axis
  ends = np.cumsum([row.public_shape[axis] for row in group])[:-1]
  parts = np.split(tensor, ends, axis=axis)
  return {
    row.path: np.ascontiguousarray(row.to_ours(part))
    for row, part in zip(group, parts, strict=True)
  }


@functools.cache
def _compiled(ours: str, theirs: str, layout: Layout = None):
  pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(ours))
  return re.compile(pattern + r"(/|$)"), theirs, layout


def _row(path: str, shape: tuple[int, ...], compiled, levels: int) -> Row:
  rest, name, layout = path, [], None
  while rest:
    for pattern, theirs, name_here in compiled:
      match = pattern.match(rest)
      if match:
        name.append(_filled(theirs, match, levels))
        layout = name_here or layout
        rest = rest[match.end() :]
        break
    else:
      if rest not in LEAVES:
        raise ValueError(f"rows: no rule leads on from {rest!r} of {path}; add one to the table")
      name.append(LEAVES[rest])
      break
  kernel = KERNELS.get(len(shape)) if path.endswith("kernel") else None
  if isinstance(layout, str):  # of a kernel; a bias beside it lies as it is
    layout = layout if len(layout.split(" -> ")[0].split()) == len(shape) else kernel
    return Row(path, ".".join(filter(None, name)), shape, layout)
  if isinstance(layout, Part):
    pattern = layout.pattern or kernel
    return Row(path, ".".join(filter(None, name)), shape, pattern, layout.order, layout.axis)
  return Row(path, ".".join(filter(None, name)), shape, kernel)


def _filled(theirs: str, match: re.Match, levels: int) -> str:
  values = {key: int(value) for key, value in match.groupdict().items()}
  values |= {f"-{key}": levels - 1 - value for key, value in values.items()}
  return re.sub(r"\{(-?\w+)\}", lambda m: str(values[m[1]]), theirs)
