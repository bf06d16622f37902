"""Video LDM's temporal layers, those of Stable Video Diffusion, inside a spatial U-Net.

After each spatial residual block stands one over frames; after each layer of a spatial transformer
one over frames. Both are mixed with what they follow by a learned number: alpha z + (1 - alpha) z'.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.config import kind
from emu_jax.models.across_frames import across_frames, with_all_frames
from emu_jax.models.attention import FeedForward, Groups, TransformerLayer
from emu_jax.models.embedding import EmbeddingMLP, sinusoid
from emu_jax.models.site import Site
from emu_jax.models.temporal import AfterLayer, Features, Temporal, Unet

MIX = 0.5  # alpha = sigmoid(MIX) = 0.62 at the start, as SVD was trained


@kind("video_ldm")
@dataclasses.dataclass(frozen=True)
class VideoLdmConfig(Temporal):
  """Temporal residual blocks and transformer layers, each with a learned share of the result.

  Source: Video LDM, arXiv:2304.08818, sec. 3.1; Stable Video Diffusion, arXiv:2311.15127, app. D.
  Differs: the residual branches end in zeros at the start, so that a fresh video model is its image
    model frame by frame, whatever alpha is (ours: at alpha = 1 no temporal layer would learn).
  """

  kernel: int = 3  # frames
  num_frames: int = 25  # of the clips that it is made for; it takes others too

  def __post_init__(self):
    if self.kernel % 2 == 0 or self.kernel < 1:
      raise ValueError(f"VideoLdmConfig: kernel={self.kernel} has no middle; give an odd number")

  def after_res_block(
    self, site: Site, h: Features, embedding: Float[Array, "B E"], unet: Unet
  ) -> Features:
    make = unet.recomputed(TemporalResBlock)
    block = make(
      self.kernel, unet.norm_groups, unet.epsilon(site), unet.dtype, name=f"temporal_{site.name}"
    )
    return block(h, embedding)

  def after_layers(self, site: Site, unet: Unet) -> AfterLayer | None:
    return TemporalLayers(
      *unet.heads(unet.channels[site.level]), unet.dtype, name="temporal_layers"
    )


class TemporalResBlock(nn.Module):
  """GroupNorm, SiLU, convolution over frames, twice, with the time embedding added in between.

  x + (1 - alpha) h, which is alpha x + (1 - alpha) (x + h). The norms' statistics are those of the
  whole clip.
  """

  kernel: int
  norm_groups: int
  epsilon: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T H W C"], embedding: Float[Array, "B E"]
  ) -> Float[Array, "B T H W C"]:
    C, edge = x.shape[-1], self.kernel // 2

    def half(i, h, init):
      norm = Groups(self.norm_groups, self.epsilon, (-3, -2), name=f"norm_{i}")
      return nn.Conv(
        C,
        (self.kernel, 1),
        padding=((edge, edge), (0, 0)),
        dtype=self.dtype,
        kernel_init=init,
        name=f"conv_{i}",
      )(jax.nn.silu(norm(h)).astype(self.dtype))

    def branch(x):
      h = rearrange(x, "B T H W C -> B T (H W) C")
      h = half(1, h, nn.initializers.lecun_normal()) + shift[:, None, None, :]
      return half(2, h, nn.initializers.zeros).reshape(x.shape)

    shift = nn.Dense(C, dtype=self.dtype, name="time")(jax.nn.silu(embedding))
    h = with_all_frames(branch, x)
    return x + temporal_share(self).astype(h.dtype) * h


class TemporalLayers(nn.Module):
  """A transformer layer over frames after each spatial layer; one alpha and one MLP of the frame
  index serve all of them.
  """

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    i: int,
    h: Float[Array, "B T H W C"],
    context: Float[Array, "B L E"] | None,
    mask: Bool[Array, "B L"] | None,
  ) -> Float[Array, "B T H W C"]:
    T, C = h.shape[1], h.shape[-1]
    position = EmbeddingMLP(C, zero=True, dtype=self.dtype, inner=4 * C, name="position")
    layer = TemporalLayer(self.num_heads, self.head_dim, self.dtype, name=f"layer_{i}")

    def placed(frames):
      return layer(frames + position(sinusoid(jnp.arange(T), C))[None], context, mask)

    mixed = across_frames(placed, h)
    return h + temporal_share(self).astype(h.dtype) * (mixed - h)


class TemporalLayer(nn.Module):
  """A feed-forward network, then a transformer layer; the identity at initialisation."""

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N T C"],
    context: Float[Array, "B L E"] | None,
    mask: Bool[Array, "B L"] | None,
  ) -> Float[Array, "N T C"]:
    h = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_in")(x).astype(self.dtype)
    x = x + FeedForward(self.dtype, zero=True, name="feed_forward_in")(h)
    layer = TransformerLayer(self.num_heads, self.head_dim, self.dtype, zero=True, name="layer")
    return layer(x, context, mask)


def temporal_share(module: nn.Module) -> Float[Array, ""]:
  """1 - alpha, alpha = sigmoid of the module's parameter `factor`; exactly 0 where alpha is 1."""
  factor = module.param("factor", nn.initializers.constant(MIX), (1,))
  # Not sigmoid(-factor), which is 0 nowhere: an alpha that rounds to 1 is the image model.
  return 1 - jax.nn.sigmoid(factor.astype(jnp.float32).reshape(()))
