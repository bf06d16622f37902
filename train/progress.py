"""How a run speaks while it lasts: a line that moves on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Clock:
  """Where a run's wall time goes, leaving out what `paused` covers.

  `time` can be replaced, so that tests need not wait.
  """

  def __init__(self, time: Callable[[], float] = time.perf_counter):
    self._time = time
    self._start = time()
    self._paused = self._waited = 0.0
    self._steps = 0

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Saving, validation, samples and compilation are no part of a step's time."""
    start = self._time()
    yield
    self._paused += self._time() - start

  @contextlib.contextmanager
  def waiting(self, busy: Callable[[], bool]) -> Iterator[None]:
    """Waiting for data, counted only where the device ran out of work (not `busy()`) meanwhile."""
    start = self._time()
    yield
    if not busy():
      self._waited += self._time() - start

  def step(self) -> None:
    self._steps += 1

  def lap(self, clips_per_step: int) -> dict[str, float]:
    """Seconds a step, clips a second and share of time waiting for data since the last lap.

    Empty where no step was timed, as between the first step and a pause right after it.
    """
    elapsed = max(self._time() - self._start - self._paused, 1e-9)
    steps, waited = self._steps, self._waited
    self._start, self._paused, self._waited, self._steps = self._time(), 0.0, 0.0, 0
    if not steps:
      return {}
    return {
      "time/step_s": elapsed / steps,
      "time/clips_per_s": clips_per_step * steps / elapsed,
      "time/data_wait": waited / elapsed,
    }


class ProgressLine:
  """Process 0 writes to the standard error stream, the others nothing.

  Args:
    name: of the run, begins every line: a recipe has several.
  """

  def __init__(self, name: str, num_steps: int, first: int, console: Console | None = None):
    quiet = jax.process_index() != 0
    self._console = console or Console(stderr=True, quiet=quiet, soft_wrap=True)
    self._name, self._num_steps, self._first, self._start = name, num_steps, first, None
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    moving = self._console.is_terminal and not quiet
    self._bar = Progress(*columns, console=self._console, disable=not moving, auto_refresh=False)
    self._task = self._bar.add_task("", total=num_steps, completed=first)
    self._moving = moving

  def __enter__(self) -> "ProgressLine":
    self._bar.start()
    return self

  def __exit__(self, *exception: Any) -> None:
    self._bar.stop()

  def say(self, text: str) -> None:
    """A line of its own, above the moving one."""
    self._console.print(f"{self._name}: {text}", markup=False, highlight=False)

  def started(self, step: int) -> None:
    """Where the estimate of the remaining time begins: after the first step's compilation."""
    self._first, self._start = step, time.perf_counter()

  def show(self, step: int, loss: float, times: dict[str, float]) -> None:
    """The text of `describe`, on the moving line or as a line of its own."""
    text = describe(step, self._num_steps, loss, times, self._eta(step))
    self._bar.update(self._task, completed=step, description=f"{self._name}: {text}", refresh=True)
    if not self._moving:
      self.say(text)

  def _eta(self, step: int) -> float | None:
    """Seconds to the end at the pace since the first step, saving and validation included."""
    if self._start is None or step <= self._first:
      return None
    pace = (time.perf_counter() - self._start) / (step - self._first)
    return pace * (self._num_steps - step)


def describe(
  step: int, num_steps: int, loss: float, times: dict[str, float], eta: float | None
) -> str:
  """The text of the progress line."""
  text = f"step {step}/{num_steps}  loss {loss:.4f}"
  if times:
    text += f"  {times['time/step_s']:.3g} s/step  {times['time/clips_per_s']:.3g} clips/s"
    text += f"  waiting for data {times['time/data_wait']:.0%}"
  if eta is not None:
    text += f"  ETA {datetime.timedelta(seconds=round(eta))}"
  return text
