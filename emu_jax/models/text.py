"""Text encoders: CLIP's text transformer and the encoder of T5 (1.1 and Flan).

Both map tokens `B L` and a mask `B L` to features `B L D` float32. The residual stream is float32
whatever `dtype` says, because T5's grows to thousands; `dtype` is that of the matmuls' operands.

What Hugging Face calls the parameters: emu_jax/weights/text.py.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from emu_jax.models.attention import gelu
from emu_jax.models.dot_product import attend
from emu_jax.typing import Text, TextMask, Tokens


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """Shape of a CLIP text encoder, and which of its states are the features."""

  architecture: Literal["clip"] = "clip"  # which encoder this is
  vocab_size: int = 49408  # tokens that there are
  width: int = 768  # features of a token
  max_length: int = 77  # tokens of a prompt; longer ones are cut, shorter ones padded
  num_layers: int = 12  # transformer layers
  num_heads: int = 12  # of attention
  mlp_width: int = 3072  # hidden features of a layer's MLP
  activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # of the MLPs
  # Which state the features are. Neither option changes the parameters, which are always those of
  # the public file: a loaded encoder can be read either way and still goes back out whole.
  penultimate: bool = False  # before the last layer; SDXL
  final_norm: bool = True  # False with penultimate: SDXL
  projection_dim: int = 0  # of the pooled output, SDXL's second encoder and unCLIP; 0: as it is
  # Where the pooled output stands: the first of these tokens. None: the first of the highest id,
  # the end token of CLIP's own vocabulary.
  end_id: int | None = None
  # Stable Diffusion was trained with every position in sight, padding too: False keeps its numbers.
  use_padding_mask: bool = False
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    require_positive(self, ("vocab_size", "max_length", "num_layers", "num_heads", "mlp_width"))
    if self.width < 1 or self.width % self.num_heads:
      raise ValueError(
        f"ClipTextConfig: width={self.width} is not a positive multiple of "
        f"num_heads={self.num_heads}"
      )
    if self.activation not in ("quick_gelu", "gelu"):
      raise ValueError(
        f"ClipTextConfig: activation={self.activation!r} is unknown; give 'quick_gelu' or 'gelu'"
      )
    if self.projection_dim < 0:
      raise ValueError(f"ClipTextConfig: projection_dim={self.projection_dim} is below 0")


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Shape of a T5 1.1 encoder: gated GELU, no biases, heads need not add up to the width."""

  architecture: Literal["t5"] = "t5"  # which encoder this is
  vocab_size: int = 32128  # tokens that there are
  width: int = 2048  # features of a token
  max_length: int = 77  # ours: as long as CLIP's; the positions are relative and set no limit
  num_layers: int = 24  # transformer layers
  num_heads: int = 32  # of attention
  head_dim: int = 64  # features of a head of attention
  mlp_width: int = 5120  # hidden features of a layer's MLP
  num_buckets: int = 32  # of relative positions
  max_distance: int = 128  # tokens; positions further apart share a bucket
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    require_positive(
      self,
      ("vocab_size", "width", "max_length", "num_layers", "num_heads", "head_dim", "mlp_width"),
    )
    if self.num_buckets < 4 or self.num_buckets % 4:
      raise ValueError(
        f"T5Config: num_buckets={self.num_buckets} is not a positive multiple of 4: two "
        "directions, each half exact and half logarithmic"
      )
    if self.max_distance <= self.num_buckets // 4:
      raise ValueError(
        f"T5Config: max_distance={self.max_distance} leaves nothing beyond the "
        f"{self.num_buckets // 4} exact buckets of num_buckets={self.num_buckets}"
      )


def require_positive(config: ClipTextConfig | T5Config, names: tuple[str, ...]) -> None:
  """Raises ValueError that names the first field below 1."""
  for name in names:
    if getattr(config, name) < 1:
      raise ValueError(
        f"{type(config).__name__}: {name}={getattr(config, name)} must be at least 1"
      )


def clip_vit_l() -> ClipTextConfig:
  """OpenAI's ViT-L/14, of Stable Diffusion 1 and Emu: 123,060,480 parameters."""
  return ClipTextConfig()


def clip_vit_h() -> ClipTextConfig:
  """OpenCLIP's ViT-H/14 as Stable Diffusion 2 holds it: 340,387,840 parameters, 23 of 24 layers."""
  return ClipTextConfig(width=1024, num_layers=23, num_heads=16, mlp_width=4096, activation="gelu")


def clip_vit_big_g() -> ClipTextConfig:
  """OpenCLIP's ViT-bigG/14, SDXL's second encoder: 694,659,840 parameters with its projection."""
  return ClipTextConfig(
    width=1280,
    num_layers=32,
    num_heads=20,
    mlp_width=5120,
    activation="gelu",
    penultimate=True,
    final_norm=False,
    projection_dim=1280,
  )


def t5_xl() -> T5Config:
  """T5 1.1 XL and Flan-T5-XL, of Emu Video: 1,223,527,424 parameters."""
  return T5Config()


def t5_xxl() -> T5Config:
  """T5 1.1 XXL and Flan-T5-XXL, of Emu: 4,762,310,656 parameters."""
  return T5Config(width=4096, num_heads=64, mlp_width=10240)


def text_encoder(
  config: ClipTextConfig | T5Config, name: str | None = None
) -> "ClipText | T5Encoder":
  """The module that `config` describes."""
  module = {"clip": ClipText, "t5": T5Encoder}[config.architecture]
  return module(config, name=name)


class SelfAttention(nn.Module):
  """Multi-head self-attention with an additive bias, a mask, or both; not yet added to x."""

  num_heads: int
  head_dim: int
  use_bias: bool
  scale: float  # of the logits
  q_std: float | None = None  # of q's initial kernel; None: by the number of inputs
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    bias: Float[Array, "1 N L L"] | None,
    mask: Bool[Array, "_ 1 _ L"] | None,
  ) -> Float[Array, "B L D"]:
    B, L, D = x.shape

    def dense(name, features, init=nn.initializers.lecun_normal()):
      return nn.Dense(
        features, use_bias=self.use_bias, dtype=self.dtype, kernel_init=init, name=name
      )

    inner = self.num_heads * self.head_dim
    q_init = () if self.q_std is None else (nn.initializers.normal(self.q_std),)
    q, k, v = dense("q", inner, *q_init)(x), dense("k", inner)(x), dense("v", inner)(x)
    q, k, v = (y.reshape(B, L, self.num_heads, self.head_dim) for y in (q, k, v))
    h = attend(q, k, v, mask, bias=bias, scale=self.scale)
    return dense("out", D)(h.reshape(B, L, inner))


class ClipLayer(nn.Module):
  """Pre-norm transformer layer with biases and a plain MLP: CLIP's, of text and of images."""

  num_heads: int
  mlp_width: int
  activation: Literal["quick_gelu", "gelu"]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Text, mask: Bool[Array, "_ 1 L L"] | None = None) -> Text:
    width, head_dim = x.shape[-1], x.shape[-1] // self.num_heads
    h = layer_norm("norm_1")(x).astype(self.dtype)
    attention = SelfAttention(
      self.num_heads, head_dim, True, head_dim**-0.5, dtype=self.dtype, name="attention"
    )
    x = x + attention(h, None, mask)
    h = nn.Dense(self.mlp_width, dtype=self.dtype, name="mlp_in")(
      layer_norm("norm_2")(x).astype(self.dtype)
    )
    if self.activation == "quick_gelu":
      h = h * jax.nn.sigmoid(1.702 * h)
    else:
      h = gelu(h)
    return x + nn.Dense(width, dtype=self.dtype, name="mlp_out")(h)


def layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name)


class ClipText(nn.Module):
  """Features of every token, each of those before it and itself, and one vector of the whole text.

  Source: CLIP, arXiv:2103.00020, sec. 2.4; the last state as the condition: Latent Diffusion,
    arXiv:2112.10752; the penultimate one and the pooled output: SDXL, arXiv:2307.01952, sec. 2.1.
  Raises: ValueError where there are more tokens than learned positions.
  """

  config: ClipTextConfig

  def __call__(self, tokens: Tokens, mask: TextMask) -> Text:
    """The features alone; under jit the layers that they do not need are not computed."""
    return self.features_and_pooled(tokens, mask)[0]

  @nn.compact
  def features_and_pooled(self, tokens: Tokens, mask: TextMask) -> tuple[Text, Float[Array, "B P"]]:
    """The features, and the last state at the end token, normalised and projected."""
    cfg, L = self.config, tokens.shape[1]
    if L > cfg.max_length:
      raise ValueError(
        f"ClipText: {L} tokens, but max_length={cfg.max_length} positions are learned; tokenize "
        "with the encoder's max_length"
      )
    token = nn.Embed(
      cfg.vocab_size, cfg.width, embedding_init=nn.initializers.normal(0.02), name="token"
    )
    position = self.param("position", nn.initializers.normal(0.01), (cfg.max_length, cfg.width))
    # An embedding comes in the dtype that its table is stored in.
    x = token(tokens).astype(jnp.float32) + position[None, :L]
    allowed = jnp.tril(jnp.ones((1, 1, L, L), bool))
    if cfg.use_padding_mask:
      allowed = allowed & mask[:, None, None, :]
    states = [x]
    for i in range(cfg.num_layers):
      layer = ClipLayer(cfg.num_heads, cfg.mlp_width, cfg.activation, cfg.dtype, name=f"layer_{i}")
      states.append(layer(states[-1], allowed))
    norm = layer_norm("norm")
    features = states[-2] if cfg.penultimate else states[-1]
    features = norm(features) if cfg.final_norm else features
    is_end = tokens if cfg.end_id is None else tokens == cfg.end_id
    end = jnp.argmax(is_end, axis=-1)  # the first of several
    pooled = norm(jnp.take_along_axis(states[-1], end[:, None, None], axis=1)[:, 0])
    if cfg.projection_dim:
      pooled = nn.Dense(cfg.projection_dim, use_bias=False, dtype=cfg.dtype, name="projection")(
        pooled
      ).astype(jnp.float32)
    return features, pooled


class T5Layer(nn.Module):
  """Pre-norm transformer layer without biases, with unscaled logits and a gated GELU."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Text, bias: Float[Array, "1 N L L"], mask: Bool[Array, "B 1 1 L"]) -> Text:
    cfg = self.config

    def dense(name, features):
      return nn.Dense(features, use_bias=False, dtype=cfg.dtype, name=name)

    attention = SelfAttention(
      cfg.num_heads,
      cfg.head_dim,
      use_bias=False,
      scale=1.0,
      q_std=(cfg.width * cfg.head_dim) ** -0.5,  # the scale that the logits lack
      dtype=cfg.dtype,
      name="attention",
    )
    x = x + attention(rms_norm("norm_1")(x).astype(cfg.dtype), bias, mask)
    h = rms_norm("norm_2")(x).astype(cfg.dtype)
    gate = jax.nn.gelu(dense("mlp_gate", cfg.mlp_width)(h), approximate=True)
    return x + dense("mlp_out", cfg.width)(gate * dense("mlp_in", cfg.mlp_width)(h))


def rms_norm(name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


class T5Encoder(nn.Module):
  """Features of every token, each of all that `mask` allows.

  Source: T5, arXiv:1910.10683, sec. 2.1; gated GELU of version 1.1: arXiv:2002.05202 (with the
    tanh approximation its weights were trained with).
  """

  config: T5Config

  @nn.compact
  def __call__(self, tokens: Tokens, mask: TextMask) -> Text:
    cfg, L = self.config, tokens.shape[1]
    token = nn.Embed(
      cfg.vocab_size, cfg.width, embedding_init=nn.initializers.normal(1.0), name="token"
    )
    relative = nn.Embed(
      cfg.num_buckets,
      cfg.num_heads,
      embedding_init=nn.initializers.normal(cfg.width**-0.5),
      name="relative_bias",
    )
    buckets = relative_buckets(L, cfg.num_buckets, cfg.max_distance)
    bias = relative(jnp.asarray(buckets)).transpose(2, 0, 1)[None]  # one for every layer
    x = token(tokens).astype(jnp.float32)  # not in the dtype that the table is stored in
    for i in range(cfg.num_layers):
      x = T5Layer(cfg, name=f"layer_{i}")(x, bias, mask[:, None, None, :])
    return rms_norm("norm")(x)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "L L"]:
  """Bucket of each (query, key) pair: its side, then its distance, exact and then logarithmic.

  A quarter of the buckets hold the distances 0, 1, … one each, a quarter the rest up to
  `max_distance`, evenly in its logarithm; the other half is for keys behind the query.
  Source: T5, arXiv:1910.10683, sec. 2.1 (the encoder's, bidirectional).
  """
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key minus query
  side, exact = num_buckets // 2, num_buckets // 4
  distance = np.abs(offset)
  # float32: float64 rounds some boundaries to the other side than T5 was trained with.
  ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
  octaves = np.log(ratio) / np.float32(np.log(max_distance / exact))
  far = exact + (octaves * np.float32(side - exact)).astype(np.int32)
  near_or_far = np.where(distance < exact, distance, np.minimum(far, side - 1))
  return (near_or_far + side * (offset > 0)).astype(np.int32)
