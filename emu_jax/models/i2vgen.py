"""I2VGen-XL: ModelScope's video U-Net that reads a picture, through latents, CLIP and text.

Parameter names: the U-Net's; `picture_<i>` and `temporal_picture` of the latents beside x_t;
`layout_<i>` and `clip` of the tokens that stand behind the text.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import Attention, FeedForward
from emu_jax.models.embedding import EmbeddingMLP
from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.unet import UNet, UNetConfig, conv
from emu_jax.typing import Conditions, PerExample, Video

LAYOUT = 32  # cells a side that the picture's latents are averaged over


@dataclasses.dataclass(frozen=True)
class I2VGenConfig(UNetConfig):
  """The U-Net inside; frames per second are its "micro" condition.

  Defaults: the public weights. `context_dims` is the width of the text and of CLIP's picture both.
  """

  concat_channels: int = 4  # of the picture's latents
  num_heads: int = 0
  head_dim: int = 64
  context_dims: tuple[int, ...] = (1024,)
  linear_projection: bool = True
  num_micro: int = 1
  micro_dim: int = 320
  temporal: ModelScopeConfig = ModelScopeConfig()

  def __post_init__(self):
    super().__post_init__()
    if len(self.context_dims) != 1 or not self.concat_channels:
      raise ValueError(
        f"I2VGenConfig: context_dims={self.context_dims} and concat_channels="
        f"{self.concat_channels}; give one width and at least one channel"
      )

  def module(self) -> "I2VGen":
    return I2VGen(self)

  def blank(self, shape: tuple[int, ...]) -> Conditions:
    """As a U-Net's, with two texts: a prompt of two tokens and the picture's embedding."""
    blank, (B, *_), (width,) = super().blank(shape), shape, self.context_dims
    return dataclasses.replace(blank, texts=(*blank.texts, jnp.zeros((B, 1, width))))


class I2VGen(UNet):
  """Predicts as its U-Net does, from what a picture and a text say.

  Source: I2VGen-XL, arXiv:2311.04145, sec. 3.2, with the form of its public weights.
  """

  config: I2VGenConfig

  @nn.compact
  def __call__(self, x_t: Video, t: PerExample, conditions: Conditions) -> Video:
    """As `UNet`, with two texts: the prompt [B, L, D] and CLIP's view of the picture [B, 1, D].

    `conditions.concat` are latents [B, T, H, W, concat_channels]: the picture's in the first frame,
    a signal of time in the others.
    """
    cfg = self.config
    if len(conditions.texts) != 2 or conditions.concat is None:
      raise ValueError(
        f"I2VGen: {len(conditions.texts)} texts and concat="
        f"{None if conditions.concat is None else conditions.concat.shape}; give the prompt, the "
        "picture's embedding and the picture's latents"
      )
    text, picture = conditions.texts
    (width,), C = cfg.context_dims, cfg.concat_channels
    latents = conditions.concat.astype(cfg.dtype)
    tokens = EmbeddingMLP(C * width, dtype=cfg.dtype, inner=4 * cfg.channels[0], name="clip")(
      picture[:, 0]
    )
    tokens = tokens.reshape(-1, C, width)
    context = jnp.concatenate([text, self.layout(latents[:, :1]), tokens], axis=1)
    inputs = dataclasses.replace(conditions, texts=(context,), concat=self.beside(latents))
    return super().__call__(x_t, t, inputs)

  def layout(self, latents):
    """Where things are in the picture, as tokens [B, S, D]."""
    cfg, C = self.config, self.config.concat_channels
    h = jax.nn.silu(conv(8 * C, cfg.dtype, "layout_0")(latents))
    h = averaged(h, LAYOUT).astype(cfg.dtype)
    h = jax.nn.silu(conv(16 * C, cfg.dtype, "layout_1", strides=2)(h))
    h = conv(cfg.context_dims[0], cfg.dtype, "layout_2", strides=2)(h)
    return rearrange(h, "B 1 H W D -> B (H W) D")

  def beside(self, latents):
    """What the first convolution reads beside x_t."""
    cfg, C = self.config, self.config.concat_channels
    h = jax.nn.silu(conv(4 * C, cfg.dtype, "picture_0")(latents))
    h = jax.nn.silu(conv(4 * C, cfg.dtype, "picture_1")(h))
    h = conv(C, cfg.dtype, "picture_2")(h)
    return across_frames(FrameEncoder(cfg.dtype, name="temporal_picture"), h)


class FrameEncoder(nn.Module):
  """Attention over frames and a feed-forward network; the identity at initialisation.

  Two heads, each as wide as the whole input.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "N T C"]) -> Float[Array, "N T C"]:
    h = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_1")(x).astype(self.dtype)
    x = x + Attention(2, x.shape[-1], self.dtype, zero=True, name="self_attention")(h)
    return x + FeedForward(self.dtype, zero=True, gated=False, name="feed_forward")(x)


def averaged(x: Float[Array, "B T H W C"], cells: int) -> Float[Array, "B T cells cells C"]:
  """Means over `cells` windows a side, which cover the picture and may overlap.

  Window i is from floor(i H / cells) to ceil((i + 1) H / cells).
  """

  def windows(size):
    i, at = np.arange(cells)[:, None], np.arange(size)
    inside = (at >= i * size // cells) & (at < -(-(i + 1) * size // cells))
    return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), jnp.float32)

  rows, columns = (windows(size) for size in x.shape[2:4])
  return jnp.einsum("ih,jw,bthwc->btijc", rows, columns, x.astype(jnp.float32))
