"""The user's own prompts, drawn while a run trains.

samples/<step>/<line>_00.mp4   of line 0, 1, … of the file (.png where the task gives pictures)
samples/<step>/metadata.jsonl  {"file_name", "text", "seed", …} of every file

Every line has the same seed each time, so that the files of two steps differ by the weights alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from emu_jax import media
from emu_jax.cli.many import Example, Line, planned, read_lines, write_metadata
from emu_jax.cli.output import enlarged
from emu_jax.errors import InputError
from emu_jax.model import Model, task_of
from emu_jax.train.config import Experiment
from emu_jax.train.live_model import LiveModel, complete_outline
from emu_jax.train.log import Log
from emu_jax.train.monitor import Look
from emu_jax.typing import Params

BATCH = 4  # examples that are drawn at a time


def check_prompts(experiment: Experiment) -> None:
  """Raises InputError for a file of prompts that no part of the system could draw.

  Prompts are not tokenised yet: the tokenizers may still have to be learned.
  """
  if experiment.monitor.prompts:
    _every(experiment)
    model, task = complete_outline(experiment.system, "--monitor.prompts"), _task(experiment)
    for line, request in _requests(model, experiment):
      try:
        model.steps(task, request)
        model.tasks[task].arrays(request)
      except ValueError as error:
        raise InputError(f"{line.where}: {error}") from error


def prompts_look(
  experiment: Experiment, live: LiveModel, say: Callable[[str], None]
) -> tuple[Look, ...]:
  """What draws the prompts of an experiment; () where there are none, or the run cannot draw them.

  Args:
    say: takes a line that says why the run cannot.
  Raises: InputError for prompts that cannot be drawn.
  """
  if not experiment.monitor.prompts:
    return ()
  outline, task = live.outline(), _task(experiment)
  try:
    for _, request in _requests(outline, experiment):
      outline.steps(task, request)
      if hasattr(request, "prompt"):
        outline.tokens([""])
  except InputError as error:
    say(f"prompts are not drawn in this run: {error}")
    return ()
  groups = planned(outline, task, _lines(experiment), live.where / "samples", 1, ".mp4", 0)
  batches = [batch for group in groups for batch in _batches(group)]
  arrays = [jax.device_get(outline.arrays(task, requests)) for _, requests in batches]
  steps = [step for group in groups for step in outline.steps(task, group[0].request)]
  made = live.maker({name for step in steps for name in step.reads})

  def draw(step: int, ema: Params, frozen: Params, log: Log) -> Mapping[str, float]:
    model, folder, written = made(ema, frozen), live.where / "samples" / f"{step:08d}", []
    for (examples, requests), inputs in zip(batches, arrays, strict=True):
      clips = model.run_all(task, requests, arrays=inputs)
      for example, frames in zip(examples, clips.frames, strict=False):  # the rest fills the batch
        written.append(_named(example, len(frames)))
        _write(folder, written[-1], frames, clips.fps, step, log)
    if jax.process_index() == 0:
      write_metadata(folder, written)
    return {}

  return (Look("prompts", _every(experiment), draw),)


def _write(
  folder: pathlib.Path, example: Example, frames: np.ndarray, fps: float | int, step: int, log: Log
) -> None:
  """Into the step's folder and into the log, in process 0."""
  if jax.process_index():
    return
  folder.mkdir(parents=True, exist_ok=True)
  large, _ = enlarged(frames, 0)
  media.save_video(folder / example.file, large, fps)
  text = example.row["text"]
  log.picture(step, f"prompts/{example.file[:5]} {text}".strip(), large, fps, text)


def _named(example: Example, num_frames: int) -> Example:
  """With the ending of a picture where it is one."""
  file = str(pathlib.PurePath(example.file).with_suffix(".png" if num_frames == 1 else ".mp4"))
  return dataclasses.replace(example, file=file, row={**example.row, "file_name": file})


def _batches(group: Sequence[Example]) -> Iterator[tuple[Sequence[Example], list[Any]]]:
  """Examples, and as many requests as every batch of the group has, the last ones filled up."""
  size = min(BATCH, len(group))
  for start in range(0, len(group), size):
    examples = group[start : start + size]
    requests = [example.request for example in examples]
    yield examples, requests + requests[-1:] * (size - len(requests))


def _requests(model: Model, experiment: Experiment) -> Iterator[tuple[Line, Any]]:
  """Each line and its request, checked by itself."""
  for line in _lines(experiment):
    try:
      yield line, model.request(_task(experiment), **line.fields)
    except InputError as error:
      raise InputError(f"{line.where}: {error}") from error


def _lines(experiment: Experiment) -> list[Line]:
  request = task_of(experiment.system, _task(experiment), "--monitor.task").request
  return read_lines(request, pathlib.Path(experiment.monitor.prompts), {})


def _task(experiment: Experiment) -> str:
  """The task that prompts are drawn by."""
  return experiment.monitor.task or next(iter(experiment.system.tasks()), "")


def _every(experiment: Experiment) -> int:
  """Steps between two drawings. Raises: InputError where there are none."""
  every = experiment.monitor.prompts_every or experiment.loop.sample_every
  if not every:
    raise InputError(
      f"--monitor.prompts {experiment.monitor.prompts}: is never drawn; give "
      "--monitor.prompts_every, or --loop.sample_every"
    )
  return every
