"""UNetMotionModel and MotionAdapter: AnimateDiff whole, and its motion modules alone.

An adapter's tree, merged with an image U-Net's, is the video U-Net's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from emu_jax.models.motion import MotionConfig
from emu_jax.models.temporal import Temporal
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.weights import unet
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

DOWN = ("DownBlockMotion", "CrossAttnDownBlockMotion")  # without and with spatial transformers
UP = ("UpBlockMotion", "CrossAttnUpBlockMotion")
MOTION: tuple[Rule, ...] = (
  ("temporal_down_{l}_{i}", "down_blocks.{l}.motion_modules.{i}"),
  ("temporal_mid", "mid_block.motion_modules.0"),
  ("temporal_up_{l}_{i}", "up_blocks.{-l}.motion_modules.{i}"),
  ("positions", "pos_embed.pe", "t d -> 1 t d"),
)
LATENTS = 4  # channels of Stable Diffusion's latents; an adapter's conv_in may read more


def one_or_all(values: Sequence[int]) -> tuple[int, ...]:
  """One value where a level's values are all the same."""
  return tuple(values[:1]) if len(set(values)) == 1 else tuple(values)


def counts(o: Options, name: str, default: int, levels: int) -> list[int]:
  """A number a level; blocks of one level must share it."""
  value = o.get(name, default)
  numbers = unet.per_level(o, value, levels, name)
  if any(not isinstance(number, int) for number in numbers):
    raise o.refuse(f"{name}={value} differs within a level; one number a level is supported")
  return numbers


def mirrored_counts(o: Options, name: str, numbers: Sequence[int]) -> None:
  """Refuses a decoder's own numbers unless they mirror the encoder's."""
  given = o.get(name, None)
  if given is not None and unet.per_level(o, given, len(numbers), name) != list(numbers)[::-1]:
    raise o.refuse(f"{name}={given} is not supported; {list(numbers)[::-1]}, the mirror, is")


def mid_layers(o: Options, name: str, default: int) -> int:
  """A number of layers in the middle, where there is one transformer."""
  return unet.per_level(o, o.get(name, default) or default, 1, name)[0]


def read(o: Options) -> UNetConfig:
  """Our configuration of a video U-Net's config.json."""
  attends = unet.attending(o, *DOWN)
  levels = len(attends)
  depths = counts(o, "transformer_layers_per_block", 1, levels)
  fields = unet.common(o, attends) | unet.in_and_out(o)
  unet.mirrored(o, attends, *UP)
  mirrored_counts(o, "reverse_transformer_layers_per_block", depths)
  heads = counts(o, "motion_num_attention_heads", 8, levels)
  layers = counts(o, "temporal_transformer_layers_per_block", 1, levels)
  mirrored_counts(o, "reverse_temporal_transformer_layers_per_block", layers)
  o.only("mid_block_layers", 1)
  o.ignore("reverse_motion_num_attention_heads")  # diffusers does not read it
  fields["mid_depth"] = mid_layers(o, "transformer_layers_per_mid_block", depths[-1])
  in_middle = mid_layers(o, "temporal_transformer_layers_per_mid_block", 1)
  temporal = MotionConfig(
    num_heads=one_or_all(heads),
    num_layers=one_or_all(layers),
    mid_layers=in_middle if o.get("use_motion_mid_block", True) else 0,
    max_frames=o.get("motion_max_seq_length", 32),
  )
  return UNetConfig(temporal=temporal, **fields)


def every_level(config: UNetConfig) -> tuple[list[int], list[int]]:
  """Heads and layers of the motion modules, a level each."""
  levels = len(config.channels)
  heads, layers = zip(*(config.temporal.at(level, levels) for level in range(levels)), strict=True)
  return list(heads), list(layers)


def write(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  values = unet.write(config)
  attends = [depth > 0 for depth in config.transformer_depth]
  heads, layers = every_level(config)
  for name in ("only_cross_attention", "num_class_embeds"):
    del values[name]
  return values | {
    "num_attention_heads": values.pop("attention_head_dim"),
    "down_block_types": [DOWN[attend] for attend in attends],
    "up_block_types": [UP[attend] for attend in reversed(attends)],
    "transformer_layers_per_block": [depth or 1 for depth in config.transformer_depth],
    "transformer_layers_per_mid_block": config.mid_depth,
    "temporal_transformer_layers_per_block": layers,
    "temporal_transformer_layers_per_mid_block": config.temporal.mid_layers or 1,
    "motion_num_attention_heads": heads,
    "motion_max_seq_length": config.temporal.max_frames,
    "use_motion_mid_block": config.temporal.mid_layers > 0,
  }


def has_public_form(config: UNetConfig) -> bool:
  """Whether diffusers' UNetMotionModel can be this network."""
  depth = config.transformer_depth[-1] or config.mid_depth
  image = dataclasses.replace(config, temporal=Temporal(), mid_depth=depth)
  return (
    has_motion(config)
    and config.mid_depth > 0
    and unet.has_public_form(image)
    and not config.cross_only
    and not config.num_classes
  )


def has_motion(config: UNetConfig) -> bool:
  """Whether what crosses frames is motion modules and nothing else."""
  return type(config.temporal) is MotionConfig and not config.temporal.noise_level


def read_adapter(o: Options) -> UNetConfig:
  """The video U-Net that an adapter is a part of.

  An adapter does not say what is around it: Stable Diffusion 1's layers at the adapter's widths are
  assumed. For another image model, take `temporal` and `concat_channels` alone.
  """
  channels = tuple(o.get("block_out_channels", (320, 640, 1280, 1280)))
  levels = len(channels)
  o.only("motion_mid_block_layers_per_block", 1)
  in_middle = mid_layers(o, "motion_transformer_layers_per_mid_block", 1)
  temporal = MotionConfig(
    num_heads=one_or_all(counts(o, "motion_num_attention_heads", 8, levels)),
    num_layers=one_or_all(counts(o, "motion_transformer_layers_per_block", 1, levels)),
    mid_layers=in_middle if o.get("use_motion_mid_block", True) else 0,
    max_frames=o.get("motion_max_seq_length", 32),
  )
  read_channels = o.get("conv_in_channels", None) or LATENTS
  if read_channels < LATENTS:
    raise o.refuse(f"conv_in_channels={read_channels} is below the {LATENTS} of the latents")
  return UNetConfig(
    channels=channels,
    num_res_blocks=tuple(counts(o, "motion_layers_per_block", 2, levels)),
    transformer_depth=(1,) * (levels - 1) + (0,),
    norm_groups=o.get("motion_norm_num_groups", 32),
    concat_channels=read_channels - LATENTS,
    temporal=temporal,
  )


def write_adapter(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `read_adapter`, as far as an adapter says it."""
  heads, layers = every_level(config)
  read_channels = config.in_channels + config.concat_channels
  return {
    "block_out_channels": list(config.channels),
    "motion_layers_per_block": list(config.num_res_blocks),
    "motion_transformer_layers_per_block": layers,
    "motion_transformer_layers_per_mid_block": config.temporal.mid_layers or 1,
    "motion_num_attention_heads": heads,
    "motion_norm_num_groups": config.norm_groups,
    "motion_max_seq_length": config.temporal.max_frames,
    "use_motion_mid_block": config.temporal.mid_layers > 0,
    "conv_in_channels": read_channels if config.concat_channels else None,
  }


def in_adapter(config: UNetConfig, path: str) -> bool:
  """What an adapter holds: the motion modules, and conv_in where it reads more than the latents."""
  parts = ("temporal_", "conv_in/", "concat_in/") if config.concat_channels else ("temporal_",)
  return path.startswith(parts)


ARCHITECTURE = Architecture(
  name="UNetMotionModel",
  library="diffusers",
  config_type=UNetConfig,
  read=read,
  write=write,
  module=UNet,
  inputs=unet.example,
  rules=lambda config: MOTION + unet.UNET,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
ADAPTER = dataclasses.replace(
  ARCHITECTURE,
  name="MotionAdapter",
  read=read_adapter,
  write=write_adapter,
  fits=lambda config: has_motion(config) and config.in_channels == LATENTS,
  selects=in_adapter,
)
