"""Attention, the gated feed-forward network, and the layer and stack that they make.

Sequences are `N S D`. A text context `B L E` may belong to several sequences at once (the frames of
a clip, the pixels of a temporal sequence): the queries are then folded to one long sequence an
example, which gives the same numbers as repeating the context and costs no copy of it.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.parallel.activations import pin


class Attention(nn.Module):
  """Multi-head attention of `x` to `context`, or to itself; the result is not yet added to x.

  Source: arXiv:1706.03762, eq. 1; no bias on q, k and v as in Latent Diffusion (arXiv:2112.10752),
    unless `qkv_bias`.
  Differs: `zero` starts the last layer at zero, so that what adds it starts as the identity (ours).
  """

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32
  zero: bool = False
  qkv_bias: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N S D"],
    context: Float[Array, "B L E"] | None = None,
    mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None = None,  # of keys, or of queries to keys
  ) -> Float[Array, "N S D"]:
    N, S, D = x.shape

    def project(name, y):
      inner = self.num_heads * self.head_dim
      y = nn.Dense(inner, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(y)
      return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)

    source = x if context is None else context
    q, k, v = project("q", x), project("k", source), project("v", source)
    # Sequences of one example share its context: one long row of queries an example.
    q = q.reshape(k.shape[0], -1, self.num_heads, self.head_dim)
    allowed = None
    if mask is not None:
      allowed = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    h = attend(q, k, v, allowed)
    return nn.Dense(D, dtype=self.dtype, kernel_init=last(self.zero), name="out")(
      h.reshape(N, S, -1)
    )


# Queries and keys from which attention goes head by head, and logits of a head at a time. All of
# them pass through memory several times, and TPUs are expected to take twice as long for that; so
# few stay on the chip (docs/tpu_forms.md).
LONG = 1024
PIECE = 2**20


def attend(
  q: Float[Array, "N Q H D"],
  k: Float[Array, "N L H D"],
  v: Float[Array, "N L H D"],
  mask: Bool[Array, "N _ _ L"] | None = None,
) -> Float[Array, "N Q H D"]:
  """Attention of every head; the same numbers for long sequences, a piece of their logits a time.

  Heads and queries are what no mesh splits, so that pieces of them lie on every device.
  """
  N, Q, H, D = q.shape
  L = k.shape[1]
  if mask is not None or min(Q, L) < LONG:
    return jax.nn.dot_product_attention(q, k, v, mask=mask)
  pieces = next((n for n in range(1, Q) if Q % n == 0 and Q * L <= n * PIECE), Q)

  def head(inputs):
    q, k, v = (a[:, :, None] for a in inputs)
    q = jnp.moveaxis(q.reshape(N, pieces, Q // pieces, 1, D), 1, 0)
    # Recomputed, or else the logits of all pieces would be kept for the backward pass.
    piece = jax.checkpoint(lambda q: jax.nn.dot_product_attention(q, k, v))
    return jnp.moveaxis(jax.lax.map(piece, q), 0, 1).reshape(N, Q, D)

  h = jax.lax.map(head, tuple(jnp.moveaxis(a, 2, 0) for a in (q, k, v)))
  return jnp.moveaxis(h, 0, 2)


def last(zero: bool) -> nn.initializers.Initializer:
  """Of the kernel of a residual branch's last layer."""
  return nn.initializers.zeros if zero else nn.initializers.lecun_normal()


def gelu(x: Array) -> Array:
  """GELU with its exact normal distribution, inside in float32 or wider (arXiv:1606.08415, eq. 2).

  Differs: JAX's own works in the dtype of x, by erfc, which costs TPUs more (docs/tpu_forms.md).
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class FeedForward(nn.Module):
  """GEGLU network, four times as wide inside; `zero` as in `Attention`.

  Without `gated` a plain one, as in Transformers before.
  Source: arXiv:2002.05202, eq. 6 (exact GELU).
  """

  dtype: DTypeLike = jnp.float32
  zero: bool = False
  gated: bool = True
  approximate: bool = False  # GELU by tanh

  @nn.compact
  def __call__(self, x: Float[Array, "N S D"]) -> Float[Array, "N S D"]:
    D = x.shape[-1]
    *h, gate = Products(4 * D, 2 if self.gated else 1, self.dtype, name="in")(x)
    h = math.prod(h, start=jax.nn.gelu(gate) if self.approximate else gelu(gate))
    return nn.Dense(D, dtype=self.dtype, kernel_init=last(self.zero), name="out")(h)


class Products(nn.Module):
  """Several products of x, stored as one dense layer: features of the first, then of the next.

  The kernel is cut and not the product: the gradients of a product's parts would have to be joined
  in memory, which costs TPUs as much as the layer itself (docs/tpu_forms.md).
  """

  features: int  # of each
  number: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "N S D"]) -> list[Float[Array, "N S F"]]:
    width = self.number * self.features
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], width))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    bias = bias.reshape(*(1,) * (x.ndim - 1), width)
    cut = lambda a: jnp.split(a, self.number, axis=-1)
    return [x @ k + b for k, b in zip(cut(kernel), cut(bias), strict=True)]


class TransformerLayer(nn.Module):
  """Self-attention, a second attention (to the context, or to itself), feed-forward; pre-norm.

  With `cross_only` the first attention is to the context too; `zero` starts it as the identity.
  Source: Latent Diffusion, arXiv:2112.10752, app. E.2.1 (BasicTransformerBlock).
  """

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32
  cross_only: bool = False
  zero: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N S D"],
    context: Float[Array, "B L E"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
  ) -> Float[Array, "N S D"]:
    def norm(name, y):
      return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)(y).astype(self.dtype)

    def attention(name):
      return Attention(self.num_heads, self.head_dim, self.dtype, self.zero, name=name)

    first = (context, mask) if self.cross_only else ()
    x = x + attention("self_attention")(norm("norm_1", x), *first)
    x = x + attention("second_attention")(norm("norm_2", x), context, mask)
    return x + FeedForward(self.dtype, self.zero, name="feed_forward")(norm("norm_3", x))


# Tokens of one example that a layer takes at a time; at 512 pixels those of 16 frames. What it
# computes inside is many times as large as its input, and its sequences know nothing of each other.
TOKENS = 2**16


def in_pieces(
  layer: nn.Module, x: Float[Array, "N S D"], examples: int, *context: Array | None
) -> Float[Array, "N S D"]:
  """`layer(x, *context)`, a part of each example's sequences at a time where they are too many.

  Args:
    examples: N is so many times the sequences of one; their first axis in the context too.
  """
  N, S, D = x.shape
  each = N // examples
  number = next((n for n in range(1, each) if each % n == 0 and each * S <= n * TOKENS), each)
  if number == 1:
    return layer(x, *context)

  def one(layer, _, x):
    return None, layer(x, *context)

  scan = nn.scan(nn.remat(one), variable_broadcast="params", split_rngs={"params": False})
  # A piece is every n-th sequence, so that it lies on all devices that hold the example.
  parts = jnp.moveaxis(x.reshape(N // number, number, S, D), 1, 0)
  return jnp.moveaxis(scan(layer, None, parts)[1], 0, 1).reshape(N, S, D)


class SpatialTransformer(nn.Module):
  """A stack of transformer layers over the pixels of each frame; adds to its input.

  `contexts[i]` is what layer i attends to. Source: Latent Diffusion, arXiv:2112.10752, app. E.2.1;
  a text encoder a layer in turn: Emu Video, arXiv:2311.10709, app. table 1.
  """

  num_heads: int
  head_dim: int
  num_layers: int
  norm_groups: int
  linear_projection: bool
  cross_only: bool = False
  dtype: DTypeLike = jnp.float32
  # Makes what a video model does after layer i, a function of (i, h, T, context, mask).
  after_layers: Callable = lambda: lambda i, h, T, context, mask: h

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T H W C"],
    contexts: tuple[Float[Array, "B _ _"] | None, ...],
    masks: tuple[Bool[Array, "B _"] | None, ...],
  ) -> Float[Array, "B T H W C"]:
    B, T, H, W, C = x.shape

    def projection(name, features):  # the same product; the stored kernel's shape differs
      if self.linear_projection:
        return nn.Dense(features, dtype=self.dtype, name=name)
      return nn.Conv(features, (1, 1), dtype=self.dtype, name=name)

    h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x).astype(self.dtype)
    h = projection("proj_in", self.num_heads * self.head_dim)(h)
    h = rearrange(h, "B T H W C -> (B T) (H W) C")
    after_layer = self.after_layers()
    for i in range(self.num_layers):
      layer = TransformerLayer(
        self.num_heads, self.head_dim, self.dtype, self.cross_only, name=f"layer_{i}"
      )
      h = in_pieces(layer, h, B, contexts[i], masks[i])
      h = after_layer(i, h, T, contexts[i], masks[i])
    h = rearrange(h, "(B T) (H W) C -> B T H W C", B=B, H=H)
    return x + projection("proj_out", C)(h)


EACH_FRAME, WHOLE_CLIP = (-3, -2), (-4, -3, -2)  # axes of B T H W C


class GroupNorm(nn.Module):
  """Group normalisation of each frame by itself, statistics in float32.

  Differs: Flax reduces over every axis but the first, which would let the frames of a clip see one
    another; here a video's statistics are those of its frames (ours: a video at init is its
    frames). `whole_clip` takes those of all frames together, for layers that cross frames.
  """

  num_groups: int
  epsilon: float = 1e-5
  whole_clip: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    # Every convolution of the networks stands behind a norm, which is where their layout is held.
    return pin(Groups(self.num_groups, self.epsilon, self.axes, name="group")(pin(x)))

  @property
  def axes(self) -> tuple[int, ...]:
    """Of the pixels that a group's statistics are of."""
    return WHOLE_CLIP if self.whole_clip else EACH_FRAME


class Groups(nn.Module):
  """Normalises groups of channels over some axes, in one pass over x for mean and variance.

  Source: arXiv:1803.08494, eq. 1 to 6.
  Differs: mean and mean square are those of x - s, for s the mean of a row of pixels. Without s
    their difference loses digits where the mean is large; the mean first and then the deviations
    would be two passes, twice as long on a CPU (docs/tpu_forms.md).
  """

  num_groups: int
  epsilon: float
  axes: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    C = x.shape[-1]
    init = nn.initializers.ones, nn.initializers.zeros
    scale, bias = (
      self.param(name, one, (C,)).reshape(*(1,) * (x.ndim - 1), C)
      for name, one in zip(("scale", "bias"), init, strict=True)
    )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def mean(a):
      """Of every group, repeated for its channels."""
      a = a.mean(self.axes, keepdims=True)
      a = a.reshape(*a.shape[:-1], self.num_groups, C // self.num_groups)
      return jnp.broadcast_to(a.mean(-1, keepdims=True), a.shape).reshape(*a.shape[:-2], C)

    # Mean and variance do not depend on s, so that it has no gradient.
    deviation = x - mean(jax.lax.stop_gradient(x[..., :1, :, :]))
    average = mean(deviation)
    variance = jnp.maximum(mean(jnp.square(deviation)) - jnp.square(average), 0)
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale
    return (deviation - average) * factor + bias
