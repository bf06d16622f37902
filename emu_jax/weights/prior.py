"""PriorTransformer of diffusers: the priors of Karlo and Kandinsky."""

from typing import Any

import jax.numpy as jnp

from emu_jax.models.prior import ADDED, Prior, PriorConfig
from emu_jax.typing import Conditions
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.options import Options
from emu_jax.weights.table import Rule

PRIOR: tuple[Rule, ...] = (
  ("text", "encoder_hidden_states_proj"),
  ("pooled", "embedding_proj"),
  ("time/in", "time_embedding.linear_1"),
  ("time/out", "time_embedding.linear_2"),
  ("in", "proj_in"),
  ("query", "prd_embedding", "d -> 1 1 d"),
  ("position", "positional_embedding", "n d -> 1 n d"),
  ("layer_{i}/norm_1", "transformer_blocks.{i}.norm1"),
  ("layer_{i}/norm_2", "transformer_blocks.{i}.norm3"),  # the second is of attention to a text
  ("layer_{i}/self_attention/q", "transformer_blocks.{i}.attn1.to_q"),
  ("layer_{i}/self_attention/k", "transformer_blocks.{i}.attn1.to_k"),
  ("layer_{i}/self_attention/v", "transformer_blocks.{i}.attn1.to_v"),
  ("layer_{i}/self_attention/out", "transformer_blocks.{i}.attn1.to_out.0"),
  ("layer_{i}/feed_forward/in", "transformer_blocks.{i}.ff.net.0.proj"),
  ("layer_{i}/feed_forward/out", "transformer_blocks.{i}.ff.net.2"),
  ("norm", "norm_out"),
  ("out", "proj_to_clip_embeddings"),
  ("mean", "clip_mean", "d -> 1 d"),
  ("std", "clip_std", "d -> 1 d"),
)


def read(o: Options) -> PriorConfig:
  """Our configuration of a prior's config.json."""
  config = PriorConfig(
    embedding_dim=o.get("embedding_dim", 768),
    num_tokens=o.get("num_embeddings", 77),
    num_layers=o.get("num_layers", 20),
    num_heads=o.get("num_attention_heads", 32),
    head_dim=o.get("attention_head_dim", 64),
  )
  o.only("additional_embeddings", ADDED)
  o.only("time_embed_act_fn", "silu")
  o.only("norm_in_type", None)
  o.only("embedding_proj_norm_type", None)
  o.only("encoder_hid_proj_type", "linear")
  o.only("added_emb_type", "prd")
  o.only("time_embed_dim", None, config.width)
  o.only("embedding_proj_dim", None, config.embedding_dim)
  o.only("clip_embed_dim", None, config.embedding_dim)
  o.ignore("dropout")
  return config


def write(config: PriorConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    "embedding_dim": config.embedding_dim,
    "num_embeddings": config.num_tokens,
    "additional_embeddings": ADDED,
    "num_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "attention_head_dim": config.head_dim,
  }


def example(config: PriorConfig) -> tuple:
  """What `init` takes: one embedding and its text."""
  text = jnp.zeros((1, config.num_tokens, config.embedding_dim))
  vectors = {"pooled": jnp.zeros((1, config.embedding_dim))}
  x = jnp.zeros((1, 1, 1, 1, config.embedding_dim))
  return x, jnp.zeros(1), Conditions((text,), vectors=vectors)


ARCHITECTURE = Architecture(
  name="PriorTransformer",
  library="diffusers",
  config_type=PriorConfig,
  read=read,
  write=write,
  module=Prior,
  inputs=example,
  rules=lambda config: PRIOR,
)
