"""What every latent diffusion system shares: pictures to latents and back, prompts to features.

A whole model is a dictionary of parameter trees by name ("autoencoder", "latents", "text",
"spatial", "temporal", …); each function takes that dictionary and reads the trees it needs.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.conditioning import TextFeatures
from emu_jax.diffusion.sampler import check_grid, ddim, dpm_solver_pp_2m, time_grid
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import (
  Autoencoder,
  AutoencoderConfig,
  in_chunks,
  sample_posterior,
)
from emu_jax.models.text import ClipTextConfig, T5Config, text_encoder
from emu_jax.typing import Params, Predict, Video

TextConfig = ClipTextConfig | T5Config


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a sampling run is discretised; a value of the compiled program, not of its inputs."""

  solver: Literal["ddim", "dpm++"] = "ddim"
  num_steps: int = 50
  spacing: Literal["trailing", "leading", "linspace"] = "trailing"
  offset: int = 0  # added to "leading" times
  eta: float = 0.0  # share of fresh noise, DDIM only
  rescale: float = 0.0  # of the guided prediction's spread, arXiv:2305.08891; 0 = off

  def __post_init__(self):
    if self.solver == "dpm++" and self.eta:
      raise ValueError(
        f"Sampling: eta={self.eta} with solver='dpm++', which is deterministic; use 'ddim'"
      )

  def check(self, schedule: Schedule) -> None:
    """Raises ValueError where this cannot sample with `schedule`; for use before any work."""
    check_grid(schedule, self.spacing, self.eta)
    time_grid(schedule.num_steps, self.num_steps, self.spacing, self.offset)

  def run(self, predict: Predict, schedule: Schedule, noise: Video, key: jax.Array) -> Video:
    """x_0 from noise: one scan. `key` is used only where eta > 0."""
    grid = time_grid(schedule.num_steps, self.num_steps, self.spacing, self.offset)
    if self.solver == "dpm++":
      return dpm_solver_pp_2m(predict, schedule, noise, grid)
    return ddim(predict, schedule, noise, grid, eta=self.eta, key=key if self.eta else None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
  """The Gaussian over latents that the autoencoder makes of a video, of any float dtype."""

  mean: Any  # [B, T, h, w, C]
  log_var: Any  # the same

  @property
  def shape(self) -> tuple[int, ...]:
    """B T h w C."""
    return self.mean.shape


def encode_text(
  encoders: tuple[TextConfig, ...],
  trees: Params,
  tokens: tuple[Int[Array, "B _"], ...],
  masks: tuple[Bool[Array, "B _"], ...],
  *,
  pooled: bool = False,
) -> TextFeatures:
  """Features of a batch of prompts, one array an encoder.

  The denoiser attends to every position of a CLIP text, padding included, as Stable Diffusion does,
  and to the real tokens of a T5 text, as Imagen does (arXiv:2205.11487, app. B).

  Args:
    pooled: the last encoder's pooled output too, as the vector condition "pooled".
  """
  if not len(encoders) == len(tokens) == len(masks):
    raise ValueError(
      f"encode_text: {len(tokens)} token arrays and {len(masks)} masks for {len(encoders)} encoders"
    )
  last, vectors, texts = len(encoders) - 1, {}, []
  for i, (config, ids, mask) in enumerate(zip(encoders, tokens, masks, strict=True)):
    encoder, params = text_encoder(config), {"params": trees["text"][str(i)]}
    if pooled and i == last:
      features, vectors["pooled"] = encoder.apply(params, ids, mask, method="features_and_pooled")
    else:
      features = encoder.apply(params, ids, mask)
    texts.append(features)
  seen = tuple(
    mask if config.architecture == "t5" else None
    for config, mask in zip(encoders, masks, strict=True)
  )
  return TextFeatures(tuple(texts), seen, vectors)


def pooled_dim(config: TextConfig) -> int:
  """Size of a text encoder's pooled output; 0 where it has none."""
  return config.projection_dim if config.architecture == "clip" else 0


def posterior(
  config: AutoencoderConfig,
  trees: Params,
  frames: Float[Array, "B T H W 3"],
  chunk: int = 8,
) -> Posterior:
  """What the autoencoder makes of pixels in [-1, 1].

  `chunk` frames of each clip are encoded at a time; the result is that of all at once.
  """

  def encode(x):
    return Autoencoder(config).apply({"params": trees["autoencoder"]}, x, method="encode")

  return Posterior(*in_chunks(encode, frames, chunk))


def encode_frames(
  config: AutoencoderConfig,
  trees: Params,
  frames: Float[Array, "B T H W 3"] | Posterior,
  key: jax.Array | None = None,
  chunk: int = 8,
) -> Float[Array, "B T h w C"]:
  """Normalised latents: a posterior sample, or the mean without a key.

  Args:
    frames: pixels in [-1, 1], or the posterior that was made of them earlier: then the
      autoencoder's tree is not needed.
    chunk: frames of each clip that are encoded at a time.
  """
  of = frames if isinstance(frames, Posterior) else posterior(config, trees, frames, chunk)
  mean, log_var = of.mean.astype(jnp.float32), of.log_var.astype(jnp.float32)
  z = mean if key is None else sample_posterior(mean, log_var, key)
  shift, scale = channelwise(trees["latents"])
  return (z - shift) * scale


def decode_latents(
  config: AutoencoderConfig, trees: Params, latents: Float[Array, "B T h w C"], chunk: int = 8
) -> Float[Array, "B T H W 3"]:
  """Pixels, clipped to [-1, 1], of normalised latents; `chunk` frames at a time."""

  def decode(z):
    return Autoencoder(config).apply({"params": trees["autoencoder"]}, z, method="decode")

  return jnp.clip(in_chunks(decode, unnormalised(trees, latents), chunk), -1.0, 1.0)


def unnormalised(trees: Params, latents: Float[Array, "B T h w C"]) -> Float[Array, "B T h w C"]:
  """Latents as the autoencoder itself gives and takes them."""
  shift, scale = channelwise(trees["latents"])
  return latents / scale + shift


def channelwise(statistics: Params) -> tuple[Float[Array, "1 1 1 1 C"], Float[Array, "1 1 1 1 C"]]:
  """Shift and scale of latents, shaped to meet a video."""
  return tuple(statistics[name].reshape(1, 1, 1, 1, -1) for name in ("shift", "scale"))


def latent_statistics(
  config: AutoencoderConfig, autoencoder: Params, frames: Float[Array, "B T H W 3"]
) -> Params:
  """`posterior_statistics` of pixels in [-1, 1], all encoded at once."""
  trees = {"autoencoder": autoencoder}
  return posterior_statistics(posterior(config, trees, frames, chunk=frames.shape[1]))


def posterior_statistics(of: Posterior) -> Params:
  """Shift and scale [C] under which each channel of these frames' latents has mean 0 and std 1.

  Source: ours. Latent Diffusion (arXiv:2112.10752, sec. G) divides by one number for all channels.
  """
  mean, log_var = of.mean.astype(jnp.float32), of.log_var.astype(jnp.float32)
  axes = (0, 1, 2, 3)
  variance = mean.var(axis=axes) + jnp.exp(log_var).mean(axis=axes)
  return {"shift": mean.mean(axis=axes), "scale": jax.lax.rsqrt(variance)}


def bound(network: Any, params: Params):
  """`network.apply` with its parameters: a function of x_t, t and conditions."""
  return lambda x_t, t, conditions: network.apply({"params": params}, x_t, t, conditions)
