"""Configurations as JSON, so that a checkpoint says what it is."""

from typing import Any, TypeVar

import cattrs
from cattrs.preconf.json import make_converter

from emu_jax.errors import InputError

Config = TypeVar("Config")

_CONVERTER = make_converter(forbid_extra_keys=True)


def to_dict(config: Any) -> dict[str, Any]:
  """A frozen dataclass as JSON-able values."""
  return _CONVERTER.unstructure(config)


def from_dict(values: dict[str, Any], kind: type[Config], who: str) -> Config:
  """The dataclass again; its own checks run.

  Raises: InputError, beginning with `who`, naming the fields that are unknown, missing or wrong.
  """
  try:
    return _CONVERTER.structure(values, kind)
  except cattrs.BaseValidationError as error:
    reasons = "; ".join(cattrs.transform_error(error))
    raise InputError(
      f"{who}: its configuration is not one of this version ({reasons}); use the version that "
      "wrote it"
    ) from error
