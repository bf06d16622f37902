"""CLIPTextModel, CLIPTextModelWithProjection and T5EncoderModel of transformers.

Which of CLIP's states a system reads is no part of a public file: choose it once it is loaded,
with `dataclasses.replace(config, penultimate=True, final_norm=False)`; the parameters stay.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from emu_jax.models.text import ClipText, ClipTextConfig, T5Config, T5Encoder
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

# Configs until 2023 say 2 for the end token, which is none: the highest id is meant (transformers
# keeps to it, pull request 24773).
HIGHEST_ID = 2
# How PyTorch trains, generates and reports, and what a tokenizer does: not what the network is.
UNUSED = (
  "attention_dropout",
  "bos_token_id",
  "chunk_size_feed_forward",
  "dropout",
  "gradient_checkpointing",
  "initializer_factor",
  "initializer_range",
  "output_attentions",
  "output_hidden_states",
  "pad_token_id",
  "return_dict",
  "use_return_dict",
)
CLIP_LAYER: tuple[Rule, ...] = (
  ("norm_{i}", "layer_norm{i}"),
  ("attention/q", "self_attn.q_proj"),
  ("attention/k", "self_attn.k_proj"),
  ("attention/v", "self_attn.v_proj"),
  ("attention/out", "self_attn.out_proj"),
  ("mlp_in", "mlp.fc1"),
  ("mlp_out", "mlp.fc2"),
)
CLIP: tuple[Rule, ...] = (
  ("token", "text_model.embeddings.token_embedding"),
  ("position", "text_model.embeddings.position_embedding.weight"),
  ("layer_{i}", "text_model.encoder.layers.{i}"),
  ("norm", "text_model.final_layer_norm"),
  ("projection", "text_projection"),
  *CLIP_LAYER,
)
# transformers 5 writes CLIPTextModel without the prefix that earlier versions need, and reads both.
UNPREFIXED = (r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1.")

# What a CLIPTextModel cut out of CLIP may still have, and transformers skips; positions are 0, 1,
# 2, … in files until 2023.
POSITIONS, SCALE = "*embeddings.position_ids", "logit_scale"
BESIDE_TEXT = (POSITIONS, SCALE, "vision_model.*", "visual_projection.*")

T5: tuple[Rule, ...] = (
  ("token", "shared"),
  ("relative_bias", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
  ("norm", "encoder.final_layer_norm"),
  ("layer_{i}/norm_1", "encoder.block.{i}.layer.0.layer_norm"),
  ("layer_{i}/attention", "encoder.block.{i}.layer.0.SelfAttention"),
  ("layer_{i}/norm_2", "encoder.block.{i}.layer.1.layer_norm"),
  ("layer_{i}/mlp_gate", "encoder.block.{i}.layer.1.DenseReluDense.wi_0"),
  ("layer_{i}/mlp_in", "encoder.block.{i}.layer.1.DenseReluDense.wi_1"),
  ("layer_{i}/mlp_out", "encoder.block.{i}.layer.1.DenseReluDense.wo"),
  ("q", "q"),
  ("k", "k"),
  ("v", "v"),
  ("out", "o"),
)


def read_clip(o: Options) -> ClipTextConfig:
  """Our configuration of a CLIP text encoder's config.json, without a projection."""
  o.only("layer_norm_eps", 1e-5)
  o.ignore("projection_dim", *UNUSED)  # the class without a projection has the option too
  end_id = o.get("eos_token_id", 49407)
  return ClipTextConfig(
    vocab_size=o.get("vocab_size", 49408),
    width=o.get("hidden_size", 512),
    max_length=o.get("max_position_embeddings", 77),
    num_layers=o.get("num_hidden_layers", 12),
    num_heads=o.get("num_attention_heads", 8),
    mlp_width=o.get("intermediate_size", 2048),
    activation=o.only("hidden_act", "quick_gelu", "gelu"),
    end_id=None if end_id == HIGHEST_ID else end_id,
  )


def read_projected(o: Options) -> ClipTextConfig:
  """The same with a projection of the pooled output."""
  return dataclasses.replace(read_clip(o), projection_dim=o.get("projection_dim", 512))


def write_clip(config: ClipTextConfig) -> dict[str, Any]:
  """The inverse of `read_clip` and `read_projected`."""
  projected = {"projection_dim": config.projection_dim} if config.projection_dim else {}
  return projected | {
    "model_type": "clip_text_model",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "max_position_embeddings": config.max_length,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_width,
    "hidden_act": config.activation,
    "layer_norm_eps": 1e-5,
    "eos_token_id": HIGHEST_ID if config.end_id is None else config.end_id,
  }


def read_t5(o: Options) -> T5Config:
  """Our configuration of a T5 1.1 or Flan-T5 encoder's config.json."""
  o.only("layer_norm_epsilon", 1e-6)
  # The default is T5 1.0's, which we do not build: whoever leaves it out means that one.
  if o.get("feed_forward_proj", "relu") != "gated-gelu":
    raise o.refuse("feed_forward_proj is not 'gated-gelu'; T5 1.1 and Flan-T5 have that")
  o.only("dense_act_fn", "gelu_new")
  o.only("is_gated_act", True)
  o.only("is_decoder", False)
  o.ignore(
    *UNUSED,
    "classifier_dropout",
    "decoder_start_token_id",
    "dropout_rate",
    "eos_token_id",
    "is_encoder_decoder",  # of the checkpoint that the encoder was cut out of
    "n_positions",  # the positions are relative
    "num_decoder_layers",
    "output_past",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "use_cache",
  )
  return T5Config(
    vocab_size=o.get("vocab_size", 32128),
    width=o.get("d_model", 512),
    num_layers=o.get("num_layers", 6),
    num_heads=o.get("num_heads", 8),
    head_dim=o.get("d_kv", 64),
    mlp_width=o.get("d_ff", 2048),
    num_buckets=o.get("relative_attention_num_buckets", 32),
    max_distance=o.get("relative_attention_max_distance", 128),
  )


def write_t5(config: T5Config) -> dict[str, Any]:
  """The inverse of `read_t5`."""
  return {
    "model_type": "t5",
    "is_encoder_decoder": False,
    "use_cache": False,
    "vocab_size": config.vocab_size,
    "d_model": config.width,
    "num_layers": config.num_layers,
    "num_heads": config.num_heads,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_width,
    "relative_attention_num_buckets": config.num_buckets,
    "relative_attention_max_distance": config.max_distance,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
  }


def example(config: ClipTextConfig | T5Config) -> tuple:
  """What `init` takes: one prompt of one token."""
  return jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)


CLIP_TEXT = Architecture(
  name="CLIPTextModel",
  library="transformers",
  config_type=ClipTextConfig,
  read=read_clip,
  write=write_clip,
  module=ClipText,
  inputs=example,
  rules=lambda config: CLIP,
  fits=lambda config: config.projection_dim == 0,
  ignored=(*BESIDE_TEXT, "text_projection.*"),
  renamed=(UNPREFIXED,),
)
CLIP_TEXT_PROJECTED = dataclasses.replace(
  CLIP_TEXT,
  ignored=BESIDE_TEXT,
  name="CLIPTextModelWithProjection",
  read=read_projected,
  fits=lambda config: config.projection_dim > 0,
)
T5_ENCODER = Architecture(
  name="T5EncoderModel",
  library="transformers",
  config_type=T5Config,
  read=read_t5,
  write=write_t5,
  module=T5Encoder,
  inputs=example,
  rules=lambda config: T5,
  ignored=("decoder.*", "lm_head.*"),
  renamed=((r"^encoder\.embed_tokens\.", "shared."),),  # another name of the same tensor
)
# Checkpoints of the whole of T5, of which only the encoder is read; it is written as an encoder.
T5_WHOLE = dataclasses.replace(
  T5_ENCODER, name="T5ForConditionalGeneration", fits=lambda config: False
)
