"""AnimateDiff's motion modules: transformers over frames after every block of an image U-Net.

Parameter names: `temporal_down_<level>_<i>`, `temporal_mid`, `temporal_up_<level>_<i>`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.config import kind
from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import Attention, FeedForward, GroupNorm
from emu_jax.models.embedding import sinusoid
from emu_jax.models.site import Site
from emu_jax.models.temporal import Features, Temporal, Unet


@kind("motion")
@dataclasses.dataclass(frozen=True)
class MotionConfig(Temporal):
  """Motion modules after each block of every level; defaults: public adapters of SD 1.

  Source: AnimateDiff, arXiv:2307.04725, sec. 4.2.
  """

  num_heads: tuple[int, ...] = (8,)  # one a level, finest first, or one for all
  num_layers: tuple[int, ...] = (1,)  # one a level, finest first, or one for all
  mid_layers: int = 1  # of the module in the middle; 0 = there is none
  max_frames: int = 32  # stored positions: no longer clip can be read

  def __post_init__(self):
    for name in ("num_heads", "num_layers"):
      if not getattr(self, name) or min(getattr(self, name)) < 1:
        raise ValueError(f"MotionConfig: {name}={getattr(self, name)} must be 1 or more each")
    if self.mid_layers < 0 or self.max_frames < 1:
      raise ValueError(
        f"MotionConfig: mid_layers={self.mid_layers} must be at least 0 and max_frames="
        f"{self.max_frames} at least 1"
      )

  def at(self, level: int, levels: int) -> tuple[int, int]:
    """Heads and layers of the modules of a level.

    Raises: ValueError where a tuple holds neither one value nor one a level.
    """
    for name in ("num_heads", "num_layers"):
      if len(getattr(self, name)) not in (1, levels):
        raise ValueError(
          f"MotionConfig: {name}={getattr(self, name)} has {len(getattr(self, name))} values for "
          f"{levels} levels; give one a level, or one"
        )
    return tuple(
      values[level if len(values) > 1 else 0] for values in (self.num_heads, self.num_layers)
    )

  def after_block(self, site: Site, h: Features, unet: Unet) -> Features:
    heads, layers = self.at(site.level, len(unet.channels))
    if site.side == "mid":
      layers = self.mid_layers
    if not layers:
      return h
    make = unet.recomputed(MotionModule)
    return make(
      heads, layers, self.max_frames, unet.norm_groups, unet.dtype, name=f"temporal_{site.name}"
    )(h)


class MotionModule(nn.Module):
  """A transformer over frames at every pixel, its last layer zero; adds to its input.

  Source: AnimateDiff, arXiv:2307.04725, sec. 4.2, with the form of its public weights: the group
    norm's statistics are those of the whole clip.
  """

  num_heads: int
  num_layers: int
  max_frames: int
  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    T, C = x.shape[1], x.shape[-1]
    if T > self.max_frames:
      raise ValueError(
        f"MotionModule: a clip of {T} frames, but positions are stored for {self.max_frames} "
        "(max_frames); give shorter clips"
      )

    def layers(h):
      h = nn.Dense(C, dtype=self.dtype, name="proj_in")(h)
      for i in range(self.num_layers):
        h = MotionLayer(self.num_heads, self.max_frames, self.dtype, name=f"layer_{i}")(h)
      return nn.Dense(C, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out")(h)

    h = GroupNorm(self.norm_groups, epsilon=1e-6, whole_clip=True, name="norm")(x)
    return x + across_frames(layers, h.astype(self.dtype))


class MotionLayer(nn.Module):
  """Two self-attentions over frames, each after positions were added, and feed-forward; pre-norm.

  `positions` [max_frames, D] begin as sinusoids and get no gradient: they are stored because public
  files hold them.
  """

  num_heads: int
  max_frames: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
    T, D = x.shape[1:]
    positions = self.param("positions", frame_positions, (self.max_frames, D))
    positions = jax.lax.stop_gradient(positions)[None, :T]

    def norm(i):
      return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=f"norm_{i}")(x)

    for i, name in ((1, "self_attention"), (2, "second_attention")):
      attention = Attention(self.num_heads, D // self.num_heads, self.dtype, name=name)
      x = x + attention((norm(i) + positions).astype(self.dtype))
    return x + FeedForward(self.dtype, name="feed_forward")(norm(3).astype(self.dtype))


def frame_positions(key: jax.Array, shape: tuple[int, int]) -> Float[Array, "T D"]:
  """Sines and cosines in turn, [T, D]: an initialiser that draws nothing.

  Source: Attention Is All You Need, arXiv:1706.03762, sec. 3.5, in the paper's own order.
  """
  cosines, sines = jnp.split(sinusoid(jnp.arange(shape[0]), shape[1]), 2, axis=-1)
  return jnp.stack([sines, cosines], axis=-1).reshape(shape)
