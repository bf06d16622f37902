"""Attention on this machine's CPU: the house's form beside JAX's own and PyTorch's fused one.

  python -m benchmarks.attention --out docs/results

The shapes are those of public networks. The three compute the same numbers and take turns in one
process; only ratios are told, which a busy machine leaves alone. Needs requirements-reference.
"""

import dataclasses
import json
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from benchmarks.measuring import machine, pin, timed, warm
from emu_jax.models.dot_product import attend

OURS, JAXS, TORCHS = "emu_jax", "jax.nn", "torch"
SHAPES = {  # sequences, queries, keys, heads, features of a head
  "SD 1.5, 32 x 32 latents": (2, 1024, 1024, 8, 40),
  "SD 1.5, text": (2, 1024, 77, 8, 40),
  "small U-Net, 16 x 16": (16, 256, 256, 10, 64),
  "small U-Net, 8 x 8": (16, 64, 64, 20, 64),
  "text encoder": (8, 77, 77, 12, 64),
  "autoencoder, 16 x 16": (2, 256, 256, 1, 512),
  "SVD over frames": (512, 14, 14, 5, 64),
  "Emu Video over frames": (2048, 8, 8, 6, 64),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Compares three forms of attention."""

  rounds: int = 7  # each A B C C B A
  threads: int = 0  # cores; 0 = all of this process's
  out: pathlib.Path | None = None  # folder for attention.json and .md; default: only print


def main() -> None:
  """Measures, writes the page and prints it."""
  a = tyro.cli(Arguments, prog="python -m benchmarks.attention")
  results = {"machine": machine(pin(a.threads)), "seconds": {}}
  for name, shape in SHAPES.items():
    forward, gradient = contenders(shape)
    agree(forward, gradient)
    for what, runs in (("forward", forward), ("with gradient", gradient)):
      seconds = timed(f"{name}, {what}", {n: warm(run) for n, run in runs.items()}, a.rounds)
      results["seconds"][f"{name}, {what}"] = seconds
  text = page(results, a)
  if a.out:
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "attention.md").write_text(text)
    (a.out / "attention.json").write_text(json.dumps(results, indent=1) + "\n")
  print(text)


def contenders(shape: tuple[int, int, int, int, int]) -> tuple[dict, dict]:
  """Of each form a call that attends, and one that gives the gradients of q, k and v besides."""
  N, Q, L, H, D = shape
  rng = np.random.default_rng(0)
  arrays = [rng.standard_normal((N, length, H, D), np.float32) for length in (Q, L, L, Q)]
  *inputs, cotangent = map(jnp.asarray, arrays)
  forward, gradient = {}, {}
  for name, form in ((OURS, attend), (JAXS, jax.nn.dot_product_attention)):
    run = jax.jit(form)
    pull = jax.jit(lambda *x, form=form: jax.vjp(form, *x)[1](cotangent))
    forward[name] = lambda run=run: jax.block_until_ready(run(*inputs))
    gradient[name] = lambda pull=pull: jax.block_until_ready(pull(*inputs))
  *plain, theirs = [torch.tensor(a) for a in arrays]
  leaves = [a.clone().requires_grad_() for a in plain]

  def attended(q, k, v):
    heads_first = (a.transpose(1, 2) for a in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

  def run():
    with torch.no_grad():
      return attended(*plain)

  forward[TORCHS] = run
  gradient[TORCHS] = lambda: torch.autograd.grad(attended(*leaves), leaves, theirs)
  return forward, gradient


def agree(forward: dict, gradient: dict) -> None:
  """Raises AssertionError where the forms differ by more than float32 leaves of such sums."""
  made = {name: [forward[name](), *gradient[name]()] for name in forward}
  for name in (JAXS, TORCHS):
    for ours, theirs in zip(made[OURS], made[name], strict=True):
      np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-3, atol=1e-4)


def page(results: dict, a: Arguments) -> str:
  """A table of ratios, and what it is of."""
  where, versions = results["machine"], results["machine"]["versions"]
  lines = [
    "# Attention on a CPU\n",
    f"`python -m benchmarks.attention --rounds {a.rounds}`, {where['date']}, commit "
    f"{where['commit']}, {where['cores']} cores of {where['processor']} "
    f"({where['busy_before']:.0%} busy before), float32, jax {versions['jax']}, torch "
    f"{versions['torch']}. Medians of {a.rounds} rounds' ratios, each of two turns, with the least "
    "and the largest. Above 1, "
    f"{OURS} is faster.\n",
    "| shape | N, Q, L, H, D | | jax.nn / emu_jax | torch / emu_jax |",
    "|---" * 5 + "|",
  ]
  for name, shape in SHAPES.items():
    for what in ("forward", "with gradient"):
      seconds = results["seconds"][f"{name}, {what}"]
      ratios = [
        [theirs / ours for theirs, ours in zip(seconds[other], seconds[OURS], strict=True)]
        for other in (JAXS, TORCHS)
      ]
      cells = (f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios)
      lines.append(f"| {name} | {', '.join(map(str, shape))} | {what} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
