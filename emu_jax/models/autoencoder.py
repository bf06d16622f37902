"""The KL autoencoder of Latent Diffusion, frame by frame: pixels <-> latents.

Every frame is encoded and decoded by itself: convolutions fold frames into the batch and norms take
their statistics of one frame. Only a `temporal_decoder` crosses frames. Levels count from the
finest, as in the U-Net. Parameter names: `encoder/…` and `decoder/…` with `conv_in`,
`down_<level>_res_<i>`, `down_<level>_sample`, `mid_res_0`, `mid_attention`, `mid_res_1`,
`up_<level>_res_<i>`, `up_<level>_sample`, `norm_out`, `conv_out`; `quant`, `post_quant`; what
crosses frames begins with `temporal_`, after the name of the layer that it follows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.models.across_frames import across_frames
from emu_jax.models.attention import GroupNorm
from emu_jax.models.dot_product import attend
from emu_jax.models.temporal_decoder import TemporalResBlock, middle_frame
from emu_jax.parallel.activations import shares
from emu_jax.typing import PerExample, Video

Latents = Float[Array, "B T h w Z"]  # one for `downsample` x `downsample` pixels
MIN_LOG_VAR, MAX_LOG_VAR = -30.0, 20.0  # Latent Diffusion: keeps exp() of an untrained net finite
# Ours: at 0 the first latents are drowned in noise, and the KL weight is too small to be missed.
INITIAL_LOG_VAR = -5.0


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Shape of the autoencoder. Defaults: Stable Diffusion 1.x (arXiv:2112.10752).

  Emu Video's has z_channels=8 (arXiv:2311.10709, app. table 2); Emu's best has z_channels=16 and
  Fourier features (arXiv:2309.15807, table 1), whose frequencies are not published: 3 octaves here.
  """

  channels: tuple[int, ...] = (128, 256, 512, 512)  # one a level, finest first
  num_res_blocks: int = 2  # a level of the encoder; the decoder has one more
  z_channels: int = 4  # of the latents
  norm_groups: int = 32  # of group normalisation
  fourier_features: int = 0  # octaves of sin and cos beside the RGB input; 0 = none
  quant_conv: bool = True  # a 1x1 convolution of the moments; SD has it, SD3 and FLUX do not
  post_quant_conv: bool = True  # and one of the latents, before the decoder
  mid_attention: bool = True  # attention in the middle of encoder and decoder
  norm_out: bool = True  # GroupNorm and SiLU before each last convolution; off: a linear path
  patch: int = 1  # pixels on a side that become channels before the first convolution
  # Layers over frames in the decoder (Stable Video Diffusion); off: frame by frame.
  temporal_decoder: bool = False
  # A public pipeline's normalised latents are (z - latent_shift) * latent_scale. The network itself
  # applies neither; they lie here since they come and go with its weights.
  latent_scale: float = 1.0
  latent_shift: float = 0.0  # taken from latents before they are scaled
  remat: bool = False  # recompute residual blocks in the backward pass instead of storing them
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    if not self.channels:
      raise ValueError("AutoencoderConfig: channels=() has no level; give one width a level")
    for name in ("num_res_blocks", "z_channels", "norm_groups", "patch"):
      if getattr(self, name) < 1:
        raise ValueError(f"AutoencoderConfig: {name}={getattr(self, name)} must be at least 1")
    if self.fourier_features < 0:
      raise ValueError(
        f"AutoencoderConfig: fourier_features={self.fourier_features} is negative; give 0 for none"
      )
    if not self.latent_scale > 0:
      raise ValueError(f"AutoencoderConfig: latent_scale={self.latent_scale} must be above 0")
    for C in self.channels:
      if C < 1 or C % self.norm_groups:
        raise ValueError(
          f"AutoencoderConfig: {C} of channels={self.channels} is not a positive multiple of "
          f"norm_groups={self.norm_groups}"
        )

  @property
  def downsample(self) -> int:
    """Pixels of a side that one latent stands for."""
    return self.patch * 2 ** (len(self.channels) - 1)


class Autoencoder(nn.Module):
  """Pixels in [-1, 1] to the moments of a Gaussian over latents, and latents back to pixels.

  Source: Latent Diffusion, arXiv:2112.10752, app. G (KL-regularised); Fourier features of
    the input: Emu, arXiv:2309.15807, sec. 3.1; temporal decoder: Stable Video Diffusion,
    arXiv:2311.15127, app. D.
  Differs: `patch` (ours: a picture of 64 pixels costs a quarter with patch=2) and `norm_out` (ours:
    small autoencoders of flat pictures learn several times faster without).
  """

  config: AutoencoderConfig

  def setup(self):
    cfg = self.config
    self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
    if cfg.quant_conv:
      self.quant = nn.Conv(2 * cfg.z_channels, (1, 1), dtype=cfg.dtype, bias_init=initial_moments)
    if cfg.post_quant_conv:
      self.post_quant = nn.Conv(cfg.z_channels, (1, 1), dtype=cfg.dtype)

  def __call__(self, x: Video) -> Video:
    """Decodes the mean of its encoding: the whole network, as `init` needs it."""
    return self.decode(self.encode(x)[0])

  def encode(self, x: Video) -> tuple[Latents, Latents]:
    """Mean and log-variance of the latents, float32, log-variance within [-30, 20].

    Raises: ValueError where x is not RGB or a side is not a multiple of `downsample`.
    """
    factor, (H, W, C) = self.config.downsample, x.shape[2:]
    if C != 3 or H % factor or W % factor:
      raise ValueError(
        f"Autoencoder: frames of {H}x{W} pixels and {C} channels; give 3 channels and sides that "
        f"are multiples of {factor}, the pixels a latent stands for"
      )
    moments = self.encoder(x)
    if self.config.quant_conv:
      moments = self.quant(moments)
    mean, log_var = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_var, MIN_LOG_VAR, MAX_LOG_VAR)

  def decode(self, z: Latents) -> Video:
    """Pixels, float32, near [-1, 1] but not clipped to it."""
    if z.shape[-1] != self.config.z_channels:
      raise ValueError(
        f"Autoencoder: latents have {z.shape[-1]} channels, z_channels={self.config.z_channels}"
      )
    z = z.astype(self.config.dtype)
    return self.decoder(self.post_quant(z) if self.config.post_quant_conv else z)


class Encoder(nn.Module):
  """Pixels to moments, [mean, log-variance] along the channels."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, x: Video) -> Latents:
    cfg = self.config
    colours = x.shape[-1]
    x = fourier_features(x, cfg.fourier_features)
    without_waves = functools.partial(first_kernel, known=colours, channels=x.shape[-1])
    first = conv(cfg.channels[0], cfg.dtype, "conv_in", kernel_init=without_waves)
    h = first(to_patches(x, cfg.patch).astype(cfg.dtype))
    for level, features in enumerate(cfg.channels):
      for i in range(cfg.num_res_blocks):
        h = res_block(cfg, h, features, f"down_{level}_res_{i}")
      if level < len(cfg.channels) - 1:
        h = Downsample(cfg.dtype, name=f"down_{level}_sample")(h)
    last = {} if cfg.quant_conv else {"bias_init": initial_moments}
    return head(cfg, 2 * cfg.z_channels, middle(cfg, h), **last)


class Decoder(nn.Module):
  """Latents to pixels."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, z: Latents) -> Video:
    cfg = self.config
    video = cfg.temporal_decoder
    h = middle(cfg, conv(cfg.channels[-1], cfg.dtype, "conv_in")(z), video)
    for level, features in reversed(list(enumerate(cfg.channels))):
      for i in range(cfg.num_res_blocks + 1):
        h = res_block(cfg, h, features, f"up_{level}_res_{i}", video)
      if level > 0:
        h = h.repeat(2, axis=2).repeat(2, axis=3)  # nearest neighbour
        h = conv(features, cfg.dtype, f"up_{level}_sample")(h)
    h = head(cfg, 3 * cfg.patch**2, h)
    if video:
      last = nn.Conv(
        h.shape[-1], (3,), dtype=cfg.dtype, kernel_init=middle_frame, name="temporal_out"
      )
      h = across_frames(last, h)
    return from_patches(h.astype(jnp.float32), cfg.patch)


class ResBlock(nn.Module):
  """GroupNorm, SiLU, 3x3 convolution, twice; adds to its input."""

  features: int
  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
    h = x
    for i in (1, 2):
      h = GroupNorm(self.norm_groups, epsilon=1e-6, name=f"norm_{i}")(h)
      h = conv(self.features, self.dtype, f"conv_{i}")(jax.nn.silu(h).astype(self.dtype))
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="skip")(x)
    return x + h


class Downsample(nn.Module):
  """Halves each side: a 3x3 convolution of stride 2, padded at the bottom and right only."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T h w C"]:
    halving = nn.Conv(
      x.shape[-1], (3, 3), 2, padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv"
    )
    return halving(x)


class PixelAttention(nn.Module):
  """Attention of one head among the pixels of each frame; adds to its input."""

  norm_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype)
    h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x).astype(self.dtype)
    q, k, v = (rearrange(dense(name=n)(h), "B T H W C -> (B T) (H W) 1 C") for n in "qkv")
    return x + dense(name="out")(attend(q, k, v).reshape(h.shape))


def conv(features: int, dtype: DTypeLike, name: str, **kwargs) -> nn.Conv:
  """3x3 convolution of every frame, padded by one pixel."""
  return nn.Conv(features, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, name=name, **kwargs)


def first_kernel(
  key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, *, known: int, channels: int
) -> Float[Array, "rows columns inputs outputs"]:
  """As if there were only the first `known` of each pixel's channels: the others' weights are 0.

  Inputs are the `channels` of each pixel of a patch in turn (`to_patches`).

  Ours: Fourier features begin without effect. Weights as large as the colours' put waves into a
  stream that carries the picture itself on, and cost more than they gave; see docs/results.
  """
  rows, columns, inputs, outputs = shape
  pixels = inputs // channels
  usual = nn.linear.default_kernel_init(key, (rows, columns, pixels * known, outputs), dtype)
  apart = usual.reshape(rows, columns, pixels, known, outputs)
  return jnp.pad(apart, [(0, 0)] * 3 + [(0, channels - known), (0, 0)]).reshape(shape)


def initial_moments(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32):
  """Bias of the last layer before the moments: mean 0, log-variance INITIAL_LOG_VAR."""
  del key
  half = shape[0] // 2
  return jnp.concatenate([jnp.zeros(half, dtype), jnp.full(half, INITIAL_LOG_VAR, dtype)])


def res_block(
  cfg: AutoencoderConfig,
  h: Float[Array, "B T H W C"],
  features: int,
  name: str,
  temporal: bool = False,
) -> Float[Array, "B T H W D"]:
  """A residual block and, if `temporal`, the block over frames that follows it."""
  remat = nn.remat if cfg.remat else lambda module: module
  h = remat(ResBlock)(features, cfg.norm_groups, cfg.dtype, name=name)(h)
  if temporal:
    h = remat(TemporalResBlock)(cfg.norm_groups, cfg.dtype, name=f"temporal_{name}")(h)
  return h


def middle(
  cfg: AutoencoderConfig, h: Float[Array, "B T H W C"], temporal: bool = False
) -> Float[Array, "B T H W C"]:
  """The coarsest level's residual block, attention, residual block."""
  h = res_block(cfg, h, h.shape[-1], "mid_res_0", temporal)
  if cfg.mid_attention:
    h = PixelAttention(cfg.norm_groups, cfg.dtype, name="mid_attention")(h)
  return res_block(cfg, h, h.shape[-1], "mid_res_1", temporal)


def head(
  cfg: AutoencoderConfig, features: int, h: Float[Array, "B T H W C"], **kwargs
) -> Float[Array, "B T H W D"]:
  """GroupNorm, SiLU and the last convolution; without `norm_out` the convolution alone.

  Ours, off: between its residual blocks the network is then linear, and a picture's flat colours
  need not be rebuilt from what normalisation leaves of them; see docs/results.
  """
  if cfg.norm_out:
    h = GroupNorm(cfg.norm_groups, epsilon=1e-6, name="norm_out")(h)
    h = jax.nn.silu(h).astype(cfg.dtype)
  return conv(features, cfg.dtype, "conv_out", **kwargs)(h)


def fourier_features(x: Float[Array, "B T H W C"], octaves: int) -> Float[Array, "B T H W D"]:
  """x, then sin and cos of 2^k * 2 pi x for k = 0 .. octaves - 1: C * (1 + 2 * octaves) channels.

  Source: Emu, arXiv:2309.15807, sec. 3.1; frequencies ours, after Variational Diffusion Models,
    arXiv:2107.00630.
  """
  angles = [2.0**k * 2 * jnp.pi * x.astype(jnp.float32) for k in range(octaves)]
  waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
  return jnp.concatenate([x, *waves], axis=-1)


def to_patches(x: Float[Array, "B T H W C"], patch: int) -> Float[Array, "B T h w D"]:
  """The pixels of each patch as channels: row by row, a pixel's channels together."""
  return rearrange(x, "B T (h p) (w q) C -> B T h w (p q C)", p=patch, q=patch)


def from_patches(x: Float[Array, "B T h w D"], patch: int) -> Float[Array, "B T H W C"]:
  """The inverse of `to_patches`."""
  return rearrange(x, "B T h w (p q C) -> B T (h p) (w q) C", p=patch, q=patch)


def sample_posterior(mean: Latents, log_var: Latents, key: jax.Array) -> Latents:
  """A sample of the Gaussian that `encode` describes. Source: arXiv:1312.6114, sec. 2.4."""
  return mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)


def kl_divergence(mean: Latents, log_var: Latents) -> PerExample:
  """Divergence from the unit normal in nats: sum over H W C, mean over T.

  A frame's sum is Latent Diffusion's convention: its weight of 1e-6 stands beside a reconstruction
  error that is summed over the pixels of a frame too. A clip weighs as much as one of its frames.
  Source: arXiv:1312.6114, app. B.
  """
  nats = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - 1.0 - log_var)
  return nats.sum(axis=(2, 3, 4)).mean(axis=1)


def in_chunks(
  f: Callable[[Video], Any], x: Video, frames_at_a_time: int, *, whole_clip: bool = False
) -> Any:
  """`f(x)`, an encoding or a decoding, of a bounded number of frames at a time.

  Memory grows with `frames_at_a_time`, not with B or T. On a mesh every group of devices that
  shares an example takes that many of its own frames at a time, and the devices of a group divide
  them: no frame leaves the group that holds it.

  Args:
    f: of a video [B, T, ...]; gives an array [B, T, ...] or a tree of them.
    whole_clip: `f` lets the frames of an example see one another, as a temporal decoder does. Its
      calls then have consecutive frames of one example, the last call of an example perhaps fewer;
      they see no other frames (Stable Video Diffusion's `decode_chunk_size`): larger chunks flicker
      less where they meet. Otherwise frames of all examples fill each call, the last one repeats
      frames to be full, and the result is that of all frames at once.
  Raises: ValueError where `frames_at_a_time` is below 1.
  """
  if frames_at_a_time < 1:
    raise ValueError(f"in_chunks: frames_at_a_time={frames_at_a_time} must be at least 1 frame")
  return (_chunks_of_clips if whole_clip else _chunks_of_frames)(f, x, frames_at_a_time)


def _chunks_of_frames(f: Callable[[Video], Any], x: Video, size: int) -> Any:
  """`in_chunks` of an `f` to which frames are independent: one program, called N times."""
  B, T, *_ = x.shape
  D, F = shares(x.shape)
  size = -(-size // F)  # frames of one device
  x = rearrange(x, "(D b) (F t) ... -> D F (b t) ...", D=D, F=F)
  each = x.shape[2]
  size = min(size, each)
  N = -(-each // size)
  if N * size > each:
    x = jnp.concatenate([x, x[:, :, : N * size - each]], axis=2)
  x = rearrange(x, "D F (N t) ... -> N D (F t) ...", N=N)
  y = _mapped(f, x)

  def joined(a):
    a = rearrange(a, "N D (F t) ... -> D F (N t) ...", F=F)[:, :, :each]
    return rearrange(a, "D F (b t) ... -> (D b) (F t) ...", t=T // F)

  return jax.tree.map(joined, y)


def _chunks_of_clips(f: Callable[[Video], Any], x: Video, size: int) -> Any:
  """`in_chunks` of an `f` that crosses frames: one example of each group, one chunk at a time."""
  B, T, *_ = x.shape
  D, _ = shares(x.shape)

  def coded(x):
    chunks = rearrange(x, "(D b) (N t) ... -> (b N) D t ...", D=D, t=min(size, x.shape[1]))
    joined = lambda a: rearrange(a, "(b N) D t ... -> (D b) (N t) ...", b=B // D)
    return jax.tree.map(joined, _mapped(f, chunks))

  full = T - T % size
  parts = [coded(part) for part in (x[:, :full], x[:, full:]) if part.shape[1]]
  return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts)


def _mapped(f: Callable[[Video], Any], x: Float[Array, "N B T H W C"]) -> Any:
  """`f` of x[0], x[1], ... one after another; of a single one without a loop."""
  if x.shape[0] == 1:
    return jax.tree.map(lambda a: a[None], f(x[0]))
  return jax.lax.map(f, x)
