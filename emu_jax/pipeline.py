"""From prompts to frames with a trained model: the steps of Emu Video, each one jitted program.

A program's shape (batch, frames, steps, solver) is static; prompts, seeds, scales and weights are
inputs, so another prompt or seed compiles nothing.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from emu_jax import public
from emu_jax.conditioning import KnownFrames, every_fourth, first_frame, past_frames
from emu_jax.config import from_dict, refused
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.run import latest_step, load_ema
from emu_jax.systems.emu import (
  init_spatial,
  init_text,
  sample_image,
  text_features,
  without_text,
)
from emu_jax.systems.emu_video import (
  EmuVideoConfig,
  Guidance,
  init_temporal,
  join_interpolated,
  sample_video,
)
from emu_jax.systems.latent import Sampling, TextConfig, decode_latents, encode_frames
from emu_jax.typing import Params, Video
from emu_jax.weights.model import Precision

Prompts = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]  # tokens and masks, one an encoder
Frames = UInt8[np.ndarray, "B T H W 3"]
Given = UInt8[np.ndarray, "B K H W 3"]  # what the user brings: a picture or a clip
Latents = Float[Array, "B K h w C"]  # of frames of another size, and maybe another number
FRAMES = (1, 8, 16, 37, 65)  # what can be asked for: 16 and 65 of a model trained on 16 frames
MADE_BY = {
  "autoencoder": "autoencoder",
  "latents": "image",
  "text": "image",
  "spatial": "image",
  "temporal": "video",
  "interpolation": "interpolation",
  "extension": "extension",
}  # the stage that leaves each tree, in the order of training


@functools.partial(jax.jit, static_argnames=("config", "sampling"))
def _image(
  trees, prompts, negative, blank, key, scale, *, config: EmuVideoConfig, sampling: Sampling
):
  text, none = (text_features(config.image, trees, *words) for words in (prompts, negative))
  none = without_text(config.image, none, blank)
  return sample_image(config.image, trees, text, none, key, scale, sampling=sampling)


@functools.partial(jax.jit, static_argnames=("config", "known", "name", "sampling"))
def _video(
  trees, given, prompts, empty, key, image_scale, text_scale, *,
  config: EmuVideoConfig, known: KnownFrames, name: str, sampling: Sampling,
):  # fmt: skip
  text, none = (text_features(config.image, trees, *words) for words in (prompts, empty))
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
  """A trained model with its tokenizers; make one with `load_pipeline`.

  Its methods return when the device is done, so that a caller's clock tells what took how long.
  """

  config: EmuVideoConfig
  trees: Params
  tokenizers: tuple[Tokenizer, ...]
  where: str  # the folder it came from, for messages
  tokenizer_folders: tuple[pathlib.Path, ...] = ()  # whence the tokenizers came, to be copied

  def require(self, *names: str) -> None:
    """Raises InputError where a tree that an operation needs was never trained."""
    for name in names:
      if name not in self.trees:
        raise InputError(
          f"{self.where}: the model has no {name!r} weights; train its {MADE_BY[name]!r} stage, or "
          "ask for less"
        )

  def prompts(self, texts: Sequence[str]) -> Prompts:
    """Token ids and masks; InputError for a prompt that is too long for an encoder."""
    if len(self.tokenizers) != len(self.config.image.text):
      raise InputError(
        f"{self.where}: has {len(self.tokenizers)} tokenizers for {len(self.config.image.text)} "
        "text encoders; copy its folder tokenizers/ from the original run"
      )
    pairs = [tokenizer(list(texts), overflow="error") for tokenizer in self.tokenizers]
    return tuple(jnp.asarray(ids) for ids, _ in pairs), tuple(jnp.asarray(m) for _, m in pairs)

  def encode(self, frames: Given) -> Latents:
    """Normalised latents of frames of the model's size."""
    size = self.config.image.size
    if frames.shape[2:4] != (size, size):
      raise InputError(
        f"encode: frames of {frames.shape[2]}x{frames.shape[3]} pixels; this model works at "
        f"{size}x{size}, so resize them"
      )
    self.require("autoencoder", "latents")
    return jax.block_until_ready(_encode(self.trees, jnp.asarray(frames), config=self.config))

  def decode(self, latents: Float[Array, "B T h w C"]) -> Frames:
    """Frames of latents, as bytes on the host."""
    return np.asarray(_decode(self.trees, latents, config=self.config))

  def image(
    self, texts: Sequence[str], negative: str, key: jax.Array, scale: float, sampling: Sampling
  ) -> Video:
    """Latents [B, 1, H, W, C] of pictures of prompts."""
    self.require("autoencoder", "latents", "text", "spatial")
    latents = _image(
      self.trees,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      jnp.bool_(not negative),
      key,
      jnp.float32(scale),  # 3 and 3.0 would be two programs
      config=self.config,
      sampling=sampling,
    )
    return jax.block_until_ready(latents)

  def video(
    self,
    name: Literal["temporal", "interpolation", "extension"],
    known: KnownFrames,
    given: Latents,
    texts: Sequence[str],
    negative: str,
    key: jax.Array,
    guidance: Guidance,
    sampling: Sampling,
  ) -> Video:
    """Latents of clips with the given latents at the known frames, by the temporal tree `name`."""
    self.require("autoencoder", "latents", "text", "spatial", name)
    latents = _video(
      self.trees,
      given,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      key,
      jnp.float32(guidance.image),
      jnp.float32(guidance.text),
      config=self.config,
      known=known,
      name=name,
      sampling=sampling,
    )
    return jax.block_until_ready(latents)


def furthest_stage(folder: str | pathlib.Path) -> pathlib.Path:
  """The folder itself if it is a run; of a folder of runs, that of the last trained stage."""
  folder = pathlib.Path(folder)
  if latest_step(folder) is None:
    for stage in reversed(MADE_BY.values()):
      if latest_step(folder / stage) is not None:
        return folder / stage
  return folder


def load_pipeline(
  folder: str | pathlib.Path, *, dtype: Precision | None = None, widen: bool = False
) -> Pipeline:
  """A model that samples: of a run of emu-train, or of a Stable Diffusion folder.

  Args:
    folder: a run, a folder of the runs of a recipe's stages, of which the last is taken, or a
      pipeline of diffusers. Of runs the averaged weights are taken.
    dtype: of matmuls, and of the weights of all networks; None: as the model is.
    widen: take float16 weights of a public folder as float32.
  Raises: InputError where the folder is none of these, or one of another version.
  """
  if public.is_public(folder):
    model = public.load_image_model(folder, dtype=dtype, widen=widen)
    tokenizers = tuple(
      load_tokenizer(path, encoder.max_length)
      for path, encoder in zip(model.tokenizers, model.config.text, strict=True)
    )
    config = EmuVideoConfig(image=model.config)
    return Pipeline(config, model.trees, tokenizers, str(folder), model.tokenizers)
  folder = furthest_stage(folder)
  values, trees = load_ema(folder)
  if "model" not in values:
    raise InputError(f"{folder}: config.json has no 'model'; give the folder of a run of emu-train")
  config = from_dict(values["model"], EmuVideoConfig, str(folder / "config.json"))
  check_trees(config, trees, str(folder))
  tokenizers = load_tokenizers(config, folder) if "text" in trees else ()
  if dtype is not None:
    config = in_precision(config, dtype)
    trees = {
      name: tree if name == "latents" else jax.tree.map(lambda a: a.astype(dtype), tree)
      for name, tree in trees.items()
    }
  folders = tuple(folder / "tokenizers" / str(i) for i in range(len(tokenizers)))
  return Pipeline(config, jax.tree.map(jnp.asarray, trees), tokenizers, str(folder), folders)


def in_precision(config: EmuVideoConfig, dtype: Precision) -> EmuVideoConfig:
  """The same model with matmuls and convolutions in another precision."""
  change = functools.partial(dataclasses.replace, dtype=dtype)
  image = dataclasses.replace(
    config.image,
    autoencoder=change(config.image.autoencoder),
    text=tuple(map(change, config.image.text)),
    unet=change(config.image.unet),
  )
  return dataclasses.replace(config, image=image)


def load_tokenizers(config: EmuVideoConfig, folder: pathlib.Path) -> tuple[Tokenizer, ...]:
  """The tokenizers of a run, one a text encoder, none with ids that its encoder does not have."""
  loaded = []
  for i, encoder in enumerate(config.image.text):
    path = folder / "tokenizers" / str(i)
    loaded.append(load_tokenizer(path, encoder.max_length))
    check_tokenizer(loaded[-1], encoder, path)
  return tuple(loaded)


def check_tokenizer(tokenizer: Tokenizer, encoder: TextConfig, path: str | pathlib.Path) -> None:
  """Raises InputError for token ids that an encoder does not have."""
  if tokenizer.vocab_size > encoder.vocab_size:
    raise InputError(
      f"{path}: has {tokenizer.vocab_size} tokens, its text encoder vocab_size="
      f"{encoder.vocab_size}; use the tokenizer that the encoder was trained with"
    )


def check_trees(config: EmuVideoConfig, trees: Params, who: str) -> None:
  """Raises InputError, beginning with `who`, where a tree is not that of the config's network.

  Names and shapes are compared, tree by tree; trees that the config knows nothing of are let be.
  """
  for name in (name for name in MADE_BY if name in trees):
    got, want = leaf_shapes(trees[name]), expected_shapes(config, name)
    for leaf in sorted(got.keys() | want.keys()):
      if got.get(leaf) != want.get(leaf):
        raise InputError(
          f"{who}: holds the weights of another config: {name}/{leaf} is {got.get(leaf, 'absent')} "
          f"there and {want.get(leaf, 'absent')} by the config; use the config that made them"
        )


@functools.cache
def expected_shapes(config: EmuVideoConfig, name: str) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf of the tree `name`, by its path."""
  image = config.image
  if name in ("interpolation", "extension"):
    return expected_shapes(config, "temporal")
  if name == "latents":
    return dict.fromkeys(("shift", "scale"), (image.autoencoder.z_channels,))
  pixels = jnp.zeros((1, 1, image.size, image.size, 3))
  init = {
    "autoencoder": lambda key: Autoencoder(image.autoencoder).init(key, pixels)["params"],
    "text": functools.partial(init_text, image),
    "spatial": functools.partial(init_spatial, image),
    "temporal": functools.partial(init_temporal, config),
  }[name]
  return leaf_shapes(jax.eval_shape(init, jax.random.key(0)))


def leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf by its path, such as `mid/conv/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}


@dataclasses.dataclass(frozen=True)
class Request:
  """What to generate, beside the prompts. Raises InputError for numbers that no model can use."""

  frames: int = 8
  seed: int = 0
  negative: str = ""
  guidance: Guidance = Guidance()
  sampling: Sampling = Sampling()
  seam: Literal["gapless", "published"] = "gapless"

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise InputError(f"seed={self.seed} is not from 0 to {2**32 - 1}; give one that is")
    for name, scale in dataclasses.asdict(self.guidance).items():
      if not math.isfinite(scale):
        raise InputError(f"{name} guidance {scale} is not a number; give one, 1 = none")
    if not 0 <= self.sampling.rescale <= 1:
      raise InputError(f"rescale={self.sampling.rescale} is not from 0 to 1; 0 = off")


def generate(
  pipeline: Pipeline,
  texts: Sequence[str],
  request: Request,
  picture: Given | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> tuple[Frames, float]:
  """Frames [B, T, H, W, 3] of prompts and their rate in frames a second.

  Text -> picture (or the given one, [B, 1, H, W, 3]) -> video -> more frames.

  Args:
    say: told each step as it begins.
  Raises: InputError for what the model cannot do, before any sampling.
  """
  config = pipeline.config
  check_frames(pipeline, request.frames)
  check_request(pipeline, texts, request)
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


def check_frames(pipeline: Pipeline, frames: int) -> None:
  """Raises InputError where the model cannot give so many frames."""
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


def check_request(pipeline: Pipeline, texts: Sequence[str], request: Request) -> None:
  """Raises InputError for a prompt that is too long, or a sampler that does not fit a schedule."""
  pipeline.prompts([*texts, request.negative])
  with refused("sampling"):
    request.sampling.check(pipeline.config.image.schedule)
    request.sampling.check(pipeline.config.schedule)


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
  return frames, 4 * pipeline.config.fps


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
  for i, part_key in enumerate(jax.random.split(key, total)):
    say(f"8 -> 37 frames, part {i + 1} of {total}")
    given = clip[:, 8 * i : 8 * i + 8]
    how = texts, request.negative, part_key, request.guidance, request.sampling
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
