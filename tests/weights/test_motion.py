"""AnimateDiff's U-Net and motion adapters against diffusers' UNetMotionModel and MotionAdapter."""

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.typing import Conditions
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

SMALL = {
  "block_out_channels": (16, 32),
  "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
  "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
  "num_attention_heads": 2,
  "motion_num_attention_heads": 4,
}
DEEP = {  # numbers that differ from level to level
  "num_attention_heads": (2, 4),
  "use_linear_projection": True,
  "motion_num_attention_heads": (4, 2),
  "temporal_transformer_layers_per_block": (2, 1),
  "temporal_transformer_layers_per_mid_block": 2,
  "transformer_layers_per_mid_block": 2,
  "motion_max_seq_length": 5,
  "layers_per_block": (1, 2),
}
XL = {
  "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
  "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
  "transformer_layers_per_block": (1, 2),
  "use_linear_projection": True,
  "use_motion_mid_block": False,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 8 * 6 + 20,
}
CONFIGS = {
  "SD 1": SMALL,
  "deep": SMALL | DEEP,
  "SD XL": SMALL | XL,
  "PIA": SMALL | {"in_channels": 9},
}


def motion_inputs(config, seed=0, batch=2, frames=5, size=(4, 6), tokens=3):
  """The same random inputs for both sides: PyTorch's keywords and our arguments."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x = draw(batch, config.in_channels, frames, *size)
  text, t = draw(batch, tokens, config.cross_attention_dim), np.array([3, 871][:batch])
  theirs = {
    "sample": torch.tensor(x),
    "timestep": torch.tensor(t),
    "encoder_hidden_states": torch.tensor(text).repeat_interleave(frames, 0),
  }
  vectors = {}
  if config.addition_embed_type:
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    vectors["pooled"] = draw(batch, pooled)
    vectors["micro"] = rng.integers(0, 1024, (batch, 6)).astype(np.float32)
    theirs["added_cond_kwargs"] = {
      "text_embeds": torch.tensor(vectors["pooled"]),
      "time_ids": torch.tensor(vectors["micro"]),
    }
  video = channels_last(x)
  n = config.out_channels
  concat = video[..., n:] if config.in_channels > n else None
  vectors = {name: jnp.asarray(value) for name, value in vectors.items()}
  conditions = Conditions((jnp.asarray(text),), concat=concat, vectors=vectors)
  return theirs, (video[..., :n], jnp.asarray(t, jnp.float32), conditions)


@pytest.mark.parametrize("name", CONFIGS)
def test_motion_unet_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.UNetMotionModel(**CONFIGS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = motion_inputs(model.config)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  assert_same_function(loaded, tmp_path / "theirs", model, apply, model(**theirs).sample)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.UNetMotionModel)
