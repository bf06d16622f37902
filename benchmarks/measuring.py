"""What every benchmark needs: cores to itself, turns in alternated order, and where it ran."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import torch

from benchmarks.basics import commit, processor, root, say

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "diffusers", "numpy")


@contextlib.contextmanager
def compilations_kept() -> Iterator[None]:
  """JAX's compilation cache in a new folder, for this process and those it starts from here on."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for the others
    jax.config.update("jax_compilation_cache_dir", folder)  # for this one
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield


def pin(threads: int) -> int:
  """Confines this process, and those it starts, to so many cores; returns their number.

  XLA makes as many threads as it finds cores when the first array is made.
  """
  cores = sorted(os.sched_getaffinity(0))
  threads = threads or len(cores)
  if not 1 <= threads <= len(cores):
    sys.exit(f"benchmark: --threads {threads} is not within the {len(cores)} cores there are")
  os.sched_setaffinity(0, cores[:threads])
  torch.set_num_threads(threads)
  return threads


def warm(run: Callable) -> Callable:
  """The task after two calls: compiled, caches filled."""
  for _ in range(2):
    run()
  return run


def timed(task: str, contenders: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
  """Seconds a call of each contender in each round: the mean of its two turns, A B … B A."""
  seconds = {name: [] for name in contenders}
  for i in range(rounds):
    say(f"{task}: round {i + 1} of {rounds}")
    total = dict.fromkeys(contenders, 0.0)
    for name in [*contenders, *reversed(contenders)]:
      start = time.perf_counter()
      contenders[name]()
      total[name] += time.perf_counter() - start
    for name, both in total.items():
      seconds[name].append(both / 2)
  return seconds


def child(*words: str, given: str = "", environment: Mapping[str, str] | None = None) -> dict:
  """What modules of this benchmark print as their last line, from a process of their own."""
  done = subprocess.run(
    [sys.executable, "-m", *words], input=given, capture_output=True, text=True, cwd=root(),
    env=os.environ | dict(environment or {}),
  )  # fmt: skip
  if done.returncode:
    sys.exit(f"benchmark: {' '.join(words)} failed\n{done.stderr[-4000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> dict:
  """Where and with what this was measured."""
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return {
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    "commit": commit(),
    "processor": processor(),
    "cores": threads,
    "memory_GiB": round(pages / 2**30),
    "busy_before": round(busy(), 2),
    "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    "dtype": "float32",
  }


def busy(seconds: float = 2.0) -> float:
  """Share of all cores' time that others use while this process sleeps."""

  def read():
    ticks = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, ticks)), int(ticks[3])  # all, idle

  every, idle = read()
  time.sleep(seconds)
  every_after, idle_after = read()
  return 1 - (idle_after - idle) / max(every_after - every, 1)
