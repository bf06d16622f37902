"""One training run of many processes: how they find one another, and what they do on losing one."""

import contextlib
import glob
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from jax._src import distributed  # its client of the coordinator has no public name

from emu_jax.errors import InputError
from emu_jax.train.stop import SignalledError, sigterm_ends_at_once

END = "emu_jax/end"  # in the coordinator's table: why all end, and who has left
POLL_SECONDS = 1.0
WAIT_SECONDS = 10.0  # for processes that have yet to leave
_LEAVING = threading.Lock()  # taken once, by the thread that ends this process

# Launchers that tell a process of the others, and how their environment shows it. What they tell
# (address, number, index) is read by jax.distributed itself.
LAUNCHERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
  "Slurm": lambda env: (
    {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(env) and int(env.get("SLURM_NTASKS", 1)) > 1
  ),
  "Open MPI": lambda env: int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
  "Cloud TPU": lambda env: (
    env.get("JAX_PLATFORMS", "tpu") != "cpu"
    and "TPU_SKIP_MDS_QUERY" not in env
    and importlib.util.find_spec("libtpu") is not None
    and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
  ),
}


def launcher(environment: Mapping[str, str]) -> str | None:
  """Who started this process among others; None where nobody says that there are others."""
  return next((name for name, starts in LAUNCHERS.items() if starts(environment)), None)


def join(coordinator: str, processes: int, process: int) -> None:
  """Makes this process one of several that train together; call it before anything uses a device.

  Args:
    coordinator: HOST:PORT on which process 0 listens; "" takes what the launcher's environment
      says, and stays alone where there is no launcher.
    processes: how many there are; 0 as with "".
    process: which one this is, from 0 on; -1 as with "".

  Raises:
    InputError: the three do not fit one another, or the others cannot be reached.
  """
  who = f"--coordinator {coordinator or '(none)'} --processes {processes} --process {process}"
  if not coordinator:
    if processes or process >= 0:
      raise InputError(f"{who}: give all three, or none where Slurm or a TPU's host knows them")
    if launcher(os.environ) is None:
      return
    who, known = f"the processes that {launcher(os.environ)} started", {}
  else:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise InputError(f"{who}: the coordinator is HOST:PORT, such as 10.0.0.2:8476")
    if not 0 <= process < processes:
      raise InputError(f"{who}: a process is numbered from 0 to the number of processes less 1")
    known = {"num_processes": processes, "process_id": process}
  try:
    jax.distributed.initialize(coordinator or None, **known)
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise InputError(
      f"{who}: cannot join: {reason}; see that every process is started and reaches the coordinator"
    ) from error


class FaultError(OSError):
  """A file that a run writes or reads failed it meanwhile: its input and config were in order."""


@contextlib.contextmanager
def together(
  prog: str, coordinator: str = "", processes: int = 0, process: int = -1
) -> Iterator[None]:
  """Joins the other processes, as `join`; what ends one of them from here on ends all.

  They would wait for ever for one that is gone. So the first that fails, or refuses what it is
  given, tells the others, and all leave within seconds by its line and its exit code; the
  interpreter's own end would wait for the others. An end to which all come alike, as when they
  have agreed to stop, takes the usual way out. SIGTERM ends the block at once where nothing else
  handles it.
  """
  over = threading.Event()
  with sigterm_ends_at_once():
    try:
      join(coordinator, processes, process)
      if jax.distributed.is_initialized():
        threading.Thread(target=_watch, args=(over,), daemon=True).start()
      yield
    except SystemExit:
      raise
    except BaseException as error:
      if jax.distributed.is_initialized():
        _end_all(*_line_and_code(prog, error))
      if isinstance(error, SignalledError):
        raise SystemExit(128 + signal.SIGTERM) from None
      if isinstance(error, FaultError):
        print(f"{prog}: error: {_one_line(error)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # threads of Orbax may wait for minutes for the write that failed
      raise
    finally:
      over.set()


def _line_and_code(prog: str, error: BaseException) -> tuple[str, int]:
  """What a process says that ends all, and their exit code."""
  us = distributed.global_state
  who = f"{prog}: error: process {us.process_id} of {us.num_processes}"
  if isinstance(error, InputError):
    return f"{who} refuses: {_one_line(error)}", 2
  if isinstance(error, FloatingPointError | FaultError):
    return f"{who}: {_one_line(error)}", 1
  if isinstance(error, SignalledError | KeyboardInterrupt):
    number = signal.SIGTERM if isinstance(error, SignalledError) else signal.SIGINT
    return f"{who} was ended by {signal.Signals(number).name}", 128 + number
  lost = isinstance(error, jax.errors.JaxRuntimeError)
  return (
    f"{who} ends{', probably since another one is lost' if lost else ''}: "
    f"{_one_line(error)[:200]}; start all of them again: the run continues from its last checkpoint"
  ), 1


def _one_line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__


def _watch(over: threading.Event) -> None:
  """Leaves with the process that has ended all, whatever this one waits for meanwhile."""
  while not over.wait(POLL_SECONDS):
    try:
      reasons = distributed.global_state.client.key_value_dir_get(f"{END}/why")
    except Exception:  # the coordinator is gone, or this process is leaving: JAX sees to it
      return
    if reasons:
      _leave(*json.loads(reasons[0][1]))


def _end_all(line: str, code: int) -> None:
  """Ends every process by a line and an exit code, or by those of one that was first."""
  with contextlib.suppress(Exception):  # another one was first, or the coordinator is gone
    distributed.global_state.client.key_value_set(f"{END}/why/it", json.dumps([line, code]))
  with contextlib.suppress(Exception):
    line, code = json.loads(distributed.global_state.client.key_value_dir_get(f"{END}/why")[0][1])
  _leave(line, code)


def _leave(line: str, code: int) -> None:
  """Ends this process; the one that holds the coordinator goes last."""
  _LEAVING.acquire()
  print(line, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  us = distributed.global_state
  with contextlib.suppress(Exception):
    us.client.key_value_set(f"{END}/left/{us.process_id}", "")
    until = time.monotonic() + WAIT_SECONDS
    while us.process_id == 0 and time.monotonic() < until:
      if len(us.client.key_value_dir_get(f"{END}/left")) == us.num_processes:
        break
      time.sleep(0.1)
  os._exit(code)
