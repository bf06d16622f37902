"""Models in memory that sample: each step one jitted program, from prompts to latents to bytes.

A program's shape (batch, frames, steps, solver) is static; prompts, seeds, scales and weights are
inputs, so another prompt or seed compiles nothing. Methods return when the device is done, so that
a caller's clock tells what took how long.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from emu_jax.conditioning import KnownFrames
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.mesh import on
from emu_jax.systems.animatediff import AnimateDiffConfig, sample_clip
from emu_jax.systems.emu import EmuConfig, sample_edit, sample_image, text_features, without_text
from emu_jax.systems.emu_video import EmuVideoConfig, Guidance, sample_video
from emu_jax.systems.latent import Sampling, decode_latents, encode_frames, unnormalised
from emu_jax.typing import Params, Video

Prompts = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]  # tokens and masks, one an encoder
Frames = UInt8[np.ndarray, "B T H W 3"]
Given = UInt8[np.ndarray, "B K H W 3"]  # what the user brings: a picture or a clip
Latents = Float[Array, "B K h w C"]  # of frames of another size, and maybe another number
MADE_BY = {
  "autoencoder": "autoencoder",
  "latents": "image",
  "text": "image",
  "spatial": "image",
  "temporal": "video",
  "interpolation": "interpolation",
  "extension": "extension",
}  # the stage that leaves each tree, in the order of training


@functools.partial(Jit, static_argnames=("config", "sampling"))
def _image(trees, prompts, negative, blank, key, scale, *, config: EmuConfig, sampling: Sampling):
  text, none = (text_features(config, trees, *words) for words in (prompts, negative))
  none = without_text(config, none, blank)
  return sample_image(config, trees, text, none, key, scale, sampling=sampling)


@functools.partial(Jit, static_argnames=("config", "sampling"))
def _edit(
  trees, given, prompts, empty, key, image_scale, text_scale, *,
  config: EmuConfig, sampling: Sampling,
):  # fmt: skip
  text, none = (text_features(config, trees, *words) for words in (prompts, empty))
  source = unnormalised(trees, given)
  return sample_edit(
    config, trees, source, text, none, key, image_scale, text_scale, sampling=sampling
  )


@functools.partial(Jit, static_argnames=("config", "known", "name", "sampling", "keep"))
def _video(
  trees, given, prompts, empty, key, scales, *,
  config: EmuVideoConfig, known: KnownFrames, name: str, sampling: Sampling, keep: bool = False,
):  # fmt: skip
  text, none = (text_features(config.image, trees, *words) for words in (prompts, empty))
  return sample_video(
    config, known, name, trees, given, text, none, key, scales, sampling=sampling, keep=keep
  )


@functools.partial(Jit, static_argnames=("config", "sampling"))
def _clip(
  trees, prompts, negative, blank, key, scale, *, config: AnimateDiffConfig, sampling: Sampling
):
  text, none = (text_features(config.image, trees, *words) for words in (prompts, negative))
  none = without_text(config.image, none, blank)
  return sample_clip(config, trees, text, none, key, scale, sampling=sampling)


@functools.partial(Jit, static_argnames="config")
def _encode(trees, frames, *, config: EmuConfig):
  pixels = frames.astype(jnp.float32) / 127.5 - 1
  return encode_frames(config.autoencoder, trees, pixels)


@functools.partial(Jit, static_argnames="config")
def _decode(trees, latents, *, config: EmuConfig):
  return to_bytes(decode_latents(config.autoencoder, trees, latents))


def to_bytes(pixels: Float[Array, "..."]) -> UInt8[Array, "..."]:
  """Pixels in [-1, 1] as bytes, on the device: a quarter to copy."""
  return jnp.round((pixels + 1) * 127.5).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class ImagePipeline:
  """A text-to-image model with its tokenizers, alone or as a part of a video model."""

  config: EmuVideoConfig | AnimateDiffConfig
  trees: Params
  tokenizers: tuple[Tokenizer, ...]
  where: str  # the folder it came from, for messages
  tokenizer_folders: tuple[pathlib.Path, ...] = ()  # whence the tokenizers came, to be copied
  mesh: Mesh | None = None  # that the trees lie on; None: one device

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
    return self._run(_encode, jnp.asarray(frames), config=self.config.image)

  def decode(self, latents: Float[Array, "B T h w C"]) -> Frames:
    """Frames of latents, as bytes on the host."""
    return np.asarray(self._run(_decode, latents, config=self.config.image))

  def _run(self, program: Callable, *inputs: Any, **static: Any) -> jax.Array:
    """A program of the trees and inputs, done."""
    with on(self.mesh):
      return jax.block_until_ready(program(self.trees, *inputs, **static))

  def image(
    self, texts: Sequence[str], negative: str, key: jax.Array, scale: float, sampling: Sampling
  ) -> Video:
    """Latents [B, 1, H, W, C] of pictures of prompts."""
    self.require("autoencoder", "latents", "text", "spatial")
    self.check_reads(0)
    return self._run(
      _image,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      jnp.bool_(not negative),
      key,
      jnp.float32(scale),  # 3 and 3.0 would be two programs
      config=self.config.image,
      sampling=sampling,
    )

  def edit(
    self,
    given: Latents,
    texts: Sequence[str],
    negative: str,
    key: jax.Array,
    guidance: Guidance,
    sampling: Sampling,
  ) -> Video:
    """Latents [B, 1, H, W, C] of the given pictures, changed as instructions say."""
    self.require("autoencoder", "latents", "text", "spatial")
    self.check_reads(self.config.image.autoencoder.z_channels)
    return self._run(
      _edit,
      given,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      key,
      jnp.float32(guidance.image),
      jnp.float32(guidance.text),
      config=self.config.image,
      sampling=sampling,
    )

  def check_reads(self, channels: int) -> None:
    """Raises InputError where the image model does not read so many channels beside x_t."""
    unet = self.config.image.unet
    if unet.concat_channels == channels and not unet.num_classes:
      return
    given = f"{unet.concat_channels} channels of a given picture" + (
      " and its noise level" if unet.num_classes else ""
    )
    raise InputError(
      f"{self.where}: the image model reads {given}; "
      + (
        "give one that reads prompts alone, or change a picture with emu-jax edit"
        if channels == 0
        else f"give one that reads {channels}, such as InstructPix2Pix"
      )
    )


class Pipeline(ImagePipeline):
  """A trained Emu Video, or an image model as its first step; made by `load_pipeline`."""

  config: EmuVideoConfig

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
    keep: bool = False,
  ) -> Video:
    """Latents of clips with the given latents at the known frames, by the temporal tree `name`.

    With `keep` these are exactly those that were given; else the model draws them anew.
    """
    self.require("autoencoder", "latents", "text", "spatial", name)
    scales = guidance.scales
    return self._run(
      _video,
      given,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      key,
      scales and tuple(map(jnp.float32, scales)),
      config=self.config,
      known=known,
      name=name,
      sampling=sampling,
      keep=keep,
    )


class Animation(ImagePipeline):
  """An image model with AnimateDiff's motion modules; made by `load_pipeline`."""

  config: AnimateDiffConfig

  def clip(
    self,
    num_frames: int,
    texts: Sequence[str],
    negative: str,
    key: jax.Array,
    scale: float,
    sampling: Sampling,
  ) -> Video:
    """Latents [B, T, H, W, C] of clips of prompts."""
    self.check_reads(0)
    return self._run(
      _clip,
      self.prompts(texts),
      self.prompts([negative] * len(texts)),
      jnp.bool_(not negative),
      key,
      jnp.float32(scale),
      config=dataclasses.replace(self.config, num_frames=num_frames),
      sampling=sampling,
    )
