"""Published sizes of video U-Nets, adapters and ControlNets: every tensor's name and shape."""

import pytest

from emu_jax.weights.model import described
from emu_jax.weights.table import tensor_shape
from tests.weights.oracle import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

SD_1 = {"cross_attention_dim": 768}
XL_ADAPTER = {
  "block_out_channels": (320, 640, 1280),
  "use_motion_mid_block": False,
}
XL_CONTROL = {
  "block_out_channels": (320, 640, 1280),
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "transformer_layers_per_block": (1, 2, 10),
  "attention_head_dim": (5, 10, 20),
  "cross_attention_dim": 2048,
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 256,
  "projection_class_embeddings_input_dim": 2816,
}
PUBLISHED = {
  "AnimateDiff 1.5": (diffusers.UNetMotionModel, SD_1),
  "adapter 1.5": (diffusers.MotionAdapter, {}),
  "adapter XL": (diffusers.MotionAdapter, XL_ADAPTER),
  "ControlNet 1.5": (diffusers.ControlNetModel, SD_1),
  "ControlNet XL": (diffusers.ControlNetModel, XL_CONTROL),
  "text-to-video-ms-1.7b": (diffusers.UNet3DConditionModel, {}),
  "i2vgen-xl": (diffusers.I2VGenXLUNet, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_a_published_size_have_their_names_and_shapes(name, tmp_path):
  kind, options = PUBLISHED[name]
  with torch.device("meta"):
    model = kind(**options)
  model.save_config(tmp_path)
  architecture, config = described(tmp_path)
  groups = architecture.groups(config)
  ours = {public: tensor_shape(group) for public, group in groups.items()}
  assert ours == {public: tuple(tensor.shape) for public, tensor in model.state_dict().items()}
