"""The command `emu-jax`: what one does with a trained model."""

import contextlib
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from tqdm import tqdm

from emu_jax import command_line, media
from emu_jax.compilation import enable_cache
from emu_jax.data.pipeline import ClipSpec, load_clip, load_picture
from emu_jax.errors import InputError
from emu_jax.evaluation import report
from emu_jax.evaluation.shapes_benchmark import measure
from emu_jax.pipeline import (
  Pipeline,
  Request,
  check_frames,
  extend,
  generate,
  interpolate,
  load_pipeline,
)
from emu_jax.systems.emu_video import Guidance
from emu_jax.systems.latent import Sampling

Text = Annotated[str, tyro.conf.Positional]
Path = Annotated[pathlib.Path, tyro.conf.Positional]
CHECKPOINT = pathlib.Path("runs/shapes")  # where `make demo` leaves its model


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-jax`."""
  enable_cache()
  commands = {
    "sample": sample,
    "interpolate": interpolate_clip,
    "extend": extend_clip,
    "evaluate": evaluate,
  }
  with command_line.errors("emu-jax"):
    tyro.extras.subcommand_cli_from_dict(commands, prog="emu-jax", args=arguments)


def sample(
  prompt: Text,
  /,
  image: pathlib.Path | None = None,
  seed: int = 0,
  steps: int = 50,
  image_guidance: float | None = None,
  text_guidance: float | None = None,
  picture_guidance: float | None = None,
  frames: Literal["1", "8", "16", "37", "65"] = "8",
  checkpoint: pathlib.Path = CHECKPOINT,
  out: pathlib.Path = pathlib.Path("sample.mp4"),
  negative: str = "",
  solver: Literal["ddim", "dpm++"] = "ddim",
  rescale: float = 0.0,
  seam: Literal["gapless", "published"] = "gapless",
  enlarge: int = 0,
) -> None:
  """Generates a video (or, with 1 frame, a picture) from a prompt.

  Args:
    prompt: what to show.
    image: first frame; without it the model draws one from the prompt.
    seed: of all noise; the same seed, prompt and options give the same file.
    steps: network evaluations of each sampling run.
    image_guidance: how closely the video follows its first frame; default: the model's own.
    text_guidance: how strongly it follows the prompt; default: the model's own.
    picture_guidance: the same for the picture it begins with; default: the model's own.
    frames: length; 37 and 65 are interpolated from 8 and 16.
    checkpoint: folder of a training run, or of a recipe's runs.
    out: .mp4, .gif, .webp or .png (frames side by side).
    negative: what guidance leads away from, instead of the empty prompt.
    solver: DDIM, or DPM-Solver++ (2M), which needs fewer steps.
    rescale: how far the guided prediction's spread is brought back, 0 to 1.
    seam: how two interpolated halves are joined (65 frames).
    enlarge: times each pixel is repeated in the file; 0 = up to some 256 pixels a side.
  """
  request, pipeline = open_model(
    checkpoint, out, int(frames), seed, steps, solver, rescale, negative, seam,
    image_guidance, text_guidance, picture_guidance,
  )  # fmt: skip
  check_frames(pipeline, request.frames)
  pipeline.prompts([prompt, negative])  # too long a prompt ends here, before any sampling
  picture = None if image is None else load_picture(image, pipeline.config.image.size)[None]
  with progress() as say:
    videos, fps = generate(pipeline, [prompt], request, picture, say)
    write(out, videos[0], fps, enlarge)


def interpolate_clip(
  clip: Path,
  /,
  prompt: str = "",
  checkpoint: pathlib.Path = CHECKPOINT,
  out: pathlib.Path = pathlib.Path("interpolated.mp4"),
  frames: Literal["8", "16"] = "8",
  seed: int = 0,
  steps: int = 50,
  image_guidance: float | None = None,
  text_guidance: float | None = None,
  solver: Literal["ddim", "dpm++"] = "ddim",
  seam: Literal["gapless", "published"] = "gapless",
  enlarge: int = 0,
) -> None:
  """Raises the frame rate of a clip fourfold: 8 of its frames become 37, or 16 become 65.

  Args:
    clip: a video file; its first frames at the model's rate are the key frames.
    prompt: what it shows.
    frames: key frames to take.
  """
  request, pipeline = open_model(
    checkpoint, out, 37, seed, steps, solver, 0.0, "", seam, image_guidance, text_guidance, None
  )
  pipeline.require("interpolation")
  pipeline.prompts([prompt])
  config = pipeline.config
  given = load_clip(clip, ClipSpec(int(frames), config.fps), config.image.size)
  with progress() as say:
    videos, fps = interpolate(pipeline, given[None], [prompt], request, say)
    write(out, videos[0], fps, enlarge)


def extend_clip(
  clip: Path,
  prompt: Text,
  /,
  checkpoint: pathlib.Path = CHECKPOINT,
  out: pathlib.Path = pathlib.Path("extended.mp4"),
  seed: int = 0,
  steps: int = 50,
  image_guidance: float | None = None,
  text_guidance: float | None = None,
  solver: Literal["ddim", "dpm++"] = "ddim",
  enlarge: int = 0,
) -> None:
  """Continues a clip by 16 frames that follow a new prompt.

  Args:
    clip: a video file; its first 16 frames at the model's rate are continued.
    prompt: what happens next.
  """
  request, pipeline = open_model(
    checkpoint,
    out,
    16,
    seed,
    steps,
    solver,
    0.0,
    "",
    "gapless",
    image_guidance,
    text_guidance,
    None,
  )
  pipeline.require("extension")
  pipeline.prompts([prompt])
  config = pipeline.config
  given = load_clip(clip, ClipSpec(16, config.fps), config.image.size)
  with progress() as say:
    say("16 -> 32 frames")
    videos, fps = extend(pipeline, given[None], [prompt], request)
    write(out, videos[0], fps, enlarge)


def evaluate(
  checkpoint: pathlib.Path = CHECKPOINT,
  out: pathlib.Path | None = None,
  sheet: pathlib.Path | None = None,
  num_prompts: int = 256,
  batch_size: int = 32,
  split: Literal["validation", "test", "image_only"] = "test",
  seed: int = 0,
  steps: int = 50,
  solver: Literal["ddim", "dpm++"] = "ddim",
  image_guidance: float | None = None,
  text_guidance: float | None = None,
  picture_guidance: float | None = None,
) -> None:
  """Measures a model of the moving shapes against its prompts, by an oracle that reads pixels.

  Real clips of the same prompts are read beside the generated ones; every figure has its interval.

  Args:
    checkpoint: folder of a training run, or of a recipe's runs.
    out: .json or .md file for the report; it is printed in any case.
    sheet: .png with the first 8 prompts' clips, generated above real.
    num_prompts: prompts, each sampled once.
    batch_size: clips sampled at a time.
    split: "validation": motions of looks that training has seen; "test": motions held out from it;
      "image_only": motions of looks that only pictures have shown.
    seed: of prompts and of noise.
    steps: network evaluations of each sampling run.
    solver: DDIM, or DPM-Solver++ (2M).
    image_guidance: how closely the video follows its first frame; default: the model's own.
    text_guidance: how strongly it follows the prompt; default: the model's own.
    picture_guidance: the same for the picture it begins with; default: the model's own.
  """
  if num_prompts < 1 or batch_size < 1:
    raise InputError(
      f"evaluate: num_prompts={num_prompts} and batch_size={batch_size} must be at least 1"
    )
  if out is not None:
    media.check_output(out, report.ENDINGS)
  if sheet is not None:
    media.check_output(sheet, (".png",))
  pipeline = load_pipeline(checkpoint)
  request = requested(
    pipeline, 8, seed, steps, solver, 0.0, "", "gapless",
    image_guidance, text_guidance, picture_guidance,
  )  # fmt: skip
  check_frames(pipeline, request.frames)
  found = measure(
    pipeline, request, num_prompts=num_prompts, batch_size=batch_size, split=split,
    progress=lambda batches, total: tqdm(batches, total=total, desc="sampling", unit="batch"),
  )  # fmt: skip
  Console(width=120).print(report.table(found.reports))
  if out is not None:
    report.save(out, found.reports)
  if sheet is not None:
    both = [clip for pair in zip(found.generated[:8], found.real, strict=False) for clip in pair]
    captions = [f"{kind}: {c}" for c in found.captions[:8] for kind in ("generated", "real")]
    media.save_picture(sheet, media.contact_sheet(both, captions, columns=8))


def open_model(checkpoint, out, *options) -> tuple[Request, Pipeline]:
  """What every sampling command begins with: cheap checks first, then the weights."""
  media.check_output(out)
  pipeline = load_pipeline(checkpoint)
  return requested(pipeline, *options), pipeline


def requested(
  pipeline: Pipeline,
  frames: int,
  seed: int,
  steps: int,
  solver: str,
  rescale: float,
  negative: str,
  seam: str,
  image_guidance: float | None,
  text_guidance: float | None,
  picture_guidance: float | None,
) -> Request:
  """A request with the model's own guidance wherever a scale was not given."""
  own = pipeline.config.guidance
  given = {"image": image_guidance, "text": text_guidance, "picture": picture_guidance}
  scales = {name: getattr(own, name) if x is None else x for name, x in given.items()}
  if seed < 0:
    raise InputError(f"seed={seed} is negative; give 0 or more")
  try:
    sampling = Sampling(solver=solver, num_steps=steps, rescale=rescale)
    for schedule in (pipeline.config.schedule, pipeline.config.image.schedule):
      sampling.check(schedule)
  except ValueError as error:
    raise InputError(str(error)) from error
  return Request(frames, seed, negative, Guidance(**scales), sampling, seam)


def write(out: pathlib.Path, frames: np.ndarray, fps: float, enlarge: int) -> None:
  """Saves frames, each pixel repeated so that small videos can be seen."""
  scale = enlarge or max(1, 256 // frames.shape[1])
  media.save_video(out, media.enlarge(frames, scale), fps)


@contextlib.contextmanager
def progress():
  """A function that shows what is being done, with the time each part took."""
  console, start = Console(stderr=True), time.perf_counter()
  with console.status("starting") as status:

    def say(line: str) -> None:
      console.print(f"[{time.perf_counter() - start:6.1f} s] {line}", highlight=False)
      status.update(line)

    yield say
    say("done")
