"""Stable Video Diffusion: a picture becomes a clip.

The U-Net is told the picture twice: an image encoder's embedding as its text, and the latents of
the slightly noised picture, the same for every frame, as channels beside x_t. Numbers say how fast
and how much things move. The encoders of the picture and the decoder of the clip are given as their
results and as a function, so that any of them serves.

Source: Stable Video Diffusion, arXiv:2311.15127, sec. 4.3 and app. D.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from emu_jax.diffusion.edm import Edm, edm_euler, edm_heun, edm_loss
from emu_jax.diffusion.guidance import frame_guidance, guided
from emu_jax.diffusion.schedule import per_example
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.systems.latent import bound
from emu_jax.typing import Conditions, Params, PerExample, Video

Decode = Callable[[Float[Array, "B T h w C"]], Float[Array, "B T H W 3"]]


@dataclasses.dataclass(frozen=True)
class SvdConfig:
  """The network, the noise that it takes away, and how its latents are scaled."""

  unet: UNetConfig
  edm: Edm = Edm()
  # Of the clip's latents, as a factor on the autoencoder's; those of the picture are not scaled.
  latent_scale: float = 0.18215


@dataclasses.dataclass(frozen=True)
class SvdSampling:
  """How a sampling run is discretised; a value of the compiled program, not of its inputs."""

  solver: Literal["euler", "heun"] = "euler"
  num_steps: int = 25
  num_frames: int = 25


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picture:
  """A batch of pictures as the network is told of them; see `Conditions` for the annotations."""

  embedding: Any  # [B, L, D] of the image encoder; Stable Video Diffusion has L = 1
  latents: Any  # [B, 1, h, w, C] of the noised picture: the posterior's mean, not scaled
  micro: Any  # [B, K], of `micro_conditions`

  def conditions(self, num_frames: int, dropped: Bool[Array, "B"] | None = None) -> Conditions:
    """For clips of so many frames; where `dropped`, embedding and latents are both zero."""
    embedding, latents = self.embedding, repeat(self.latents, "B 1 ... -> B T ...", T=num_frames)
    if dropped is not None:
      embedding, latents = (
        jnp.where(dropped.reshape((-1,) + (1,) * (a.ndim - 1)), 0.0, a)
        for a in (embedding, latents)
      )
    return Conditions((embedding,), concat=latents, vectors={"micro": self.micro})


def micro_conditions(
  fps: PerExample, motion_bucket: PerExample, noise: PerExample
) -> Float[Array, "B 3"]:
  """What the network is told about motion: frames a second *less one*, bucket, picture's noise.

  Source: Stable Video Diffusion, as released: fps 7, bucket 127 of 0..255, noise 0.02.
  """
  return jnp.stack([fps - 1, motion_bucket, noise], axis=-1).astype(jnp.float32)


def noised_picture(
  picture: Float[Array, "B 1 H W 3"], strength: PerExample, key: jax.Array
) -> Float[Array, "B 1 H W 3"]:
  """A picture in [-1, 1] with noise of standard deviation `strength`: what is to be encoded."""
  return picture + per_example(strength, picture) * jax.random.normal(key, picture.shape)


def training_strength(key: jax.Array, batch: int) -> PerExample:
  """Standard deviations of the picture's noise. Source: arXiv:2311.15127, app. D.3."""
  return jnp.exp(-3.0 + 0.5 * jax.random.normal(key, (batch,)))


def video_loss(
  config: SvdConfig,
  trees: Params,
  latents: Video,
  picture: Picture,
  dropped: Bool[Array, "B"],
  key: jax.Array,
  *,
  offset_noise: float = 0.0,
) -> PerExample:
  """Loss of the U-Net, tree "unet", on scaled latents of clips. Source: arXiv:2311.15127, app. D.

  Args:
    picture: made of each clip's first frame, with noise of `training_strength`.
    dropped: True where the picture is withheld, embedding and latents both.
  """
  conditions = picture.conditions(latents.shape[1], dropped)
  network = bound(UNet(config.unet), trees["unet"])
  return edm_loss(
    lambda x, t: network(x, t, conditions), config.edm, latents, key, offset_noise=offset_noise
  )


def sample_latents(
  config: SvdConfig,
  trees: Params,
  picture: Picture,
  noise: Video,
  first_scale: float | Float[Array, ""],
  last_scale: float | Float[Array, ""],
  *,
  sampling: SvdSampling,
) -> Video:
  """Scaled latents of clips from unit noise; guidance grows from the first frame to the last.

  Source: Stable Video Diffusion, as released: scales 1.0 to 3.0, 25 steps of Euler.
  """
  B, T = noise.shape[:2]
  if T != sampling.num_frames:
    raise ValueError(f"sample_latents: noise has {T} frames, num_frames={sampling.num_frames}")
  withheld = picture.conditions(T, jnp.ones(B, bool))
  predict = guided(
    bound(UNet(config.unet), trees["unet"]),
    (withheld, picture.conditions(T)),
    frame_guidance(first_scale, last_scale),
  )
  solve = edm_heun if sampling.solver == "heun" else edm_euler
  return solve(predict, config.edm, noise, config.edm.levels(sampling.num_steps))


def sample_video(
  config: SvdConfig,
  trees: Params,
  picture: Picture,
  key: jax.Array,
  first_scale: float | Float[Array, ""],
  last_scale: float | Float[Array, ""],
  *,
  decode: Decode,
  sampling: SvdSampling = SvdSampling(),
  chunk: int = 8,
) -> Float[Array, "B T H W 3"]:
  """Clips in [-1, 1] of pictures. May be compiled as one program: nothing of it is on the host.

  Args:
    decode: the temporal decoder, from the autoencoder's own latents to frames.
    chunk: frames that are decoded together.
  """
  B, _, *rest = picture.latents.shape
  noise = jax.random.normal(key, (B, sampling.num_frames, *rest))
  latents = sample_latents(
    config, trees, picture, noise, first_scale, last_scale, sampling=sampling
  )
  return jnp.clip(decode_in_chunks(decode, latents / config.latent_scale, chunk), -1.0, 1.0)


def decode_in_chunks(
  decode: Decode, latents: Float[Array, "B T h w C"], chunk: int
) -> Float[Array, "B T H W 3"]:
  """`decode` of at most `chunk` frames of each example at a time, one after another.

  A last chunk that is not full is decoded by itself: filled up, its frames would see the filling.
  """
  T = latents.shape[1]
  if chunk < 1:
    raise ValueError(f"decode_in_chunks: chunk={chunk} must be at least 1 frame")
  if T <= chunk:
    return decode(latents)
  whole = T - T % chunk
  parts = rearrange(latents[:, :whole], "B (N T) h w C -> N B T h w C", T=chunk)
  frames = rearrange(jax.lax.map(decode, parts), "N B T H W C -> B (N T) H W C")
  if whole == T:
    return frames
  return jnp.concatenate([frames, decode(latents[:, whole:])], axis=1)
