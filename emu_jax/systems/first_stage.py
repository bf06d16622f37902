"""What stands between pixels and the videos that diffusion works on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emu_jax.config import kind, to_dict
from emu_jax.models.autoencoder import (
  Autoencoder,
  AutoencoderConfig,
  in_chunks,
  sample_posterior,
)
from emu_jax.models.net import Net
from emu_jax.systems.system import Arrays, Encoder, Measure, Step, Tree
from emu_jax.typing import Params, Video

Pixels3 = Float[Array, "B T H W 3"]  # in [-1, 1]
Latents = Float[Array, "B T h w C"]  # of another height and width than the pixels they stand for
FRAMES_AT_A_TIME = 8  # that are encoded or decoded together; bounds the memory, not the result
# Fields of an autoencoder's configuration that do not change what it computes.
SAME_RESULT = ("remat",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
  """The Gaussian over latents that an autoencoder makes of a video, of any float dtype."""

  mean: Any  # [B, T, h, w, C]
  log_var: Any  # the same

  @property
  def shape(self) -> tuple[int, ...]:
    """B T h w C."""
    return self.mean.shape


@runtime_checkable
class FirstStage(Protocol):
  """Pixels to the videos that are diffused, of unit spread, and back.

  Attributes:
    channels: of the videos.
    downsample: pixels a side that one of their cells stands for.
  """

  @property
  def channels(self) -> int: ...

  @property
  def downsample(self) -> int: ...

  def trees(self) -> Mapping[str, Tree]:
    """The parameters that it reads, by name."""

  def measures(self) -> Mapping[str, Measure]:
    """Those of them that are measured before the first part on its latents trains."""

  def encoders(self) -> Mapping[str, Encoder]:
    """How frames are encoded ahead of training; empty where nothing is gained."""

  def encode(
    self, trees: Params, frames: Pixels3 | Posterior, key: jax.Array | None = None
  ) -> Latents:
    """A sample of what frames may be, with a key; its mean without one."""

  def decode(
    self, trees: Params, latents: Latents, frames_at_a_time: int = FRAMES_AT_A_TIME
  ) -> Pixels3:
    """Pixels, clipped to [-1, 1], so many frames at a time where that saves memory."""


def latent_shape(
  stage: FirstStage, batch: int, num_frames: int, size: tuple[int, int]
) -> tuple[int, int, int, int, int]:
  """B T h w C of the latents of frames of `size` = (height, width) pixels.

  Raises: ValueError where a side is no multiple of the stage's factor.
  """
  if size[0] % stage.downsample or size[1] % stage.downsample:
    raise ValueError(
      f"latent_shape: {size[0]}x{size[1]} pixels; both sides must be multiples of "
      f"{stage.downsample}"
    )
  return batch, num_frames, size[0] // stage.downsample, size[1] // stage.downsample, stage.channels


def pixel_multiple(stage: FirstStage, net: Net) -> tuple[int, int]:
  """Of what height and width in pixels must be multiples for a network on a stage's videos."""
  _, height, width = net.multiple
  return stage.downsample * height, stage.downsample * width


def frame_size(stage: FirstStage, batch: Mapping[str, Any]) -> tuple[int, int]:
  """Height and width in pixels of a batch's "frames", or of what was encoded of them ahead."""
  if "moments" in batch:
    height, width = batch["moments"].shape[2:4]
    return height * stage.downsample, width * stage.downsample
  return batch["frames"].shape[2:4]


@kind("pixels")
@dataclasses.dataclass(frozen=True)
class Pixels:
  """No first stage: diffusion in pixels. Source: VDM, arXiv:2204.03458."""

  @property
  def channels(self) -> int:
    """Red, green, blue."""
    return 3

  @property
  def downsample(self) -> int:
    """Pixels stay pixels."""
    return 1

  def trees(self) -> Mapping[str, Tree]:
    return {}

  def measures(self) -> Mapping[str, Measure]:
    return {}

  def encoders(self) -> Mapping[str, Encoder]:
    return {}

  def encode(
    self, trees: Params, frames: Pixels3 | Posterior, key: jax.Array | None = None
  ) -> Latents:
    return frames

  def decode(
    self, trees: Params, latents: Latents, frames_at_a_time: int = FRAMES_AT_A_TIME
  ) -> Pixels3:
    return jnp.clip(latents, -1.0, 1.0)


@kind("kl_autoencoder")
@dataclasses.dataclass(frozen=True)
class KlAutoencoder:
  """Latents of a KL autoencoder, shifted and scaled to unit spread.

  Trees: "autoencoder", and "latents" with the shift and scale [C].
  """

  config: AutoencoderConfig = AutoencoderConfig()

  @property
  def channels(self) -> int:
    """Of the latents."""
    return self.config.z_channels

  @property
  def downsample(self) -> int:
    """Pixels a side of one cell of the latents."""
    return self.config.downsample

  def trees(self) -> Mapping[str, Tree]:
    """The autoencoder, and the statistics of its latents."""
    return {
      "autoencoder": Tree(self._init, (("*", self.config.dtype),)),
      "latents": Tree(self._unit),
    }

  def _init(self, key: jax.Array) -> Params:
    side = 2 * self.downsample
    return Autoencoder(self.config).init(key, jnp.zeros((1, 1, side, side, 3)))["params"]

  def _unit(self, key: jax.Array) -> Params:
    del key
    return {"shift": jnp.zeros(self.channels), "scale": jnp.ones(self.channels)}

  def measures(self) -> Mapping[str, Measure]:
    """Shift and scale under which each channel has mean 0 and standard deviation 1.

    Source: ours. Latent Diffusion (arXiv:2112.10752, sec. G) divides by one number for all.
    """
    return {"latents": Measure(self._moments_of_batch, latent_statistics, ("autoencoder",))}

  def _moments_of_batch(self, trees: Params, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    frames = pixels_or_posterior(batch)
    posterior = frames if isinstance(frames, Posterior) else self.posterior(trees, frames)
    mean, log_var = (a.astype(jnp.float32) for a in (posterior.mean, posterior.log_var))
    axes = (0, 1, 2, 3)
    spread = mean.var(axis=axes) + jnp.exp(log_var).mean(axis=axes)
    return {"mean": mean.mean(axis=axes), "variance": spread}

  def encoders(self) -> Mapping[str, Encoder]:
    """Moments [B, T, h, w, 2 C] of frames: each step then draws a sample of its own."""
    fields = {k: v for k, v in to_dict(self.config).items() if k not in SAME_RESULT}
    return {"frames": Encoder(("autoencoder",), self._moments, flat(fields, "autoencoder"))}

  def _moments(self, trees: Params, frames: Pixels3) -> Float[Array, "B T h w D"]:
    posterior = self.posterior(trees, frames)
    return jnp.concatenate([posterior.mean, posterior.log_var], axis=-1)

  def posterior(self, trees: Params, frames: Pixels3) -> Posterior:
    """What the autoencoder makes of pixels in [-1, 1], not yet of unit spread."""

    def encode(x):
      return Autoencoder(self.config).apply({"params": trees["autoencoder"]}, x, method="encode")

    return Posterior(*in_chunks(encode, frames, FRAMES_AT_A_TIME))

  def encode(
    self, trees: Params, frames: Pixels3 | Posterior, key: jax.Array | None = None
  ) -> Latents:
    """Latents of pixels, or of the posterior that was made of them ahead."""
    found = frames if isinstance(frames, Posterior) else self.posterior(trees, frames)
    mean, log_var = found.mean.astype(jnp.float32), found.log_var.astype(jnp.float32)
    z = mean if key is None else sample_posterior(mean, log_var, key)
    shift, scale = channelwise(trees["latents"])
    return (z - shift) * scale

  def decode(
    self, trees: Params, latents: Latents, frames_at_a_time: int = FRAMES_AT_A_TIME
  ) -> Pixels3:
    """Pixels, so many frames at a time; a temporal decoder's layers see those alone."""

    def decode(z):
      return Autoencoder(self.config).apply({"params": trees["autoencoder"]}, z, method="decode")

    whole, latents = self.config.temporal_decoder, unnormalised(trees, latents)
    frames = in_chunks(decode, latents, frames_at_a_time, whole_clip=whole)
    return jnp.clip(frames, -1.0, 1.0)


def unnormalised(trees: Params, latents: Video) -> Video:
  """Latents as the autoencoder itself gives and takes them."""
  shift, scale = channelwise(trees["latents"])
  return latents / scale + shift


def channelwise(statistics: Params) -> tuple[Float[Array, "1 1 1 1 C"], Float[Array, "1 1 1 1 C"]]:
  """Shift and scale of latents, shaped to meet a video."""
  return tuple(jnp.asarray(statistics[name]).reshape(1, 1, 1, 1, -1) for name in ("shift", "scale"))


def latent_statistics(batches: Sequence[Mapping[str, np.ndarray]]) -> Params:
  """Shift and scale [C] of all batches together, from each one's mean and variance [C].

  The variance of a union of equal batches is the mean of theirs and the variance of their means.
  """
  means, variances = (
    np.stack([np.asarray(batch[name], np.float64) for batch in batches])
    for name in ("mean", "variance")
  )
  variance = variances.mean(axis=0) + means.var(axis=0)
  shift, scale = means.mean(axis=0), 1 / np.sqrt(variance)
  return {"shift": shift.astype(np.float32), "scale": scale.astype(np.float32)}


def pixels(frames: Array) -> Pixels3:
  """uint8 frames in [-1, 1]."""
  return frames.astype(jnp.float32) / 127.5 - 1


def decode_step(stage: FirstStage, frames_at_a_time: int) -> Step:
  """Leaves "frames" of "latents"."""
  return Step("latents -> pixels", decoded, (stage, frames_at_a_time), tuple(stage.trees()))


def decoded(trees: Params, arrays: Arrays, static: tuple[FirstStage, int]) -> Arrays:
  """One program: latents to bytes, and "finite" of each example."""
  stage, frames_at_a_time = static
  frames = stage.decode(trees, arrays["latents"], frames_at_a_time)
  return {"frames": to_bytes(frames), "finite": jnp.isfinite(frames).all(axis=(1, 2, 3, 4))}


def to_bytes(frames: Float[Array, "..."]) -> Array:
  """Pixels in [-1, 1] as uint8, on the device: a quarter to copy."""
  return jnp.round((frames + 1) * 127.5).astype(jnp.uint8)


def pixels_or_posterior(batch: Mapping[str, Any], name: str = "frames") -> Pixels3 | Posterior:
  """A batch's pixels in [-1, 1], or what was encoded of them ahead."""
  if name == "frames" and "moments" in batch:
    return Posterior(*jnp.split(batch["moments"], 2, axis=-1))
  return pixels(batch[name])


def flat(values: Any, name: str) -> dict[str, str]:
  """Dotted path and value, as text, of every leaf of JSON values."""
  leaves = jax.tree_util.tree_leaves_with_path(values, is_leaf=lambda v: v is None)
  return {
    f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}": str(value)
    for path, value in leaves
  }
