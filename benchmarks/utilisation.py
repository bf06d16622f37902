"""What of a processor's arithmetic a step uses, and where the rest of its time goes.

  python -m benchmarks.utilisation --out docs/results

The training step and the sampling run of benchmarks/torch_comparison.py, in emu_jax and in PyTorch,
as shares of the arithmetic that a large float32 product reaches in the same run, whichever of the
two libraries multiplies faster. Model operations are products and convolutions, two for each
multiplication and addition, none of them a recomputation. The profile is that of JAX's own tracer:
seconds of all threads by kind of operation.
"""

import argparse
import collections
import pathlib
import re
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
from jax.profiler import ProfileData

from benchmarks import with_jax
from benchmarks.basics import spread
from benchmarks.measuring import compilations_kept, machine, pin, timed, warm
from benchmarks.problem import inputs
from benchmarks.torch_comparison import Arguments, prepared
from emu_jax.train.planning import flops

SIDE = 2048  # of the product that the processor's arithmetic is measured by
LOOPS = ("while", "call", "conditional")  # their bodies' operations are counted by themselves


def products() -> dict[str, Callable]:
  """The same product in both libraries."""
  a = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
  multiply = jax.jit(jnp.matmul)
  b = torch.randn(SIDE, SIDE)
  return {
    "jax": warm(lambda: multiply(a, a).block_until_ready()),
    "torch": warm(lambda: torch.matmul(b, b)),
  }


def operations(case: with_jax.Case) -> dict[str, int]:
  """Model operations of a training step and of a sampling run."""
  arrays, both = inputs(case.problem()), with_jax.trees(with_jax.weights(case))
  batch = {name: jnp.asarray(arrays[name]) for name in ("latents", "text", "dropped")}
  loss, key = with_jax.LatentLoss(case.model), with_jax.seed_key()

  def mean(temporal, spatial, batch, key):
    trees = {"temporal": temporal}, {"spatial": spatial}
    return loss(*trees, batch, key, jnp.int32(0))[0].mean()

  text = [jnp.asarray(arrays[name]) for name in ("given", "prompt", "empty")]
  run = lambda trees, *words: with_jax.sample(case, trees, *words, key, 2.0, 7.5)
  return {
    "training": flops.count(jax.grad(mean), both["temporal"], both["spatial"], batch, key),
    "sampling": flops.count(run, both, *text),
  }


def profile(task: Callable) -> list[tuple[str, float]]:
  """Seconds by kind of operation of one call, summed over threads, largest first."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      task()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    data = ProfileData.from_file(str(file))
  seconds = collections.Counter()
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats:
          seconds[kind(str(stats["hlo_op"]))] += event.duration_ns / 1e9
  return [(name, spent) for name, spent in seconds.most_common() if name not in LOOPS]


def kind(operation: str) -> str:
  """`dot` of dot.12, `transpose fusion` of transpose_copy_fusion.3."""
  name = re.sub(r"[.\d]+(\.clone)?$", "", operation).replace("conv_general_dilated", "convolution")
  if not name.endswith("fusion"):
    return name
  parts = [part for part in name.split("_") if part not in ("fusion", "wrapped")]
  return f"fusion of {', '.join(dict.fromkeys(parts))}" if parts else "fusion"


def measured(case: with_jax.Case, settings: Arguments) -> dict:
  found = {"operations": operations(case), "product": timed("product", products(), settings.rounds)}
  contenders, found["compile"] = prepared(case, settings)
  found["tasks"], found["profiles"] = {}, {}
  for task, runs in contenders.items():
    found["tasks"][task] = timed(task, runs, settings.rounds)
    found["profiles"][task] = profile(runs["emu_jax"])
  return found


def report(found: dict, case: with_jax.Case, where: dict, words: str) -> str:
  """The figures as a document."""
  fastest = min(min(seconds) for seconds in found["product"].values())
  peak = 2 * SIDE**3 / fastest
  versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
  lines = [
    "# Utilisation of a processor",
    f"`{words}` on {where['date']} at commit {where['commit']}. {where['processor']}, "
    f"{where['cores']} cores, {where['system']}; {versions}; float32. Before the run others used "
    f"{100 * where['busy_before']:.0f}% of the machine.",
    case.problem().describe(),
    f"The denominator: a product of {SIDE}x{SIDE} float32 matrices, {peak / 1e9:.4g} GFLOP/s. "
    f"torch.compile {found['compile']}.",
    "| task | model GFLOP | contender | seconds | utilisation |\n|---|---|---|---|---|\n"
    + "\n".join(
      f"| {task} | {found['operations'][task] / 1e9:.4g} | {name} | {spread(seconds)} | "
      f"{100 * found['operations'][task] / peak / sorted(seconds)[len(seconds) // 2]:.1f} % |"
      for task, contenders in found["tasks"].items()
      for name, seconds in contenders.items()
    ),
  ]
  for task, kinds in found["profiles"].items():
    total = sum(spent for _, spent in kinds)
    largest, rest = kinds[:8], sum(spent for _, spent in kinds[8:])
    lines.append(
      f"## Where emu_jax's {task} goes\n\nShares of {total:.3g} thread-seconds.\n\n"
      "| operation | share |\n|---|---|\n"
      + "\n".join(f"| {name} | {100 * s / total:.1f} % |" for name, s in [*largest, ("rest", rest)])
    )
  return "\n\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5, help="each A B B A")
  parser.add_argument("--threads", type=int, default=0, help="cores; 0 = all of this process's")
  parser.add_argument("--compile", action="store_true", help="torch.compile too; minutes more")
  parser.add_argument("--small", action="store_true", help="a network to try this command with")
  parser.add_argument("--out", type=pathlib.Path, help="folder for utilisation.md")
  arguments = parser.parse_args()
  threads = pin(arguments.threads)
  case, where = with_jax.small() if arguments.small else with_jax.Case(), machine(threads)
  with compilations_kept():
    found = measured(case, Arguments(rounds=arguments.rounds, compile=arguments.compile))
  words = f"python -m benchmarks.utilisation --rounds {arguments.rounds}"
  words += " --compile" * arguments.compile
  text = report(found, case, where, words)
  print(text)
  if arguments.out:
    (arguments.out / "utilisation.md").write_text(text)


if __name__ == "__main__":
  main()
