"""A run's directory: its config, its frozen trees and its numbered checkpoints.

  config.json            what the run is; another one is refused
  frozen/                arrays that do not train, written once
  checkpoints/<step>/    state (step, params, opt_state), ema, data (position of the data)
  metrics.jsonl samples/ tensorboard/   written by train.log

A run continues from, in this order:
  1. the newest checkpoint in its own directory (it was interrupted);
  2. the initial trees it is given (it starts from another run's end, or from public weights);
  3. nothing: `Stage.init`.
"""

import base64
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emu_jax.errors import InputError
from emu_jax.run import complete, latest_step, read_config, stored_metadata
from emu_jax.typing import Params
from train.state import TrainState, check_same

# Fields that may differ between a run and its continuation, by their path in config.json.
EXEMPT = (
  "loop.num_steps",
  "loop.log_every",
  "loop.save_every",
  "loop.keep",
  "loop.validate_every",
  "loop.validate_batches",
  "loop.sample_every",
  "loop.sample_fps",
  "mesh",  # a checkpoint holds whole arrays: it is read in any pieces
)


class Checkpoints:
  """Numbered checkpoints of a run: weights and data position together, written in the background.

  A folder that holds only part of a checkpoint (a copy that was cut short) is renamed to
  `<step>.incomplete` and never read; a killed run leaves none under a number of its own.
  """

  def __init__(self, run_dir: pathlib.Path, keep: int):
    self.folder = (pathlib.Path(run_dir) / "checkpoints").absolute()
    if jax.process_index() == 0 and self.folder.is_dir():
      _set_incomplete_aside(self.folder)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("incomplete checkpoints set aside")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception: Any) -> None:
    self._manager.close()  # waits for the write in progress

  @property
  def latest(self) -> int | None:
    """The newest step on disk or on its way there; None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, data: Iterator) -> None:
    """Begins to write; returns once the arrays may be donated. A step that exists is kept as is."""
    if step == self.latest:
      return
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        ema=ocp.args.StandardSave(state.ema),
        data=ocp.args.JsonSave({"positions": _positions(data)}),
      ),
      force=True,  # the loop decides when, not the manager
    )

  def restore(self, like: TrainState, data: Iterator) -> TrainState:
    """The newest checkpoint, placed as `like` says; moves `data` to where it was then."""
    step, ema = self.latest, self.folder / str(self.latest) / "ema"
    check_same(f"checkpoint {ema.parent}", _stored_shapes(ema), like.ema)
    tree = {"step": like.step, "params": like.params, "opt_state": like.opt_state}
    found = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(tree),
        ema=ocp.args.StandardRestore(like.ema),
        data=ocp.args.JsonRestore(),
      ),
    )
    _set_position(data, found.data["positions"], ema.parent)
    return TrainState(ema=found.ema, **found.state)


def save_frozen(run_dir: pathlib.Path, frozen: Params) -> None:
  """Writes frozen/ and waits; nothing where there are no frozen arrays.

  It replaces what a run that ended before its first checkpoint left there.
  """
  if jax.tree.leaves(frozen):
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(pathlib.Path(run_dir).absolute() / "frozen", frozen, force=True)


def restore_frozen(run_dir: pathlib.Path, like: Params) -> Params:
  """frozen/ of a run that continues, placed as `like` (shapes with shardings) says."""
  folder = pathlib.Path(run_dir).absolute() / "frozen"
  if not jax.tree.leaves(like):
    return like
  if not folder.is_dir():
    raise InputError(
      f"{folder} is missing though the run has checkpoints; restore it or start anew"
    )
  check_same(str(folder), _stored_shapes(folder), like)
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(folder, like)


def claim(
  run_dir: str | pathlib.Path, config: str, exempt: tuple[str, ...] = EXEMPT
) -> pathlib.Path:
  """Makes the directory this config's own and returns it.

  Args:
    config: the whole experiment as a JSON object.
    exempt: dotted paths of fields (or of whole parts) that may differ from the config found there.

  Raises:
    InputError: checkpoints of another config are there; names the first field that differs.
  """
  run_dir = pathlib.Path(run_dir).absolute()
  check_config(run_dir, config, exempt)
  found, new = read_config(run_dir), json.loads(config)
  if jax.process_index() == 0 and found != new:
    try:
      run_dir.mkdir(parents=True, exist_ok=True)
      replace_text(run_dir / "config.json", json.dumps(new, indent=2) + "\n")
    except OSError as error:
      raise InputError(f"{run_dir} cannot be written: {error}; choose another directory") from error
  return run_dir


def check_config(run_dir: str | pathlib.Path, config: str, exempt: tuple[str, ...]) -> None:
  """Raises InputError where a run's checkpoints are of another config; arguments as `claim`'s."""
  run_dir = pathlib.Path(run_dir).absolute()
  if latest_step(run_dir) is None:
    return
  found = read_config(run_dir)
  if found is None:
    raise InputError(f"{run_dir} holds checkpoints but no config.json; choose another directory")
  _refuse_other(run_dir, dict(_fields(found)), dict(_fields(json.loads(config))), exempt)


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  os.replace(part, path)


def _refuse_other(run_dir, found: dict, new: dict, exempt: tuple[str, ...]) -> None:
  may_differ = re.compile("|".join(re.escape(name) + r"(\.|$)" for name in exempt) or "(?!)")
  for name in [*new, *(name for name in found if name not in new)]:
    was, now = (side.get(name, "absent") for side in (found, new))
    if was != now and not may_differ.match(name):
      raise InputError(
        f"{run_dir} holds a run of another config: {name} is {was!r} there and {now!r} here;"
        " choose another directory, or give the same config"
      )


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


def _set_incomplete_aside(folder: pathlib.Path) -> None:
  for step in folder.iterdir():
    if step.name.isdigit() and not complete(step):
      step.rename(step.with_name(f"{step.name}.incomplete"))


def _positions(data: Iterator) -> list[str]:
  """Each process's position in its data, as JSON."""
  state = data.get_state()
  if isinstance(state, bytes):
    state = {"base64": base64.b64encode(state).decode()}
  own = json.dumps(state)
  if jax.process_count() == 1:
    return [own]
  raw = np.frombuffer(own.encode(), np.uint8)
  length = int(np.max(multihost_utils.process_allgather(np.int32(len(raw)))))
  padded = np.pad(raw, (0, length - len(raw)), constant_values=ord(" "))
  return [bytes(row).decode() for row in multihost_utils.process_allgather(padded)]


def _set_position(data: Iterator, positions: list[str], folder: pathlib.Path) -> None:
  if len(positions) != jax.process_count():
    raise InputError(
      f"checkpoint {folder}: written by {len(positions)} processes, read by {jax.process_count()};"
      " each keeps its own position in the data, so continue with the same number"
    )
  state = json.loads(positions[jax.process_index()])
  if isinstance(state, dict) and set(state) == {"base64"}:
    state = base64.b64decode(state["base64"])
  data.set_state(state)


def _stored_shapes(folder: pathlib.Path) -> Any:
  return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored_metadata(folder))
