"""What crosses frames in the decoder of Stable Video Diffusion's autoencoder.

`AutoencoderConfig.temporal_decoder` puts these layers into the image decoder: a block after each
residual block and a convolution after the last one. All start as the identity, so that frames are
decoded as pictures until the layers have been trained or read.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import WHOLE_CLIP, Groups


class TemporalResBlock(nn.Module):
  """GroupNorm, SiLU, convolution over 3 frames, twice; a learned share of it adds to its input.

  The norm's statistics are those of all frames together. With `mix` the logit of the share, this is
  the public class's mixture of the frames before and after the block.

  Source: Stable Video Diffusion, arXiv:2311.15127, app. D; Video LDM, arXiv:2304.08818, sec. 3.1.1.
  Differs: the last convolution starts at zero (ours: the identity at initialisation).
  """

  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    h = x
    for i, init in ((1, nn.initializers.lecun_normal()), (2, nn.initializers.zeros)):
      h = Groups(self.norm_groups, 1e-5, WHOLE_CLIP, name=f"norm_{i}")(h)
      conv = nn.Conv(x.shape[-1], (3,), dtype=self.dtype, kernel_init=init, name=f"conv_{i}")
      h = across_frames(conv, jax.nn.silu(h).astype(self.dtype))
    mix = self.param("mix", nn.initializers.zeros, (1,))  # a logit: a half at the start
    share = jax.nn.sigmoid(mix)[0].astype(self.dtype)
    return x + share * h


def middle_frame(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32):
  """Initial kernel [3, C, C] of a convolution over frames that changes nothing."""
  del key
  return jnp.zeros(shape, dtype).at[shape[0] // 2].set(jnp.eye(*shape[1:], dtype=dtype))
