"""The transformer of a U-Net over the pixels of each frame."""

from typing import Any

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Bool, Float

from emu_jax.models.attention import GroupNorm, TransformerLayer, in_pieces
from emu_jax.models.site import Site


class SpatialTransformer(nn.Module):
  """A stack of transformer layers over the pixels of each frame; adds to its input.

  `contexts[i]` is what layer i attends to. Source: Latent Diffusion, arXiv:2112.10752, app. E.2.1;
  a text encoder a layer in turn: Emu Video, arXiv:2311.10709, app. table 1.
  """

  num_layers: int
  site: Site
  unet: Any  # the UNetConfig around it, which cannot be imported here

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T H W C"],
    contexts: tuple[Float[Array, "B _ _"] | None, ...],
    masks: tuple[Bool[Array, "B _"] | None, ...],
  ) -> Float[Array, "B T H W C"]:
    unet, (B, T, H, _, C) = self.unet, x.shape
    num_heads, head_dim = unet.heads(C)
    cross_only = unet.is_cross_only(self.site)

    def projection(name, features):  # the same product; the stored kernel's shape differs
      if unet.linear_projection:
        return nn.Dense(features, dtype=unet.dtype, name=name)
      return nn.Conv(features, (1, 1), dtype=unet.dtype, name=name)

    h = GroupNorm(unet.norm_groups, epsilon=1e-6, name="norm")(x).astype(unet.dtype)
    h = projection("proj_in", num_heads * head_dim)(h)
    after_layer = unet.temporal.after_layers(self.site, unet)
    for i in range(self.num_layers):
      h = rearrange(h, "B T H W C -> (B T) (H W) C")
      source = None if cross_only else unet.temporal.attention_source(self.site, h, T)
      layer = TransformerLayer(
        num_heads, head_dim, unet.dtype, cross_only, kernel=unet.attention, name=f"layer_{i}"
      )
      h = in_pieces(layer, h, B, contexts[i], masks[i], source)
      h = rearrange(h, "(B T) (H W) C -> B T H W C", B=B, H=H)
      if after_layer is not None:
        h = after_layer(i, h, contexts[i], masks[i])
    return x + projection("proj_out", C)(h)
