"""Emu: an adversarially trained autoencoder and a text-to-image diffusion model in its latents.

Source: Emu, arXiv:2309.15807. With other values of the same configuration it is Stable Diffusion.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.conditioning import TextFeatures, image_branches, known_branches, text_conditions
from emu_jax.diffusion.guidance import emu_video_guidance, guided, rescale, text_guidance
from emu_jax.diffusion.loss import Times, diffusion_loss
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import (
  Autoencoder,
  AutoencoderConfig,
  kl_divergence,
  sample_posterior,
)
from emu_jax.models.discriminator import (
  PatchDiscriminator,
  PatchDiscriminatorConfig,
  feature_distance,
  hinge_discriminator,
  hinge_generator,
)
from emu_jax.models.text import text_encoder
from emu_jax.models.unet import UNet, UNetConfig, blank_conditions
from emu_jax.systems.latent import (
  Posterior,
  Sampling,
  TextConfig,
  bound,
  encode_frames,
  encode_text,
  pooled_dim,
)
from emu_jax.systems.pyramid import pyramid_error
from emu_jax.typing import Params, PerExample, Video

SIZES = 6  # SDXL's micro-conditions: original size, crop corner and target size, height and width


@dataclasses.dataclass(frozen=True)
class EmuConfig:
  """A text-to-image model: its networks, its schedule and the size of its pictures."""

  autoencoder: AutoencoderConfig
  text: tuple[TextConfig, ...]
  unet: UNetConfig
  schedule: Schedule = Schedule()  # scaled-linear with epsilon: Stable Diffusion's and Emu's
  size: int = 512  # pixels on a side
  zero_empty: bool = False  # guidance leads away from zeros, not from the empty prompt: SDXL

  def __post_init__(self):
    z, widths = self.autoencoder.z_channels, tuple(t.width for t in self.text)
    if (self.unet.in_channels, self.unet.out_channels) != (z, z):
      raise ValueError(
        f"EmuConfig: unet.in_channels={self.unet.in_channels} and unet.out_channels="
        f"{self.unet.out_channels} must both be autoencoder.z_channels={z}"
      )
    if self.unet.context_dims not in (widths, (sum(widths),)):
      raise ValueError(
        f"EmuConfig: unet.context_dims={self.unet.context_dims} must be the widths {widths} of the "
        "text encoders, or their sum"
      )
    if self.unet.num_micro not in (0, SIZES):
      raise ValueError(
        f"EmuConfig: unet.num_micro={self.unet.num_micro} must be 0, or {SIZES} for SDXL's sizes"
      )
    if self.unet.pooled_dim and self.unet.pooled_dim != pooled_dim(self.text[-1]):
      raise ValueError(
        f"EmuConfig: unet.pooled_dim={self.unet.pooled_dim} must be projection_dim="
        f"{pooled_dim(self.text[-1])} of the last text encoder"
      )
    factor = self.autoencoder.downsample * self.unet.downsample
    if self.size % factor:
      raise ValueError(
        f"EmuConfig: size={self.size} pixels must be a multiple of {factor}: autoencoder.downsample"
        f"={self.autoencoder.downsample} times unet.downsample={self.unet.downsample}"
      )

  def latent_shape(self, batch: int, num_frames: int = 1) -> tuple[int, int, int, int, int]:
    """B T H W C of the latents."""
    side = self.size // self.autoencoder.downsample
    return batch, num_frames, side, side, self.autoencoder.z_channels


def text_features(
  config: EmuConfig,
  trees: Params,
  tokens: tuple[Int[Array, "B _"], ...],
  masks: tuple[Bool[Array, "B _"], ...],
) -> TextFeatures:
  """What the image model is told of a batch of prompts.

  SDXL (arXiv:2307.01952, sec. 2.1, 2.2) reads its two encoders' features side by side, the pooled
  output of the second, and sizes: here those of a whole picture of the model's own size.
  """
  text = encode_text(config.text, trees, tokens, masks, pooled=config.unet.pooled_dim > 0)
  texts, seen, vectors = text.texts, text.masks, dict(text.vectors)
  if config.unet.context_dims != tuple(t.width for t in config.text):
    texts, seen = (jnp.concatenate(texts, axis=-1),), (None,)
  if config.unet.num_micro:
    size = (config.size, config.size)  # of the original, corner of the crop, of the target
    vectors["micro"] = jnp.tile(jnp.array((*size, 0, 0, *size), jnp.float32), (len(tokens[0]), 1))
  return TextFeatures(texts, seen, vectors)


def without_text(
  config: EmuConfig, negative: TextFeatures, blank: bool | Bool[Array, ""]
) -> TextFeatures:
  """What guidance leads away from: a negative prompt, or where it is `blank` no text at all.

  That is the empty prompt's features, or zeros in a model with `zero_empty`.
  """
  if not config.zero_empty:
    return negative
  keep = jnp.where(blank, 0.0, 1.0)
  vectors = {
    name: value * keep if name == "pooled" else value for name, value in negative.vectors.items()
  }
  return TextFeatures(tuple(text * keep for text in negative.texts), negative.masks, vectors)


def init_text(config: EmuConfig, key: jax.Array) -> Params:
  """Trees of the text encoders: {"0": …, "1": …}."""
  trees = {}
  for i, (encoder, k) in enumerate(
    zip(config.text, jax.random.split(key, len(config.text)), strict=True)
  ):
    tokens = jnp.zeros((1, encoder.max_length), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    trees[str(i)] = text_encoder(encoder).init(k, tokens, mask)["params"]
  return trees


def init_spatial(config: EmuConfig, key: jax.Array) -> Params:
  """The image U-Net's tree."""
  x = jnp.zeros(config.latent_shape(1))
  conditions = blank_conditions(config.unet, config.latent_shape(1))
  return UNet(config.unet).init(key, x, jnp.zeros(1), conditions)["params"]


def image_loss(
  config: EmuConfig,
  trees: Params,
  frames: Video | Posterior,
  text: TextFeatures,
  key: jax.Array,
  *,
  offset_noise: float = 0.0,
  times: Times = Times(),
) -> PerExample:
  """Text-to-image loss on pixels in [-1, 1], T = 1, or on what was encoded of them ahead.

  Source: arXiv:2112.10752, eq. 3.
  """
  key_encode, key_diffuse = jax.random.split(key)
  latents = encode_frames(config.autoencoder, trees, frames, key_encode)
  net = bound(UNet(config.unet), trees["spatial"])
  conditions = text_conditions(text)
  return diffusion_loss(
    lambda x_t, t: net(x_t, t, conditions),
    config.schedule,
    jax.lax.stop_gradient(latents),
    key_diffuse,
    offset_noise=offset_noise,
    times=times,
  )


def sample_image(
  config: EmuConfig,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  text_scale: float | Float[Array, ""],
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, 1, H, W, C] of pictures of prompts, by text guidance.

  Source: Emu Video, arXiv:2311.10709, sec. 4, with scale 7.5 for pictures.

  Args:
    empty: features of what guidance leads away from: the empty prompt, or a negative one.
  """
  combine = text_guidance(text_scale)
  return _sampled(config, trees, image_branches(text, empty), combine, key, sampling)


def sample_edit(
  config: EmuConfig,
  trees: Params,
  source: Video,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  image_scale: float | Float[Array, ""],
  text_scale: float | Float[Array, ""],
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, 1, H, W, C] of pictures changed as an instruction says.

  Source: InstructPix2Pix, arXiv:2211.09800, sec. 3.2: scales 1.5 and 7.5.

  Args:
    source: latents of the pictures as the autoencoder gives them (the mean, not normalised).
  """
  combine = emu_video_guidance(image_scale, text_scale)
  return _sampled(config, trees, known_branches(text, empty, source), combine, key, sampling)


def _sampled(config, trees, branches, combine, key, sampling: Sampling) -> Video:
  key_noise, key_steps = jax.random.split(key)
  noise = jax.random.normal(key_noise, config.latent_shape(branches[0].texts[0].shape[0]))
  net = bound(UNet(config.unet), trees["spatial"])
  predict = guided(net, branches, rescale(combine, sampling.rescale))
  return sampling.run(predict, config.schedule, noise, key_steps)


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
  """Weights of the autoencoder's losses. None is published; ours, after VQGAN's."""

  squared_weight: float = 2.0  # of the squared error, beside the absolute one
  kl_weight: float = 1e-6  # of the divergence, beside an error summed over pixels
  adversarial_weight: float = 0.5  # times the adaptive weight below
  adversarial_start: int = 10_000  # updates of reconstruction alone, before the adversaries begin
  pyramid_weight: float = 0.0  # of the error of each band of a Laplacian pyramid
  # Of the distance of the discriminator's features, from the first update on; those are features of
  # a random convolution network until an adversary begins, and without one for good.
  matching_weight: float = 0.0
  discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name != "discriminator" and value < 0:
        raise ValueError(f"AutoencoderObjective: {field.name}={value} is negative; 0 = off")

  @property
  def judged(self) -> bool:
    """Whether any of the losses needs the discriminator."""
    return self.adversarial_weight > 0 or self.matching_weight > 0


def init_autoencoder(
  config: AutoencoderConfig, objective: AutoencoderObjective, size: int, key: jax.Array
) -> Params:
  """{"autoencoder": …, "discriminator": …}; the second only where a loss needs it.

  Merely carried along, its 2.8 million parameters made a step of configs/shapes_32.py take 50 ms of
  a core in place of 22.
  """
  key_autoencoder, key_discriminator = jax.random.split(key)
  x = jnp.zeros((1, 1, size, size, 3))
  trees = {"autoencoder": Autoencoder(config).init(key_autoencoder, x)["params"]}
  if objective.judged:
    critic = PatchDiscriminator(objective.discriminator)
    trees["discriminator"] = critic.init(key_discriminator, x)["params"]
  return trees


def autoencoder_loss(
  config: AutoencoderConfig,
  objective: AutoencoderObjective,
  trees: Params,
  frames: Video,
  key: jax.Array,
  step: Array,
) -> tuple[PerExample, dict[str, Float[Array, ""]]]:
  """Reconstruction, KL and the sum of both adversaries' losses, one number an example.

  Each adversary sees the other under `stop_gradient`, so that one gradient of the sum is one update
  of both.

  Source: VQGAN, arXiv:2012.09841, eq. 6 and 7 (hinge losses, adaptive weight); Latent Diffusion,
    arXiv:2112.10752, app. G (KL weight).
  Differs: no perceptual network, and a squared error beside the absolute one, which alone leaves
    small objects out for long; the adaptive weight compares gradients at the reconstruction, not at
    the decoder's last kernel, and for each example by itself. In the perceptual network's place
    may stand a pyramid's bands (systems/pyramid.py) and the discriminator's own features.
  """
  net = Autoencoder(config)
  mean, log_var = net.apply({"params": trees["autoencoder"]}, frames, method="encode")
  z = sample_posterior(mean, log_var, key)
  decoded = net.apply({"params": trees["autoencoder"]}, z, method="decode")

  def unlike(x):
    error = reconstruction_error(x, frames, objective.squared_weight)
    if objective.pyramid_weight:
      error += objective.pyramid_weight * pyramid_error(x - frames)
    return error

  error = unlike(decoded)
  pixels = frames.shape[2] * frames.shape[3] * frames.shape[4]
  kl = kl_divergence(mean, log_var) / pixels
  mse = jnp.square(decoded - frames).mean(axis=(1, 2, 3, 4))
  metrics = {"reconstruction": error.mean(), "kl": kl.mean(), "latent_std": z.std()}
  metrics["psnr"] = (-10 * jnp.log10(mse / 4)).mean()  # dB, of pixels that range over 2
  losses = error + objective.kl_weight * kl
  if not objective.judged:
    return losses, metrics

  critic = PatchDiscriminator(objective.discriminator)
  fixed = jax.lax.stop_gradient(trees["discriminator"])
  if objective.matching_weight:
    real, fake = (critic.apply({"params": fixed}, x, method="layers") for x in (frames, decoded))
    matching = feature_distance(real, fake)
    metrics["matching"] = matching.mean()
    losses += objective.matching_weight * matching
  if objective.adversarial_weight == 0:
    return losses, metrics

  def logits(x, params):
    return critic.apply({"params": params}, x)

  generator = hinge_generator(logits(decoded, fixed))
  discriminator = hinge_discriminator(
    logits(frames, trees["discriminator"]),
    logits(jax.lax.stop_gradient(decoded), trees["discriminator"]),
  )
  weight = objective.adversarial_weight * adaptive_weight(
    decoded, unlike, lambda x: hinge_generator(logits(x, fixed))
  )
  active = jnp.where(step >= objective.adversarial_start, 1.0, 0.0)
  metrics |= {"generator": generator.mean(), "discriminator": discriminator.mean()}
  metrics["adaptive_weight"] = weight.mean()
  return losses + active * (weight * generator + discriminator), metrics


def reconstruction_error(decoded: Video, frames: Video, squared_weight: float) -> PerExample:
  """Mean over pixels of |e| + squared_weight * e^2."""
  e = decoded - frames
  return (jnp.abs(e) + squared_weight * jnp.square(e)).mean(axis=(1, 2, 3, 4))


def adaptive_weight(decoded: Video, error, adversary) -> PerExample:
  """|gradient of the error| / |gradient of the adversary|, at the decoded picture."""
  decoded = jax.lax.stop_gradient(decoded)
  own, theirs = (
    jnp.sqrt(jnp.square(jax.grad(lambda x, f=f: f(x).sum())(decoded)).sum(axis=(1, 2, 3, 4)))
    for f in (error, adversary)
  )
  return jnp.clip(own / (theirs + 1e-6), 0.0, 1e4)
