"""Everything that crosses frames, and nothing else.

Each module adds to its input and starts as the identity, so that a video model begins as its image
model, frame by frame. Every parameter lies under a name that begins with `temporal_`: the rule that
tells what a factorized model trains from what it keeps frozen.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.models.attention import GroupNorm, TransformerLayer
from emu_jax.models.embedding import sinusoid


@dataclasses.dataclass(frozen=True)
class TemporalConfig:
  """What is inserted after the spatial layers. Source: arXiv:2311.10709, sec. 3.2 and app. table 1.

  The paper publishes neither kernel size, nor positions, nor what the second attention attends to;
  these values reproduce its 4.3 B parameters (tests/models/test_unet.py).
  """

  kernel: int = 3  # frames; ours: the smallest consistent with the parameter count
  num_layers: int = 2
  attends_text: bool = False  # second attention of a layer: text if True, frames if False
  noise_level: bool = False  # an embedding of "noise_level" joins the time embedding, from zero

  def __post_init__(self):
    if self.kernel % 2 == 0 or self.kernel < 1:
      raise ValueError(f"TemporalConfig: kernel={self.kernel} has no middle; give an odd number")
    if self.num_layers < 1:
      raise ValueError(f"TemporalConfig: num_layers={self.num_layers} must be at least 1")


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
    B, _, H, W, C = x.shape
    h = rearrange(x, "B T H W C -> (B H W) T C")
    h = nn.Conv(
      C, (self.kernel,), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv"
    )(h)
    return x + rearrange(h, "(B H W) T C -> B T H W C", B=B, H=H, W=W)


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
    B, T, H, W, C = x.shape
    inner = self.num_heads * self.head_dim
    h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x).astype(self.dtype)
    h = rearrange(h, "B T H W C -> (B H W) T C")
    h = nn.Dense(inner, dtype=self.dtype, name="proj_in")(h)
    h = h + sinusoid(jnp.arange(T), inner)[None].astype(self.dtype)
    for i in range(self.num_layers):
      layer = TransformerLayer(self.num_heads, self.head_dim, self.dtype, name=f"layer_{i}")
      h = layer(h, contexts[i], masks[i])
    h = nn.Dense(C, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out")(h)
    return x + rearrange(h, "(B H W) T C -> B T H W C", B=B, H=H, W=W)
