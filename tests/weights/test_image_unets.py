"""Image U-Nets against diffusers' UNet2DConditionModel."""

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

TWO_LEVELS = {
  "block_out_channels": (32, 64),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
}
XL = {
  "block_out_channels": (32, 64, 96),
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "norm_num_groups": 8,
  "cross_attention_dim": 40,
  "transformer_layers_per_block": (1, 2, 3),
  "attention_head_dim": (2, 4, 6),
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 8 * 6 + 20,
}
UPSCALER = {
  "in_channels": 7,
  "num_class_embeds": 10,
  "only_cross_attention": (True, False),
  "use_linear_projection": True,
  "attention_head_dim": 4,
}
CONFIGS = {
  "SD 1": TWO_LEVELS | {"attention_head_dim": 4},
  "SD 2": TWO_LEVELS | {"attention_head_dim": (2, 4), "use_linear_projection": True},
  "SD XL": XL,
  "InstructPix2Pix": TWO_LEVELS | {"in_channels": 8, "attention_head_dim": 4},
  "inpainting": TWO_LEVELS | {"in_channels": 9, "attention_head_dim": 4},
  "x4 upscaler": TWO_LEVELS | UPSCALER,
}


def inputs(config, seed=0, batch=2, size=(16, 24), tokens=5):
  """The same random inputs for both sides: PyTorch's keywords and our arguments."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x, text = draw(batch, config.in_channels, *size), draw(batch, tokens, config.cross_attention_dim)
  t = np.array([3, 871][:batch])
  theirs = {
    "sample": torch.tensor(x),
    "timestep": torch.tensor(t),
    "encoder_hidden_states": torch.tensor(text),
  }
  vectors = {}
  if config.num_class_embeds:
    vectors["class"] = rng.integers(0, config.num_class_embeds, batch)
    theirs["class_labels"] = torch.tensor(vectors["class"])
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
def test_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.UNet2DConditionModel(**CONFIGS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = inputs(model.config)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  assert_same_function(loaded, tmp_path / "theirs", model, apply, model(**theirs).sample)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.UNet2DConditionModel)
