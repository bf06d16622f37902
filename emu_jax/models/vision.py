"""CLIP's image encoder, and what is done to pixels before it.

What Hugging Face calls the parameters: emu_jax/weights/vision.py.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emu_jax.models.text import ClipLayer, layer_norm

# Of the pixels in [0, 1] that CLIP was trained on, red, green, blue (arXiv:2103.00020's code).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
  """Shape of a CLIP image encoder; the default is ViT-H/14, of Stable Video Diffusion."""

  width: int = 1280  # features of a token
  num_layers: int = 32  # transformer layers
  num_heads: int = 16  # of attention
  mlp_width: int = 5120  # hidden features of a layer's MLP
  image_size: int = 224  # pixels a side
  patch: int = 14  # pixels a side
  activation: Literal["quick_gelu", "gelu"] = "gelu"  # of the MLPs
  projection_dim: int = 1024  # features of the image embedding
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    for name in ("num_layers", "num_heads", "mlp_width", "patch", "projection_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"ClipVisionConfig: {name}={getattr(self, name)} must be at least 1")
    if self.width < 1 or self.width % self.num_heads:
      raise ValueError(
        f"ClipVisionConfig: width={self.width} is not a positive multiple of "
        f"num_heads={self.num_heads}"
      )
    if self.image_size < self.patch:
      raise ValueError(
        f"ClipVisionConfig: image_size={self.image_size} is smaller than patch={self.patch}"
      )


class ClipVision(nn.Module):
  """One vector of each image, in the space of CLIP's text projection.

  Source: CLIP, arXiv:2103.00020, sec. 2.4 (a Vision Transformer, normalised before its layers too).
  Raises: ValueError for images of another size than the learned positions are of.
  """

  config: ClipVisionConfig

  def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B P"]:
    """The projected vector of the class token; images as `clip_pixels` gives them."""
    return self.states_and_embedding(images)[1]

  @nn.compact
  def states_and_embedding(
    self, images: Float[Array, "B H W 3"]
  ) -> tuple[Float[Array, "B N D"], Float[Array, "B P"]]:
    """States before the last layer, class token first, not normalised; and the vector."""
    cfg, side = self.config, self.config.image_size
    if images.shape[1:3] != (side, side):
      raise ValueError(
        f"ClipVision: images are {images.shape[1]}x{images.shape[2]}, but positions for "
        f"{side}x{side} are learned; resize with clip_pixels"
      )
    B, n, normal = images.shape[0], (side // cfg.patch) ** 2, nn.initializers.normal(0.02)
    patches = nn.Conv(
      cfg.width,
      (cfg.patch,) * 2,
      strides=cfg.patch,
      padding="VALID",
      use_bias=False,
      dtype=cfg.dtype,
      name="patch",
    )(images).reshape(B, n, cfg.width)
    token = self.param("class", normal, (cfg.width,))
    position = self.param("position", normal, (n + 1, cfg.width))
    first = jnp.broadcast_to(token[None, None], (B, 1, cfg.width))
    x = jnp.concatenate([first, patches.astype(jnp.float32)], axis=1) + position[None]
    states = [layer_norm("norm_in")(x)]
    for i in range(cfg.num_layers):
      layer = ClipLayer(cfg.num_heads, cfg.mlp_width, cfg.activation, cfg.dtype, name=f"layer_{i}")
      states.append(layer(states[-1]))
    pooled = layer_norm("norm_out")(states[-1][:, 0])
    project = nn.Dense(cfg.projection_dim, use_bias=False, dtype=cfg.dtype, name="projection")
    return states[-2], project(pooled.astype(cfg.dtype)).astype(jnp.float32)


def clip_normalised(pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """Pixels in [-1, 1] with the mean and deviation of CLIP's training images taken out."""
  mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (MEAN, STD))
  return ((pixels + 1) / 2 - mean) / std


def clip_pixels(pixels: Float[Array, "B H W 3"], size: int = 224) -> Float[Array, "B S S 3"]:
  """Pixels in [-1, 1] as CLIP reads them: the shorter side resized, the middle cut out, normalised.

  Source: CLIP's published `preprocess`: bicubic as Pillow does it, its filter as wide as the
    reduction.
  Differs: Pillow rounds and clips to whole levels after each axis, this clips at the end.
  """
  B, H, W, C = pixels.shape
  h, w = (int(size * side / min(H, W)) for side in (H, W))
  resized = jax.image.resize(pixels, (B, h, w, C), "cubic", antialias=True)
  top, left = (h - size) // 2, (w - size) // 2
  return clip_normalised(jnp.clip(resized[:, top : top + size, left : left + size], -1, 1))


def squeezed_pixels(pixels: Float[Array, "B H W 3"], size: int = 224) -> Float[Array, "B S S 3"]:
  """Pixels in [-1, 1] as Stable Video Diffusion's encoder reads them: squeezed whole, not cut.

  Source: Stable Video Diffusion's published code (FrozenOpenCLIPImageEmbedder.preprocess): a
    Gaussian blur and bicubic interpolation that maps corners to corners, both by axis.
  """
  down, across = (jnp.asarray(_blurred_bicubic(side, size)) for side in pixels.shape[1:3])
  return clip_normalised(jnp.einsum("bhwc,yh,xw->byxc", pixels, down, across))


def _blurred_bicubic(length: int, size: int) -> Float[np.ndarray, "S N"]:
  """One axis of `squeezed_pixels`, as a matrix."""
  sigma = max((length / size - 1) / 2, 0.001)
  half = int(max(4 * sigma, 3)) // 2
  taps = np.arange(-half, half + 1)
  gauss = np.exp(-(taps**2) / (2 * sigma**2))
  near = np.arange(length)[:, None] + taps
  near = length - 1 - np.abs(length - 1 - np.abs(near))  # reflected at both ends
  blur = np.zeros((length, length))
  np.add.at(blur, (np.arange(length)[:, None], near), gauss / gauss.sum())

  a = -0.75  # of the cubic convolution (Keys, 1981): the choice of PyTorch and OpenCV
  at = np.arange(size) * (length - 1) / max(size - 1, 1)
  near = np.floor(at)[:, None].astype(int) + np.arange(-1, 3)
  d = np.abs(at[:, None] - near)
  inner = ((a + 2) * d - (a + 3)) * d**2 + 1
  outer = a * (((d - 5) * d + 8) * d - 4)
  cubic = np.zeros((size, length))
  rows = np.arange(size)[:, None]
  np.add.at(cubic, (rows, near.clip(0, length - 1)), np.where(d <= 1, inner, outer))
  return (cubic @ blur).astype(np.float32)
