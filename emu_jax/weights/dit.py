"""LatteTransformer3DModel of diffusers."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.dit import DiT, DiTConfig
from emu_jax.typing import Conditions
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

LATTE: tuple[Rule, ...] = (
  ("patch", "pos_embed.proj"),
  ("caption/in", "caption_projection.linear_1"),
  ("caption/out", "caption_projection.linear_2"),
  ("time/in", "adaln_single.emb.timestep_embedder.linear_1"),
  ("time/out", "adaln_single.emb.timestep_embedder.linear_2"),
  ("modulation", "adaln_single.linear"),
  ("layer_{i}", "transformer_blocks.{i}"),
  ("temporal_layer_{i}", "temporal_transformer_blocks.{i}"),
  ("final_table", "scale_shift_table"),
  ("out/kernel", "proj_out.weight"),
  ("out/bias", "proj_out.bias"),
)
LAYER: tuple[Rule, ...] = (
  ("table", "scale_shift_table"),
  ("norm_{i}", "norm{i}"),
  ("self_attention/out", "attn1.to_out.0"),
  ("second_attention/out", "attn2.to_out.0"),
  ("self_attention", "attn1"),
  ("second_attention", "attn2"),
  ("q", "to_q"),
  ("k", "to_k"),
  ("v", "to_v"),
  ("feed_forward/in", "ff.net.0.proj"),
  ("feed_forward/out", "ff.net.2"),
)


def read(o: Options) -> DiTConfig:
  """Our configuration of a Latte's config.json."""
  num_heads, head_dim = o.get("num_attention_heads", 16), o.get("attention_head_dim", 88)
  in_channels, width = o.get("in_channels"), num_heads * head_dim
  # The defaults of both options are another network's, without time or without text.
  if o.get("norm_type", "layer_norm") != "ada_norm_single":
    raise o.refuse("norm_type is not 'ada_norm_single', the only one that is supported")
  if o.get("cross_attention_dim", None) != width:
    raise o.refuse(f"cross_attention_dim is not {width}, the width of the network")
  o.only("attention_type", "default")
  # adaLN-single has no table of embeddings; the last one is of a class that Latte grew out of.
  o.ignore("dropout", "num_embeds_ada_norm", "norm_num_groups")
  return DiTConfig(
    in_channels=in_channels,
    out_channels=o.get("out_channels", None) or in_channels,
    patch=o.get("patch_size"),
    num_heads=num_heads,
    head_dim=head_dim,
    num_layers=o.get("num_layers", 1),
    caption_dim=o.get("caption_channels"),
    size=o.get("sample_size", 64),
    num_frames=o.get("video_length", 16),
    activation=o.only("activation_fn", "geglu", "gelu", "gelu-approximate"),
    qkv_bias=o.get("attention_bias", False),
    norm_scales=o.get("norm_elementwise_affine", True),
    norm_epsilon=o.get("norm_eps", 1e-5),
  )


def write(config: DiTConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    "in_channels": config.in_channels,
    "out_channels": config.out_channels,
    "patch_size": config.patch,
    "num_attention_heads": config.num_heads,
    "attention_head_dim": config.head_dim,
    "num_layers": config.num_layers,
    "caption_channels": config.caption_dim,
    "cross_attention_dim": config.width,
    "sample_size": config.size,
    "video_length": config.num_frames,
    "activation_fn": config.activation,
    "attention_bias": config.qkv_bias,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": config.norm_scales,
    "norm_eps": config.norm_epsilon,
  }


def example(config: DiTConfig) -> tuple:
  """What `init` takes: one patch of two frames and a text of one token."""
  x = jnp.zeros((1, 2, config.patch, config.patch, config.in_channels))
  return x, jnp.zeros(1), Conditions((jnp.zeros((1, 1, config.caption_dim)),))


ARCHITECTURE = Architecture(
  name="LatteTransformer3DModel",
  library="diffusers",
  config_type=DiTConfig,
  read=read,
  write=write,
  module=DiT,
  inputs=example,
  rules=lambda config: LATTE + LAYER,
  fits=lambda config: config.temporal,
)
