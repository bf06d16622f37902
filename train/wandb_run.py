"""Weights & Biases: a run of it for each run folder, continued under the same name and number."""

import contextlib
import importlib
import importlib.util
import io
import json
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from emu_jax.errors import InputError
from emu_jax.train.checkpoint import replace_text

RUN_ID = "wandb_id"  # file in the run folder
STEP = "step"


def check_installed(project: str) -> None:
  """Raises InputError where a project is named and the package is not there."""
  if project and importlib.util.find_spec("wandb") is None:
    raise InputError(
      f"--monitor.wandb {project}: the package wandb is not installed; pip install wandb, or leave "
      "the option out"
    )


class WandbRun:
  """Gets what TensorBoard gets.

  The step is a value of its own that all charts are drawn over: W&B's own counter never goes back,
  and a run that lost steps does.
  """

  def __init__(self, wandb: Any, run: Any):
    self._wandb, self._run = wandb, run
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Numbers of a step, by name."""
    self._run.log({STEP: step, **values})

  def picture(self, step: int, name: str, frames: np.ndarray, gif: bytes, caption: str) -> None:
    """A picture, uint8 [1, H, W, 3], or the clip of more frames that `gif` holds."""
    caption = caption or None
    if len(frames) == 1:
      medium = self._wandb.Image(frames[0], caption=caption)
    else:
      medium = self._wandb.Video(io.BytesIO(gif), caption=caption, format="gif")
    self._run.log({STEP: step, name: medium})


@contextlib.contextmanager
def tracked(project: str, run_dir: pathlib.Path, config: str) -> Iterator[WandbRun | None]:
  """The W&B run of a run folder, in process 0; None elsewhere, and where no project is named.

  W&B's own settings are its environment's: WANDB_MODE=offline, WANDB_ENTITY, WANDB_API_KEY, ….

  Args:
    config: of the experiment, as JSON.
  Raises: InputError where W&B does not begin.
  """
  check_installed(project)
  if not project or jax.process_index():
    yield None
    return
  wandb = importlib.import_module("wandb")
  try:
    run = wandb.init(
      project=project,
      id=run_id(run_dir),
      name=f"{run_dir.parent.name}/{run_dir.name}",
      dir=str(run_dir),
      config=json.loads(config),
      resume="allow",
    )
  except Exception as error:  # of no login, no network, …: wandb has its own classes
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    raise InputError(
      f"--monitor.wandb {project}: {reason}; log in by `wandb login`, or set WANDB_MODE=offline"
    ) from error
  code = 1
  try:
    yield WandbRun(wandb, run)
    code = 0
  finally:
    run.finish(exit_code=code)


def run_id(run_dir: pathlib.Path) -> str:
  """The number under which W&B knows a run folder; chosen once."""
  path = run_dir / RUN_ID
  if not path.is_file():
    replace_text(path, f"{uuid.uuid4().hex[:12]}\n")
  return path.read_text().strip()
