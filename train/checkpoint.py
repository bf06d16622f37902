"""A run's directory: its config, its frozen trees and its numbered checkpoints.

  config.json            what the run is; another one is refused
  began_with.json        digests of what its paths led to (emu_jax.train.contents)
  changes.jsonl          fields that a continuation changed, and from which step on
  frozen/                trees that do not train and that no earlier run holds, written once
  inherited.json         trees that an earlier run holds: where, and the digest of each
  pinned/<step>          steps that later runs go on from: they are kept
  checkpoints/<step>/    state (step, params, opt_state), ema, data (position of the data)
  due.json               validation or samples of the newest checkpoint that are still to be made
  metrics.jsonl samples/ tensorboard/   written by emu_jax.train.log
  best.json wandb_id     of emu_jax.train.best and emu_jax.train.wandb_run
  lock                   held by the run that is alive

A run continues from, in this order:
  1. the newest checkpoint in its own directory (it was interrupted);
  2. the initial trees it is given (it starts from another run's end, or from public weights);
  3. nothing: `Stage.init`.
"""

import base64
import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import pathlib
import re
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from emu_jax.checkpoints.run import (
  FROZEN,
  Origin,
  complete,
  latest_step,
  load_trees,
  origins,
  read_config,
  stored_metadata,
  write_origins,
)
from emu_jax.errors import InputError
from emu_jax.train.optimiser import OptimConfig, rate_change
from emu_jax.train.processes import FaultError
from emu_jax.train.state import TrainState, check_same
from emu_jax.typing import Params

# Fields that may differ between a run and its continuation, by their path in config.json or that of
# a part around them, or patterns of it. IDLE change nothing of what is learned.
IDLE = (
  "loop.num_steps",
  "loop.log_every",
  "loop.save_every",
  "loop.keep",
  "loop.validate_every",
  "loop.validate_batches",
  "loop.sample_every",
  "loop.sample_fps",
  "loop.num_samples",
  "loop.average_every",
  "monitor",  # what a person sees
  "mesh",  # a checkpoint holds whole arrays: it is read in any pieces
  "data.workers",
)
EXEMPT = (
  *IDLE,
  # The optimiser's state is one and the same, but for the averages that it keeps.
  *(f"optim.{f.name}" for f in dataclasses.fields(OptimConfig) if f.name != "ema_lengths"),
  # What a network computes does not depend on what its gradient keeps, nor on how it is sampled.
  "system*.remat",
  "system*.remat_keeps",
  "system*.preview",
)


PINNED, DUE = "pinned", "due.json"
_LOCKED: set[pathlib.Path] = set()  # directories that this process holds: it may hold one twice
TodaysForm = Callable[[dict[str, Any], str], dict[str, Any]]
Changes = dict[str, tuple[Any, Any]]  # a field's path in config.json -> its value before, and now

# How TensorStore's errors begin that say nothing of a file's contents.
NOT_NOW = ("PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED")


@dataclasses.dataclass(frozen=True)
class _Pinned:
  """Keeps the checkpoints that later runs go on from; read anew each time, for these come late."""

  folder: pathlib.Path

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    return [(self.folder / str(one.step)).is_file() for one in checkpoints]


class Checkpoints:
  """Numbered checkpoints of a run: weights and data position together, written in the background.

  A folder that holds only part of a checkpoint (a copy that was cut short, an old one that was
  being deleted) is renamed to `<step>.incomplete` and never read; a killed run leaves none under a
  number of its own.
  """

  def __init__(self, run_dir: pathlib.Path, keep: int, others: Sequence[Any] = ()):
    """Keeps the `keep` newest, the pinned ones, and what the policies `others` preserve."""
    self.folder = (pathlib.Path(run_dir) / "checkpoints").absolute()
    self.notices: list[str] = []  # what a person should know of it, a line each
    found = self.folder.iterdir() if self.folder.is_dir() else ()
    partial = [p for p in found if p.name.isdigit() and not complete(p)]
    self._rename(partial, "incomplete")
    policies = [preservation_policy.LatestN(keep), _Pinned(self.folder.parent / PINNED), *others]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
      return  # a process is lost, and closing would wait for it
    with self._written():
      self._manager.close()  # waits for the write in progress

  @property
  def latest(self) -> int | None:
    """The newest step on disk or on its way there; None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, data: Iterator) -> None:
    """Begins to write; returns once the arrays may be donated. A step that exists is kept as is.

    Raises:
      FaultError: this checkpoint or the one before it, whose writing ended meanwhile, did not fit
        on the disk or could not be written for another reason.
    """
    if step == self.latest:
      return
    with self._written():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_without_ema(state)),
          ema=ocp.args.StandardSave(state.ema),
          data=ocp.args.JsonSave({"position": _position(data)}),
        ),
        force=True,  # the loop decides when, not the manager
      )

  def restore(self, like: TrainState, data: Iterator) -> TrainState:
    """The newest checkpoint that can be read, placed as `like` says; moves `data` to where it was.

    Newer ones that cannot be read (a disk lost part of them) are renamed to `<step>.damaged`.

    Raises:
      InputError: they are of another model, or none of them can be read; nothing is renamed then.
    """
    damaged, reason = [], ""
    for step in sorted(self._manager.all_steps(), reverse=True):
      found, error = self._read(step, like)
      if not _anywhere(error is not None):
        break
      damaged.append(self.folder / str(step))
      reason = reason or _first_line(error or "another process could not read it")
    else:
      raise InputError(
        f"{self.folder}: none of its checkpoints can be read: {reason}; copy them again, or choose"
        " another directory"
      )
    if damaged:
      self._rename(damaged, "damaged", f": {reason}")
      self._manager.reload()
    if "position" not in found.data:
      raise InputError(
        f"{self.folder}: its checkpoints were written by an earlier version, which kept a position"
        " in the data for each process; their weights can be sampled, the stage must train anew"
      )
    data.set_state(_state_of(found.data["position"]))
    return TrainState(ema=found.ema, **found.state)

  def _read(self, step: int, like: TrainState) -> tuple[Any, ValueError | None]:
    """A checkpoint, or the damage that keeps it from being read.

    Raises: InputError where it is another model's; whatever else it is that went wrong, such as a
      folder that may not be read or memory that does not suffice: that is no fault of the files.
    """
    ema = self.folder / str(step) / "ema"
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(_without_ema(like)),
      ema=ocp.args.StandardRestore(like.ema),
      data=ocp.args.JsonRestore(),
    )
    try:
      stored = _stored_shapes(ema)
    except ValueError as error:
      return None, _damage(error)
    check_same(f"checkpoint {ema.parent}", stored, like.ema)
    try:
      return self._manager.restore(step, args=args), None
    except ValueError as error:
      return None, _damage(error)

  def _rename(self, steps: list[pathlib.Path], name: str, reason: str = "") -> None:
    """Renames folders of checkpoints, in process 0."""
    for step in steps:
      renamed = step.with_name(f"{step.name}.{name}")
      self.notices.append(f"{step} is {name} and not used{reason}; it is now {renamed.name}")
      if jax.process_index() == 0:
        shutil.rmtree(renamed, ignore_errors=True)
        step.rename(renamed)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"{name} checkpoints set aside")

  def _written(self) -> contextlib.AbstractContextManager[None]:
    return written(self.folder.parent, "a checkpoint")


def _without_ema(state: TrainState) -> dict[str, Any]:
  """What the item "state" of a checkpoint holds; one without averages has none of that name."""
  names = ("step", "params", "opt_state", *(["averages"] if state.averages else []))
  return {name: getattr(state, name) for name in names}


@contextlib.contextmanager
def written(run_dir: pathlib.Path, what: str) -> Iterator[None]:
  """Makes a FaultError of one line of whatever is said of a failed write to a run's folder."""
  try:
    yield
  except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way to say it
    reason = os.strerror(int(code[1])) if code else _first_line(error)
    raise FaultError(
      f"{run_dir}: {what} could not be written: {reason}; make room and give the same command: it"
      f" continues from step {latest_step(run_dir) or 0}"
    ) from error


@dataclasses.dataclass(frozen=True)
class Due:
  """What is still to be done at the step of a checkpoint: a note, which is gone once it is done."""

  run_dir: pathlib.Path

  def write(self, step: int, work: Collection[str]) -> None:
    """Notes it; nothing to do leaves no note."""
    if jax.process_index():
      return
    path = self.run_dir / DUE
    if work:
      replace_text(path, json.dumps({"step": step, "work": list(work)}) + "\n")
    else:
      path.unlink(missing_ok=True)

  def read(self, step: int | None) -> tuple[str, ...]:
    """What is due at a step; a note of another step is none of it."""
    try:
      note = json.loads((self.run_dir / DUE).read_text())
      return tuple(note["work"]) if note["step"] == step else ()
    except (FileNotFoundError, ValueError, KeyError, TypeError):
      return ()


@dataclasses.dataclass(frozen=True)
class Inherited:
  """What a run keeps of earlier ones, beside the trees that its steps read.

  Attributes:
    origins: by tree, where an earlier run holds it: it is not stored again.
    carried: trees that no step reads, for those who sample from the run or go on from it.
  """

  origins: Mapping[str, Origin] = dataclasses.field(default_factory=dict)
  carried: Params = dataclasses.field(default_factory=dict)


def save_frozen(run_dir: pathlib.Path, frozen: Params, inherited: Inherited) -> None:
  """Writes frozen/ and inherited.json, and waits; nothing where there is nothing to write.

  It replaces what a run that ended before its first checkpoint left there.

  Raises: InputError where a folder is missing that holds an inherited tree.
  """
  run_dir, origins = pathlib.Path(run_dir).absolute(), inherited.origins
  for name, origin in origins.items():
    folder = pathlib.Path(origin.run) / origin.item
    if not folder.is_dir():
      raise InputError(
        f"{run_dir}: the tree {name!r} lies in {folder}, which is missing by now; restore it, or "
        "give the same command again: it begins with the newest checkpoint"
      )
  both = {**inherited.carried, **frozen}
  stored = {name: tree for name, tree in both.items() if name not in origins}
  if jax.process_index() == 0:
    shutil.rmtree(run_dir / FROZEN, ignore_errors=True)
    for origin in origins.values():
      kind, _, rest = origin.item.partition("/")
      if kind == "checkpoints":
        pin(origin.run, int(rest.partition("/")[0]))
    relative = {
      name: dataclasses.replace(origin, run=os.path.relpath(origin.run, run_dir))
      for name, origin in origins.items()
    }
    write_origins(run_dir, relative)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("inherited trees noted")
  if jax.tree.leaves(stored):
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(run_dir / FROZEN, stored, force=True)


def pin(run_dir: str | pathlib.Path, step: int) -> None:
  """Has a run keep a checkpoint that another one goes on from; a read-only run deletes none."""
  with contextlib.suppress(OSError):
    folder = pathlib.Path(run_dir) / PINNED
    folder.mkdir(exist_ok=True)
    (folder / str(step)).touch()


def restore_frozen(run_dir: pathlib.Path, like: Params) -> Params:
  """What the steps of a run that continues read and do not train, placed as `like` says.

  Args:
    like: shapes with shardings, in the dtypes in which the trees lie on the devices.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  if not jax.tree.leaves(like):
    return like
  elsewhere = set(origins(run_dir)) & set(like)
  here = {name: tree for name, tree in like.items() if name not in elsewhere}
  restored = {}
  if jax.tree.leaves(here):
    folder = run_dir / FROZEN
    if not folder.is_dir():
      raise InputError(
        f"{folder} is missing though the run has checkpoints; restore it or start anew"
      )
    stored = _stored_shapes(folder)
    check_same(str(folder), {name: stored[name] for name in here if name in stored}, here)
    args = ocp.args.PyTreeRestore(
      here, restore_args=ocp.checkpoint_utils.construct_restore_args(here), partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
      restored = checkpointer.restore(folder, args=args)
  for name, tree in load_trees(run_dir, elsewhere).items() if elsewhere else ():
    wanted = like[name]
    leaves = flatten_dict(tree, sep="/")
    flat = {path: leaves.get(path) for path in flatten_dict(wanted, sep="/")}
    check_same(f"{run_dir}: tree {name!r}", {p: a for p, a in flat.items() if a is not None},
               flatten_dict(wanted, sep="/"))  # fmt: skip
    cast = unflatten_dict(flat, sep="/")
    restored[name] = jax.tree.map(_placed, cast, wanted)
  return restored


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
  array = array.astype(like.dtype)
  return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def claim(
  run_dir: str | pathlib.Path,
  config: str,
  exempt: tuple[str, ...] = EXEMPT,
  todays_form: TodaysForm = lambda values, where: values,
) -> None:
  """Makes the directory this config's own.

  What differs from the config with which a run has trained so far is said on stderr, and noted with
  its step in changes.jsonl.

  Args:
    config: the whole experiment as a JSON object.
    exempt: dotted paths of fields (or of whole parts), or patterns, that may differ from the config
      found there.
    todays_form: (config.json, where) -> as this version would write it, with new fields' defaults.

  Raises:
    InputError: checkpoints of another config are there; names the first field that differs.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  changed = check_config(run_dir, config, exempt, todays_form)
  found, new = read_config(run_dir), json.loads(config)
  if jax.process_index() or found == new:
    return
  try:
    run_dir.mkdir(parents=True, exist_ok=True)
    if changed:
      _note_changes(run_dir, changed, todays_form(found, str(run_dir / "config.json")), new)
    replace_text(run_dir / "config.json", json.dumps(new, indent=2) + "\n")
  except OSError as error:
    raise InputError(f"{run_dir} cannot be written: {error}; choose another directory") from error


def _note_changes(run_dir: pathlib.Path, changed: Changes, before: dict, now: dict) -> None:
  step = latest_step(run_dir)
  for name, (was, value) in changed.items():
    print(f"{run_dir}: {name} is {value!r} from step {step} on, it was {was!r}", file=sys.stderr)
  if text := rate_change(before, now, step):
    print(f"{run_dir}: {text}", file=sys.stderr)
  with (run_dir / "changes.jsonl").open("a") as file:
    file.write(json.dumps({"step": step, "changed": changed}) + "\n")


@contextlib.contextmanager
def alone_in(run_dir: pathlib.Path) -> Iterator[None]:
  """Holds a run's directory, so that no second run writes to it; the system lets go of it at death.

  Raises: InputError where a run holds it already.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  if jax.process_index() or run_dir in _LOCKED:
    yield
    return
  try:
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = (run_dir / "lock").open("a+")
  except OSError as error:
    raise InputError(f"{run_dir} cannot be written: {error}; choose another directory") from error
  with lock as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read() or "another process"
      raise InputError(
        f"{run_dir}: {holder} trains in it; wait for its end, or choose another directory"
      ) from None
    except OSError:
      pass  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}")
    file.flush()
    _LOCKED.add(run_dir)
    try:
      yield
    finally:
      _LOCKED.discard(run_dir)


def check_config(
  run_dir: str | pathlib.Path,
  config: str,
  exempt: tuple[str, ...] = EXEMPT,
  todays_form: TodaysForm = lambda values, where: values,
) -> Changes:
  """What differs from the config of a run's checkpoints; arguments as `claim`'s.

  Raises: InputError where it is more than may differ.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  if latest_step(run_dir) is None:
    return {}
  found = read_config(run_dir)
  if found is None:
    raise InputError(f"{run_dir} holds checkpoints but no config.json; choose another directory")
  found = todays_form(found, str(run_dir / "config.json"))
  was, now = dict(_fields(found)), dict(_fields(json.loads(config)))
  changed = {
    name: (was.get(name, "absent"), now.get(name, "absent"))
    for name in [*now, *(name for name in was if name not in now)]
    if was.get(name, "absent") != now.get(name, "absent")
  }
  for name, (there, here) in changed.items():
    if not matches(name, exempt):
      raise InputError(
        f"{run_dir} holds a run of another config: {name} is {there!r} there and {here!r} here;"
        " choose another directory, or give the same config"
      )
  return changed


def matches(name: str, patterns: Iterable[str]) -> bool:
  """Whether a field, by its path in config.json, is one of some or lies in one of them."""
  return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  os.replace(part, path)


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted path and value of every leaf of a JSON value; empty containers are leaves."""
  items = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  if not items:
    yield name, value
  for key, child in items:
    yield from _fields(child, f"{name}.{key}" if name else str(key))


def _position(data: Iterator) -> Any:
  """Where the data is, as JSON; the same in every process (emu_jax.data.batches)."""
  state = data.get_state()
  return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _state_of(position: Any) -> Any:
  if isinstance(position, dict) and set(position) == {"base64"}:
    return base64.b64decode(position["base64"])
  return position


def _anywhere(here: bool) -> bool:
  """Whether something is so in any process."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.bool_(here))))


def _damage(error: ValueError) -> ValueError:
  """The error of a damaged file; raises it where it is the place that does not answer now.

  Of every file of a checkpoint cut in half, emptied, overwritten or deleted, Orbax and TensorStore
  say a ValueError.
  """
  if str(error).startswith(NOT_NOW):
    raise OSError(f"checkpoint: {_first_line(error)}; see to the disk and try again") from error
  return error


def _first_line(error: Any) -> str:
  """What an error says, without the long tail of Orbax's and TensorStore's."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _stored_shapes(folder: pathlib.Path) -> Any:
  return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored_metadata(folder))
