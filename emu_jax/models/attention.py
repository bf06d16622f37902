"""Attention, the gated feed-forward network, and the layer and stack that they make.

Sequences are `N S D`. A text context `B L E` may belong to several sequences at once (the frames of
a clip, the pixels of a temporal sequence): the queries are then folded to one long sequence an
example, which gives the same numbers as repeating the context and costs no copy of it.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from emu_jax.models.dot_product import Kernel, attend
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
  kernel: Kernel = "auto"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N S D"],
    context: Float[Array, "B L E"] | None = None,
    # Of keys, tokens first and padding behind them; or of queries to keys.
    mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None = None,
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
    of_keys = mask is not None and mask.ndim == 2
    h = attend(
      q,
      k,
      v,
      None if mask is None or of_keys else mask[:, None],
      lengths=mask if of_keys else None,
      kernel=self.kernel,
    )
    return nn.Dense(D, dtype=self.dtype, kernel_init=last(self.zero), name="out")(
      h.reshape(N, S, -1)
    )


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
  `source` are tokens that the first attention takes keys and values of in place of x's.
  Source: Latent Diffusion, arXiv:2112.10752, app. E.2.1 (BasicTransformerBlock).
  """

  num_heads: int
  head_dim: int
  dtype: DTypeLike = jnp.float32
  cross_only: bool = False
  zero: bool = False
  kernel: Kernel = "auto"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N S D"],
    context: Float[Array, "B L E"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
    source: Float[Array, "N K D"] | None = None,
  ) -> Float[Array, "N S D"]:
    def norm(i):
      layer = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=f"norm_{i}")
      return lambda y: layer(y).astype(self.dtype)

    def attention(name):
      return Attention(
        self.num_heads, self.head_dim, self.dtype, self.zero, kernel=self.kernel, name=name
      )

    first = norm(1)
    if self.cross_only:
      keys = context, mask
    else:
      keys = () if source is None else (first(source),)
    x = x + attention("self_attention")(first(x), *keys)
    x = x + attention("second_attention")(norm(2)(x), context, mask)
    return x + FeedForward(self.dtype, self.zero, name="feed_forward")(norm(3)(x))


# Tokens of one example that a layer takes at a time; at 512 pixels those of 16 frames. What it
# computes inside is many times as large as its input, and its sequences know nothing of each other.
TOKENS = 2**16


def in_pieces(
  layer: nn.Module,
  x: Float[Array, "N S D"],
  examples: int,
  context: Float[Array, "B L E"] | None = None,
  mask: Bool[Array, "B L"] | None = None,
  source: Float[Array, "N K D"] | None = None,
) -> Float[Array, "N S D"]:
  """`TransformerLayer` of x, a part of each example's sequences at a time if they are too many.

  Args:
    examples: N is so many times the sequences of one; they are the first axis of the context.
  """
  N, S, _ = x.shape
  each = N // examples
  number = next((n for n in range(1, each) if each % n == 0 and each * S <= n * TOKENS), each)
  if number == 1:
    return layer(x, context, mask, source)

  def piece(layer, _, inputs):
    x, source = inputs
    return None, layer(x, context, mask, source)

  scan = nn.scan(nn.remat(piece), variable_broadcast="params", split_rngs={"params": False})
  # A piece is every n-th sequence, so that it lies on all devices that hold the example.
  split = lambda a: rearrange(a, "(N n) S D -> n N S D", n=number)
  _, h = scan(layer, None, jax.tree.map(split, (x, source)))
  return rearrange(h, "n N S D -> (N n) S D")


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
    # Every convolution of the networks follows a norm, so that these pins fix the layout of all.
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
