"""What is made once and kept: records and runs, in folders named by all that they are made of.

Two studies that ask for the same autoencoder find it in one folder; another learning rate is
another folder; a killed run goes on where it was. Nothing has to be told when something changes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

Build = Callable[[pathlib.Path, tuple[pathlib.Path, ...]], bool]


class StoppedError(Exception):
  """Training was asked to stop before its end; the same command continues."""


@dataclasses.dataclass(frozen=True)
class Artefact:
  """A folder, and how to make it.

  Attributes:
    kind: begins the folder's name.
    spec: JSON values that, with the parts, decide all that is in it.
    parts: what it is made from.
    build: (its folder, those of its parts) -> whether it is whole; it goes on with what a killed
      one left, and does nothing where all is there.
  """

  kind: str
  spec: Any
  parts: tuple["Artefact", ...]
  build: Build

  @functools.cached_property
  def name(self) -> str:
    return f"{self.kind}-{digest([self.spec, [part.name for part in self.parts]])}"


def made(artefact: Artefact, root: pathlib.Path) -> pathlib.Path:
  """The artefact's folder below `root`, made where it is not there.

  Raises: StoppedError where that was cut short.
  """
  parts = tuple(made(part, root) for part in artefact.parts)
  folder = root / artefact.name
  root.mkdir(parents=True, exist_ok=True)
  if not artefact.build(folder, parts):
    raise StoppedError(str(folder))
  return folder


def digest(value: Any) -> str:
  """Twelve hexadecimal digits that follow from a JSON value alone."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
