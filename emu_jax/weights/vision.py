"""CLIPVisionModelWithProjection of transformers."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.vision import ClipVision, ClipVisionConfig
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule
from emu_jax.weights.text import CLIP_LAYER, POSITIONS, SCALE, UNUSED

VISION: tuple[Rule, ...] = (
  ("class", "vision_model.embeddings.class_embedding"),
  ("patch", "vision_model.embeddings.patch_embedding"),
  ("position", "vision_model.embeddings.position_embedding.weight"),
  ("norm_in", "vision_model.pre_layrnorm"),  # so spelled
  ("layer_{i}", "vision_model.encoder.layers.{i}"),
  ("norm_out", "vision_model.post_layernorm"),
  ("projection", "visual_projection"),
  *CLIP_LAYER,
)


def read(o: Options) -> ClipVisionConfig:
  """Our configuration of a CLIP image encoder's config.json."""
  o.only("layer_norm_eps", 1e-5)
  o.only("num_channels", 3)
  o.ignore(*UNUSED)
  return ClipVisionConfig(
    width=o.get("hidden_size", 768),
    num_layers=o.get("num_hidden_layers", 12),
    num_heads=o.get("num_attention_heads", 12),
    mlp_width=o.get("intermediate_size", 3072),
    image_size=o.get("image_size", 224),
    patch=o.get("patch_size", 32),
    activation=o.only("hidden_act", "quick_gelu", "gelu"),
    projection_dim=o.get("projection_dim", 512),
  )


def write(config: ClipVisionConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    "model_type": "clip_vision_model",
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_width,
    "image_size": config.image_size,
    "patch_size": config.patch,
    "num_channels": 3,
    "hidden_act": config.activation,
    "layer_norm_eps": 1e-5,
    "projection_dim": config.projection_dim,
  }


ARCHITECTURE = Architecture(
  name="CLIPVisionModelWithProjection",
  library="transformers",
  config_type=ClipVisionConfig,
  read=read,
  write=write,
  module=ClipVision,
  inputs=lambda config: (jnp.zeros((1, config.image_size, config.image_size, 3)),),
  rules=lambda config: VISION,
  ignored=(POSITIONS, SCALE, "text_model.*", "text_projection.*"),  # which transformers skips too
)
