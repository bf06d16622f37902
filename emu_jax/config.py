"""Configurations as JSON, so that a checkpoint says what it is, and their fields set by name."""

import contextlib
import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn
from cattrs.preconf.json import make_converter

from emu_jax.errors import InputError

Config = TypeVar("Config")

_CONVERTER = make_converter(forbid_extra_keys=True)
KIND = "@kind"  # the key of a JSON object that names its class; no field can have it
_KINDS: dict[str, type] = {}
_FINDERS: list[Callable[[str], None]] = []  # import the module of a kind that is not known yet


def _exactly(value: Any, kind: type) -> Any:
  """cattrs alone would take 8.5 for the int 8 and "no" for True."""
  if type(value) is kind or (kind is float and type(value) is int):
    return kind(value)
  raise ValueError(f"{value!r} is not of type {kind.__name__}")


for _kind in (int, float, bool, str):
  _CONVERTER.register_structure_hook(_kind, _exactly)


def kind(name: str) -> Callable[[type], type]:
  """Class decorator: JSON of this dataclass carries `"@kind": name`, and comes back as itself.

  It is needed where a field is declared as a base class, a protocol or a union of dataclasses.
  """

  def register(cls: type) -> type:
    known = _KINDS.setdefault(name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
      raise ValueError(f"kind {name!r} is {known.__qualname__} already; name {cls.__name__} else")
    _KINDS[name] = cls
    cls.config_kind = name
    return cls

  return register


def kind_of(config: Any) -> str | None:
  """The name under which a config's class was registered; None where it was not."""
  return type(config).__dict__.get("config_kind")


def add_finder(find: Callable[[str], None]) -> None:
  """Has `find(name)` import the module of a kind that nothing has registered yet."""
  _FINDERS.append(find)


def class_of_kind(name: Any, base: type) -> type:
  """The class of a kind. Raises: ValueError where none is known, or it is no `base`."""
  found = _found(name)
  if found is None or not _is_a(found, base):
    fitting = sorted(known for known, cls in _KINDS.items() if _is_a(cls, base))
    remedy = f"; choose one of {', '.join(fitting)}" if fitting else ""
    raise ValueError(f"kind {name!r} is no {base.__name__}{remedy}")
  return found


def _found(name: Any) -> type | None:
  """The class of a kind, whose module is imported where a finder knows it."""
  if not isinstance(name, str):
    return None
  for find in _FINDERS if name not in _KINDS else ():
    find(name)
  return _KINDS.get(name)


def _is_a(cls: type, base: type) -> bool:
  if getattr(base, "_is_protocol", False):
    members = (name for name in vars(base) if not name.startswith("_"))
    fields = getattr(
      cls, "__dataclass_fields__", {}
    )  # those without a default are no attributes of the class
    return all(hasattr(cls, name) or name in fields for name in members)
  return issubclass(cls, base)


def to_dict(config: Any) -> Any:
  """A frozen dataclass as JSON-able values.

  Raises: TypeError where a field holds a subclass of what it is declared as that has no kind:
    JSON would lose what the subclass adds.
  """
  if not dataclasses.is_dataclass(config):
    if isinstance(config, tuple | list):
      return [to_dict(value) for value in config]
    if isinstance(config, Mapping):
      return {name: to_dict(value) for name, value in config.items()}
    return config
  declared = typing.get_type_hints(type(config))
  values = {} if kind_of(config) is None else {KIND: kind_of(config)}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    classes = _classes(declared[field.name])
    for part in value if isinstance(value, tuple | list) else (value,):
      if dataclasses.is_dataclass(part) and kind_of(part) is None and type(part) not in classes:
        raise TypeError(
          f"{type(config).__name__}: {field.name} holds a {type(part).__name__}, which JSON would "
          f"lose; give that class a kind (emu_jax.config.kind)"
        )
    values[field.name] = to_dict(value)
  return values


@functools.cache
def _classes(declared: Any) -> set[Any]:
  """What a field may hold, by its annotation: itself, or the parts of a union or a tuple."""
  parts = typing.get_args(declared)
  return {declared}.union(*map(_classes, parts)) if parts else {declared}


def _structure_by_kind(values: Any, declared: Any) -> Any:
  """A dataclass of the kind that its JSON names; of the declared class where it names none."""
  if isinstance(values, dict) and KIND in values:
    values = dict(values)
    name = values.pop(KIND)
    bases, found = typing.get_args(declared) or (declared,), _found(name)
    known = [base for base in bases if found is not None and _is_a(found, base)]
    declared = class_of_kind(name, known[0] if known else bases[0])
  elif typing.get_args(declared):
    declared = typing.get_args(declared)[0]  # the first of a union, as before there were kinds
  elif _is_open(declared):
    raise ValueError(f"a {declared.__name__} without {KIND!r}, which names its class")
  if not isinstance(values, dict):
    raise TypeError(f"{values!r} is no JSON object")
  return _plain_hook(declared)(values, declared)


@functools.cache
def _plain_hook(cls: type) -> Callable:
  return make_dict_structure_fn(cls, _CONVERTER, _cattrs_forbid_extra_keys=True)


def _has_kinds(declared: Any) -> bool:
  if typing.get_origin(declared) in (typing.Union, types.UnionType):
    parts = typing.get_args(declared)
    return all(dataclasses.is_dataclass(p) and "config_kind" in p.__dict__ for p in parts)
  return dataclasses.is_dataclass(declared) or _is_open(declared)


def _is_open(declared: Any) -> bool:
  """Whether it is a protocol or an abstract class, of which only a kind tells the dataclass."""
  return getattr(declared, "_is_protocol", False) or inspect.isabstract(declared)


_CONVERTER.register_structure_hook_func(_has_kinds, _structure_by_kind)


def from_dict(values: Any, kind: type[Config], who: str) -> Config:
  """The dataclass again; its own checks run.

  Raises: InputError, beginning with `who`, naming the fields that are unknown, missing or wrong.
  """
  return _structured(values, kind, who, "; restore it, or use the version that wrote it")


def check_kinds(config: Any) -> None:
  """Raises TypeError where a field of a dataclass holds a value of another kind, 2.5 for an int."""
  kinds = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      check_kinds(value)  # as what it is: a field may hold a subclass
      continue
    try:
      _CONVERTER.structure(to_dict(value), kinds[field.name])
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
      raise TypeError(
        f"{type(config).__name__}: {field.name}={value!r} is not of kind {kinds[field.name]}"
      ) from error


def override(config: Config, words: Sequence[str]) -> Config:
  """A config with fields set by `--optim.peak_lr 3e-4 --data.sources a b`, checked once all are.

  A part of a tuple goes by its number: `--model.image.text.0.width 64`.

  Raises: InputError for a field that there is not, a value of another type, or a combination that
    the config's own checks refuse.
  """
  values = to_dict(config)
  for option, given in _assignments(words):
    _assign(config, values, option, given)
  return _structured(values, type(config), " ".join(words)) if words else config


def replaced(config: Config, field: str, value: Any) -> Config:
  """A config with every field of that name, at any depth, set to a value."""
  if isinstance(config, tuple):
    return tuple(replaced(part, field, value) for part in config)
  if not dataclasses.is_dataclass(config):
    return config
  changes = {
    one.name: value if one.name == field else replaced(getattr(config, one.name), field, value)
    for one in dataclasses.fields(config)
  }
  return dataclasses.replace(config, **changes)


@contextlib.contextmanager
def refused(who: str) -> Iterator[None]:
  """A plain ValueError, as configs and samplers raise, leaves as an InputError that says where."""
  try:
    yield
  except InputError:
    raise
  except ValueError as error:
    raise InputError(f"{who}: {error}") from error


def _structured(values: Any, kind: type[Config], who: str, remedy: str = "") -> Config:
  if not isinstance(values, dict):
    raise InputError(f"{who}: {values!r} is no configuration, which is a JSON object{remedy}")
  try:
    return _CONVERTER.structure(values, kind)
  except cattrs.BaseValidationError as error:
    reasons = cattrs.transform_error(error, format_exception=_reason)
    # cattrs ends each reason with the path of its field, "$" being the whole.
    places = (re.sub(r" @ \$\.?(.*)$", lambda m: f" (in {m[1]})" * bool(m[1]), r) for r in reasons)
    raise InputError(f"{who}: {'; '.join(places)}{remedy}") from error
  except InputError as error:
    raise InputError(f"{who}: {error}") from error
  except ValueError as error:  # of the kind of the whole
    raise InputError(f"{who}: {error}{remedy}") from error


def _reason(error: BaseException, kind: Any) -> str:
  if isinstance(error, cattrs.ForbiddenExtraKeysError):
    extra = ", ".join(map(repr, sorted(error.extra_fields)))
    return f"{error.cl.__name__} has no field {extra}; it has {_names(error.cl)}"
  if isinstance(error, KeyError):
    return f"field {error} is missing or unknown"
  if isinstance(error, ValueError) or typing.get_origin(kind) is Literal:
    return str(error).replace("typing.", "")
  return f"not of type {getattr(kind, '__name__', kind)} ({error})"


def _names(kind: Any) -> str:
  return ", ".join(field.name for field in dataclasses.fields(kind))


def _assignments(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
  """`--a.b 1 2 --c=3` as ("--a.b", ["1", "2"]), ("--c", ["3"])."""
  option, given = None, []
  for word in [*words, "--"]:
    if not word.startswith("--"):
      if option is None:
        raise InputError(f"{word!r} belongs to no option; options begin with --")
      given.append(word)
      continue
    if option is not None:
      yield option, given
    option, *given = word.split("=", 1)


def _assign(config: Any, values: Any, option: str, given: list[str]) -> None:
  """Sets one field in the JSON `values` of `config`."""
  *path, last = option[2:].replace("-", "_").split(".")
  for name in path:
    config, values = _child(config, values, option, name)
  _child(config, values, option, last)
  if not dataclasses.is_dataclass(config):
    raise InputError(f"{option}: part {last} of a tuple is not set alone; set all of it")
  values[last] = _parsed(option, typing.get_type_hints(type(config))[last], given)


def _child(config: Any, values: Any, option: str, name: str) -> tuple[Any, Any]:
  if isinstance(config, tuple):
    if not name.isdigit() or int(name) >= len(config):
      raise InputError(f"{option}: {name!r} is not a number below {len(config)}, its parts")
    return config[int(name)], values[int(name)]
  if not dataclasses.is_dataclass(config):
    raise InputError(f"{option}: {config!r} has no field {name!r}; name a field that holds others")
  if name not in (field.name for field in dataclasses.fields(config)):
    raise InputError(
      f"{option}: {type(config).__name__} has no field {name!r}; it has {_names(config)}"
    )
  return getattr(config, name), values[name]


def _parsed(option: str, kind: Any, given: list[str]) -> Any:
  """The words of a command line as a value of a field's type."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin is tuple:
    kinds = [parts[0]] * len(given) if parts[-1] is ... else parts
    if len(kinds) != len(given):
      raise InputError(f"{option}: {len(given)} values were given; it takes {len(kinds)}")
    return [_parsed(option, kind, [word]) for kind, word in zip(kinds, given, strict=True)]
  if len(given) != 1:
    raise InputError(f"{option}: {len(given)} values were given; it takes one")
  (word,) = given
  if origin in (types.UnionType, typing.Union) and parts[1:] == (type(None),):
    return None if word.lower() == "none" else _parsed(option, parts[0], given)
  if origin is Literal or kind is bool:
    choices = {"true": True, "false": False} if kind is bool else {part: part for part in parts}
    found = choices.get(word.lower() if kind is bool else word)
    if found is None:
      raise InputError(f"{option}: {word!r} is unknown; choose one of {', '.join(choices)}")
    return found
  if kind not in (int, float, str):
    raise InputError(f"{option}: is no single value; set its own fields, or edit the config file")
  try:
    value = kind(word)
  except ValueError:
    raise InputError(
      f"{option}: {word!r} is not of type {kind.__name__}; give one that is"
    ) from None
  if kind is float and not math.isfinite(value):
    raise InputError(f"{option}: {word} is not a finite number; give one")
  return value
