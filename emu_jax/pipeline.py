"""From prompts to frames with a trained model: the steps of Emu Video, each one jitted program.

A program's shape (batch, frames, steps, solver) is static; prompts, seeds, scales and weights are
inputs, so another prompt or seed compiles nothing.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from emu_jax.conditioning import KnownFrames, every_fourth, first_frame, past_frames
from emu_jax.config import from_dict
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer
from emu_jax.errors import InputError
from emu_jax.run import latest_step, load_ema
from emu_jax.systems.emu import sample_image
from emu_jax.systems.emu_video import (
  EmuVideoConfig,
  Guidance,
  join_interpolated,
  sample_video,
)
from emu_jax.systems.latent import Sampling, decode_latents, encode_frames, encode_text
from emu_jax.typing import Params, Video

Prompts = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]  # tokens and masks, one an encoder
Frames = UInt8[np.ndarray, "B T H W 3"]
FRAMES = (1, 8, 16, 37, 65)  # what can be asked for: 16 and 65 of a model trained on 16 frames
STAGES = {"spatial": "image", "temporal": "video", "interpolation": "interpolation",
          "extension": "extension"}  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config", "sampling"))
def _image(trees, prompts, empty, key, scale, *, config: EmuVideoConfig, sampling: Sampling):
  text = encode_text(config.image.text, trees, *prompts)
  none = encode_text(config.image.text, trees, *empty)
  return sample_image(config.image, trees, text, none, key, scale, sampling=sampling)


@functools.partial(jax.jit, static_argnames=("config", "known", "name", "sampling"))
def _video(
  trees, given, prompts, empty, key, image_scale, text_scale, *,
  config: EmuVideoConfig, known: KnownFrames, name: str, sampling: Sampling,
):  # fmt: skip
  text = encode_text(config.image.text, trees, *prompts)
  none = encode_text(config.image.text, trees, *empty)
  return sample_video(
    config, known, name, trees, given, text, none, key, image_scale, text_scale, sampling=sampling
  )


@functools.partial(jax.jit, static_argnames="config")
def _encode(trees, frames, *, config: EmuVideoConfig):
  pixels = frames.astype(jnp.float32) / 127.5 - 1
  return encode_frames(config.image.autoencoder, trees, pixels)


@functools.partial(jax.jit, static_argnames="config")
def _decode(trees, latents, *, config: EmuVideoConfig):
  pixels = decode_latents(config.image.autoencoder, trees, latents)
  return jnp.round((pixels + 1) * 127.5).astype(jnp.uint8)  # on the device: a quarter to copy


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A trained model with its tokenizers; make one with `load_pipeline`."""

  config: EmuVideoConfig
  trees: Params
  tokenizers: tuple[Tokenizer, ...]
  where: str  # the run it came from, for messages

  def require(self, *names: str) -> None:
    """Raises InputError where a tree that an operation needs was never trained."""
    for name in names:
      if name not in self.trees:
        raise InputError(
          f"{self.where}: the model has no {name!r} weights; train its {STAGES.get(name, name)!r} "
          "stage, or ask for less"
        )

  def prompts(self, texts: Sequence[str]) -> Prompts:
    """Token ids and masks; InputError for a prompt that is too long for an encoder."""
    pairs = [tokenizer(list(texts), overflow="error") for tokenizer in self.tokenizers]
    return tuple(jnp.asarray(ids) for ids, _ in pairs), tuple(jnp.asarray(m) for _, m in pairs)

  def encode(self, frames: Frames) -> Video:
    """Normalised latents of frames of the model's size."""
    size = self.config.image.size
    if frames.shape[2:4] != (size, size):
      raise InputError(
        f"encode: frames of {frames.shape[2]}x{frames.shape[3]} pixels; this model works at "
        f"{size}x{size}, so resize them"
      )
    return _encode(self.trees, jnp.asarray(frames), config=self.config)

  def decode(self, latents: Video) -> Frames:
    """Frames of latents, as bytes on the host."""
    return np.asarray(_decode(self.trees, latents, config=self.config))

  def image(
    self, texts: Sequence[str], negative: str, key: jax.Array, scale: float, sampling: Sampling
  ) -> Video:
    """Latents [B, 1, H, W, C] of pictures of prompts."""
    self.require("autoencoder", "latents", "text", "spatial")
    empty = self.prompts([negative] * len(texts))
    return _image(
      self.trees, self.prompts(texts), empty, key, scale, config=self.config, sampling=sampling
    )

  def video(
    self,
    name: Literal["temporal", "interpolation", "extension"],
    known: KnownFrames,
    given: Video,
    texts: Sequence[str],
    negative: str,
    key: jax.Array,
    guidance: Guidance,
    sampling: Sampling,
  ) -> Video:
    """Latents of clips with the given latents at the known frames, by the temporal tree `name`."""
    self.require("autoencoder", "latents", "text", "spatial", name)
    return _video(
      self.trees,
      given,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      key,
      guidance.image,
      guidance.text,
      config=self.config,
      known=known,
      name=name,
      sampling=sampling,
    )


def furthest_stage(folder: str | pathlib.Path) -> pathlib.Path:
  """The folder itself if it is a run; of a folder of runs, that of the last trained stage."""
  folder = pathlib.Path(folder)
  for name in reversed(STAGES.values()):
    if latest_step(folder) is None and latest_step(folder / name) is not None:
      return folder / name
  return folder


def load_pipeline(folder: str | pathlib.Path) -> Pipeline:
  """The model of a run of emu-train, with the averaged weights of everything trained so far.

  Args:
    folder: a run, or a folder of the runs of a recipe's stages, of which the last is taken.
  Raises: InputError where the folder is not such a run, or one of another version.
  """
  folder = furthest_stage(folder)
  values, trees = load_ema(folder)
  if "model" not in values:
    raise InputError(f"{folder}: config.json has no 'model'; give the folder of a run of emu-train")
  config = from_dict(values["model"], EmuVideoConfig, str(folder / "config.json"))
  tokenizers = ()
  if (folder / "tokenizers").is_dir():
    tokenizers = tuple(
      load_tokenizer(folder / "tokenizers" / str(i), text.max_length)
      for i, text in enumerate(config.image.text)
    )
  return Pipeline(config, jax.tree.map(jnp.asarray, trees), tokenizers, str(folder))


@dataclasses.dataclass(frozen=True)
class Request:
  """What to generate, beside the prompts."""

  frames: int = 8
  seed: int = 0
  negative: str = ""
  guidance: Guidance = Guidance()
  sampling: Sampling = Sampling()
  seam: Literal["gapless", "published"] = "gapless"


def generate(
  pipeline: Pipeline,
  texts: Sequence[str],
  request: Request,
  picture: Frames | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """Frames [B, T, H, W, 3] of prompts and their rate in frames a second.

  Text -> picture (or the given one, [B, 1, H, W, 3]) -> video -> more frames.

  Raises: InputError for a number of frames that the model cannot give, before any sampling.
  """
  config = pipeline.config
  check_frames(pipeline, request.frames)
  keys = dict(zip("ivn", jax.random.split(jax.random.key(request.seed), 3), strict=True))
  asked = texts, request.negative
  if picture is None:
    say("text -> image")
    scale = request.guidance.picture
    start = pipeline.image(*asked, keys["i"], scale, request.sampling)
  else:
    start = pipeline.encode(picture)
  if request.frames == 1:
    return pipeline.decode(start), config.fps

  num_frames = {37: 8, 65: 16}.get(request.frames, request.frames)
  say(f"image + text -> {num_frames} frames")
  how = request.guidance, request.sampling
  clip = pipeline.video("temporal", first_frame(num_frames), start, *asked, keys["v"], *how)
  if request.frames == num_frames:
    return pipeline.decode(clip), config.fps
  return interpolate_latents(pipeline, clip, texts, request, keys["n"], say), 4 * config.fps


def check_frames(pipeline: Pipeline, frames: int) -> None:
  """Raises InputError where the model cannot give so many frames."""
  if frames not in FRAMES:
    raise InputError(f"generate: frames={frames} cannot be had; choose one of {FRAMES}")
  if frames in (16, 65) and pipeline.config.num_frames < 16:
    raise InputError(
      f"generate: frames={frames} needs a model trained on 16 frames, {pipeline.where} was trained "
      f"on {pipeline.config.num_frames}; choose 8 or 37"
    )
  if frames > 1:
    pipeline.require("temporal")
  if frames in (37, 65):
    pipeline.require("interpolation")


def interpolate(
  pipeline: Pipeline,
  clip: Frames,
  texts: Sequence[str],
  request: Request,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """37 frames of each clip of 8, or 65 of each of 16, with those as key frames."""
  if clip.shape[1] not in (8, 16):
    raise InputError(f"interpolate: the clip has {clip.shape[1]} frames; give one of 8 or of 16")
  pipeline.require("interpolation")
  key = jax.random.key(request.seed)
  frames = interpolate_latents(pipeline, pipeline.encode(clip), texts, request, key, say)
  return frames, 4 * pipeline.config.fps


def interpolate_latents(
  pipeline: Pipeline,
  clip: Video,
  texts: Sequence[str],
  request: Request,
  key: jax.Array,
  say: Callable[[str], None],
) -> Frames:
  """Decoded frames between and around the key frames `clip`, eight keys at a time."""
  parts, total = [], clip.shape[1] // 8
  for i, part_key in enumerate(jax.random.split(key, total)):
    say(f"8 -> 37 frames, part {i + 1} of {total}")
    given = clip[:, 8 * i : 8 * i + 8]
    how = texts, request.negative, part_key, request.guidance, request.sampling
    parts.append(pipeline.video("interpolation", every_fourth(), given, *how))
  return pipeline.decode(parts[0] if total == 1 else join_interpolated(*parts, request.seam))


def extend(
  pipeline: Pipeline, clip: Frames, texts: Sequence[str], request: Request
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
  past = pipeline.encode(clip[:, -len(known.positions) :])
  how = jax.random.key(request.seed), request.guidance, request.sampling
  latents = pipeline.video("extension", known, past, texts, request.negative, *how)
  new = pipeline.decode(latents[:, len(known.positions) :])
  return np.concatenate([clip, new], axis=1), pipeline.config.fps
