"""ModelScope's temporal layers, those of text-to-video-synthesis and I2VGen-XL, inside a U-Net.

Parameter names: `temporal_conv_in`, `temporal_<name of a residual block or transformer>`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.config import kind
from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import GroupNorm, TransformerLayer
from emu_jax.models.site import Site
from emu_jax.models.temporal import Contexts, Features, Temporal, Unet


@kind("modelscope")
@dataclasses.dataclass(frozen=True)
class ModelScopeConfig(Temporal):
  """Convolutions over frames after each residual block, a transformer after each spatial one.

  Another transformer stands behind the first convolution.
  Source: ModelScope, arXiv:2308.06571, sec. 3.3 (four convolutions and two attentions a block).
  """

  in_heads: int = 8  # of the transformer behind the first convolution, of the U-Net's head size

  def after_conv(self, site: Site, h: Features, unet: Unet) -> Features:
    if site.kind != "conv_in":
      return h
    size = unet.heads(h.shape[-1])[1]
    return self._transformer(site, self.in_heads, size, unet)(h)

  def after_res_block(
    self, site: Site, h: Features, embedding: Float[Array, "B E"], unet: Unet
  ) -> Features:
    make = unet.recomputed(FrameConvs)
    return make(unet.norm_groups, unet.dtype, name=f"temporal_{site.name}")(h)

  def after_attention(self, site: Site, h: Features, contexts: Contexts, unet: Unet) -> Features:
    return self._transformer(site, *unet.heads(h.shape[-1]), unet)(h)

  def _transformer(self, site: Site, num_heads: int, head_dim: int, unet: Unet) -> nn.Module:
    make = unet.recomputed(FrameTransformer)
    return make(num_heads, head_dim, unet.norm_groups, unet.dtype, name=f"temporal_{site.name}")


class FrameConvs(nn.Module):
  """GroupNorm, SiLU, convolution over three frames, four times, the last zero; adds to its input.

  The norms' statistics are those of the whole clip.
  """

  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    h = x
    for i in range(1, 5):
      h = GroupNorm(self.norm_groups, whole_clip=True, name=f"norm_{i}")(h)
      init = nn.initializers.zeros if i == 4 else nn.initializers.lecun_normal()
      conv = nn.Conv(x.shape[-1], (3,), dtype=self.dtype, kernel_init=init, name=f"conv_{i}")
      h = across_frames(conv, jax.nn.silu(h).astype(self.dtype))
    return x + h


class FrameTransformer(nn.Module):
  """A transformer layer over frames at every pixel, its last layer zero; adds to its input.

  Both its attentions are to the frames. It knows no positions: order comes from the convolutions.
  The group norm's statistics are those of the whole clip.
  """

  num_heads: int
  head_dim: int
  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    C, inner = x.shape[-1], self.num_heads * self.head_dim

    def layers(h):
      h = nn.Dense(inner, dtype=self.dtype, name="proj_in")(h)
      h = TransformerLayer(self.num_heads, self.head_dim, self.dtype, name="layer_0")(h)
      return nn.Dense(C, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out")(h)

    h = GroupNorm(self.norm_groups, epsilon=1e-6, whole_clip=True, name="norm")(x)
    return x + across_frames(layers, h.astype(self.dtype))
