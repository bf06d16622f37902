"""A denoising step of public U-Nets here and in PyTorch, eager and compiled, in one alternated run.

  python -m benchmarks.public_step --case sd15 --compile forward --out docs/results

The U-Net is diffusers' own class with every tensor drawn anew, imported by the table that reads
checkpoints. First both must agree; then they take turns (benchmarks/measuring.py). Forward is the
network called once on a guided pair; backward adds the gradient of every parameter. Needs
requirements-reference.txt.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax.traverse_util import unflatten_dict

from benchmarks.basics import say, spread
from benchmarks.measuring import compilations_kept, machine, pin, timed, warm
from emu_jax.typing import Conditions, Params
from emu_jax.weights.model import described
from emu_jax.weights.table import split

OUTPUT, GRADIENT = 1e-4, 1e-3  # as tests/weights: of the output's spread, of a gradient's norm


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times one public U-Net in both frameworks."""

  case: Literal["sd15", "svd"] = "sd15"
  rounds: int = 5  # each A B C C B A
  threads: int = 0  # cores for either side; 0 = all of this process's
  side: int = 0  # of the latents; 0: the case's own
  backward: bool = True  # the gradient of every parameter too
  compile: Literal["no", "forward", "both"] = "no"  # torch.compile too; minutes more, and memory
  small: bool = False  # a network small enough to try this command
  out: pathlib.Path | None = None  # folder for public_step_<case>.json and .md


@dataclasses.dataclass(frozen=True)
class Case:
  """A class of diffusers at a size, and what it is called with."""

  kind: Any
  options: dict
  side: int  # of the latents
  num_frames: int  # 1 of an image model
  batch: int
  tokens: int
  words: str


def cases(small: bool) -> dict[str, Case]:
  """What can be timed."""
  sd = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8} | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  }
  return {
    "sd15": Case(
      diffusers.UNet2DConditionModel,
      {"cross_attention_dim": 768} | (sd if small else {}),
      8 if small else 32,
      1,
      2,
      77,
      "Stable Diffusion 1.5's U-Net",
    ),
    "svd": Case(
      diffusers.UNetSpatioTemporalConditionModel,
      {
        "block_out_channels": (64, 64, 64, 64) if small else (96, 192, 384, 384),
        "num_attention_heads": (2, 2, 2, 2) if small else (3, 6, 12, 12),
        "layers_per_block": 1,
      },
      8 if small else 16,
      3 if small else 14,
      2,
      1,
      "Stable Video Diffusion's U-Net at a third of its width",
    ),
  }


def main() -> None:
  """Runs everything and prints the report; exits with 1 where the two sides disagree."""
  arguments = tyro.cli(Arguments, prog="python -m benchmarks.public_step")
  threads = pin(arguments.threads)
  case = cases(arguments.small)[arguments.case]
  if arguments.side:
    case = dataclasses.replace(case, side=arguments.side)
  results = {"machine": machine(threads)}
  with compilations_kept():
    results |= measure(case, arguments)
  text = report(results)
  print(text)
  if arguments.out:
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = f"public_step_{arguments.case}"
    (arguments.out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / f"{stem}.md").write_text(text)


def measure(case: Case, arguments: Arguments) -> dict:
  """Agreement and times of a case."""
  say(f"drawing {case.words}")
  model = case.kind(**case.options).eval()
  redraw(model)
  apply, params = imported(model)
  theirs, ours = inputs(case, model.config)
  direction = np.random.default_rng(1).standard_normal(out_shape(case)).astype(np.float32)
  tasks, agreement, fate = {}, {}, "not tried"

  say("forward")
  program = jax.jit(lambda params: apply(params, *ours))
  forward = lambda: jax.block_until_ready(program(params))
  with torch.no_grad():
    expected = model(**theirs).sample
  agreement["output"] = off(layout(case, expected.numpy()), np.asarray(forward()))
  tasks["forward"] = {"emu_jax": forward, "torch": torch_forward(model, theirs)}

  if arguments.backward:
    say("forward and backward")
    along = jnp.asarray(layout(case, direction))
    graded = jax.jit(jax.value_and_grad(lambda params: jnp.sum(apply(params, *ours) * along)))
    both = lambda: jax.block_until_ready(graded(params))
    tasks["forward + backward"] = {"emu_jax": both, "torch": torch_both(model, theirs, direction)}
    agreement["gradient"] = gradients_off(model, both()[1], tasks["forward + backward"]["torch"])
  if agreement["output"] > OUTPUT or agreement.get("gradient", 0.0) > GRADIENT:
    sys.exit(f"public_step: the two sides disagree, nothing was timed: {agreement}")

  if arguments.compile != "no":
    say("torch.compile")
    compiled = torch.compile(model, dynamic=False)
    try:
      tasks["forward"]["torch.compile"] = warm(torch_forward(compiled, theirs))
      if arguments.backward and arguments.compile == "both":
        step = torch_both(compiled, theirs, direction)
        tasks["forward + backward"]["torch.compile"] = warm(step)
      fate = "works"
    except RuntimeError as error:  # what Dynamo and Inductor raise derives from it
      fate = f"fails: {str(error).strip().splitlines()[0]}"
  times = {}
  for task, contenders in tasks.items():
    for run in contenders.values():
      warm(run)
    times[task] = timed(task, contenders, arguments.rounds)
  count = sum(p.numel() for p in model.parameters())
  rows = "x".join(str(n) for n in (case.batch, case.num_frames, case.side, case.side))
  words = f"{case.words}, {count / 1e6:.0f} M parameters, float32, latents {rows} (a guided pair)"
  return {"case": words, "agreement": agreement, "compile": fate, "times": times}


def redraw(model: torch.nn.Module) -> None:
  """Every tensor drawn anew: what is zero or one at the start would hide mistakes."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      fan_in = p[0].numel() if p.ndim > 1 else 0
      noise = torch.randn(p.shape, generator=generator)
      p.copy_(noise / fan_in**0.5 if fan_in else 0.6 + 0.2 * noise)


def imported(model: torch.nn.Module) -> tuple[Callable, Params]:
  """Our network's `apply(params, x, t, conditions)` and parameters, by the checkpoints' table."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_config(folder)
    architecture, config = described(folder)
  state, leaves = model.state_dict(), {}
  for name, group in architecture.groups(config).items():
    leaves |= split(group, state[name].numpy())
  net = architecture.module(config)
  params = jax.tree.map(jnp.asarray, unflatten_dict(leaves, sep="/"))
  return lambda params, *inputs: net.apply({"params": params}, *inputs), params


def inputs(case: Case, config: Any) -> tuple[dict, tuple]:
  """The same random inputs for both: PyTorch's keywords and our arguments."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  B, T, side, n = case.batch, case.num_frames, case.side, config.out_channels
  x = draw(B, T, config.in_channels, side, side)
  text = draw(B, case.tokens, config.cross_attention_dim)
  t = np.linspace(1, 900, B).astype(np.float32)
  theirs = {
    "sample": torch.tensor(x if T > 1 else x[:, 0]),
    "timestep": torch.tensor(t),
    "encoder_hidden_states": torch.tensor(text),
  }
  vectors = {}
  if T > 1:
    vectors["micro"] = jnp.asarray([[6.0, 127.0, 0.02]] * B)
    theirs["added_time_ids"] = torch.tensor(np.asarray(vectors["micro"]))
  video = jnp.asarray(x.transpose(0, 1, 3, 4, 2))
  concat = video[..., n:] if config.in_channels > n else None
  conditions = Conditions((jnp.asarray(text),), concat=concat, vectors=vectors)
  return theirs, (video[..., :n], jnp.asarray(t), conditions)


def out_shape(case: Case) -> tuple[int, ...]:
  """Of PyTorch's output."""
  frames = (case.num_frames,) if case.num_frames > 1 else ()
  return (case.batch, *frames, 4, case.side, case.side)


def layout(case: Case, array: np.ndarray) -> np.ndarray:
  """PyTorch's output as ours, B T H W C."""
  array = array if case.num_frames > 1 else array[:, None]
  return array.transpose(0, 1, 3, 4, 2)


def torch_forward(model: torch.nn.Module, inputs: dict) -> Callable:
  """One call without a graph."""

  def run():
    with torch.no_grad():
      return model(**inputs).sample

  return run


def torch_both(model: torch.nn.Module, inputs: dict, direction: np.ndarray) -> Callable:
  """One call and the gradient of every parameter, which is given back unless it is to be kept."""
  along = torch.tensor(direction)

  def run(keep: bool = False):
    (model(**inputs).sample * along).sum().backward()
    if not keep:
      model.zero_grad(set_to_none=True)

  return run


def off(expected: np.ndarray, found: np.ndarray) -> float:
  """Largest difference in standard deviations."""
  return float(np.abs(found - expected).max() / expected.std())


def gradients_off(model: torch.nn.Module, ours: Params, run: Callable) -> float:
  """Difference of all gradients together, relative to their norm."""
  run(keep=True)
  with tempfile.TemporaryDirectory() as folder:
    model.save_config(folder)
    architecture, config = described(folder)
  leaves = jax.tree_util.tree_leaves_with_path(ours)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  flat = {name(path): np.asarray(leaf) for path, leaf in leaves}
  gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
  error = total = 0.0
  for public, group in architecture.groups(config).items():
    for path, part in split(group, gradients[public]).items():
      error += float(np.square(flat[path] - part).sum(dtype=np.float64))
      total += float(np.square(part).sum(dtype=np.float64))
  model.zero_grad(set_to_none=True)
  return (error / total) ** 0.5


def report(results: dict) -> str:
  """The results as Markdown."""
  m, lines = results["machine"], []
  versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
  for task, seconds in results["times"].items():
    for name, values in seconds.items():
      ratios = [a / b for a, b in zip(seconds["emu_jax"], values, strict=True)]
      ratio = "" if name == "emu_jax" else spread(ratios)
      lines.append(f"| {task} | {name} | {spread(values)} | {ratio} |")
  agreement = ", ".join(f"{name} {value:.1e}" for name, value in results["agreement"].items())
  rounds = len(results["times"]["forward"]["emu_jax"])
  return "\n".join(
    [
      f"# A denoising step against PyTorch: {results['case']}",
      "",
      f"{m['date']}, commit {m['commit']}; {m['processor']}, {m['cores']} cores for either side, "
      f"{m['memory_GiB']} GiB; {versions}. Before the run others used {m['busy_before']:.0%} of "
      "the machine.",
      "",
      f"Both sides agree: {agreement} (of the output's standard deviation, of the gradients' "
      f"norm). {rounds} rounds in one process, order alternated. Below 1, a ratio says that "
      f"emu_jax is faster. Median (least to most). torch.compile: {results['compile']}.",
      "",
      "| task | contender | seconds | seconds of emu_jax / seconds of it |",
      "|---|---|---|---|",
      *lines,
      "",
    ]
  )


if __name__ == "__main__":
  main()
