"""The command `emu-jax`: what one does with a trained model."""

import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from tqdm import tqdm

from emu_jax import command_line, media
from emu_jax.checkpoints.convert import Form, convert
from emu_jax.cli_juice import juice
from emu_jax.cli_metrics import measure_folders
from emu_jax.cli_pictures import animate_picture, edit_picture
from emu_jax.cli_shared import (
  Added,
  Asked,
  Between,
  Options,
  Shared,
  opened,
  precision_of,
  working,
  write,
)
from emu_jax.data import decode
from emu_jax.data.batches import ClipSpec
from emu_jax.data.own_files import load_clip, load_picture
from emu_jax.errors import InputError
from emu_jax.evaluation import report
from emu_jax.evaluation.shapes_benchmark import measure
from emu_jax.generation import check_frames, extend, generate, interpolate, usual_frames
from emu_jax.loading import load_pipeline
from emu_jax.parallel.compilation import enable_cache

Prompt = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
Clip = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-jax`."""
  enable_cache()
  commands = {
    "sample": sample,
    "interpolate": interpolate_clip,
    "extend": extend_clip,
    "edit": edit_picture,
    "animate": animate_picture,
    "evaluate": evaluate,
    "metrics": measure_folders,
    "convert": convert_model,
    "juice": juice,
  }
  with command_line.errors("emu-jax"):
    tyro.extras.subcommand_cli_from_dict(commands, prog="emu-jax", args=arguments)


def sample(
  prompt: Prompt,
  /,
  image: pathlib.Path | None = None,
  picture_guidance: float | None = None,
  motion_adapter: pathlib.Path | None = None,
  frames: int | None = None,
  out: pathlib.Path = pathlib.Path("sample.mp4"),
  enlarge: int = 0,
  between: Added = Between(),
  options: Shared = Options(),
) -> None:
  """Generates a video (or, with 1 frame, a picture) from a prompt.

  Args:
    prompt: what to show.
    image: picture to begin with, cropped square; without it the model draws one from the prompt.
    picture_guidance: how strongly a picture drawn follows the prompt; None: the model's own.
    motion_adapter: folder of AnimateDiff's motion modules, for a public text-to-image checkpoint.
    frames: length; 1, 8, 16, or 37 and 65, which are interpolated from 8 and 16 at four times their
      rate; of AnimateDiff 1 to 32. None: the model's own, 1 of an image model.
    out: file to write: .mp4, .gif, .webp, or .png with the frames side by side.
    enlarge: times that each pixel is repeated in the file; 0: up to some 256 pixels a side.
  """
  with working() as say:
    pipeline = opened(options, out, enlarge, say, motion_adapter)
    frames = usual_frames(pipeline) if frames is None else frames
    request = options.request(pipeline.config.guidance, frames, picture_guidance, between)
    check_frames(pipeline, request.frames)
    picture = None if image is None else load_picture(image, pipeline.config.image.size)[None]
    videos, fps = generate(pipeline, [prompt], request, picture, say)
    write(out, videos[0], fps, enlarge, say)


def interpolate_clip(
  clip: Clip,
  /,
  prompt: str = "",
  frames: Literal["8", "16"] = "8",
  out: pathlib.Path = pathlib.Path("interpolated.mp4"),
  enlarge: int = 0,
  between: Added = Between(),
  options: Shared = Options(),
) -> None:
  """Raises the frame rate of a clip fourfold: 8 of its frames become 37, or 16 become 65.

  Args:
    clip: video file; its first frames at the model's rate are the key frames.
    prompt: what it shows.
    frames: key frames to take.
    out: file to write: .mp4, .gif, .webp, or .png with the frames side by side.
    enlarge: times that each pixel is repeated in the file; 0: up to some 256 pixels a side.
  """
  with working() as say:
    pipeline = opened(options, out, enlarge, say)
    pipeline.require("interpolation")
    config = pipeline.config
    given = load_clip(clip, ClipSpec(int(frames), config.fps), config.image.size)
    request = options.request(pipeline.config.guidance, 37, between=between)
    videos, fps = interpolate(pipeline, given[None], [prompt], request, say)
    write(out, videos[0], fps, enlarge, say)


def extend_clip(
  clip: Clip,
  prompt: Prompt,
  /,
  out: pathlib.Path = pathlib.Path("extended.mp4"),
  enlarge: int = 0,
  options: Shared = Options(),
) -> None:
  """Continues a clip by 16 frames that follow a new prompt.

  Args:
    clip: video file of 16 frames or more at the model's rate; its last 16 are continued.
    prompt: what happens next.
    out: file to write, the clip and what follows: .mp4, .gif, .webp, or .png side by side.
    enlarge: times that each pixel is repeated in the file; 0: up to some 256 pixels a side.
  """
  with working() as say:
    pipeline = opened(options, out, enlarge, say)
    pipeline.require("extension")
    given = whole_clip(clip, 16, pipeline.config.fps, pipeline.config.image.size)
    request = options.request(pipeline.config.guidance, 16)
    videos, fps = extend(pipeline, given[None], [prompt], request, say)
    write(out, videos[0], fps, enlarge, say)


def evaluate(
  out: pathlib.Path | None = None,
  sheet: pathlib.Path | None = None,
  num_prompts: int = 256,
  batch_size: int = 32,
  split: Literal["validation", "test", "image_only"] = "test",
  picture_guidance: float | None = None,
  options: Shared = Options(),
) -> None:
  """Measures a model of the moving shapes against its prompts, by an oracle that reads pixels.

  Real clips of the same prompts are read beside the generated ones; every figure has its interval.

  Args:
    out: .json or .md file for the report; it is printed in any case.
    sheet: .png with the first 8 prompts' clips, generated above real.
    num_prompts: prompts, each sampled once.
    batch_size: clips sampled at a time.
    split: "validation": motions of looks that training has seen; "test": motions held out from it;
      "image_only": motions of looks that only pictures have shown.
    picture_guidance: how strongly a picture drawn follows its prompt; None: the model's own.
  """
  if num_prompts < 1 or batch_size < 1:
    raise InputError(
      f"evaluate: num_prompts={num_prompts} and batch_size={batch_size} must be at least 1"
    )
  if out is not None:
    media.check_output(out, report.ENDINGS)
  if sheet is not None:
    media.check_output(sheet, (".png",))
  pipeline = load_pipeline(options.checkpoint, **options.how())
  request = options.request(pipeline.config.guidance, 8, picture_guidance)
  check_frames(pipeline, request.frames)
  found = measure(
    pipeline, request, num_prompts=num_prompts, batch_size=batch_size, split=split,
    progress=lambda batches, total: tqdm(
      batches, total=total, desc="sampling", unit="batch", disable=None  # on a terminal only
    ),
  )  # fmt: skip
  Console(width=120).print(report.table(found.reports))
  if out is not None:
    report.save(out, found.reports)
  if sheet is not None:
    both = [clip for pair in zip(found.generated[:8], found.real, strict=False) for clip in pair]
    captions = [f"{kind}: {c}" for c in found.captions[:8] for kind in ("generated", "real")]
    media.save_picture(sheet, media.contact_sheet(both, captions, columns=8))


def convert_model(
  source: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
  target: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
  /,
  to: Form = "orbax",
  precision: Asked = "stored",
  widen: bool = False,
) -> None:
  """Imports a diffusers folder (one model or a pipeline), or exports a model to one.

  Args:
    source: folder of a model, of a pipeline, or of a run of emu-train.
    target: new folder; it appears whole or not at all.
    to: orbax: our copy, which loads fastest; diffusers: safetensors that PyTorch's libraries read;
      safetensors: all stages of a run as one small folder, to be handed on and sampled from.
    precision: of the weights; stored: as they are.
    widen: take float16 weights, as float32.
  """
  with working() as say:
    convert(source, target, to, say, dtype=precision_of(precision), widen=widen)
  print(f"{target}: written")


def whole_clip(clip: pathlib.Path, least: int, fps: float, size: int) -> np.ndarray:
  """All frames of a file at a rate; InputError for less than `least`."""
  num_frames = least
  if not decode.is_picture(clip):
    line = decode.timeline(clip)
    num_frames = max(least, decode.fitting_frames(line, min(fps, line.fps)))
  return load_clip(clip, ClipSpec(num_frames, fps), size)
