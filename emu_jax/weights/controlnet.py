"""ControlNetModel: the public ControlNets of Stable Diffusion 1, 2 and XL."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.controlnet import ControlNet, ControlNetConfig
from emu_jax.weights import unet
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

CONTROL: tuple[Rule, ...] = (
  ("hint_in", "controlnet_cond_embedding.conv_in"),
  ("hint_out", "controlnet_cond_embedding.conv_out"),
  ("hint_{i}", "controlnet_cond_embedding.blocks.{i}"),
  ("control_mid", "controlnet_mid_block"),
  ("control_{i}", "controlnet_down_blocks.{i}"),
)


def read(o: Options) -> ControlNetConfig:
  """Our configuration of a ControlNet's config.json."""
  attends = unet.attending(o)
  fields = unet.common(o, attends)
  channels = o.get("in_channels", 4)
  return ControlNetConfig(
    in_channels=channels,
    out_channels=channels,
    hint_channels=o.get("conditioning_channels", 3),
    hint_widths=tuple(o.get("conditioning_embedding_out_channels", (16, 32, 96, 256))),
    hint_bgr=o.only("controlnet_conditioning_channel_order", "rgb", "bgr") == "bgr",
    pooled_control=o.get("global_pool_conditions", False),
    **fields,
  )


def write(config: ControlNetConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return unet.write_common(config) | {
    "layers_per_block": config.num_res_blocks[0],
    "in_channels": config.in_channels,
    "conditioning_channels": config.hint_channels,
    "conditioning_embedding_out_channels": list(config.hint_widths),
    "controlnet_conditioning_channel_order": "bgr" if config.hint_bgr else "rgb",
    "global_pool_conditions": config.pooled_control,
  }


def has_public_form(config: ControlNetConfig) -> bool:
  """Whether diffusers' class can be this network: as many blocks at every level."""
  return (
    unet.has_public_form(config)
    and config.concat_channels == 0
    and len(set(config.num_res_blocks)) == 1
  )


def example(config: ControlNetConfig) -> tuple:
  """What `init` takes: a U-Net's inputs and a picture."""
  side = config.downsample * config.hint_downsample
  return *unet.example(config), jnp.zeros((1, 1, side, side, config.hint_channels))


ARCHITECTURE = Architecture(
  name="ControlNetModel",
  library="diffusers",
  config_type=ControlNetConfig,
  read=read,
  write=write,
  module=ControlNet,
  inputs=example,
  rules=lambda config: CONTROL + unet.ENCODER + unet.TRANSFORMER + unet.RES_BLOCK,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
