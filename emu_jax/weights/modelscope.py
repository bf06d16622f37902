"""UNet3DConditionModel: ModelScope's text-to-video U-Net, and zeroscope's."""

from typing import Any

from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import FRAMES_3D, Rule
from emu_jax.weights.unet import UNET, attending, example, in_and_out, mirrored

DOWN = ("DownBlock3D", "CrossAttnDownBlock3D")  # without and with transformers
UP = ("UpBlock3D", "CrossAttnUpBlock3D")
_RES_BLOCKS = (
  ("temporal_down_{l}_res_{i}", "down_blocks.{l}.temp_convs.{i}"),
  ("temporal_mid_res_{i}", "mid_block.temp_convs.{i}"),
  ("temporal_up_{l}_res_{i}", "up_blocks.{-l}.temp_convs.{i}"),
)
TEMPORAL: tuple[Rule, ...] = (
  ("temporal_conv_in", "transformer_in"),
  ("temporal_down_{l}_attention_{i}", "down_blocks.{l}.temp_attentions.{i}"),
  ("temporal_mid_attention", "mid_block.temp_attentions.0"),
  ("temporal_up_{l}_attention_{i}", "up_blocks.{-l}.temp_attentions.{i}"),
  # A public block is a list of layers, with a dropout in all but the first.
  *((f"{ours}/norm_{{n}}/group", f"{theirs}.conv{{n}}.0") for ours, theirs in _RES_BLOCKS),
  *((f"{ours}/conv_1", f"{theirs}.conv1.2", FRAMES_3D) for ours, theirs in _RES_BLOCKS),
  *((f"{ours}/conv_{{n}}", f"{theirs}.conv{{n}}.3", FRAMES_3D) for ours, theirs in _RES_BLOCKS),
)
MODELSCOPE = TEMPORAL + UNET


def shape(o: Options) -> dict[str, Any]:
  """What ModelScope's U-Net and I2VGen-XL's share."""
  channels = tuple(o.get("block_out_channels", (320, 640, 1280, 1280)))
  attends = attending(o, *DOWN)
  mirrored(o, attends, *UP)
  size, blocks = o.get("attention_head_dim", 64), o.get("layers_per_block", 2)
  if not isinstance(size, int) or not isinstance(blocks, int):
    raise o.refuse(
      f"attention_head_dim={size} or layers_per_block={blocks} is not supported; one number is"
    )
  return {
    "channels": channels,
    "num_res_blocks": (blocks,) * len(channels),
    "transformer_depth": tuple(int(attend) for attend in attends),
    "mid_depth": 1,
    "num_heads": 0,
    "head_dim": size,  # the size of a head, unlike in image U-Nets
    "linear_projection": True,
    "norm_groups": o.get("norm_num_groups", 32),
    "temporal": ModelScopeConfig(),
  }


def read(o: Options) -> UNetConfig:
  """Our configuration of a video U-Net's config.json."""
  o.only("downsample_padding", 1)
  o.only("mid_block_scale_factor", 1)
  o.only("act_fn", "silu")
  o.only("norm_eps", 1e-5)
  o.only("num_attention_heads", None)
  width = o.get("cross_attention_dim", 1024)
  return UNetConfig(context_dims=(width,), **in_and_out(o), **shape(o))


def write_shape(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `shape`."""
  attends = [depth > 0 for depth in config.transformer_depth]
  return {
    "block_out_channels": list(config.channels),
    "layers_per_block": config.num_res_blocks[0],
    "down_block_types": [DOWN[attend] for attend in attends],
    "up_block_types": [UP[attend] for attend in reversed(attends)],
    "attention_head_dim": config.head_dim,
    "norm_num_groups": config.norm_groups,
  }


def write(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return write_shape(config) | {
    "in_channels": config.in_channels + config.concat_channels,
    "out_channels": config.out_channels,
    "cross_attention_dim": config.context_dims[0],
  }


def is_shaped(config: UNetConfig) -> bool:
  """Whether `write_shape` says all of a network's shape."""
  return (
    config.temporal == ModelScopeConfig()
    and config.head_dim > 0
    and config.linear_projection
    and config.res_epsilon == 1e-5
    and not any(config.cross_only)
    and len(set(config.num_res_blocks)) == 1
    and max(config.transformer_depth) <= config.mid_depth == 1
    and len(config.context_dims) == 1
    and set(config.layer_contexts) == {0}
    and config.pooled_dim == config.num_tasks == config.num_classes == 0
  )


def has_public_form(config: UNetConfig) -> bool:
  """Whether diffusers' class can be this network."""
  return is_shaped(config) and config.in_channels == config.out_channels and config.num_micro == 0


ARCHITECTURE = Architecture(
  name="UNet3DConditionModel",
  library="diffusers",
  config_type=UNetConfig,
  read=read,
  write=write,
  module=UNet,
  inputs=example,
  rules=lambda config: MODELSCOPE,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
