"""emu_jax against the same mathematics in PyTorch: speed, memory, and time spent waiting for data.

  python -m benchmarks.torch_comparison --out docs/results

Two tasks, a training step and a guided sampling run, in one process and on the same cores. First
the two sides must agree to float32 rounding (benchmarks/agreement.py). Then they take turns, A B B
A a round, so that a machine that becomes slower meanwhile slows both. Needs requirements-reference.
"""

import contextlib
import dataclasses
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
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import torch
import tyro

from benchmarks import with_jax, with_torch
from benchmarks.agreement import agreement, disagreements
from benchmarks.problem import inputs
from benchmarks.report import report

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "diffusers", "numpy")
TASKS = ("training", "sampling")
ALONE = "benchmarks.without_torch"  # followed by a module and its arguments


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Compares emu_jax with diffusers' U-Net and temporal layers of the same size in PyTorch."""

  rounds: int = 5  # each A B B A
  threads: int = 0  # cores for either side; 0 = all of this process's
  small: bool = False  # a network and clips small enough to try this command
  compile: bool = False  # torch.compile as a third contender; minutes more
  layout: Literal["contiguous", "channels_last"] = "contiguous"  # of PyTorch's arrays
  out: pathlib.Path | None = None  # folder for torch_comparison.json and .md; default: only print

  def __post_init__(self):
    if self.rounds < 1:
      raise ValueError(f"torch_comparison: rounds={self.rounds} is below 1; give 1 or more")


def main() -> None:
  """Runs everything and prints the report; exits with 1 where the two sides disagree."""
  arguments = tyro.cli(Arguments, prog="python -m benchmarks.torch_comparison")
  threads = pin(arguments.threads)
  case = with_jax.small() if arguments.small else with_jax.Case()
  results = {"machine": machine(threads), "arguments": settings(arguments)}
  results["configuration"] = case.problem().describe()
  results["clips"] = {"training": case.batch, "sampling": case.sampled}

  size = "small" if arguments.small else "default"
  with compilations_kept():  # a process that compiles to measure memory does so for the others too
    results["memory"] = memory(case, size, arguments.layout, threads)
    measure(results, case, arguments)
  say("a short run of the training loop")
  results["loop"] = child(ALONE, "benchmarks.data_wait", size)

  text = report(results)
  print(text)
  if arguments.out:
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "torch_comparison.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "torch_comparison.md").write_text(text)


def measure(results: dict, case: with_jax.Case, arguments: Arguments) -> None:
  """Adds agreement and times."""
  say("checking that both compute the same")
  results["agreement"] = agreement(case, layout=arguments.layout)
  if problems := disagreements(results["agreement"]):
    sys.exit("torch_comparison: the two sides disagree, nothing was timed\n" + "\n".join(problems))
  contenders, results["compile"] = prepared(case, arguments)
  results["times"] = {task: timed(task, contenders[task], arguments.rounds) for task in TASKS}


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
    sys.exit(
      f"torch_comparison: --threads {threads} is not within the {len(cores)} cores there are"
    )
  os.sched_setaffinity(0, cores[:threads])
  torch.set_num_threads(threads)
  return threads


def prepared(case: with_jax.Case, arguments: Arguments) -> tuple[dict, str]:
  """Each task of each contender, warmed up, and what became of torch.compile."""
  problem, flat = case.problem(), with_jax.weights(case)
  arrays, fate = inputs(problem), "not tried"

  def make(task, compiled):
    model = with_torch.Model(problem, flat, arguments.layout, compiled)
    return warm(with_torch.TASKS[task](model, arrays))

  contenders = {}
  for task in TASKS:
    say(f"preparing {task}")
    contenders[task] = {
      "emu_jax": warm(with_jax.TASKS[task](case, arrays, flat)),
      "torch": make(task, False),
    }
  if arguments.compile:
    try:
      for task in TASKS:
        say(f"torch.compile of {task}")
        contenders[task]["torch.compile"] = make(task, True)
      fate = "works"
    except (RuntimeError, TypeError) as error:  # what Dynamo and Inductor raise derives from these
      fate = f"fails: {str(error).strip().splitlines()[0]}"
      for task in TASKS:
        contenders[task].pop("torch.compile", None)
  return contenders, fate


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


def memory(case: with_jax.Case, size: str, layout: str, threads: int) -> dict:
  """High-water marks in MiB, each task of each side in a process of its own."""
  found = {}
  for task in TASKS:
    say(f"memory of {task}")
    problem = case.problem().to_json()
    ours = child(ALONE, "benchmarks.with_jax", task, size, "1")
    theirs = child("benchmarks.with_torch", task, layout, str(threads), "1", given=problem)
    found[task] = {"emu_jax": ours, "torch": theirs}
  return found


def child(*words: str, given: str = "") -> dict:
  """What modules of this benchmark print as their last line, from a process of their own."""
  command = [sys.executable, "-m", *words]
  done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=root())
  if done.returncode:
    sys.exit(f"torch_comparison: {' '.join(words)} failed\n{done.stderr[-4000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> dict:
  """Where and with what this was measured."""
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return {
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    "commit": commit(),
    "processor": model or platform.processor(),
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


def commit() -> str:
  """The checkout's commit, with a mark where files differ from it."""
  git = lambda *words: subprocess.run(
    ["git", *words], capture_output=True, text=True, cwd=root()
  ).stdout.strip()
  changed = git("status", "--porcelain", "--untracked-files=no")
  return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def root() -> pathlib.Path:
  return pathlib.Path(__file__).resolve().parents[1]


def settings(arguments: Arguments) -> dict:
  return {k: v for k, v in dataclasses.asdict(arguments).items() if k != "out"}


def say(text: str) -> None:
  print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  main()
