"""What a run leaves to look at: metrics.jsonl, TensorBoard, samples."""

import contextlib
import json
import math
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from emu_jax.media import enlarge, gif_bytes, png_bytes, readable_scale, save_video
from emu_jax.parallel.placement import on_host
from emu_jax.train.checkpoint import replace_text, written
from emu_jax.train.state import leaf_names
from emu_jax.train.wandb_run import WandbRun
from emu_jax.train.watch import LossWatch


class Log:
  """Process 0 writes, the others do nothing. What lies after `step` is from a run that was lost.

  Events are written where they arise, and not by a thread of tensorboardX, which would die of a
  full disk without a word and leave the run waiting for it.

  Raises: FaultError where a file cannot be written.
  """

  def __init__(self, run_dir: pathlib.Path, step: int, tracker: WandbRun | None = None):
    self.folder = pathlib.Path(run_dir)
    self._events: EventsWriter | None = None
    self._tracker = tracker
    if jax.process_index() == 0:
      with self._written():
        _forget_after(self.folder / "metrics.jsonl", step)
        (self.folder / "tensorboard").mkdir(exist_ok=True)
        prefix = str(self.folder / "tensorboard" / "events")
        self._events = EventsWriter(prefix, f".{step}.{os.getpid()}")
        # What TensorBoard has of later steps is hidden.
        self._events.write_event(Event(step=step + 1, file_version="brain.Event:2"))
        began = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=step + 1, session_log=began))

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    if self._events is None:
      return
    with contextlib.suppress(OSError) if error else self._written():
      self._events.close()

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Appends a line {"step": step, **values} and the same to TensorBoard."""
    if self._events is None:
      return
    with self._written():
      with (self.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")
      self._event(step, [Summary.Value(tag=n, simple_value=v) for n, v in values.items()])
    if self._tracker:
      self._tracker.scalars(step, values)

  def videos(self, step: int, videos: dict[str, Any], fps: int) -> None:
    """Files samples/<step>_<name>.mp4 (.png where T = 1) and the same moving in TensorBoard.

    Args:
      videos: [B, T, H, W, 3] in [-1, 1] by name; the clips of a batch are shown side by side,
        enlarged where they are small.
    """
    for name, video in videos.items():
      frames = side_by_side(on_host(video))
      frames = enlarge(frames, readable_scale(*video.shape[2:4]))
      if self._events is None:
        continue
      folder = self.folder / "samples"
      suffix = ".png" if len(frames) == 1 else ".mp4"
      file = f"{step:08d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}{suffix}"
      with self._written():
        folder.mkdir(exist_ok=True)
        save_video(folder / file, frames, fps)
      self.picture(step, f"samples/{name}", frames, fps)

  def picture(
    self, step: int, name: str, frames: np.ndarray, fps: float | int, caption: str = ""
  ) -> None:
    """Shows a picture, uint8 [1, H, W, 3], or a clip of more frames, and writes no file."""
    if self._events is None:
      return
    encoded = png_bytes(frames) if len(frames) == 1 else gif_bytes(frames, fps)
    height, width = frames.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    with self._written():
      self._event(step, [Summary.Value(tag=name, image=image)])
    if self._tracker:
      self._tracker.picture(step, name, frames, encoded, caption)

  def _event(self, step: int, values: list[Summary.Value]) -> None:
    summary = Summary(value=values)
    self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
    self._events.flush()

  def _written(self) -> contextlib.AbstractContextManager[None]:
    return written(self.folder, "the log of the run")


class Readings:
  """Metrics of the steps since the last line, and the judgement on each step's fault."""

  MAX_SKIPPED = 20  # ours: so many skipped in a row are not bad luck any more

  def __init__(self, params: Any, on_non_finite: str):
    self._names = leaf_names(params)
    self._skip = on_non_finite == "skip"
    self._sums: dict[str, float] = {}
    self._counts: dict[str, int] = {}
    self._skipped_in_a_row = 0
    self._losses = LossWatch()
    self._highest = -math.inf
    self._spikes = 0

  def add(self, step: int, metrics: dict[str, Any], fault: Any) -> str | None:
    """Waits for a step's metrics; a line where a person should look at that step.

    Raises:
      FloatingPointError: loss or gradient was not finite, unless such steps are skipped.
    """
    metrics, fault = jax.device_get((metrics, fault))
    loss = float(metrics["loss"])
    if fault >= 0:
      message = self._judge(step, loss, int(fault))
      metrics = {"skipped": metrics["skipped"]}  # its other values would spoil the means
    else:
      self._skipped_in_a_row = 0
      message = self._losses.add(step, loss)
      self._spikes += message is not None
      self._highest = max(self._highest, loss)
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)
      self._counts[name] = self._counts.get(name, 0) + 1
    return message

  def means(self) -> dict[str, float]:
    """Since the last call, under `train/`: means, the highest loss and the number of spikes."""
    means = {f"train/{name}": total / self._counts[name] for name, total in self._sums.items()}
    means["train/loss_spikes"] = float(self._spikes)
    if math.isfinite(self._highest):
      means["train/loss_highest"] = self._highest
    self._sums, self._counts, self._highest, self._spikes = {}, {}, -math.inf, 0
    return means

  def _judge(self, step: int, loss: float, fault: int) -> str:
    self._skipped_in_a_row += 1
    what = "the loss" if fault == len(self._names) else f"the gradient of {self._names[fault]}"
    if self._skip and self._skipped_in_a_row <= self.MAX_SKIPPED:
      return f"step {step}: {what} is not finite (loss {loss}); the step is skipped"
    again = f" and the {self._skipped_in_a_row - 1} before it" if self._skip else ""
    raise FloatingPointError(
      f"train: {what} is not finite at step {step}{again} (loss {loss}); lower optim.peak_lr, or"
      " look at that layer's input; the run continues from its last checkpoint"
    )


def side_by_side(video: np.ndarray) -> np.ndarray:
  """[B, T, H, W, 3] in [-1, 1] -> [T, rows * H, columns * W, 3] uint8, as square as it can be."""
  B, T, H, W, C = video.shape
  columns = math.ceil(math.sqrt(B))
  rows = math.ceil(B / columns)
  pixels = np.round((np.clip(video.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)
  grid = np.zeros((rows * columns, T, H, W, C), np.uint8)
  grid[:B] = pixels
  grid = grid.reshape(rows, columns, T, H, W, C).transpose(2, 0, 3, 1, 4, 5)
  return grid.reshape(T, rows * H, columns * W, C)


def _forget_after(path: pathlib.Path, step: int) -> None:
  """Drops the lines of later steps, and a last line that was cut short."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      kept += [line] if json.loads(line)["step"] <= step else []
    except json.JSONDecodeError:
      break
  replace_text(path, "".join(line + "\n" for line in kept))
