"""A public config.json read strictly: each option is used, or holds the one value that we build."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from emu_jax.errors import InputError

_REQUIRED = object()
# Of every config.json: where it came from, not what it is.
GENERAL = frozenset(
  {"torch_dtype", "dtype", "transformers_version", "model_type", "architectures", "sample_size"}
)


class Options:
  """The options of one config.json.

  Every option is taken once by `get` or `only`; `done` then refuses what was never taken, since an
  option that we do not know may change the function that the weights stand for.
  """

  def __init__(self, values: Mapping[str, Any], who: str):
    self._values, self.who, self._taken = dict(values), who, set(GENERAL)

  def __contains__(self, name: str) -> bool:
    return self._values.get(name) is not None

  def get(self, name: str, default: Any = _REQUIRED) -> Any:
    """The value of an option, or its default where it is missing."""
    self._taken.add(name)
    if name in self._values:
      return self._values[name]
    if default is _REQUIRED:
      raise InputError(f"{self.who}: has no {name!r}; give the config.json of this model")
    return default

  def only(self, name: str, *supported: Any) -> Any:
    """An option of which some values are supported, the first being its default."""
    value = self.get(name, supported[0])
    if not any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in supported):
      choices = " or ".join(repr(s) for s in supported)
      raise InputError(
        f"{self.who}: {name}={value!r} is not supported; {choices} is. Choose another checkpoint"
      )
    return value

  def ignore(self, *names: str) -> None:
    """Options that do not change what the network computes."""
    self._taken.update(names)

  def refuse(self, reason: str) -> InputError:
    """The error of a combination that is not supported, to be raised."""
    return InputError(f"{self.who}: {reason}")

  @contextlib.contextmanager
  def building(self) -> Iterator[None]:
    """What a value of another type or size raises within becomes one line that names the file."""
    try:
      yield
    except InputError:
      raise
    except (TypeError, ValueError, KeyError, IndexError) as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise InputError(f"{self.who}: {reason}; choose another checkpoint") from error

  def done(self) -> None:
    """Raises InputError for an option that was never taken and is set."""
    unknown = sorted(
      name
      for name, value in self._values.items()
      if name not in self._taken and not name.startswith("_") and value not in (None, False)
    )
    if unknown:
      listed = ", ".join(f"{name}={self._values[name]!r}" for name in unknown)
      raise InputError(f"{self.who}: {listed} is not supported; choose another checkpoint")
