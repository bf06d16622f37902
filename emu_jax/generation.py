"""What can be asked of a model: clips of prompts, more frames of a clip, what follows, edits."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from emu_jax.conditioning import every_fourth, first_frame, past_frames
from emu_jax.config import refused
from emu_jax.errors import InputError
from emu_jax.pipeline import Animation, Frames, Given, Latents, Pipeline
from emu_jax.systems.emu_video import SEAMS, EmuVideoConfig, Guidance, join_interpolated
from emu_jax.systems.latent import Sampling

FRAMES = (1, 8, 16, 37, 65)  # what can be asked for: 16 and 65 of a model trained on 16 frames


@dataclasses.dataclass(frozen=True)
class Request:
  """What to generate, beside the prompts. Raises InputError for numbers that no model can use."""

  frames: int = 8
  seed: int = 0
  negative: str = ""
  guidance: Guidance = Guidance()
  sampling: Sampling = Sampling()
  seam: Literal["gapless", "published"] = "gapless"
  # Whether interpolation keeps its key frames as they are, a given clip's to the last bit; the
  # paper's model draws them anew, which repairs keys that are not good and blurs those that are.
  keep_keys: bool = True
  interpolation_steps: int | None = None  # None: the model's own, or those of `sampling`

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise InputError(f"seed={self.seed} is not from 0 to {2**32 - 1}; give one that is")
    for name, scale in dataclasses.asdict(self.guidance).items():
      if scale is not None and not math.isfinite(scale):
        raise InputError(f"{name} guidance {scale} is not a number; give one, 1 = none")
    if not 0 <= self.sampling.rescale <= 1:
      raise InputError(f"rescale={self.sampling.rescale} is not from 0 to 1; 0 = off")


def usual_frames(pipeline: Pipeline | Animation) -> int:
  """Frames of a clip where none were asked for: those of a training clip, 1 of an image model."""
  if isinstance(pipeline, Animation):
    return pipeline.config.num_frames
  return 8 if "temporal" in pipeline.trees else 1


def generate(
  pipeline: Pipeline | Animation,
  texts: Sequence[str],
  request: Request,
  picture: Given | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """Frames [B, T, H, W, 3] of prompts and their rate in frames a second.

  Text -> picture (or the given one, [B, 1, H, W, 3]) -> video -> more frames; of AnimateDiff,
  text -> video.

  Args:
    say: told each step as it begins.
  Raises: InputError for what the model cannot do, before any sampling.
  """
  config = pipeline.config
  check_frames(pipeline, request.frames)
  check_request(pipeline, texts, request)
  if isinstance(pipeline, Animation) and request.frames > 1:
    return animate(pipeline, texts, request, picture, say)
  keys = dict(zip("ivn", jax.random.split(jax.random.key(request.seed), 3), strict=True))
  asked = texts, request.negative
  if picture is None:
    say("text -> image")
    scale = request.guidance.picture
    start = pipeline.image(*asked, keys["i"], scale, request.sampling)
  else:
    start = pipeline.encode(picture)
  if request.frames == 1:
    say("latents -> pixels")
    return pipeline.decode(start), config.fps

  num_frames = {37: 8, 65: 16}.get(request.frames, request.frames)
  say(f"image + text -> {num_frames} frames")
  how = request.guidance, request.sampling
  clip = pipeline.video("temporal", first_frame(num_frames), start, *asked, keys["v"], *how)
  if request.frames == num_frames:
    say("latents -> pixels")
    return pipeline.decode(clip), config.fps
  return interpolate_latents(pipeline, clip, texts, request, keys["n"], say), 4 * config.fps


def animate(
  pipeline: Animation,
  texts: Sequence[str],
  request: Request,
  picture: Given | None,
  say: Callable[[str], None],
) -> tuple[Frames, float]:
  """As `generate`, by AnimateDiff, which draws all frames at once."""
  if picture is not None:
    raise InputError(
      f"generate: {pipeline.where} is AnimateDiff, which begins with no picture; leave the picture "
      "out, or give it to emu-jax animate with Stable Video Diffusion"
    )
  say(f"text -> {request.frames} frames")
  latents = pipeline.clip(
    request.frames,
    texts,
    request.negative,
    jax.random.key(request.seed),
    request.guidance.text,
    request.sampling,
  )
  say("latents -> pixels")
  return pipeline.decode(latents), pipeline.config.fps


def edit(
  pipeline: Pipeline | Animation,
  picture: Given,
  texts: Sequence[str],
  request: Request,
  say: Callable[[str], None] = lambda line: None,
) -> Frames:
  """Pictures [B, 1, H, W, 3] changed as instructions say, by InstructPix2Pix or Emu Edit's like."""
  pipeline.check_reads(pipeline.config.image.autoencoder.z_channels)
  check_request(pipeline, texts, request)
  given = pipeline.encode(picture)
  say("picture + instruction -> picture")
  how = jax.random.key(request.seed), request.guidance, request.sampling
  latents = pipeline.edit(given, texts, request.negative, *how)
  say("latents -> pixels")
  return pipeline.decode(latents)


def check_frames(pipeline: Pipeline | Animation, frames: int) -> None:
  """Raises InputError where the model cannot give so many frames."""
  if isinstance(pipeline, Animation):
    most = pipeline.config.motion.max_frames
    if not 1 <= frames <= most:
      raise InputError(
        f"generate: frames={frames} cannot be had; {pipeline.where} gives 1 to {most}, best the "
        f"{pipeline.config.num_frames} that it was trained on"
      )
    return
  if frames not in FRAMES:
    raise InputError(f"generate: frames={frames} cannot be had; choose one of {FRAMES}")
  if frames in (16, 65) and pipeline.config.num_frames < 16:
    raise InputError(
      f"generate: frames={frames} needs a model trained on 16 frames, {pipeline.where} was trained "
      f"on {pipeline.config.num_frames}; choose 8 or 37"
    )
  pipeline.require("autoencoder", "latents", "text", "spatial")
  if frames > 1:
    pipeline.require("temporal")
  if frames in (37, 65):
    pipeline.require("interpolation")


def check_request(pipeline: Pipeline | Animation, texts: Sequence[str], request: Request) -> None:
  """Raises InputError for a prompt that is too long, or a sampler that does not fit a schedule."""
  pipeline.prompts([*texts, request.negative])
  with refused("sampling"):
    request.sampling.check(pipeline.config.image.schedule)
    request.sampling.check(pipeline.config.schedule)
  if isinstance(pipeline, Pipeline):
    with refused("interpolation"):
      interpolation_sampling(pipeline.config, request).check(pipeline.config.schedule)


def interpolation_sampling(config: EmuVideoConfig, request: Request) -> Sampling:
  """How frames between others are sampled: by the steps asked for, else the model's own."""
  own, asked = config.interpolation_steps, request.interpolation_steps
  steps = next(n for n in (asked, own, request.sampling.num_steps) if n is not None)
  return dataclasses.replace(request.sampling, num_steps=steps)


def interpolate(
  pipeline: Pipeline,
  clip: Given,
  texts: Sequence[str],
  request: Request,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """37 frames of each clip of 8, or 65 of each of 16, with those as key frames."""
  if clip.shape[1] not in (8, 16):
    raise InputError(f"interpolate: the clip has {clip.shape[1]} frames; give one of 8 or of 16")
  pipeline.require("autoencoder", "latents", "text", "spatial", "interpolation")
  check_request(pipeline, texts, request)
  key = jax.random.key(request.seed)
  frames = interpolate_latents(pipeline, pipeline.encode(clip), texts, request, key, say)
  if request.keep_keys:  # as they were given: what the autoencoder makes of them is less
    keys, frames = keys_at(clip.shape[1] // 8, request.seam), frames.copy()
    frames[:, keys >= 0] = clip[:, keys[keys >= 0]]
  return frames, 4 * pipeline.config.fps


def keys_at(parts: int, seam: str) -> np.ndarray:
  """Which key each frame is, [37] of one part or [65] of two; -1 between keys.

  The published seam leaves key 7 out (`join_interpolated`).
  """
  known = every_fourth()
  each = np.full((parts, known.num_frames), -1)
  each[:, list(known.positions)] = np.arange(8 * parts).reshape(parts, 8)
  if parts == 1:
    return each[0]
  return np.concatenate([part[kept] for part, kept in zip(each, SEAMS[seam], strict=True)])


def interpolate_latents(
  pipeline: Pipeline,
  clip: Latents,
  texts: Sequence[str],
  request: Request,
  key: jax.Array,
  say: Callable[[str], None],
) -> Frames:
  """Decoded frames between and around the key frames `clip`, eight keys at a time."""
  parts, total = [], clip.shape[1] // 8
  sampling = interpolation_sampling(pipeline.config, request)
  for i, part_key in enumerate(jax.random.split(key, total)):
    say(f"8 -> 37 frames, part {i + 1} of {total}")
    given = clip[:, 8 * i : 8 * i + 8]
    asked = texts, request.negative, part_key, request.guidance.between
    how = *asked, sampling, request.keep_keys
    parts.append(pipeline.video("interpolation", every_fourth(), given, *how))
  say("latents -> pixels")
  return pipeline.decode(parts[0] if total == 1 else join_interpolated(*parts, request.seam))


def extend(
  pipeline: Pipeline,
  clip: Given,
  texts: Sequence[str],
  request: Request,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """The clip with 16 more frames that follow another prompt and its last 16 frames.

  Source: Emu Video, arXiv:2311.10709, sec. 4.3; the wiring is ours (`past_frames`).
  """
  known = past_frames()
  if clip.shape[1] < len(known.positions):
    raise InputError(
      f"extend: the clip has {clip.shape[1]} frames, the model continues from the last "
      f"{len(known.positions)}; give a longer one"
    )
  pipeline.require("autoencoder", "latents", "text", "spatial", "extension")
  check_request(pipeline, texts, request)
  say("16 -> 32 frames")
  past = pipeline.encode(clip[:, -len(known.positions) :])
  how = jax.random.key(request.seed), request.guidance, request.sampling
  latents = pipeline.video("extension", known, past, texts, request.negative, *how)
  say("latents -> pixels")
  new = pipeline.decode(latents[:, len(known.positions) :])
  return np.concatenate([clip, new], axis=1), pipeline.config.fps
