"""What SIGTERM and SIGINT do: a run saves and ends, anything else ends at once.

A command that a signal ended has the exit code that shells and schedulers know, 128 and the
signal's number: 143 of SIGTERM, 130 of SIGINT.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# JAX stops all processes at one number that each of them has yet to reach, and compares for
# equality: it must grow over all runs of a process, though each counts its steps from 0.
_QUESTIONS = itertools.count()


class SignalledError(BaseException):
  """SIGTERM came where nothing is lost by ending at once; no handler of errors is to hold it."""


@contextlib.contextmanager
def sigterm_ends_at_once() -> Iterator[None]:
  """SIGTERM raises SignalledError, so that files and processes are left in order.

  Python's default would end the process as it is, or, were it the first of a container, not at all.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def end(number: int, frame: Any) -> None:
    raise SignalledError

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class StopSignal:
  """Turns the first SIGTERM or SIGINT into a request to stop; the second one exits at once.

  With several processes a signal to any one stops all at the same step, and further ones change
  nothing: a launcher sends one to each process, and none of them may cut the save short.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._number: int | None = None  # of the signal that this process received
    self._agreed = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "StopSignal":
    if threading.current_thread() is threading.main_thread():
      handlers = dict.fromkeys(self.SIGNALS, self._receive)
      if jax.process_count() > 1:  # JAX's runtime holds SIGTERM's handler and agrees on a step
        handlers = {signal.SIGINT: self._pass_on}
      self._before = {number: signal.signal(number, one) for number, one in handlers.items()}
    return self

  def __exit__(self, *exception: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  @property
  def received(self) -> bool:
    """Whether a stop was asked for; with several processes, whether they have agreed on it."""
    return self._agreed if jax.process_count() > 1 else self._number is not None

  @property
  def exit_code(self) -> int:
    """Of a command that was asked to stop before its end."""
    return 128 + (self._number or signal.SIGTERM)

  def requested(self) -> bool:
    """Whether to stop before the next update; asked equally often in every process, it is alike."""
    if jax.process_count() > 1:
      self._agreed |= multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
    return self.received

  def _receive(self, number: int, frame: Any) -> None:
    if self._number is not None:
      os._exit(128 + number)
    self._number = number

  def _pass_on(self, number: int, frame: Any) -> None:
    if self._number is None:
      self._number = number
      os.kill(os.getpid(), signal.SIGTERM)
