"""The fields of a request class: which are needed, which go by position, what their help is."""

import ast
import dataclasses
import inspect
import itertools
import numbers
import pathlib
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import tyro

from emu_jax.systems.requests import Word


def required(request: type) -> list[str]:
  """Fields that have no default."""
  absent = dataclasses.MISSING
  return [f.name for f in dataclasses.fields(request) if f.default is f.default_factory is absent]


def positional(request: type) -> list[str]:
  """Fields that a command takes by position, and a method too.

  Those that a class itself names go before those of its bases: a clip, then the prompt.
  """
  hints = typing.get_type_hints(request, include_extras=True)
  names = dict.fromkeys(name for cls in request.__mro__ for name in inspect.get_annotations(cls))
  return [name for name in names if tyro.conf.Positional in marks(hints.get(name))]


def marks(hint: Any) -> tuple[Any, ...]:
  """What a type is annotated with: tyro's marks and ours. Of `X | None` it is what X has."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return tuple(mark for part in typing.get_args(hint) for mark in marks(part))
  return getattr(hint, "__metadata__", ())


def word(hint: Any) -> type | None:
  """`str` or `pathlib.Path` where a command takes a text or a file for a field; else None."""
  return next((mark.kind for mark in marks(hint) if isinstance(mark, Word)), None)


def files(request: type) -> list[str]:
  """Fields that a command takes the names of files for."""
  hints = typing.get_type_hints(request, include_extras=True)
  return [f.name for f in dataclasses.fields(request) if word(hints[f.name]) is pathlib.Path]


def helps(cls: type) -> Mapping[str, str]:
  """The docstring of every field, those of bases too; none where there is no source to read."""
  found: dict[str, str] = {}
  for base in reversed(cls.__mro__[:-1]):
    try:
      tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError, SyntaxError):
      continue
    for field, after in itertools.pairwise(getattr(tree.body[0], "body", [])):
      if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
        text = getattr(after.value, "value", None)
        if isinstance(text, str) and isinstance(field.target, ast.Name):
          found[field.target.id] = " ".join(text.split())
  return found


def fitted(value: Any, hint: Any) -> Any:
  """A value as a field of an annotated type holds it: numpy's numbers become Python's.

  Raises: ValueError for a value of another type.
  """
  if not is_of(value, hint):
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ValueError(f"{value!r} is not of type {name}; give one that is")
  if not isinstance(value, numbers.Real) or isinstance(value, bool) or hint is Any:
    return value
  try:
    return float(value) if is_of(0.5, hint) else int(value)
  except OverflowError as error:
    raise ValueError("the number is too large; give a smaller one") from error


def is_of(value: Any, hint: Any) -> bool:
  """Whether a value is of an annotated type; of types that are not compared here, always."""
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return True
  if origin is Literal:
    return value in parts
  if origin in (typing.Union, types.UnionType):
    return any(is_of(value, part) for part in parts)
  if hint in (int, float):
    kind = numbers.Integral if hint is int else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
  return not isinstance(hint, type) or isinstance(value, hint)
