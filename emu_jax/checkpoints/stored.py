"""A model on disk, whatever its form: a run, the runs of a recipe, a release, a public pipeline."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from emu_jax.checkpoints.averages import load_average
from emu_jax.checkpoints.best import at_step
from emu_jax.checkpoints.release import is_release, load_release, release_fits, release_names
from emu_jax.checkpoints.run import (
  latest_step,
  load_trees,
  origins,
  overlaid,
  read_config,
  tree_names,
)
from emu_jax.checkpoints.unrecognised import no_model
from emu_jax.errors import InputError
from emu_jax.systems import registry
from emu_jax.systems.pipelines import INDEX
from emu_jax.systems.system import System, Trees


@dataclasses.dataclass(frozen=True)
class Stored:
  """What is known of a model before its weights are read.

  Attributes:
    names: of the trees that there are.
    load: (names, options of `emu_jax.weights.load` for public weights) -> trees; those of a run or
      release are numpy arrays as they are stored.
    tokenizers: folders, one a text encoder.
    where: its folder, for messages.
    run: the folder, where it is a run of emu-train.
    step: of that run's checkpoint, the one asked for or the newest when the model was described;
      all is read of it.
    public: whether it is a pipeline of diffusers, whose weights keep the precision of their file.
    fits: whether names and shapes of all trees are known to be those of the system, so that no
      network has to be traced to compare them.
  """

  system: System
  names: tuple[str, ...]
  load: Callable[[Collection[str], Mapping[str, Any]], Trees]
  tokenizers: tuple[pathlib.Path, ...]
  where: str
  run: pathlib.Path | None = None
  step: int | None = None
  public: bool = False
  fits: bool = False


def is_public(folder: str | pathlib.Path) -> bool:
  """Whether a folder is a pipeline of diffusers, or a converted one."""
  return (pathlib.Path(folder) / INDEX).is_file()


def is_stored(folder: str | pathlib.Path) -> bool:
  """Whether a folder holds one model: a run with a checkpoint, a release, a public pipeline."""
  folder, _ = at_step(folder)
  return latest_step(folder) is not None or is_release(folder) or is_public(folder)


def stored(folder: str | pathlib.Path, ema_length: float | None = None, **options: Any) -> Stored:
  """The model in a folder; of a folder of runs the one that goes back to the others.

  `RUN/best` is the best checkpoint of a run that kept one, the run itself its newest.

  Args:
    ema_length: relative length of the average that a run's weights are taken of; None: the one
      that its checkpoint holds.
    options: further folders that a public pipeline takes, such as `motion_adapter`.
  Raises: InputError where there is none, or one that cannot be described.
  """
  folder = pathlib.Path(folder)
  given = {name: value for name, value in options.items() if value is not None}
  if ema_length is not None and (is_public(folder) or is_release(newest_run(folder))):
    raise InputError(f"{folder}: ema_length={ema_length} is for runs of emu-train; leave it out")
  if is_public(folder):
    found = registry.read_pipeline(folder, **given)
    return Stored(found.system, found.names, found.load, found.tokenizers, str(folder), public=True)
  if given and folder.is_dir():
    raise InputError(
      f"{folder}: {', '.join(given)} goes with a public folder; a run of emu-train has all of its "
      "model itself"
    )
  folder, step = at_step(folder)
  folder = newest_run(folder)
  if not is_stored(folder):
    raise no_model(folder)
  config = read_config(folder)
  if config is None and (latest_step(folder) is not None or is_release(folder)):
    raise InputError(f"{folder} holds no config.json; copy it from the original run")
  fits = False
  if is_release(folder):
    names, load = release_names(folder), functools.partial(_load, load_release, folder)
    run, step, fits = None, None, release_fits(folder)
  else:
    run, step = folder, latest_step(folder) if step is None else step
    read = functools.partial(load_trees, step=step)
    if ema_length is not None:
      read = functools.partial(_with_average, step=step, length=ema_length)
    names, load = tree_names(folder), functools.partial(_load, read, folder)
  system = registry.from_config(config or {}, str(folder / "config.json"))
  tokenizers = tuple(folder / "tokenizers" / str(i) for i in range(len(system.texts)))
  return Stored(system, names, load, tokenizers, str(folder), run, step, fits=fits)


def _load(
  read: Callable, folder: pathlib.Path, names: Collection[str], reading: Mapping[str, Any]
) -> Trees:
  return read(folder, names)


def _with_average(
  folder: pathlib.Path, names: Collection[str], step: int | None, length: float
) -> Trees:
  average = load_average(folder, length)
  trees = load_trees(folder, names, step)
  return {n: overlaid(tree, average[n]) if n in average else tree for n, tree in trees.items()}


def newest_run(folder: str | pathlib.Path) -> pathlib.Path:
  """The folder itself if it is a run or a release; of several runs the one that none goes back to.

  Of several such runs it is the one whose part comes last in its system, and of one part the one
  that has trained most recently.
  """
  folder = pathlib.Path(folder)
  if latest_step(folder) is not None or is_release(folder) or not folder.is_dir():
    return folder
  runs = [run for run in sorted(folder.iterdir()) if run.is_dir() and latest_step(run) is not None]
  earlier = {before.resolve() for run in runs for before in begins_with(run)}
  last = [run for run in runs if run.resolve() not in earlier]
  return max(last or runs, key=_progress, default=folder)


def begins_with(run: pathlib.Path) -> list[pathlib.Path]:
  """The runs that a run began with: those of its trees, and the one that its config names."""
  found = [run / origin.run for origin in origins(run).values()]
  named = (read_config(run) or {}).get("init_from", "")
  if named:
    path = pathlib.Path(named)
    # Of runs that were copied together the one of the same name beside it.
    found.append(path if path.exists() else run.parent / path.name)
  return [path for path in found if path.resolve() != run.resolve()]


def _progress(run: pathlib.Path) -> tuple[int, float]:
  config = read_config(run) or {}
  parts = list(registry.from_config(config, str(run / "config.json")).parts())
  part = config.get("part", config.get("stage", run.name))
  order = parts.index(part) if part in parts else -1
  return order, (run / "checkpoints").stat().st_mtime
