"""What people see while they wait: on a terminal a moving line, elsewhere a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

Say = Callable[[str], None]
EVERY = 30.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def working() -> Iterator[Say]:
  """A function to call with each step as it begins; the end prints how long each one took.

  On a terminal a moving line says what is being done; elsewhere nothing moves.
  """
  steps, began = [], time.perf_counter()
  console = Console(stderr=True)
  with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

    def say(step: str) -> None:
      steps.append((step, time.perf_counter()))
      if status is not None:
        status.update(step)

    yield say
  ended = time.perf_counter()
  times = [t for _, t in steps[1:]] + [ended]
  parts = [f"{step} {end - start:.1f} s" for (step, start), end in zip(steps, times, strict=True)]
  print(f"{ended - began:.1f} s: {', '.join(parts)}")


class Counter:
  """Counts what is done of a total, with what is going on now and the time that is left."""

  def __init__(self, what: str, unit: str, total: int, every: float = EVERY):
    self._total, self._unit, self._what, self._every = total, unit, what, every
    self._done, self._began = 0, time.perf_counter()
    self._said = self._began
    self._bar: Progress | None = None

  def __enter__(self) -> "Counter":
    console = Console(stderr=True)
    if console.is_terminal:
      columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(self._unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
      )
      self._bar = Progress(*columns, console=console)
      self._task = self._bar.add_task(self._what, total=self._total)
      self._bar.start()
    return self

  def __exit__(self, *raised: object) -> None:
    if self._bar is not None:
      self._bar.stop()

  def says(self, step: str) -> None:
    """What is going on now."""
    self._what = step
    if self._bar is not None:
      self._bar.update(self._task, description=step)
    self._line()

  def add(self, number: int = 1) -> None:
    """So many more are done."""
    self._done += number
    if self._bar is not None:
      self._bar.update(self._task, advance=number)
    self._line()

  def _line(self) -> None:
    now = time.perf_counter()
    if self._bar is not None or now - self._said < self._every:
      return
    self._said = now
    spent = now - self._began
    left = f", {spent / self._done * (self._total - self._done):.0f} s left" if self._done else ""
    print(
      f"{self._what}: {self._done} of {self._total} {self._unit} in {spent:.0f} s{left}",
      file=sys.stderr,
      flush=True,
    )


def counted(items: Iterable, what: str, unit: str, total: int | None = None) -> Iterator:
  """The items, counted as they are taken.

  Args:
    total: their number; None: `len(items)`.
  """
  if total is None:
    assert isinstance(items, Sized)
    total = len(items)
  with Counter(what, unit, total) as counter:
    for item in items:
      yield item
      counter.add()
