"""AutoencoderKL (Stable Diffusion 1, 2, XL and 3, FLUX) and AutoencoderKLTemporalDecoder (SVD)."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import FRAMES_3D, Rule

IMAGE: tuple[Rule, ...] = (
  ("encoder", "encoder"),
  ("decoder", "decoder"),
  ("quant", "quant_conv"),
  ("post_quant", "post_quant_conv"),
  ("down_{l}_res_{i}", "down_blocks.{l}.resnets.{i}"),
  ("down_{l}_sample/conv", "down_blocks.{l}.downsamplers.0.conv"),
  ("mid_res_{i}", "mid_block.resnets.{i}"),
  ("mid_attention", "mid_block.attentions.0"),
  ("up_{l}_res_{i}", "up_blocks.{-l}.resnets.{i}"),
  ("up_{l}_sample", "up_blocks.{-l}.upsamplers.0.conv"),
  ("conv_in", "conv_in"),
  ("conv_out", "conv_out"),
  ("norm_out/group", "conv_norm_out"),
  ("norm_{i}/group", "norm{i}"),
  ("conv_{i}", "conv{i}"),
  ("skip", "conv_shortcut"),
  ("norm/group", "group_norm"),
  ("q", "to_q"),
  ("k", "to_k"),
  ("v", "to_v"),
  ("out", "to_out.0"),
)
_UP, _MID = "decoder.up_blocks.{-l}.resnets.{i}", "decoder.mid_block.resnets.{i}"
VIDEO: tuple[Rule, ...] = (
  ("decoder/up_{l}_res_{i}", f"{_UP}.spatial_res_block"),
  ("decoder/mid_res_{i}", f"{_MID}.spatial_res_block"),
  ("decoder/temporal_up_{l}_res_{i}/mix", f"{_UP}.time_mixer.mix_factor"),
  ("decoder/temporal_mid_res_{i}/mix", f"{_MID}.time_mixer.mix_factor"),
  ("decoder/temporal_up_{l}_res_{i}", f"{_UP}.temporal_res_block", FRAMES_3D),
  ("decoder/temporal_mid_res_{i}", f"{_MID}.temporal_res_block", FRAMES_3D),
  ("decoder/temporal_out", "decoder.time_conv_out", FRAMES_3D),
  ("norm_{i}/group", "norm{i}"),
  ("norm_{i}", "norm{i}"),
  *IMAGE,
)
# Files from before diffusers 0.17 name the middle's attention otherwise.
RENAMED = (
  (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
  (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
  (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
  (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)


def common(o: Options) -> dict[str, Any]:
  """What an autoencoder and one whose decoder sees time share: the encoder, mostly."""
  channels = tuple(o.get("block_out_channels", (64,)))
  o.only("in_channels", 3)
  o.only("out_channels", 3)
  down = list(o.get("down_block_types", ["DownEncoderBlock2D"]))
  if down != ["DownEncoderBlock2D"] * len(channels):
    raise o.refuse(
      f"down_block_types={down} is not supported; {len(channels)} of DownEncoderBlock2D are"
    )
  o.ignore("force_upcast")  # a precision of PyTorch's pipelines; ours is `dtype`
  return {
    "channels": channels,
    "num_res_blocks": o.get("layers_per_block", 1),
    "z_channels": o.get("latent_channels", 4),
    "latent_scale": float(o.get("scaling_factor", 0.18215)),
  }


def read(o: Options) -> AutoencoderConfig:
  """Our configuration of an AutoencoderKL's config.json."""
  fields = common(o)
  levels = len(fields["channels"])
  up = list(o.get("up_block_types", ["UpDecoderBlock2D"]))
  if up != ["UpDecoderBlock2D"] * levels:
    raise o.refuse(f"up_block_types={up} is not supported; {levels} of UpDecoderBlock2D are")
  o.only("act_fn", "silu")
  # Statistics a channel, of which a pipeline would have to know.
  o.only("latents_mean", None)
  o.only("latents_std", None)
  return AutoencoderConfig(
    norm_groups=o.get("norm_num_groups", 32),
    quant_conv=o.get("use_quant_conv", True),
    post_quant_conv=o.get("use_post_quant_conv", True),
    mid_attention=o.get("mid_block_add_attention", True),
    latent_shift=float(o.get("shift_factor", None) or 0.0),
    **fields,
  )


def write_common(config: Any) -> dict[str, Any]:
  """The inverse of `common`."""
  return {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": list(config.channels),
    "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
    "layers_per_block": config.num_res_blocks,
    "latent_channels": config.z_channels,
    "scaling_factor": config.latent_scale,
  }


def write(config: AutoencoderConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return write_common(config) | {
    "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
    "norm_num_groups": config.norm_groups,
    "use_quant_conv": config.quant_conv,
    "use_post_quant_conv": config.post_quant_conv,
    "mid_block_add_attention": config.mid_attention,
    "shift_factor": config.latent_shift or None,
  }


def has_public_form(config: AutoencoderConfig) -> bool:
  """Whether diffusers' class can be this network: what is ours alone is off."""
  ours = config.fourier_features or config.patch > 1 or not config.norm_out
  return not (ours or config.temporal_decoder)


# What diffusers' class with a temporal decoder has no options for. With one residual block a level
# its middle has an attention that it never calls, with three a block that it never calls.
_VIDEO_FIXED = {
  "num_res_blocks": 2,
  "norm_groups": 32,
  "quant_conv": True,
  "post_quant_conv": False,
  "mid_attention": True,
  "temporal_decoder": True,
  "latent_shift": 0.0,
}


def read_video(o: Options) -> AutoencoderConfig:
  """Our configuration of an AutoencoderKLTemporalDecoder's config.json."""
  fields = common(o)
  if fields["num_res_blocks"] != 2:
    raise o.refuse(
      f"layers_per_block={fields['num_res_blocks']} is not supported; 2 is, since other numbers "
      "make a middle with parts that are never used. Choose another checkpoint"
    )
  return AutoencoderConfig(**fields | _VIDEO_FIXED)


def has_video_form(config: AutoencoderConfig) -> bool:
  """Whether diffusers' class with a temporal decoder can be this network."""
  fixed = all(getattr(config, name) == value for name, value in _VIDEO_FIXED.items())
  return fixed and config.fourier_features == 0 and config.patch == 1 and config.norm_out


def example(config: AutoencoderConfig) -> tuple:
  """What `init` takes: a frame of the smallest size."""
  return (jnp.zeros((1, 1, config.downsample, config.downsample, 3)),)


ARCHITECTURE = Architecture(
  name="AutoencoderKL",
  library="diffusers",
  config_type=AutoencoderConfig,
  read=read,
  write=write,
  module=Autoencoder,
  inputs=example,
  rules=lambda config: IMAGE,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
  renamed=RENAMED,
)

TEMPORAL_DECODER = Architecture(
  name="AutoencoderKLTemporalDecoder",
  library="diffusers",
  config_type=AutoencoderConfig,
  read=read_video,
  write=write_common,
  module=Autoencoder,
  inputs=example,
  rules=lambda config: VIDEO,
  levels=lambda config: len(config.channels),
  fits=has_video_form,
  renamed=RENAMED,
)
