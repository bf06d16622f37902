"""Layers over frames: the frames of every pixel as one sequence, whatever the mesh."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Array, Float

from emu_jax.parallel.activations import exchange

Layer = Callable[[Float[Array, "N T C"]], Float[Array, "N T D"]]


def across_frames(layer: Layer, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
  """`layer` of the frames of every pixel; N = B H W, the pixels of an example are neighbours.

  On a mesh that splits frames, pixels are split instead while the layer computes
  (`parallel.activations.exchange`): every device then has all frames of its pixels, and the layer
  needs no other device.
  """

  def of_pixels(x):
    B, _, H, W, _ = x.shape
    h = layer(rearrange(x, "B T H W C -> (B H W) T C"))
    return rearrange(h, "(B H W) T C -> B T H W C", B=B, H=H, W=W)

  return with_all_frames(of_pixels, x)


def with_all_frames(
  f: Callable[[Float[Array, "B T H W C"]], Float[Array, "B T H W D"]], x: Float[Array, "B T H W C"]
) -> Float[Array, "B T H W D"]:
  """`f(x)`, computed where every device has all frames of its pixels."""
  return exchange(f(exchange(x, to="space")), to="frames")
