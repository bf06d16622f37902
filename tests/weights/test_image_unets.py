"""Image U-Nets against diffusers' UNet2DConditionModel."""

import json

import pytest

from emu_jax.errors import InputError
from emu_jax.weights.model import described
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  drawn_anew,
  reopened,
)
from tests.weights.unet_inputs import unet_inputs

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


@pytest.mark.parametrize("name", CONFIGS)
def test_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.UNet2DConditionModel(**CONFIGS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = unet_inputs(model.config, (16, 24), tokens=5)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  compared = {"gradients": name in ("SD 1", "SD XL")}
  expected = model(**theirs).sample
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, **compared)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.UNet2DConditionModel)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"attention_head_dim": (2, 3)}, r"attention_head_dim=\[2, 3\] heads of \[32, 64\] channels"),
    (
      {"num_attention_heads": (2, 2, 2)},
      r"num_attention_heads=\[2, 2, 2\] has 3 values for 2 levels",
    ),
    ({"num_attention_heads": (4, 4.5)}, r"num_attention_heads=\[4, 4.5\] is no number of heads"),
    (
      {"transformer_layers_per_block": (0, 1)},
      r"transformer_layers_per_block=\[0, 1\] has an attention block of 0 layers; 1 or more",
    ),
    (
      {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
      },
      "input_dim=2560 with addition_time_embed_dim=256 is SDXL's refiner",
    ),
  ],
)
def test_what_is_refused_is_named_as_the_file_has_it(changes, says, tmp_path):
  values = {"_class_name": "UNet2DConditionModel"} | TWO_LEVELS | changes
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(InputError, match=says):
    described(tmp_path)
