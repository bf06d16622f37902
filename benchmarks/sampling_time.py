"""Where the time of a clip goes, stage by stage, and what fewer steps cost in accuracy.

  python -m benchmarks.sampling_time

One prompt at a time, 37 frames, every program compiled before the clock starts; samplers take
turns. Accuracy is the pixel oracle's of 8 frames of held-out prompts, the same ones and the same
noise for every sampler. Text encoders run inside the programs of the picture and the video; their
column is what one run of them takes by itself, and is contained in the others.
"""

import dataclasses
import functools
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.basics import commit, say, spread
from emu_jax import media
from emu_jax.evaluation.report import TITLES
from emu_jax.evaluation.shapes_benchmark import measure
from emu_jax.model import SHIPPED, Model, load, program
from emu_jax.parallel.compilation import Jit, enable_cache
from emu_jax.systems.emu import text_features

SAMPLERS = (("ddim", 250), ("ddim", 50), ("ddim", 25), ("dpm++", 20), ("dpm++", 10))
STAGES = ("text", "image", "video", "interpolation", "decode", "file")
# Of each program of the task "sample"; the last but one joins what interpolation has made.
OF_STEPS = ("image", "video", "interpolation", "interpolation", "decode")
SHARES = ("appearance", "direction", "joint", "object_consistency")
PROMPT = "a large red circle moving left quickly on a black background"


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times each stage of sampling, sampler by sampler, and reads the clips."""

  checkpoint: pathlib.Path = SHIPPED  # a run, a recipe's runs or a release
  out: pathlib.Path = pathlib.Path("docs/results")  # for sampling_time.md and .json
  rounds: int = 3
  num_prompts: int = 32
  batch_size: int = 32
  split: str = "test"
  seed: int = 0


@functools.partial(Jit, static_argnames="config")
def _text(trees, prompts, *, config):
  return text_features(config, trees, *prompts)


def one_clip(model: Model, solver: str, steps: int, seed: int) -> dict[str, float]:
  """Seconds of each stage of one clip of 37 frames."""
  seconds = dict.fromkeys(STAGES, 0.0)

  def clocked(stage, run):
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    seconds[stage] += time.perf_counter() - start
    return result

  image = model.system.image
  clocked("text", lambda: _text(model.trees, model.tokens([PROMPT]), config=image))
  fields = {"frames": 37, "solver": solver, "steps": steps, "seed": seed}
  request = model.request("sample", prompt=PROMPT, **fields)
  arrays = model.arrays("sample", [request])
  for stage, step in zip(OF_STEPS, model.steps("sample", request), strict=True):
    trees = {name: model.trees[name] for name in step.reads}
    run = functools.partial(program(step.program), trees, arrays, static=step.static)
    arrays |= clocked(stage, run)
  frames = clocked("decode", lambda: np.asarray(arrays["frames"]))
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "clip.mp4"
    clocked("file", lambda: media.save_video(file, frames[0], model.fps("sample", request)))
  return seconds


def table(results: dict) -> str:
  """The page."""
  m = results["arguments"]
  rows = [
    f"| {name} | {' | '.join(spread(found['seconds'][s]) for s in STAGES)} "
    f"| {spread([sum(v) for v in zip(*(found['seconds'][s] for s in STAGES[1:]), strict=True)])} | "
    + " | ".join("{value:.1%} [{low:.1%}, {high:.1%}]".format(**found[s]) for s in SHARES)
    + " |"
    for name, found in results["samplers"].items()
  ]
  head = [*STAGES, "all", *(TITLES[s][0] for s in SHARES)]
  return "\n".join(
    [
      "# Sampling time",
      "",
      f"`python -m benchmarks.sampling_time` at commit {results['commit']}, "
      f"{results['cores']} cores; seconds, median (least to most) of {m['rounds']} clips of 37 "
      f"frames; accuracy on {m['num_prompts']} prompts of the split {m['split']}, 8 frames, with "
      "Wilson's 95 % interval. The text is read within the other stages and not counted twice.",
      "",
      f"| sampler | {' | '.join(head)} |",
      "|" + "---|" * (len(head) + 1),
      *rows,
      "",
    ]
  )


def main() -> None:
  arguments = tyro.cli(Arguments, prog="python -m benchmarks.sampling_time")
  enable_cache()
  model = load(arguments.checkpoint)
  model.require("temporal", "interpolation")
  samplers = {f"{solver} {steps}": (solver, steps) for solver, steps in SAMPLERS}
  found = {name: {"seconds": {s: [] for s in STAGES}} for name in samplers}
  for i in range(arguments.rounds + 1):  # the first round compiles
    for name, sampler in samplers.items():
      say(f"round {i} of {arguments.rounds}: {name}")
      for stage, seconds in one_clip(model, *sampler, i).items():
        found[name]["seconds"][stage] += [seconds] if i else []
  for name, (solver, steps) in samplers.items():
    measured = measure(
      model,
      num_prompts=arguments.num_prompts,
      batch_size=arguments.batch_size,
      split=arguments.split,
      seed=arguments.seed,
      progress=lambda batches, total, name=name: tqdm(batches, name, total),
      frames=8,
      solver=solver,
      steps=steps,
    )
    estimates = measured.reports["generated"].estimates
    found[name] |= {share: dataclasses.asdict(estimates[share]) for share in SHARES}
    median = sum(statistics.median(found[name]["seconds"][s]) for s in STAGES[1:])
    say(f"{name}: {median:.1f} s, direction {found[name]['direction']['value']:.1%}")
  # Of a folder its name: where it lies is the machine's affair.
  words = {name: getattr(value, "name", str(value)) for name, value in vars(arguments).items()}
  results = {
    "commit": commit(), "cores": len(os.sched_getaffinity(0)), "arguments": words, "samplers": found
  }  # fmt: skip
  arguments.out.mkdir(parents=True, exist_ok=True)
  (arguments.out / "sampling_time.json").write_text(json.dumps(results, indent=1) + "\n")
  (arguments.out / "sampling_time.md").write_text(table(results))


if __name__ == "__main__":
  main()
