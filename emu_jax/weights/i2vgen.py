"""I2VGenXLUNet: picture and text to video."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.i2vgen import I2VGen, I2VGenConfig
from emu_jax.typing import Conditions
from emu_jax.weights import modelscope
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

LATENTS = 4  # channels of the picture's latents that diffusers' class reads, whatever it is told
PICTURE: tuple[Rule, ...] = (
  *((f"picture_{i}", f"image_latents_proj_in.{n}") for i, n in enumerate((0, 2, 4))),
  *((f"layout_{i}", f"image_latents_context_embedding.{n}") for i, n in enumerate((0, 3, 5))),
  ("temporal_picture", "image_latents_temporal_encoder"),
  ("clip/in", "context_embedding.0"),
  ("clip/out", "context_embedding.2"),
  ("micro/in", "fps_embedding.0"),
  ("micro/out", "fps_embedding.2"),
)


def read(o: Options) -> I2VGenConfig:
  """Our configuration of I2VGen-XL's config.json."""
  fields = modelscope.shape(o)
  o.only("in_channels", LATENTS)
  o.only("out_channels", LATENTS)
  o.ignore("num_attention_heads")  # diffusers does not read it
  return I2VGenConfig(
    context_dims=(o.get("cross_attention_dim", 1024),), micro_dim=fields["channels"][0], **fields
  )


def write(config: I2VGenConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return modelscope.write_shape(config) | {
    "in_channels": LATENTS,
    "out_channels": LATENTS,
    "cross_attention_dim": config.context_dims[0],
  }


def has_public_form(config: I2VGenConfig) -> bool:
  """Whether diffusers' class can be this network."""
  return (
    modelscope.is_shaped(config)
    and (config.in_channels, config.out_channels, config.concat_channels) == (LATENTS,) * 3
    and (config.num_micro, config.micro_dim) == (1, config.channels[0])
  )


def example(config: I2VGenConfig) -> tuple:
  """What `init` takes: one frame of the smallest size, a prompt and a picture."""
  x_t = jnp.zeros((1, 1, config.downsample, config.downsample, config.in_channels))
  texts = tuple(jnp.zeros((1, length, config.context_dims[0])) for length in (2, 1))
  concat = jnp.zeros((*x_t.shape[:-1], config.concat_channels))
  return x_t, jnp.zeros(1), Conditions(texts, concat=concat, vectors={"micro": jnp.zeros((1, 1))})


ARCHITECTURE = Architecture(
  name="I2VGenXLUNet",
  library="diffusers",
  config_type=I2VGenConfig,
  read=read,
  write=write,
  module=I2VGen,
  inputs=example,
  rules=lambda config: PICTURE + modelscope.MODELSCOPE,
  levels=lambda config: len(config.channels),
  fits=has_public_form,
)
