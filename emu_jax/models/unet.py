"""The U-Net of Stable Diffusion and Emu, for images and, with temporal layers, for videos.

Parameter names: `conv_in`, `concat_in`, `time`, `class`, `task`, `micro`, `down_<level>_res_<i>`,
`down_<level>_attention_<i>`, `down_<level>_sample`, `mid_res_0`, `mid_attention`, `mid_res_1`,
`up_<level>_…`, `norm_out`, `conv_out`; whatever crosses frames begins with `temporal_`, after the
name of the layer that it follows. An image model's tree is a subset of its video model's.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from emu_jax.models.attention import GroupNorm
from emu_jax.models.dot_product import Kernel
from emu_jax.models.embedding import EmbeddingMLP, sinusoid
from emu_jax.models.rematerialisation import Keeps, recomputed
from emu_jax.models.site import Site
from emu_jax.models.spatial import SpatialTransformer
from emu_jax.models.temporal import Temporal
from emu_jax.typing import Conditions, PerExample, Video


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Shape of the network. Defaults: Stable Diffusion 1.x (arXiv:2112.10752)."""

  in_channels: int = 4  # of x_t
  out_channels: int = 4  # of the prediction
  concat_channels: int = 0  # of `Conditions.concat`; their kernel starts at zero
  channels: tuple[int, ...] = (320, 640, 1280, 1280)  # one a level, finest first
  num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)  # encoder; the decoder has one more a level
  transformer_depth: tuple[int, ...] = (1, 1, 1, 0)  # layers an attention site; 0 = none
  mid_depth: int = 1  # transformer layers in the middle; 0 = none
  num_heads: int = 8  # 0: as many heads of head_dim as fit
  head_dim: int = 0  # 0: channels / num_heads
  context_dims: tuple[int, ...] = (768,)  # features of each text context
  layer_contexts: tuple[int, ...] = (0,)  # layer i attends to layer_contexts[i % len]
  # Levels whose layers attend to the text twice instead of to themselves first (x4 upscaler).
  cross_only: tuple[bool, ...] = ()  # one a level; () = none
  linear_projection: bool = False  # False: 1x1 convolutions around the transformers
  norm_groups: int = 32  # of group normalisation
  # Epsilon of the norms in the decoder's residual blocks and in those that precede a transformer in
  # the encoder; 1e-5 elsewhere. Diffusers' Stable Video Diffusion has 1e-6 there.
  res_epsilon: float = 1e-5
  num_classes: int = 0  # "class" [B]: noise level of the x4 upscaler, for instance
  num_tasks: int = 0  # "task" [B]: Emu Edit
  num_micro: int = 0  # "micro" [B, K]: sizes, crops, fps, … as sinusoids
  micro_dim: int = 256  # sinusoid features a micro-condition
  pooled_dim: int = 0  # "pooled" [B, P], joined with the micro-conditions as in SDXL
  temporal: Temporal = Temporal()  # what crosses frames; the default does not
  # Of attention among pixels; auto: what suits the devices. splash: Pallas's on TPUs, unmeasured.
  attention: Kernel = "auto"
  remat: bool = False  # recompute blocks in the backward pass instead of storing them
  remat_keeps: Keeps = "nothing"  # of a recomputed block; products: of dense layers, convolutions
  dtype: str = "float32"  # of matmuls and convolutions; parameters that train are float32

  def __post_init__(self):
    levels = len(self.channels)
    for name in ("num_res_blocks", "transformer_depth"):
      if len(getattr(self, name)) != levels:
        raise ValueError(
          f"UNetConfig: {name}={getattr(self, name)} has {len(getattr(self, name))} values for "
          f"{levels} levels of channels={self.channels}; give one a level"
        )
    if self.cross_only and len(self.cross_only) != levels:
      raise ValueError(
        f"UNetConfig: cross_only={self.cross_only} has {len(self.cross_only)} values for {levels} "
        "levels; give one a level, or none"
      )
    if bool(self.num_heads) == bool(self.head_dim):
      raise ValueError(
        f"UNetConfig: num_heads={self.num_heads} and head_dim={self.head_dim}; give exactly one "
        "and leave the other 0"
      )
    for C in self.channels:
      if C % self.norm_groups:
        raise ValueError(f"UNetConfig: {C} channels are not a multiple of {self.norm_groups=}")
      if C % (self.num_heads or self.head_dim):
        raise ValueError(
          f"UNetConfig: {C} channels are not a multiple of num_heads={self.num_heads} or "
          f"head_dim={self.head_dim}"
        )
    for i in self.layer_contexts:
      if i >= len(self.context_dims):
        raise ValueError(
          f"UNetConfig: layer_contexts={self.layer_contexts} names context {i}, but there are "
          f"{len(self.context_dims)} in context_dims={self.context_dims}"
        )

  @property
  def downsample(self) -> int:
    """Factor between the finest and the coarsest level."""
    return 2 ** (len(self.channels) - 1)

  def heads(self, channels: int) -> tuple[int, int]:
    """Number and size of attention heads at `channels` features."""
    num_heads = self.num_heads or channels // self.head_dim
    return num_heads, channels // num_heads

  def recomputed(self, module: type[nn.Module]) -> type[nn.Module]:
    """The module as blocks use it: computed again in the backward pass, or not."""
    return recomputed(module, self.remat_keeps) if self.remat else module

  def epsilon(self, site: Site) -> float:
    """Of the norms in the residual block at a site."""
    plain = site.side == "mid" or (site.side == "down" and not self.transformer_depth[site.level])
    return 1e-5 if plain else self.res_epsilon

  def is_cross_only(self, site: Site) -> bool:
    """Whether the transformer at a site attends to the text twice; the middle's never does."""
    return bool(self.cross_only) and site.side != "mid" and self.cross_only[site.level]

  def vectors(self, B: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Every vector condition that the network reads, by name, for a batch of B."""
    sizes = {
      "class": (self.num_classes, (B,), jnp.int32),
      "task": (self.num_tasks, (B,), jnp.int32),
      "micro": (self.num_micro, (B, self.num_micro), jnp.float32),
      "pooled": (self.pooled_dim, (B, self.pooled_dim), jnp.float32),
      "noise_level": (self.temporal.noise_level, (B,), jnp.float32),
    }
    return {
      name: jax.ShapeDtypeStruct(shape, dtype)
      for name, (needed, shape, dtype) in sizes.items()
      if needed
    }

  @property
  def multiple(self) -> tuple[int, int, int]:
    """Of what T, H and W must be multiples."""
    return 1, self.downsample, self.downsample

  def module(self) -> "UNet":
    """The network."""
    return UNet(self)

  def blank(self, shape: tuple[int, ...]) -> Conditions:
    """All conditions that the network reads, zero, for x_t of a shape [B, T, H, W, C].

    Texts have two tokens.
    """
    B = shape[0]
    return Conditions(
      texts=tuple(jnp.zeros((B, 2, width)) for width in self.context_dims),
      concat=jnp.zeros((*shape[:-1], self.concat_channels)) if self.concat_channels else None,
      vectors={name: jnp.zeros(a.shape, a.dtype) for name, a in self.vectors(B).items()},
    )

  def image(self) -> "UNetConfig":
    """The image model inside a video model: the same spatial layers, nothing beside them."""
    return dataclasses.replace(self, temporal=Temporal(), concat_channels=0)


def conv(features: int, dtype: DTypeLike, name: str, *, strides: int = 1, **kwargs) -> nn.Conv:
  """3x3 convolution of every frame, padded by one pixel."""
  return nn.Conv(
    features, (3, 3), strides, padding=((1, 1), (1, 1)), dtype=dtype, name=name, **kwargs
  )


class ResBlock(nn.Module):
  """GroupNorm, SiLU, 3x3 convolution, twice, with the time embedding added in between.

  Source: Latent Diffusion, arXiv:2112.10752.
  """

  features: int
  config: UNetConfig
  site: Site

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T H W C"], embedding: Float[Array, "B E"]
  ) -> Float[Array, "B T H W D"]:
    cfg = self.config

    def half(i, h):
      norm = GroupNorm(cfg.norm_groups, cfg.epsilon(self.site), name=f"norm_{i}")
      h = jax.nn.silu(norm(h)).astype(cfg.dtype)
      place = dataclasses.replace(self.site, kind="conv", index=i)
      return cfg.temporal.after_conv(place, conv(self.features, cfg.dtype, place.name)(h), cfg)

    shift = nn.Dense(self.features, dtype=cfg.dtype, name="time")(jax.nn.silu(embedding))
    h = half(2, half(1, x) + shift[:, None, None, None, :])
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), dtype=cfg.dtype, name="skip")(x)
    return x + h


class UNet(nn.Module):
  """Predicts noise, clean sample or v, by its schedule, from x_t, t and conditions.

  `t` is fed to the sinusoid as it is: the 0-based step index of a discrete schedule.

  Source: Latent Diffusion, arXiv:2112.10752; Emu, arXiv:2309.15807, sec. 3.1; Emu Video,
    arXiv:2311.10709, sec. 3.2, with [x_t, (mask, image)] as two convolutions whose results add up,
    so that the image model's own kernel keeps its shape.
  Raises: ValueError where conditions do not fit the configuration or a side does not divide.
  """

  config: UNetConfig

  @nn.compact
  def __call__(self, x_t: Video, t: PerExample, conditions: Conditions) -> Video:
    cfg = self.config
    check_inputs(cfg, x_t, conditions)
    embedding = self.embed(t, conditions.vectors)
    skips = self.encoder(self.inputs(x_t, conditions), embedding, conditions)
    h = self.middle(skips[-1], embedding, conditions)
    if conditions.control:
      *controls, middle = conditions.control
      skips = [skip + control for skip, control in zip(skips, controls, strict=True)]
      h = h + middle

    for level, (features, depth) in reversed(
      list(enumerate(zip(cfg.channels, cfg.transformer_depth, strict=True)))
    ):
      for i in range(cfg.num_res_blocks[level] + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.block("up", level, i, h, features, depth, embedding, conditions)
      if level > 0:
        h = h.repeat(2, axis=2).repeat(2, axis=3)  # nearest neighbour
        site = Site("sample", "up", level)
        h = cfg.temporal.after_conv(site, conv(features, cfg.dtype, site.name)(h), cfg)

    h = jax.nn.silu(GroupNorm(cfg.norm_groups, name="norm_out")(h)).astype(cfg.dtype)
    return conv(cfg.out_channels, cfg.dtype, "conv_out")(h).astype(jnp.float32)

  def inputs(self, x_t, conditions):
    """The first convolution, of x_t and of what is concatenated to it."""
    cfg = self.config
    h = conv(cfg.channels[0], cfg.dtype, "conv_in")(x_t.astype(cfg.dtype))
    if cfg.concat_channels:
      zero = nn.initializers.zeros
      concat = conv(cfg.channels[0], cfg.dtype, "concat_in", kernel_init=zero, use_bias=False)
      h = h + concat(conditions.concat.astype(cfg.dtype))
    return h

  def encoder(self, h, embedding, conditions):
    """The states that the decoder sees again, finest first; the last one enters the middle."""
    cfg = self.config
    skips = [h := cfg.temporal.after_conv(Site("conv_in", "down", 0), h, cfg)]
    for level, (features, depth) in enumerate(
      zip(cfg.channels, cfg.transformer_depth, strict=True)
    ):
      for i in range(cfg.num_res_blocks[level]):
        h = self.block("down", level, i, h, features, depth, embedding, conditions)
        skips.append(h)
      if level < len(cfg.channels) - 1:
        site = Site("sample", "down", level)
        h = conv(features, cfg.dtype, site.name, strides=2)(h)
        h = cfg.temporal.after_conv(site, h, cfg)
        skips.append(h)
    return skips

  def middle(self, h, embedding, conditions):
    """The coarsest level's residual block, attention, residual block."""
    cfg, level = self.config, len(self.config.channels) - 1
    first, second = (Site("res", "mid", level, i) for i in (0, 1))
    h = self.res_block(first, h, cfg.channels[-1], embedding)
    if cfg.mid_depth:
      h = self.attention(Site("attention", "mid", level), h, cfg.mid_depth, conditions)
      h = cfg.temporal.after_block(Site("block", "mid", level), h, cfg)
    return self.res_block(second, h, cfg.channels[-1], embedding)

  def block(self, side, level, i, h, features, depth, embedding, conditions):
    """A residual block and, at levels that have it, its attention site."""
    cfg = self.config
    h = self.res_block(Site("res", side, level, i), h, features, embedding)
    if depth:
      h = self.attention(Site("attention", side, level, i), h, depth, conditions)
    return cfg.temporal.after_block(Site("block", side, level, i), h, cfg)

  def res_block(self, site, h, features, embedding):
    cfg = self.config
    make = cfg.recomputed(ResBlock)
    h = make(features, cfg, site, name=site.name)(h, embedding)
    return cfg.temporal.after_res_block(site, h, embedding, cfg)

  def attention(self, site, h, depth, conditions):
    """A spatial transformer and, in a video model, what follows it."""
    cfg = self.config
    contexts = functools.partial(layer_contexts, cfg, conditions)
    make = cfg.recomputed(SpatialTransformer)
    h = make(depth, site, cfg, name=site.name)(h, *contexts(depth))
    return cfg.temporal.after_attention(site, h, contexts, cfg)

  def embed(self, t: PerExample, vectors: Mapping[str, Array]) -> Float[Array, "B E"]:
    """The time embedding with every vector condition added to it."""
    cfg, base = self.config, self.config.channels[0]
    needed = cfg.vectors(t.shape[0])
    h = EmbeddingMLP(4 * base, dtype=cfg.dtype, name="time")(sinusoid(t, base))
    for name, number in (("class", cfg.num_classes), ("task", cfg.num_tasks)):
      if name in needed:
        h = h + nn.Embed(number, 4 * base, name=name)(vectors[name])
    parts = [vectors["pooled"]] if "pooled" in needed else []
    if "micro" in needed:
      parts.append(sinusoid(vectors["micro"], cfg.micro_dim).reshape(t.shape[0], -1))
    if parts:
      micro = jnp.concatenate(parts, axis=-1)
      h = h + EmbeddingMLP(4 * base, dtype=cfg.dtype, name="micro")(micro)
    if "noise_level" in needed:
      level = EmbeddingMLP(4 * base, zero=True, dtype=cfg.dtype, name="temporal_noise_level")
      h = h + level(sinusoid(vectors["noise_level"], base))
    return h


def layer_contexts(cfg: UNetConfig, conditions: Conditions, depth: int):
  """Which text, and which mask, each of `depth` transformer layers attends to."""
  if not cfg.context_dims:
    return (None,) * depth, (None,) * depth
  which = [cfg.layer_contexts[i % len(cfg.layer_contexts)] for i in range(depth)]
  masks = conditions.masks or (None,) * len(cfg.context_dims)
  texts = tuple(conditions.texts[i].astype(cfg.dtype) for i in which)
  return texts, tuple(masks[i] for i in which)


def check_inputs(cfg: UNetConfig, x_t: Video, conditions: Conditions) -> None:
  """Raises ValueError, at trace time, where an input does not fit the configuration."""
  _, _, H, W, C = x_t.shape
  if C != cfg.in_channels:
    raise ValueError(f"UNet: x_t has {C} channels, in_channels={cfg.in_channels}")
  if H % cfg.downsample or W % cfg.downsample:
    raise ValueError(
      f"UNet: height {H} and width {W} must be multiples of {cfg.downsample}, the factor between "
      f"its {len(cfg.channels)} levels"
    )
  concat = 0 if conditions.concat is None else conditions.concat.shape[-1]
  if concat != cfg.concat_channels:
    raise ValueError(
      f"UNet: conditions bring {concat} concatenated channels, concat_channels="
      f"{cfg.concat_channels}"
    )
  dims = tuple(text.shape[-1] for text in conditions.texts)
  if dims != cfg.context_dims:
    raise ValueError(f"UNet: texts have {dims} features, context_dims={cfg.context_dims}")
  needed = cfg.vectors(x_t.shape[0])
  if set(needed) != set(conditions.vectors):
    raise ValueError(
      f"UNet: vector conditions are {sorted(conditions.vectors)}, the configuration asks for "
      f"{sorted(needed)}"
    )
  for name, expected in needed.items():
    if conditions.vectors[name].shape != expected.shape:
      raise ValueError(
        f"UNet: vector condition {name!r} is {conditions.vectors[name].shape}, x_t of {x_t.shape} "
        f"and the configuration ask for {expected.shape}"
      )
