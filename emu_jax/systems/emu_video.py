"""Emu Video: text -> image -> video -> more frames, with one frozen image model inside.

A model's temporal trees ("temporal", "interpolation", "extension") are trained one after another;
each, merged with "spatial", is one video U-Net. They differ in the frames that they are given
(`KnownFrames`) and in nothing else.

Source: Emu Video, arXiv:2311.10709.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from emu_jax.conditioning import (
  KnownFrames,
  TextFeatures,
  concat_known,
  keeping,
  known_branches,
  text_conditions,
)
from emu_jax.diffusion.guidance import emu_video_guidance, guided, rescale
from emu_jax.diffusion.loss import Times, diffusion_loss
from emu_jax.diffusion.schedule import Schedule, noise_at
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.unet import UNet, UNetConfig, blank_conditions
from emu_jax.systems.emu import EmuConfig
from emu_jax.systems.latent import Posterior, Sampling, bound, encode_frames
from emu_jax.trees import merge, partition
from emu_jax.typing import Params, PerExample, Video

# What a factorized model trains: all that crosses frames, and the kernel that reads known frames.
TRAINED = (("concat_in/*", "temporal"), ("*temporal_*", "temporal"), ("*", "spatial"))


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Scales to sample with. Source: Emu Video, arXiv:2311.10709, sec. 4."""

  picture: float = 7.5  # text scale of text -> image
  image: float = 2.0  # w_i of text + image -> video, and of interpolation
  text: float = 7.5  # w_p of the same
  # Both scales of interpolation; None: those of the video, as the paper has it.
  interpolation: float | None = None

  @property
  def between(self) -> "Guidance":
    """The scales that interpolation takes, as `image` and `text`."""
    own = self.interpolation
    return self if own is None else dataclasses.replace(self, image=own, text=own)

  @property
  def scales(self) -> tuple[float, float] | None:
    """w_i and w_p for `sample_video`; None where they are 1, which is no guidance."""
    return None if self.image == self.text == 1 else (self.image, self.text)


@dataclasses.dataclass(frozen=True)
class EmuVideoConfig:
  """An image model and what makes it a video model.

  The image model keeps the schedule and prediction that its weights were trained with; the video
  model has its own.
  """

  image: EmuConfig
  temporal: TemporalConfig = TemporalConfig()
  schedule: Schedule = Schedule(zero_terminal_snr=True, prediction="v")
  # Of the noise added to known frames (interpolation); the paper's t are on this schedule.
  augmentation: Schedule = Schedule()
  guidance: Guidance = Guidance()
  # Of the sampler in interpolation; None: as many as are asked for. Where keys leave little open
  # one step, which is the mean of all that fits, is nearest to what was there (ours: docs/results).
  interpolation_steps: int | None = None
  num_frames: int = 8  # of a clip before interpolation
  fps: float = 4.0  # of a clip before interpolation, which multiplies it by 4

  @property
  def unet(self) -> UNetConfig:
    """The video U-Net: the image model's layers, the temporal ones, z + 1 more input channels."""
    channels = self.image.autoencoder.z_channels + 1
    return dataclasses.replace(self.image.unet, temporal=self.temporal, concat_channels=channels)


def init_temporal(config: EmuVideoConfig, key: jax.Array) -> Params:
  """A temporal tree under which the video model is its image model, frame by frame."""
  shape = config.image.latent_shape(1, 2)
  conditions = blank_conditions(config.unet, shape)
  params = UNet(config.unet).init(key, jnp.zeros(shape), jnp.zeros(1), conditions)["params"]
  return partition(params, TRAINED)["temporal"]


def vectors(config: EmuVideoConfig, noise_level: Float[Array, "B"]) -> dict[str, Array]:
  """The vector conditions: the time index of the known frames' noise, where the network asks."""
  return {"noise_level": noise_level} if config.temporal.noise_level else {}


def video_network(config: EmuVideoConfig, trees: Params, name: str = "temporal"):
  """The video U-Net with the temporal tree `name`: a function of x_t, t and conditions."""
  return bound(UNet(config.unet), merge(trees["spatial"], trees[name]))


def augmented(
  config: EmuVideoConfig, known: KnownFrames, latents: Video, t: Float[Array, "B"], key: jax.Array
) -> Video:
  """Known frames with the noise of time t, for models that were trained with it.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 (interpolation).
  """
  if not known.max_noise:
    return latents
  return noise_at(config.augmentation, latents, t, key)


def video_loss(
  config: EmuVideoConfig,
  known: KnownFrames,
  name: str,
  trees: Params,
  frames: Video | Posterior,
  text: TextFeatures,
  dropped: Bool[Array, "B"],
  key: jax.Array,
  *,
  offset_noise: float = 0.0,
  times: Times = Times(),
) -> PerExample:
  """Loss of the temporal tree `name` on clips in [-1, 1] of `known.num_frames` frames.

  Source: Emu Video, arXiv:2311.10709, sec. 3.1 and 3.2.

  Args:
    frames: pixels, or what was encoded of them ahead.
    dropped: True where the known frames are withheld, mask and latents both.
  """
  if frames.shape[1] != known.num_frames:
    raise ValueError(
      f"video_loss: clips have {frames.shape[1]} frames, the mask is for {known.num_frames}"
    )
  key_encode, key_level, key_noise, key_diffuse = jax.random.split(key, 4)
  latents = jax.lax.stop_gradient(
    encode_frames(config.image.autoencoder, trees, frames, key_encode)
  )
  level = jax.random.randint(key_level, frames.shape[:1], 0, known.max_noise + 1).astype(
    jnp.float32
  )
  given = latents[:, jnp.asarray(known.positions)]
  concat = concat_known(known, augmented(config, known, given, level, key_noise), dropped)
  conditions = text_conditions(text, concat, vectors(config, level))
  net = video_network(config, trees, name)
  return diffusion_loss(
    lambda x_t, t: net(x_t, t, conditions),
    config.schedule,
    latents,
    key_diffuse,
    offset_noise=offset_noise,
    times=times,
  )


def sample_video(
  config: EmuVideoConfig,
  known: KnownFrames,
  name: str,
  trees: Params,
  given: Float[Array, "B K H W C"],
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  scales: tuple[float | Float[Array, ""], float | Float[Array, ""]] | None,
  *,
  sampling: Sampling,
  noise_level: int | None = None,
  keep: bool = False,
) -> Video:
  """Normalised latents [B, T, H, W, C] of clips with the latents `given` at the known frames.

  With `name` "temporal" and the first frame: text + image -> video. With "interpolation" and every
  fourth frame: 8 -> 37 frames. With "extension" and the past 16: 16 more, by another prompt.

  Source: Emu Video, arXiv:2311.10709, eq. 1 and sec. 3.2, with scales 2.0 and 7.5.

  Args:
    scales: w_i and w_p; None: both are 1, for which X(I, p) alone is computed, a third of the work.
    noise_level: time index of the noise added to `given` where the model was trained with noise;
      the paper samples with 100. None: that, or 0 with `keep`, which says that they are right.
    keep: whether the known frames come out as they are `given`; else the model draws them anew.
  """
  key_noise, key_augment, key_steps = jax.random.split(key, 3)
  B = given.shape[0]
  if noise_level is None:
    noise_level = 0 if keep else 100
  level = jnp.full(B, float(min(noise_level, known.max_noise)))
  concat = concat_known(known, augmented(config, known, given, level, key_augment))
  net = video_network(config, trees, name)
  branches = known_branches(text, empty, concat, vectors(config, level))
  if scales is None:
    predict = lambda x_t, t: net(x_t, t, branches[-1])
  else:
    predict = guided(net, branches, rescale(emu_video_guidance(*scales), sampling.rescale))
  if keep:
    predict = keeping(predict, config.schedule, known, given)
  noise = jax.random.normal(key_noise, config.image.latent_shape(B, known.num_frames))
  return sampling.run(predict, config.schedule, noise, key_steps)


# What is kept of the first and of the second 37 frames.
SEAMS = {
  "gapless": (slice(4, -1), slice(4, None)),
  "published": (slice(None, -5), slice(4, None)),
}


def join_interpolated(
  first: Float[Array, "B 37 H W C"],
  second: Float[Array, "B 37 H W C"],
  rule: Literal["gapless", "published"] = "gapless",
) -> Float[Array, "B 65 H W C"]:
  """One clip of 65 frames from two of 37, interpolated from keys 0..7 and 8..15 of 16.

  With key k at tick 4 k the first covers ticks -4..32 and the second 28..64. "gapless" keeps ticks
  0..31 and 32..64, all keys among them; "published" drops the last 5 frames of the first and the
  first 4 of the second, which are ticks -4..27 and 32..64: as many frames, with a jump of 5 ticks
  at the seam and without key 7.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 ("published"); "gapless" is ours.
  """
  of_first, of_second = SEAMS[rule]
  return jnp.concatenate([first[:, of_first], second[:, of_second]], axis=1)
