"""Systems by name: those of the house, and those of any package that names an entry point.

A package adds one with `[project.entry-points."emu_jax.systems"]`, name = "module:Class".
"""

import functools
import importlib
import importlib.metadata
import pathlib
import sys
from typing import Any

from emu_jax import config
from emu_jax.errors import InputError
from emu_jax.systems.pipelines import INDEX, class_name
from emu_jax.systems.system import Pipeline, System

ENTRY_POINTS = "emu_jax.systems"
BUILT_IN = {
  "emu": "emu_jax.systems.emu:Emu",
  "emu_video": "emu_jax.systems.emu_video:EmuVideo",
  "svd": "emu_jax.systems.svd:StableVideo",
  "animatediff": "emu_jax.systems.animatediff:AnimateDiff",
  "instruct_pix2pix": "emu_jax.systems.instruct_pix2pix:InstructPix2Pix",
}
# The module of every other kind of the house: a configuration may name one that nothing imports.
KINDS = {
  "discrete": "emu_jax.diffusion.discrete",
  "edm": "emu_jax.diffusion.edm",
  "flow": "emu_jax.diffusion.flow",
  "log_snr": "emu_jax.diffusion.log_snr",
  "kl_autoencoder": "emu_jax.systems.first_stage",
  "pixels": "emu_jax.systems.first_stage",
  "modelscope": "emu_jax.models.modelscope",
  "motion": "emu_jax.models.motion",
  "temporal": "emu_jax.models.temporal",
  "video_ldm": "emu_jax.models.video_ldm",
}
UNVERSIONED = "emu_video"  # what configurations were of before they had a version


def names() -> dict[str, str]:
  """Every system's name, and "module:Class" of it; the house's own go first."""
  return BUILT_IN | _entry_points(tuple(sys.path)) | BUILT_IN


@functools.cache
def _entry_points(path: tuple[str, ...]) -> dict[str, str]:
  """Those of all packages on `sys.path`, whose every description is opened for it: once."""
  return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def system_class(name: str) -> type[System]:
  """The class of a system.

  Raises: InputError for an unknown name, and for an entry point that does not import.
  """
  known = names()
  if name not in known:
    raise InputError(
      f"system {name!r} is unknown; choose one of {', '.join(sorted(known))}, or give its package "
      f"an entry point of the group {ENTRY_POINTS!r}"
    )
  return _loaded(name, known[name])


@functools.cache
def _loaded(name: str, value: str) -> type[System]:
  module, _, attribute = value.partition(":")
  try:
    found = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # whatever somebody else's module raises
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(
      f"system {name!r}: its entry point {value!r} does not import ({type(error).__name__}: "
      f"{reason}); mend or uninstall the package that names it"
    ) from error
  if not isinstance(found, type) or not issubclass(found, System):
    raise InputError(f"system {name!r}: its entry point {value!r} is no System; name a class")
  if (kind := found.__dict__.get("config_kind")) != name:
    raise InputError(
      f"system {name!r}: its entry point {value!r} is of kind {kind!r}; give both the same name"
    )
  return found


def read_pipeline(folder: pathlib.Path, **options: Any) -> Pipeline:
  """A folder of diffusers, by the system that reads its class.

  Args:
    options: folders that go with it, such as `motion_adapter`; the system that takes them reads it.
  Raises: InputError where no system reads it; a system that does not import reads nothing.
  """
  kind, wanted = class_name(folder), {name for name, value in options.items() if value is not None}
  readers, broken = [], []
  for name in names():
    try:
      readers.append(system_class(name))
    except InputError as error:
      broken.append(f"; {error}")
  for cls in readers:
    if kind in cls.pipelines and set(cls.pipelines[kind]) == wanted:
      return cls.read_pipeline(folder, **{name: options[name] for name in wanted})
  classes = sorted({name for cls in readers for name in cls.pipelines})
  extra = f" with {', '.join(sorted(wanted))}" if wanted else ""
  raise InputError(
    f"{folder / INDEX}: _class_name={kind!r}{extra} is not read here; {', '.join(classes)} are"
    f"{''.join(broken)}"
  )


def from_config(values: dict[str, Any], where: str) -> System:
  """The system of a run's or release's config.json, whatever version wrote it.

  Raises: InputError, beginning with `where`, for a newer version or another system's fields.
  """
  return config.from_dict(upgraded(values, where).get("system"), System, where)


VERSION = 2


def upgraded(values: dict[str, Any], where: str) -> dict[str, Any]:
  """A config.json in today's form.

  Raises: InputError, beginning with `where`, where a newer version wrote it.
  """
  version = values.get("version", 1)
  if not isinstance(version, int) or version > VERSION:
    raise InputError(
      f"{where}: was written by a newer version of emu_jax (its configurations are version "
      f"{version}, these are {VERSION}); install that version"
    )
  system = values.get("system")
  if version == 1 and not isinstance(system, dict):
    name = UNVERSIONED
  elif isinstance(system, dict) and isinstance(system.get(config.KIND), str):
    name = system[config.KIND]
  else:
    raise InputError(f"{where}: names no system; restore it, or use the version that wrote it")
  try:
    return system_class(name).upgraded(values, version)
  except InputError as error:
    raise InputError(f"{where}: {error}") from error
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    reason = f"field {error} is missing" if isinstance(error, KeyError) else error
    raise InputError(
      f"{where}: version {version} of {name!r} cannot be brought up to date ({reason}); restore "
      "it, or use the version that wrote it"
    ) from error


def _import_kind(name: str) -> None:
  if name in KINDS:
    importlib.import_module(KINDS[name])
  elif name in names():
    system_class(name)


config.add_finder(_import_kind)
