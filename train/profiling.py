"""A trace of some of a run's steps, for xprof and TensorBoard."""

import pathlib
from typing import Any

import jax


class Profiler:
  """Traces the steps from `first` to `last`, both included, into `<run>/tensorboard`.

  Every process traces its own devices into a file named after its host. TensorBoard reads the
  folder with the plugin xprof, and so does `xprof --logdir`. A run that continues within these
  steps traces what is left of them, and none traces its first step, which compiles.
  """

  def __init__(self, run_dir: pathlib.Path, steps: tuple[int, int]):
    self._folder = run_dir / "tensorboard"
    self._first, self._last = steps
    self._tracing = False

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *exception: Any) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Begins the trace where `step`, which is still to be dispatched, is one of it."""
    if self._first <= step <= self._last and not self._tracing:
      jax.profiler.start_trace(self._folder)
      self._tracing = True

  def after(self, step: int) -> None:
    """Ends the trace where `step`, whose results are there, is the last one of it."""
    if step >= self._last:
      self._stop()

  def _stop(self) -> None:
    if self._tracing:
      jax.profiler.stop_trace()
    self._tracing = False
