"""Training of a KL autoencoder against an adversary: Emu's first stage, and Latent Diffusion's.

Source: Emu, arXiv:2309.15807, sec. 3.1; VQGAN, arXiv:2012.09841.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.data.inputs import ClipSpec, clip_inputs
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
from emu_jax.systems.first_stage import pixels
from emu_jax.systems.pyramid import pyramid_error
from emu_jax.systems.system import Part, Tree
from emu_jax.typing import Params, PerExample, Video


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


def autoencoder_part(
  config: AutoencoderConfig, objective: AutoencoderObjective, size: tuple[int, int]
) -> Part:
  """Trains the trees "autoencoder" and, where a loss needs it, "discriminator", on pictures.

  Merely carried along, the discriminator's 2.8 million parameters made a step of
  configs/shapes_32.py take 50 ms of a core in place of 22.
  """

  def loss(trees, batch, key, step):
    return autoencoder_loss(config, objective, trees, pixels(batch["frames"]), key, step)

  def samples(trees, batch, empty, key):
    """Pictures beside their reconstructions."""
    frames = pixels(batch["frames"])
    decoded = Autoencoder(config).apply({"params": trees["autoencoder"]}, frames)
    return {"reconstruction": jnp.concatenate([frames, decoded], axis=3)}

  return Part(
    trains=(("*", 1.0),),
    reads=("autoencoder", "discriminator") if objective.judged else ("autoencoder",),
    inputs=clip_inputs(ClipSpec(1, 1.0), size, multiple=(config.downsample, config.downsample)),
    loss=loss,
    samples=samples,
  )


def discriminator_tree(config: PatchDiscriminatorConfig) -> Tree:
  """The tree "discriminator", which training alone needs."""
  return Tree(functools.partial(_init_discriminator, config), released=False)


def _init_discriminator(config: PatchDiscriminatorConfig, key: jax.Array) -> Params:
  side = 2 ** (config.num_layers + 3)
  return PatchDiscriminator(config).init(key, jnp.zeros((1, 1, side, side, 3)))["params"]


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


def adaptive_weight(
  decoded: Video, error: Callable[[Video], PerExample], adversary: Callable[[Video], PerExample]
) -> PerExample:
  """|gradient of the error| / |gradient of the adversary|, at the decoded picture."""
  decoded = jax.lax.stop_gradient(decoded)
  ours, theirs = (
    jnp.sqrt(jnp.square(jax.grad(lambda x, f=f: f(x).sum())(decoded)).sum(axis=(1, 2, 3, 4)))
    for f in (error, adversary)
  )
  return jnp.clip(ours / (theirs + 1e-6), 0.0, 1e4)
