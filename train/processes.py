"""One training run of many processes: how they find one another, and what they do on losing one."""

import contextlib
import glob
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import jax

from emu_jax.errors import InputError

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


@contextlib.contextmanager
def together(prog: str) -> Iterator[None]:
  """What ends one process ends all: they would wait for ever for one that is gone.

  A process that fails on its own, a lost one's neighbour among them, leaves at once with a line
  and exit code 1. The interpreter's own end would wait for the others. What every process refuses
  alike, bad input or numbers that are not finite, takes the usual way out.
  """
  try:
    yield
  except (InputError, FloatingPointError, SystemExit):
    raise
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    print(
      f"{prog}: error: process {jax.process_index()} of {jax.process_count()} ends"
      f"{', probably since another one is lost' if lost else ''}: {reason}; start all of them"
      " again: the run continues from its last checkpoint",
      file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
