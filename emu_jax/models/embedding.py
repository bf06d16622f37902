"""Scalars into vectors: sinusoids and the two-layer network that follows them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def sinusoid(
  values: Float[Array, "..."] | Int[Array, "..."], width: int, max_period: float = 10_000.0
) -> Float[Array, "... D"]:
  """Cosines, then sines, of `values` at `width // 2` frequencies falling from 1 to 1 / max_period.

  Source: Attention Is All You Need, arXiv:1706.03762, sec. 3.5, with the order of Stable
    Diffusion's weights: cosines first, frequencies max_period ** (-i / (width // 2)).
  """
  if width % 2:
    raise ValueError(f"sinusoid: width={width} is odd; give an even number of features")
  half = width // 2
  frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies.reshape(
    (1,) * jnp.ndim(values) + (half,)
  )
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbeddingMLP(nn.Module):
  """Dense, SiLU, Dense: what a sinusoid passes through before it joins the time embedding.

  Source: arXiv:2006.11239, app. B; the same network serves SDXL's micro-conditions
    (arXiv:2307.01952, sec. 2.2).
  Differs: `inner` is the width between the two layers, the output's where it is 0. `zero` starts
    the last layer at zero, so that a condition added to a trained network changes nothing until it
    is trained (ours).
  """

  width: int
  zero: bool = False
  dtype: DTypeLike = jnp.float32
  inner: int = 0

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
    last = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
    h = nn.Dense(self.inner or self.width, dtype=self.dtype, name="in")(x)
    return nn.Dense(self.width, dtype=self.dtype, kernel_init=last, name="out")(jax.nn.silu(h))
