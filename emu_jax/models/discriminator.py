"""The patch discriminator that an autoencoder is trained against, and its hinge losses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.models.attention import GroupNorm
from emu_jax.typing import PerExample, Video


@dataclasses.dataclass(frozen=True)
class PatchDiscriminatorConfig:
  """Shape of the discriminator. Defaults: pix2pix's 70x70 (arXiv:1611.07004, app. 6.1.2)."""

  width: int = 64  # channels of the first convolution; each next has twice as many, up to 8 times
  num_layers: int = 3  # convolutions of stride 2
  norm_groups: int = 32  # of group normalisation
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    for name in ("width", "num_layers", "norm_groups"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"PatchDiscriminatorConfig: {name}={getattr(self, name)} must be at least 1"
        )
    if 2 * self.width % self.norm_groups:
      raise ValueError(
        f"PatchDiscriminatorConfig: 2 * width={2 * self.width} channels are not a multiple of "
        f"norm_groups={self.norm_groups}"
      )

  @property
  def min_size(self) -> int:
    """Pixels on a side of the smallest frame that leaves at least one patch."""
    return 3 * 2**self.num_layers  # two convolutions of stride 1 take a pixel each


class PatchDiscriminator(nn.Module):
  """A logit for every patch of every frame: positive where the patch looks real.

  Source: pix2pix, arXiv:1611.07004, app. 6.1.2 (4x4 convolutions, LeakyReLU 0.2, initial standard
    deviation 0.02), as VQGAN uses it (arXiv:2012.09841).
  Differs: GroupNorm of each frame in place of BatchNorm (ours: no statistic crosses examples, so
    real and generated batches cannot be told apart by it, and 8 devices give what 1 gives).
  Raises: ValueError where a side is below `min_size`.
  """

  config: PatchDiscriminatorConfig

  def __call__(self, x: Video) -> Float[Array, "B T h w 1"]:
    return self.layers(x)[-1]

  @nn.compact
  def layers(self, x: Video) -> list[Float[Array, "B T _ _ _"]]:
    """What each layer makes of the frames, finest first; the last are the logits."""
    cfg, (H, W) = self.config, x.shape[2:4]
    if min(H, W) < cfg.min_size:
      raise ValueError(
        f"PatchDiscriminator: frames of {H}x{W} pixels leave no patch; give at least "
        f"{cfg.min_size} pixels on a side or fewer than num_layers={cfg.num_layers}"
      )

    def conv(features, strides, name, *, use_bias=True):
      return nn.Conv(
        features,
        (4, 4),
        strides,
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        dtype=cfg.dtype,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
      )

    h = jax.nn.leaky_relu(conv(cfg.width, 2, "conv_in")(x.astype(cfg.dtype)), 0.2)
    found = [h]
    for i in range(1, cfg.num_layers + 1):
      strides = 2 if i < cfg.num_layers else 1
      # The norm that follows has a bias of its own.
      h = conv(cfg.width * min(2**i, 8), strides, f"conv_{i}", use_bias=False)(h)
      h = jax.nn.leaky_relu(GroupNorm(cfg.norm_groups, name=f"norm_{i}")(h), 0.2).astype(cfg.dtype)
      found.append(h)
    return [*found, conv(1, 1, "conv_out")(h).astype(jnp.float32)]


def hinge_discriminator(
  real_logits: Float[Array, "B T h w 1"], fake_logits: Float[Array, "B T h w 1"]
) -> PerExample:
  """What the discriminator minimises: zero once real patches are above 1 and fake ones below -1.

  Source: arXiv:1705.02894, halved as in VQGAN, arXiv:2012.09841.
  """
  real, fake = jax.nn.relu(1.0 - real_logits), jax.nn.relu(1.0 + fake_logits)
  return 0.5 * (real.mean(axis=(1, 2, 3, 4)) + fake.mean(axis=(1, 2, 3, 4)))


def hinge_generator(fake_logits: Float[Array, "B T h w 1"]) -> PerExample:
  """What the autoencoder minimises: minus the mean logit. Source: arXiv:1705.02894."""
  return -fake_logits.mean(axis=(1, 2, 3, 4))


def feature_distance(
  real: list[Float[Array, "B T _ _ _"]], fake: list[Float[Array, "B T _ _ _"]]
) -> PerExample:
  """Mean absolute difference of `layers`, the logits left out; each layer weighs the same.

  Source: feature matching, pix2pixHD, arXiv:1711.11585, eq. 4.
  """
  pairs = list(zip(real[:-1], fake[:-1], strict=True))
  apart = lambda a, b: jnp.abs(a.astype(jnp.float32) - b).mean(axis=(1, 2, 3, 4))
  return sum(apart(a, b) for a, b in pairs) / len(pairs)
