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
import tyro
from tqdm import tqdm

from benchmarks.basics import commit, say, spread
from emu_jax import media
from emu_jax.conditioning import every_fourth, first_frame
from emu_jax.evaluation.report import TITLES
from emu_jax.evaluation.shapes_benchmark import measure
from emu_jax.generation import Request, interpolation_sampling
from emu_jax.loading import load_pipeline
from emu_jax.model import SHIPPED
from emu_jax.parallel.compilation import Jit, enable_cache
from emu_jax.pipeline import Pipeline
from emu_jax.systems.emu import text_features
from emu_jax.systems.latent import Sampling

SAMPLERS = (("ddim", 250), ("ddim", 50), ("ddim", 25), ("dpm++", 20), ("dpm++", 10))
STAGES = ("text", "image", "video", "interpolation", "decode", "file")
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


def one_clip(pipeline: Pipeline, sampling: Sampling, seed: int) -> dict[str, float]:
  """Seconds of each stage of one clip of 37 frames."""
  config, seconds = pipeline.config, {}

  def clocked(stage, run):
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    seconds[stage] = time.perf_counter() - start
    return result

  keys, asked, scales = jax.random.split(jax.random.key(seed), 3), ([PROMPT], ""), config.guidance
  prompts = lambda: _text(pipeline.trees, pipeline.prompts([PROMPT]), config=config.image)
  clocked("text", prompts)
  picture = clocked("image", lambda: pipeline.image(*asked, keys[0], scales.picture, sampling))
  clip = clocked(
    "video",
    lambda: pipeline.video("temporal", first_frame(8), picture, *asked, keys[1], scales, sampling),
  )
  between = interpolation_sampling(config, Request(37, sampling=sampling))
  how = scales.between, between, True  # keys are kept, as in `emu-jax sample`
  more = clocked(
    "interpolation",
    lambda: pipeline.video("interpolation", every_fourth(), clip, *asked, keys[2], *how),
  )
  frames = clocked("decode", lambda: pipeline.decode(more))
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "clip.mp4"
    clocked("file", lambda: media.save_video(file, frames[0], 4 * config.fps))
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
  pipeline = load_pipeline(arguments.checkpoint)
  pipeline.require("temporal", "interpolation")
  samplings = {f"{solver} {steps}": Sampling(solver, steps) for solver, steps in SAMPLERS}
  found = {name: {"seconds": {s: [] for s in STAGES}} for name in samplings}
  for i in range(arguments.rounds + 1):  # the first round compiles
    for name, sampling in samplings.items():
      say(f"round {i} of {arguments.rounds}: {name}")
      for stage, seconds in one_clip(pipeline, sampling, i).items():
        found[name]["seconds"][stage] += [seconds] if i else []
  for name, sampling in samplings.items():
    request = Request(8, arguments.seed, guidance=pipeline.config.guidance, sampling=sampling)
    measured = measure(
      pipeline,
      request,
      num_prompts=arguments.num_prompts,
      batch_size=arguments.batch_size,
      split=arguments.split,
      progress=lambda batches, total, name=name: tqdm(batches, name, total),
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
