"""unCLIP's prior: from a text to the embedding of an image that it could describe.

An embedding is a video of one pixel, `B 1 1 1 D`, so that samplers and losses serve it unchanged.
Parameter names: `text`, `pooled`, `time/{in,out}`, `in`, `query`, `position`, `layer_<i>`, `norm`,
`out`, `mean`, `std`.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.models.attention import Attention, FeedForward
from emu_jax.models.embedding import EmbeddingMLP, sinusoid
from emu_jax.typing import Conditions, PerExample, Video

ADDED = 4  # tokens behind the text's: its pooled vector, the time, x_t, the query


@dataclasses.dataclass(frozen=True)
class PriorConfig:
  """Shape of the network. Defaults: Karlo's; Kandinsky's has 1280 features."""

  embedding_dim: int = 768  # of x_t, of the text's features and of its pooled vector
  num_tokens: int = 77  # of every text, padding included
  num_layers: int = 20
  num_heads: int = 32
  head_dim: int = 64
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("embedding_dim", "num_tokens", "num_layers", "width"):
      if getattr(self, name) < 1:
        raise ValueError(f"PriorConfig: {name}={getattr(self, name)} must be at least 1")
    if self.width % 2:
      raise ValueError(
        f"PriorConfig: num_heads={self.num_heads} times head_dim={self.head_dim} is odd; the "
        "sinusoid of the time has as many features"
      )

  @property
  def width(self) -> int:
    return self.num_heads * self.head_dim


class Prior(nn.Module):
  """Predicts a normalised embedding from x_t, its time, and a text: features and `pooled` vector.

  Source: unCLIP, arXiv:2204.06125, sec. 2.2: a causal transformer over the text, its vector, the
    time, the noised embedding, and a last token whose state becomes the prediction.
  Raises: ValueError, at trace time, where an input does not fit the configuration.
  """

  config: PriorConfig

  @nn.compact
  def __call__(self, x_t: Video, t: PerExample, conditions: Conditions) -> Video:
    cfg, B, D = self.config, x_t.shape[0], self.config.width
    _check(cfg, x_t, conditions)

    def dense(name, features, x):
      return nn.Dense(features, dtype=cfg.dtype, name=name)(x).astype(jnp.float32)

    normal = nn.initializers.normal(0.01)
    query = self.param("query", normal, (D,))
    position = self.param("position", normal, (cfg.num_tokens + ADDED, D))
    time = EmbeddingMLP(D, dtype=cfg.dtype, name="time")(sinusoid(t, D)).astype(jnp.float32)
    rows = (
      dense("text", D, conditions.texts[0]),
      dense("pooled", D, conditions.vectors["pooled"])[:, None],
      time[:, None],
      dense("in", D, x_t.reshape(B, 1, -1)),
      jnp.broadcast_to(query[None, None], (B, 1, D)),
    )
    x = jnp.concatenate(rows, axis=1) + position[None]

    S = x.shape[1]
    allowed = jnp.tril(jnp.ones((1, S, S), bool))
    if conditions.masks:
      real = jnp.pad(conditions.masks[0], ((0, 0), (0, ADDED)), constant_values=True)
      allowed = allowed & real[:, None]
    allowed = jnp.broadcast_to(allowed, (B, S, S))
    for i in range(cfg.num_layers):
      x = PriorLayer(cfg.num_heads, cfg.head_dim, cfg.dtype, name=f"layer_{i}")(x, allowed)
    # Statistics of the embeddings that the prior was trained on.
    self.param("mean", nn.initializers.zeros, (cfg.embedding_dim,))
    self.param("std", nn.initializers.ones, (cfg.embedding_dim,))
    x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x[:, -1])
    return dense("out", cfg.embedding_dim, x).reshape(x_t.shape)

  def embedding(self, x: Video) -> Float[Array, "B D"]:
    """A sample as CLIP's image encoder gives it: the normalisation of its training undone."""
    mean, std = self.get_variable("params", "mean"), self.get_variable("params", "std")
    return x.reshape(x.shape[0], -1) * std[None] + mean[None]


class PriorLayer(nn.Module):
  """Attention and a plain feed-forward network, pre-norm, biases everywhere. Source: as `Prior`."""

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "N S D"], mask: Bool[Array, "N S S"]) -> Float[Array, "N S D"]:
    def norm(name, y):
      return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)(y).astype(self.dtype)

    attention = Attention(
      self.num_heads, self.head_dim, self.dtype, qkv_bias=True, name="self_attention"
    )
    x = x + attention(norm("norm_1", x), mask=mask)
    return x + FeedForward(self.dtype, gated=False, name="feed_forward")(norm("norm_2", x))


def _check(cfg: PriorConfig, x_t: Video, conditions: Conditions) -> None:
  if x_t.shape[1:] != (1, 1, 1, cfg.embedding_dim):
    raise ValueError(
      f"Prior: x_t is {x_t.shape}, not B 1 1 1 and embedding_dim={cfg.embedding_dim}"
    )
  shapes = tuple(text.shape[1:] for text in conditions.texts)
  if shapes != ((cfg.num_tokens, cfg.embedding_dim),):
    raise ValueError(
      f"Prior: texts are {shapes}, not one of num_tokens={cfg.num_tokens} and embedding_dim="
      f"{cfg.embedding_dim}"
    )
  if set(conditions.vectors) != {"pooled"}:
    raise ValueError(f"Prior: vectors are {sorted(conditions.vectors)}, it asks for 'pooled' alone")
