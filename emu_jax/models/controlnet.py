"""ControlNet: a copy of a U-Net's encoder that reads a picture and adds to the U-Net's states.

Parameter names: those of the U-Net's encoder and middle; `hint_in`, `hint_<i>`, `hint_out` of the
network that reads the picture; `control_<i>`, `control_mid` of the convolutions whose results are
added.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.models.unet import UNet, UNetConfig, check_inputs, conv
from emu_jax.typing import Conditions, PerExample, Video


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
  """The U-Net whose encoder is copied, and the network that reads the picture.

  Defaults: Stable Diffusion 1's public ControlNets (arXiv:2302.05543).
  """

  hint_channels: int = 3
  hint_widths: tuple[int, ...] = (16, 32, 96, 256)  # the picture halves between two of them
  hint_bgr: bool = False  # the network reads blue first; the hint is in RGB all the same
  pooled_control: bool = False  # what is added to a state is the same at every pixel

  def __post_init__(self):
    super().__post_init__()
    if not self.hint_widths:
      raise ValueError("ControlNetConfig: hint_widths=() is empty; give one width at least")

  def module(self) -> "ControlNet":
    return ControlNet(self)

  @property
  def hint_downsample(self) -> int:
    """Pixels of the picture, a side, to one of x_t."""
    return 2 ** (len(self.hint_widths) - 1)


class ControlNet(UNet):
  """`Conditions.control`: what is added to the U-Net's states, zero at initialisation.

  Source: ControlNet, arXiv:2302.05543, sec. 3.2; guess mode's scales are those of its public code.
  Differs: a clip's frames are read one by one, unless `temporal` says more.
  """

  config: ControlNetConfig

  @nn.compact
  def __call__(
    self,
    x_t: Video,
    t: PerExample,
    conditions: Conditions,
    hint: Float[Array, "B T h w D"],
    scale: float | Float[Array, ""] = 1.0,
    guess: bool = False,
  ) -> tuple[Float[Array, "B T _ _ _"], ...]:
    """Features for the encoder's states, finest first, and for the middle's, last.

    Args:
      hint: the picture of each frame in RGB within [0, 1], `hint_downsample` times as large as x_t.
      scale: factor of all the features.
      guess: they fall off tenfold from the middle to the finest state, for sampling without a
        prompt.
    Raises: ValueError where an input does not fit the configuration.
    """
    cfg = self.config
    check_inputs(cfg, x_t, conditions)
    sides = (n * cfg.hint_downsample for n in x_t.shape[2:4])
    expected = (*x_t.shape[:2], *sides, cfg.hint_channels)
    if hint.shape != expected:
      raise ValueError(
        f"ControlNet: hint is {hint.shape}, x_t of {x_t.shape} asks for {expected}: "
        f"{cfg.hint_downsample} pixels a side to one, hint_channels={cfg.hint_channels}"
      )
    embedding = self.embed(t, conditions.vectors)
    states = self.encoder(self.inputs(x_t, conditions) + self.read(hint), embedding, conditions)
    states.append(self.middle(states[-1], embedding, conditions))
    names = [f"control_{i}" for i in range(len(states) - 1)] + ["control_mid"]
    features = [self.zero_conv(name, h) for name, h in zip(names, states, strict=True)]
    if cfg.pooled_control:
      features = [h.mean(axis=(2, 3), keepdims=True) for h in features]
    elif guess:
      strengths = jnp.logspace(-1, 0, len(features))
      features = [h * strength for h, strength in zip(features, strengths, strict=True)]
    return tuple(h * scale for h in features)

  def read(self, hint):
    """The picture as features of x_t's size."""
    cfg = self.config
    hint = hint[..., ::-1] if cfg.hint_bgr else hint
    h = jax.nn.silu(conv(cfg.hint_widths[0], cfg.dtype, "hint_in")(hint.astype(cfg.dtype)))
    for i, (width, wider) in enumerate(zip(cfg.hint_widths, cfg.hint_widths[1:], strict=False)):
      h = jax.nn.silu(conv(width, cfg.dtype, f"hint_{2 * i}")(h))
      h = jax.nn.silu(conv(wider, cfg.dtype, f"hint_{2 * i + 1}", strides=2)(h))
    zero = nn.initializers.zeros
    return conv(cfg.channels[0], cfg.dtype, "hint_out", kernel_init=zero)(h)

  def zero_conv(self, name, h):
    """A 1x1 convolution that is zero at initialisation."""
    cfg = self.config
    make = nn.Conv(
      h.shape[-1], (1, 1), dtype=cfg.dtype, kernel_init=nn.initializers.zeros, name=name
    )
    return make(h).astype(jnp.float32)
