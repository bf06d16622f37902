"""Processes that decode or read: they end when their parent process ends, however it does."""

import multiprocessing
import os
import threading


def end_with_parent(*_: int) -> None:
  """Has this process watch the one that began it: a killed parent cannot end its processes.

  Takes, and does not need, the numbers that Grain gives (of the worker and of all).
  """
  parent = multiprocessing.parent_process()

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
