"""Everything that crosses frames, and nothing else.

Each module adds to its input and starts as the identity, so that a video model begins as its image
model, frame by frame. Every parameter lies under a name that begins with `temporal_`: the rule that
tells what a factorized model trains from what it keeps frozen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.config import kind
from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import GroupNorm, TransformerLayer, in_pieces
from emu_jax.models.embedding import sinusoid
from emu_jax.models.site import Site

Features = Float[Array, "B T H W C"]
Contexts = Callable[[int], tuple[tuple, tuple]]
# Called as module(i, h [B, T, H, W, C], context, mask): the number of a spatial layer, its output,
# and the text and mask that it attended to.
AfterLayer = Callable[[int, Array, Array | None, Array | None], Array]
Unet = Any  # the UNetConfig around it, which cannot be imported here


@dataclasses.dataclass(frozen=True)
class Temporal:
  """What crosses frames in a U-Net: the base of every configuration of it, the identity.

  The U-Net calls each method at its place, with the site of the layer that it follows; a method
  makes its modules there, so that their parameters stand in the U-Net's own tree, under names that
  begin with `temporal_`.
  """

  # An embedding of "noise_level" joins the time embedding, from zero.
  noise_level: bool = False

  def after_conv(self, site: Site, h: Features, unet: Unet) -> Features:
    """After each 3x3 convolution but the last one; inside the residual blocks too ("conv")."""
    return h

  def after_res_block(
    self, site: Site, h: Features, embedding: Float[Array, "B E"], unet: Unet
  ) -> Features:
    """After each residual block."""
    return h

  def attention_source(
    self, site: Site, h: Float[Array, "N S C"], T: int
  ) -> Float[Array, "N K C"] | None:
    """What the first attention of a spatial layer takes keys and values of; None: h itself.

    Called before every layer of each spatial transformer, unless its layers attend to texts alone.

    Args:
      h: the layer's input; N = B T, the frames of an example are neighbours; S = H W.
    Returns: K tokens for each frame. The layer normalises and projects them as it does h.
    """
    return None

  def after_layers(self, site: Site, unet: Unet) -> AfterLayer | None:
    """The module that follows every layer of a spatial transformer, made once in it; None: none."""
    return None

  def after_attention(self, site: Site, h: Features, contexts: Contexts, unet: Unet) -> Features:
    """After each spatial transformer; `contexts(n)` are the texts and masks of n layers."""
    return h

  def after_block(self, site: Site, h: Features, unet: Unet) -> Features:
    """After each residual block and its transformer, or the former alone where there is none.

    In the middle: after its transformer, if there is one.
    """
    return h


@kind("temporal")
@dataclasses.dataclass(frozen=True)
class TemporalConfig(Temporal):
  """What is inserted after the spatial layers. Source: arXiv:2311.10709, sec. 3.2 and app. table 1.

  The paper publishes neither kernel size, nor positions, nor what the second attention attends to;
  these values reproduce its 4.3 B parameters (tests/models/test_unet.py).
  """

  kernel: int = 3  # frames; ours: the smallest consistent with the parameter count
  num_layers: int = 2  # of each temporal transformer
  attends_text: bool = False  # second attention of a layer: text if True, frames if False

  def __post_init__(self):
    if self.kernel % 2 == 0 or self.kernel < 1:
      raise ValueError(f"TemporalConfig: kernel={self.kernel} has no middle; give an odd number")
    if self.num_layers < 1:
      raise ValueError(f"TemporalConfig: num_layers={self.num_layers} must be at least 1")

  def after_conv(self, site: Site, h: Features, unet: Unet) -> Features:
    return TemporalConv(self.kernel, unet.dtype, name=f"temporal_{site.name}")(h)

  def after_attention(self, site: Site, h: Features, contexts: Contexts, unet: Unet) -> Features:
    depth = self.num_layers
    texts, masks = contexts(depth) if self.attends_text else ((None,) * depth,) * 2
    make = unet.recomputed(TemporalTransformer)
    heads = unet.heads(h.shape[-1])
    return make(*heads, depth, unet.norm_groups, unet.dtype, name=f"temporal_{site.name}")(
      h, texts, masks
    )


class TemporalConv(nn.Module):
  """Convolution over frames at every pixel, zero padded; the identity at initialisation.

  Source: Make-A-Video, arXiv:2209.14792, sec. 3.2; Emu Video, arXiv:2311.10709, sec. 3.2.
  Differs: the kernel is stored as its difference from the identity kernel and the input is added.
    The function, its gradients and Adam's steps are those of the paper's kernel; but the identity
    is exact in every dtype, and bfloat16 operands do not round small changes off its ones.
  """

  kernel: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    conv = nn.Conv(
      x.shape[-1],
      (self.kernel,),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="conv",
    )
    return x + across_frames(conv, x.astype(self.dtype))


class TemporalTransformer(nn.Module):
  """A full transformer over frames at every pixel, its last layer zero; adds to its input.

  Sinusoidal frame positions, so that a model trained on 8 frames also reads 37 (ours; Video LDM and
  AnimateDiff use sinusoids too).

  Source: Emu Video, arXiv:2311.10709, sec. 3.2; projections as in Latent Diffusion's transformer.
  """

  num_heads: int
  head_dim: int
  num_layers: int
  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T H W C"],
    contexts: tuple[Float[Array, "B _ _"] | None, ...],
    masks: tuple[Bool[Array, "B _"] | None, ...],
  ) -> Float[Array, "B T H W C"]:
    B, T, _, _, C = x.shape
    inner = self.num_heads * self.head_dim

    def layers(h):
      h = nn.Dense(inner, dtype=self.dtype, name="proj_in")(h)
      h = h + sinusoid(jnp.arange(T), inner)[None].astype(self.dtype)
      for i in range(self.num_layers):
        layer = TransformerLayer(self.num_heads, self.head_dim, self.dtype, name=f"layer_{i}")
        h = in_pieces(layer, h, B, contexts[i], masks[i])
      return nn.Dense(C, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out")(h)

    h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x).astype(self.dtype)
    return x + across_frames(layers, h)
