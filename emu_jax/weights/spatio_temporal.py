"""UNetSpatioTemporalConditionModel: Stable Video Diffusion's U-Net.

Of its input channels the first are x_t's and the others our `concat_channels`.
"""

from typing import Any

from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule
from emu_jax.weights.unet import (
  DECODER,
  ENCODER,
  RES_BLOCK,
  TRANSFORMER,
  attending,
  example,
  heads,
  mirrored,
  per_level,
)

NORM_GROUPS = 32  # of every SVD; no option
EPSILON = 1e-6
KINDS = {
  side: (f"{side}BlockSpatioTemporal", f"CrossAttn{side}BlockSpatioTemporal")
  for side in ("Down", "Up")
}
FRAMES = "t h i o -> o i t h 1"  # our convolution over frames of flattened pixels

_BLOCKS = (
  ("down_{l}_res_{i}", "down_blocks.{l}.resnets.{i}"),
  ("mid_res_{i}", "mid_block.resnets.{i}"),
  ("up_{l}_res_{i}", "up_blocks.{-l}.resnets.{i}"),
)
TEMPORAL: tuple[Rule, ...] = (
  *((ours, f"{theirs}.spatial_res_block") for ours, theirs in _BLOCKS),
  *((f"temporal_{ours}/factor", f"{theirs}.time_mixer.mix_factor") for ours, theirs in _BLOCKS),
  *(
    (f"temporal_{ours}/conv_{{n}}", f"{theirs}.temporal_res_block.conv{{n}}", FRAMES)
    for ours, theirs in _BLOCKS
  ),
  *((f"temporal_{ours}", f"{theirs}.temporal_res_block") for ours, theirs in _BLOCKS),
  ("temporal_layers/factor", "time_mixer.mix_factor"),
  ("temporal_layers/position/in", "time_pos_embed.linear_1"),
  ("temporal_layers/position/out", "time_pos_embed.linear_2"),
  ("temporal_layers/layer_{i}", "temporal_transformer_blocks.{i}"),
  ("norm_in", "norm_in"),
  ("feed_forward_in/in", "ff_in.net.0.proj"),
  ("feed_forward_in/out", "ff_in.net.2"),
  ("layer", ""),
)
SVD = TEMPORAL + ENCODER + DECODER + TRANSFORMER + RES_BLOCK


def read(o: Options) -> UNetConfig:
  """Our configuration of an SVD's config.json."""
  channels = tuple(o.get("block_out_channels"))
  levels = len(channels)
  o.get("num_attention_heads")  # has another default than image U-Nets
  num_heads, head_dim = heads(o, channels)
  attends = attending(o, *KINDS["Down"])
  mirrored(o, attends, *KINDS["Up"])
  depths = per_level(o, o.get("transformer_layers_per_block", 1), levels, "layers")
  dims = set(per_level(o, o.get("cross_attention_dim", 1024), levels, "cross_attention_dim"))
  if len(dims) > 1 or not all(isinstance(n, int) for n in depths):
    raise o.refuse(
      f"cross_attention_dim={sorted(dims)} or transformer_layers_per_block={depths} is not "
      "supported; one width for all levels and one depth a level are"
    )
  micro_dim = o.get("addition_time_embed_dim", 256)
  width = o.get("projection_class_embeddings_input_dim", 768)
  if width % micro_dim:
    raise o.refuse(
      f"projection_class_embeddings_input_dim={width} is not a multiple of "
      f"addition_time_embed_dim={micro_dim}, the features of one number"
    )
  read_channels, out_channels = o.get("in_channels", 8), o.get("out_channels", 4)
  if read_channels < out_channels:
    raise o.refuse(f"in_channels={read_channels} is below out_channels={out_channels}")
  return UNetConfig(
    in_channels=out_channels,
    out_channels=out_channels,
    concat_channels=read_channels - out_channels,
    channels=channels,
    num_res_blocks=tuple(per_level(o, o.get("layers_per_block", 2), levels, "layers_per_block")),
    transformer_depth=tuple(n if a else 0 for n, a in zip(depths, attends, strict=True)),
    mid_depth=depths[-1],
    num_heads=num_heads,
    head_dim=head_dim,
    context_dims=tuple(dims),
    linear_projection=True,
    norm_groups=NORM_GROUPS,
    res_epsilon=EPSILON,
    num_micro=width // micro_dim,
    micro_dim=micro_dim,
    temporal=VideoLdmConfig(num_frames=o.get("num_frames", 25)),
  )


def write(config: UNetConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  depth = config.transformer_depth
  return {
    "in_channels": config.in_channels + config.concat_channels,
    "out_channels": config.out_channels,
    "block_out_channels": list(config.channels),
    "layers_per_block": list(config.num_res_blocks),
    "down_block_types": [KINDS["Down"][n > 0] for n in depth],
    "up_block_types": [KINDS["Up"][n > 0] for n in depth[::-1]],
    # Diffusers has depths at levels without attention too, and the middle's is the last one.
    "transformer_layers_per_block": [n or 1 for n in depth[:-1]] + [config.mid_depth],
    "num_attention_heads": [config.heads(C)[0] for C in config.channels],
    "cross_attention_dim": config.context_dims[0],
    "addition_time_embed_dim": config.micro_dim,
    "projection_class_embeddings_input_dim": config.num_micro * config.micro_dim,
    "num_frames": config.temporal.num_frames,
  }


def has_public_form(config: UNetConfig) -> bool:
  """Whether diffusers' class can be this network."""
  return (
    type(config.temporal) is VideoLdmConfig
    and (config.temporal.kernel, config.temporal.noise_level) == (3, False)
    and (config.norm_groups, config.res_epsilon) == (NORM_GROUPS, EPSILON)
    and config.in_channels == config.out_channels
    and config.linear_projection
    and not any(config.cross_only)
    and len(config.context_dims) == 1
    and set(config.layer_contexts) == {0}
    and config.mid_depth > 0
    and config.transformer_depth[-1] in (0, config.mid_depth)
    and config.num_micro > 0
    and config.pooled_dim == config.num_tasks == config.num_classes == 0
  )


ARCHITECTURE = Architecture(
  name="UNetSpatioTemporalConditionModel",
  library="diffusers",
  config_type=UNetConfig,
  read=read,
  write=write,
  module=UNet,
  inputs=example,
  rules=lambda config: SVD,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
