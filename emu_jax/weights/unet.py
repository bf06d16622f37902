"""UNet2DConditionModel: Stable Diffusion 1, 2 and XL, InstructPix2Pix, inpainting, x4 upscaler.

Input channels beyond those of the latents are our `concat_channels`: their kernel is the second
part of the public `conv_in`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from emu_jax.models.temporal import Temporal
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Part, Rule

REFINER = (2560, 256)  # width and features a number; the base model's are (2816, 256)
SDXL_TIME_IDS = 6  # original size, crop corner, target size: height and width each

TRANSFORMER: tuple[Rule, ...] = (  # one layer of ours: BasicTransformerBlock
  ("layer_{i}", "transformer_blocks.{i}"),
  ("self_attention", "attn1"),
  ("second_attention", "attn2"),
  ("q", "to_q"),
  ("k", "to_k"),
  ("v", "to_v"),
  ("feed_forward/in", "ff.net.0.proj"),
  ("feed_forward/out", "ff.net.2"),
  ("out", "to_out.0"),
  ("proj_in", "proj_in"),
  ("proj_out", "proj_out"),
  ("norm/group", "norm"),
)
RES_BLOCK: tuple[Rule, ...] = (
  ("norm_{i}/group", "norm{i}"),
  ("norm_{i}", "norm{i}"),
  ("conv_{i}", "conv{i}"),
  ("time", "time_emb_proj"),
  ("skip", "conv_shortcut"),
)
ENCODER: tuple[Rule, ...] = (
  ("conv_in/kernel", "conv_in.weight", Part(0, axis=1)),
  ("concat_in/kernel", "conv_in.weight", Part(1, axis=1)),
  ("conv_in", "conv_in"),
  ("time/in", "time_embedding.linear_1"),
  ("time/out", "time_embedding.linear_2"),
  ("class", "class_embedding"),
  ("micro/in", "add_embedding.linear_1"),
  ("micro/out", "add_embedding.linear_2"),
  ("down_{l}_res_{i}", "down_blocks.{l}.resnets.{i}"),
  ("down_{l}_attention_{i}", "down_blocks.{l}.attentions.{i}"),
  ("down_{l}_sample", "down_blocks.{l}.downsamplers.0.conv"),
  ("mid_res_{i}", "mid_block.resnets.{i}"),
  ("mid_attention", "mid_block.attentions.0"),
)
DECODER: tuple[Rule, ...] = (
  ("up_{l}_res_{i}", "up_blocks.{-l}.resnets.{i}"),
  ("up_{l}_attention_{i}", "up_blocks.{-l}.attentions.{i}"),
  ("up_{l}_sample", "up_blocks.{-l}.upsamplers.0.conv"),
  ("norm_out/group", "conv_norm_out"),
  ("conv_out", "conv_out"),
)
UNET = ENCODER + DECODER + TRANSFORMER + RES_BLOCK


def per_level(o: Options, value: Any, levels: int, name: str) -> list:
  """An option that holds one value for all levels, or one a level."""
  values = list(value) if isinstance(value, Sequence) else [value] * levels
  if len(values) != levels:
    raise o.refuse(f"{name}={value} has {len(values)} values for {levels} levels")
  return values


def attending(
  o: Options, plain: str = "DownBlock2D", attended: str = "CrossAttnDownBlock2D"
) -> list[bool]:
  """Which levels have transformers, finest first, from `down_block_types`."""
  levels = len(o.get("block_out_channels"))
  kinds = o.get("down_block_types", [attended] * (levels - 1) + [plain])
  if len(kinds) != levels or any(kind not in (plain, attended) for kind in kinds):
    raise o.refuse(
      f"down_block_types={list(kinds)} is not supported; {levels} of {attended}, {plain} are"
    )
  return [kind == attended for kind in kinds]


def mirrored(
  o: Options,
  attends: Sequence[bool],
  plain: str = "UpBlock2D",
  attended: str = "CrossAttnUpBlock2D",
) -> None:
  """Refuses an `up_block_types` that does not mirror the encoder."""
  wanted = [attended if attend else plain for attend in reversed(attends)]
  given = list(o.get("up_block_types", wanted))
  if given != wanted:
    raise o.refuse(f"up_block_types={given} is not supported; {wanted}, the encoder's mirror, is")


def heads(o: Options, channels: Sequence[int]) -> tuple[int, int]:
  """(num_heads, head_dim), one of them 0. Diffusers calls the *number* of heads head_dim."""
  # Whichever the file has; a library that has the second too takes it first.
  usual, other = o.get("attention_head_dim", None) or 8, o.get("num_attention_heads", None)
  name, given = ("num_attention_heads", other) if other else ("attention_head_dim", usual)
  numbers = per_level(o, given, len(channels), name)
  if any(not isinstance(n, int) or n < 1 for n in numbers):
    raise o.refuse(f"{name}={given} is no number of heads, or one a level; 1 or more are supported")
  if len(set(numbers)) == 1:
    return numbers[0], 0
  dims = {C // n for C, n in zip(channels, numbers, strict=True)}
  if len(dims) > 1:
    raise o.refuse(
      f"{name}={given} heads of {list(channels)} channels have several sizes, {sorted(dims)}; one "
      "number or one size for all levels is supported"
    )
  return 0, dims.pop()


def common(o: Options, attends: Sequence[bool]) -> dict[str, Any]:
  """What a U-Net, its ControlNet and its video models share; `attends` are `attending(o, …)`."""
  channels = tuple(o.get("block_out_channels", (320, 640, 1280, 1280)))
  levels = len(channels)
  o.only("flip_sin_to_cos", True)
  o.only("freq_shift", 0)
  o.only("downsample_padding", 1)
  o.only("mid_block_scale_factor", 1)
  o.only("act_fn", "silu")
  o.only("norm_eps", 1e-5)
  o.only("resnet_time_scale_shift", "default")
  o.only("encoder_hid_dim", None)
  o.only("encoder_hid_dim_type", None)
  o.only("class_embed_type", None)
  o.only("mid_block_type", "UNetMidBlock2DCrossAttn")
  o.ignore("upcast_attention", "addition_embed_type_num_heads", "dropout")
  layers = o.get("transformer_layers_per_block", 1)
  depths = per_level(o, layers, levels, "transformer_layers_per_block")
  if any(a and n == 0 for a, n in zip(attends, depths, strict=True)):
    raise o.refuse(
      f"transformer_layers_per_block={layers} has an attention block of 0 layers; 1 or more are "
      "supported"
    )
  cross_only = per_level(o, o.get("only_cross_attention", False), levels, "only_cross_attention")
  num_heads, head_dim = heads(o, channels)
  micro_dim, pooled, num_micro = o.get("addition_time_embed_dim", None), 0, 0
  width = o.get("projection_class_embeddings_input_dim", None)
  if o.only("addition_embed_type", None, "text_time") == "text_time":
    if (width, micro_dim) == REFINER:
      raise o.refuse(
        f"projection_class_embeddings_input_dim={width} with addition_time_embed_dim={micro_dim} "
        "is SDXL's refiner, which reads 5 numbers and a score; choose the base model"
      )
    num_micro, pooled = SDXL_TIME_IDS, width - SDXL_TIME_IDS * micro_dim
    if pooled < 1:
      raise o.refuse(
        f"projection_class_embeddings_input_dim={width} leaves no room for a text embedding beside "
        f"{SDXL_TIME_IDS} numbers of addition_time_embed_dim={micro_dim} features"
      )
  return {
    "channels": channels,
    "num_res_blocks": tuple(per_level(o, o.get("layers_per_block", 2), levels, "layers_per_block")),
    "transformer_depth": tuple(n if a else 0 for n, a in zip(depths, attends, strict=True)),
    "mid_depth": depths[-1],
    "num_heads": num_heads,
    "head_dim": head_dim,
    "context_dims": (o.get("cross_attention_dim", 1280),),
    "cross_only": tuple(cross_only) if any(cross_only) else (),
    "linear_projection": o.get("use_linear_projection", False),
    "norm_groups": o.get("norm_num_groups", 32),
    "num_classes": o.get("num_class_embeds", None) or 0,
    "num_micro": num_micro,
    "micro_dim": micro_dim or 256,
    "pooled_dim": pooled,
  }


def in_and_out(o: Options) -> dict[str, int]:
  """Channels in and out: what a U-Net reads beyond those that it returns stands beside x_t."""
  read_channels, out_channels = o.get("in_channels", 4), o.get("out_channels", 4)
  if read_channels < out_channels:
    raise o.refuse(f"in_channels={read_channels} is below out_channels={out_channels}")
  return {
    "in_channels": out_channels,
    "out_channels": out_channels,
    "concat_channels": read_channels - out_channels,
  }


def read(o: Options) -> UNetConfig:
  """Our configuration of an image U-Net's config.json."""
  attends = attending(o)
  fields = common(o, attends) | in_and_out(o)
  mirrored(o, attends)
  for name in ("center_input_sample", "dual_cross_attention", "class_embeddings_concat"):
    o.only(name, False)
  o.only("resnet_skip_time_act", False)
  o.only("resnet_out_scale_factor", 1.0)
  o.only("time_embedding_type", "positional")
  o.only("attention_type", "default")
  o.only("conv_in_kernel", 3)
  o.only("conv_out_kernel", 3)
  o.ignore("mid_block_only_cross_attention")  # diffusers' middle block does not read it
  return UNetConfig(**fields)


def write_common(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `common`."""
  levels = len(config.channels)
  # Diffusers has depths at levels without attention too, and reads the middle's from the last one.
  depths = [depth or 1 for depth in config.transformer_depth[:-1]] + [config.mid_depth]
  numbers = [C // config.head_dim for C in config.channels] if config.head_dim else None
  values = {
    "block_out_channels": list(config.channels),
    "layers_per_block": list(config.num_res_blocks),
    "down_block_types": [
      "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth
    ],
    "transformer_layers_per_block": depths,
    "attention_head_dim": numbers or config.num_heads,
    "cross_attention_dim": config.context_dims[0],
    "only_cross_attention": list(config.cross_only or (False,) * levels),
    "use_linear_projection": config.linear_projection,
    "norm_num_groups": config.norm_groups,
    "num_class_embeds": config.num_classes or None,
  }
  if config.pooled_dim:
    width = config.pooled_dim + SDXL_TIME_IDS * config.micro_dim
    values |= {
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": config.micro_dim,
      "projection_class_embeddings_input_dim": width,
    }
  return values


def write(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  ups = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in config.transformer_depth]
  return write_common(config) | {
    "in_channels": config.in_channels + config.concat_channels,
    "out_channels": config.out_channels,
    "up_block_types": ups[::-1],
  }


def has_public_form(config: UNetConfig) -> bool:
  """Whether diffusers' classes can be this network: one text, SDXL's conditions or none."""
  last = config.transformer_depth[-1]
  return (
    type(config.temporal) is Temporal
    and config.in_channels == config.out_channels
    and len(config.context_dims) == 1
    and set(config.layer_contexts) == {0}
    and config.num_tasks == 0
    and config.res_epsilon == 1e-5
    and config.mid_depth > 0
    and last in (0, config.mid_depth)
    and (config.num_micro, config.pooled_dim > 0) in ((0, False), (SDXL_TIME_IDS, True))
  )


def example(config: UNetConfig) -> tuple:
  """What `init` takes: one frame of the smallest size, with every condition asked for."""
  shape = (1, 1, config.downsample, config.downsample, config.in_channels)
  return jnp.zeros(shape), jnp.zeros(1), config.blank(shape)


ARCHITECTURE = Architecture(
  name="UNet2DConditionModel",
  library="diffusers",
  config_type=UNetConfig,
  read=read,
  write=write,
  module=UNet,
  inputs=example,
  rules=lambda config: UNET,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
