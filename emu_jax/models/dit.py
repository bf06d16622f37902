"""A transformer on patches of latent frames: Latte, with layers of space and of time in turn.

Parameter names: `patch`, `caption/{in,out}`, `time/{in,out}`, `modulation`, `layer_<i>`,
`temporal_layer_<i>`, `final_table`, `out`.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.models.attention import Attention, FeedForward
from emu_jax.models.embedding import EmbeddingMLP, sinusoid
from emu_jax.typing import Conditions, PerExample, Video

TIME_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape of the network. Defaults: Latte-1 (arXiv:2401.03048), 1.06 B parameters."""

  in_channels: int = 4
  out_channels: int = 8  # the prediction, then a variance that samplers leave out
  patch: int = 2  # latents a side
  num_heads: int = 16
  head_dim: int = 72
  num_layers: int = 28  # spatial ones, and as many temporal ones
  caption_dim: int = 4096  # features of the text
  size: int = 64  # latents a side that the model was trained on: positions are scaled to it
  num_frames: int = 16  # that it was trained on; positions are computed for any number
  activation: Literal["gelu", "gelu-approximate", "geglu"] = "gelu-approximate"
  qkv_bias: bool = True
  norm_scales: bool = False  # learned scales and biases in the layers' norms too
  norm_epsilon: float = 1e-6
  temporal: bool = True  # False: the image model, frame by frame; ignores the temporal layers
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("in_channels", "out_channels", "patch", "num_layers", "caption_dim", "width"):
      if getattr(self, name) < 1:
        raise ValueError(f"DiTConfig: {name}={getattr(self, name)} must be at least 1")
    if self.width % 4:
      raise ValueError(
        f"DiTConfig: num_heads={self.num_heads} times head_dim={self.head_dim} is no multiple of "
        "4: sines and cosines of two coordinates"
      )
    if self.size < self.patch:
      raise ValueError(f"DiTConfig: size={self.size} is smaller than patch={self.patch}")

  @property
  def width(self) -> int:
    return self.num_heads * self.head_dim

  @property
  def multiple(self) -> tuple[int, int, int]:
    """Of what T, H and W must be multiples."""
    return 1, self.patch, self.patch

  def module(self) -> "DiT":
    """The network."""
    return DiT(self)

  def blank(self, shape: tuple[int, ...]) -> Conditions:
    """A text of two tokens, zero, for x_t of a shape [B, T, H, W, C]."""
    return Conditions(texts=(jnp.zeros((shape[0], 2, self.caption_dim)),))


class DiT(nn.Module):
  """Predicts from x_t, its time and one text; a video of any size and length.

  Source: Latte, arXiv:2401.03048, sec. 3 (variant 1: space and time in turn); adaLN-single and the
    projection of captions: PixArt-alpha, arXiv:2310.00426, sec. 2.3.
  Raises: ValueError, at trace time, where an input does not fit the configuration.
  """

  config: DiTConfig

  @nn.compact
  def __call__(
    self, x_t: Video, t: PerExample, conditions: Conditions
  ) -> Float[Array, "B T H W O"]:
    cfg = self.config
    _check(cfg, x_t, conditions)
    B, T, H, W, _ = x_t.shape
    h, w, D = H // cfg.patch, W // cfg.patch, cfg.width

    def dense(name, features):
      return nn.Dense(features, dtype=cfg.dtype, name=name)

    patches = nn.Conv(
      D, (cfg.patch,) * 2, strides=cfg.patch, padding="VALID", dtype=cfg.dtype, name="patch"
    )(x_t)
    x = rearrange(patches, "B T h w D -> (B T) (h w) D").astype(jnp.float32)
    x = x + jnp.asarray(plane_positions(cfg, h, w))[None]

    caption = Caption(D, cfg.dtype, name="caption")(conditions.texts[0].astype(cfg.dtype))
    mask = conditions.masks[0] if conditions.masks else None
    time = EmbeddingMLP(D, dtype=cfg.dtype, name="time")(sinusoid(t, TIME_FEATURES))
    time = time.astype(jnp.float32)
    modulation = dense("modulation", 6 * D)(jax.nn.silu(time)).reshape(B, 6, D)

    for i in range(cfg.num_layers):
      x = DiTLayer(cfg, name=f"layer_{i}")(x, modulation, caption, mask)
      if cfg.temporal:
        x = rearrange(x, "(B T) N D -> (B N) T D", B=B)
        if i == 0 and T > 1:
          x = x + jnp.asarray(positions(np.arange(T, dtype=np.float64), D))[None]
        x = DiTLayer(cfg, name=f"temporal_layer_{i}")(x, modulation)
        x = rearrange(x, "(B N) T D -> (B T) N D", B=B)

    table = self.param("final_table", nn.initializers.normal(D**-0.5), (2, D))
    shift, scale = jnp.split(table[None] + time[:, None], 2, axis=1)
    x = rearrange(x, "(B T) N D -> B (T N) D", B=B)
    norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.float32)
    x = dense("out", cfg.patch**2 * cfg.out_channels)(norm(x) * (1 + scale) + shift)
    return rearrange(
      x.astype(jnp.float32),
      "B (T h w) (p q C) -> B T (h p) (w q) C",
      T=T,
      h=h,
      p=cfg.patch,
      q=cfg.patch,
    )


class Caption(nn.Module):
  """Dense, GELU, Dense: the text at the width of the network. Source: as `DiT`."""

  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L D"]:
    h = jax.nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="in")(x), approximate=True)
    return nn.Dense(self.width, dtype=self.dtype, name="out")(h)


class DiTLayer(nn.Module):
  """Attention, attention to the text if there is one, feed-forward.

  `modulation` holds, for the first and the last of them, a shift, a scale and a gate, to which the
  layer adds its own. Source: as `DiT`.
  """

  config: DiTConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N S D"],
    modulation: Float[Array, "B 6 D"],
    context: Float[Array, "B L D"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
  ) -> Float[Array, "N S D"]:
    cfg, (N, S, D), B = self.config, x.shape, modulation.shape[0]
    table = self.param("table", nn.initializers.normal(D**-0.5), (6, D))
    # One row of tokens an example, since all of its sequences have the same time.
    mods = [m.astype(jnp.float32) for m in jnp.split(table[None] + modulation, 6, axis=1)]

    def modulated(name, shift, scale):
      norm = nn.LayerNorm(
        epsilon=cfg.norm_epsilon,
        use_scale=cfg.norm_scales,
        use_bias=cfg.norm_scales,
        dtype=jnp.float32,
        name=name,
      )
      h = norm(x).reshape(B, -1, D) * (1 + scale) + shift
      return h.reshape(N, S, D).astype(cfg.dtype)

    def gated(h, gate):
      return (h.reshape(B, -1, D) * gate).reshape(N, S, D)

    def attention(name):
      return Attention(cfg.num_heads, cfg.head_dim, cfg.dtype, qkv_bias=cfg.qkv_bias, name=name)

    x = x + gated(attention("self_attention")(modulated("norm_1", mods[0], mods[1])), mods[2])
    if context is not None:
      x = x + attention("second_attention")(x.astype(cfg.dtype), context, mask)
    feed_forward = FeedForward(
      cfg.dtype,
      gated=cfg.activation == "geglu",
      approximate=cfg.activation == "gelu-approximate",
      name="feed_forward",
    )
    return x + gated(feed_forward(modulated("norm_2", mods[3], mods[4])), mods[5])


def positions(at: Float[np.ndarray, "N"], width: int) -> Float[np.ndarray, "N D"]:
  """Sines, then cosines, at the frequencies of `embedding.sinusoid`: the order of DiT's code."""
  frequencies = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
  angles = at[:, None] * frequencies
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def plane_positions(config: DiTConfig, h: int, w: int) -> Float[np.ndarray, "N D"]:
  """Features of the column, then of the row, of h x w patches, as if there were as many as trained.

  Source: DiT, arXiv:2212.09748, app. A; scaled to another size as in PixArt-alpha's code.
  """
  base, scale = config.size // config.patch, max(config.size // 64, 1)
  rows, columns = (np.arange(n) * base / (n * scale) for n in (h, w))
  grid = np.meshgrid(columns, rows)
  return np.concatenate([positions(g.reshape(-1), config.width // 2) for g in grid], axis=-1)


def _check(cfg: DiTConfig, x_t: Video, conditions: Conditions) -> None:
  _, _, H, W, C = x_t.shape
  if C != cfg.in_channels:
    raise ValueError(f"DiT: x_t has {C} channels, in_channels={cfg.in_channels}")
  if H % cfg.patch or W % cfg.patch:
    raise ValueError(f"DiT: height {H} and width {W} must be multiples of patch={cfg.patch}")
  dims = tuple(text.shape[-1] for text in conditions.texts)
  if dims != (cfg.caption_dim,):
    raise ValueError(f"DiT: texts have {dims} features, caption_dim={cfg.caption_dim}")
  if conditions.vectors or conditions.concat is not None or conditions.control:
    raise ValueError("DiT: has no vector conditions, concatenated channels or control; one text")
