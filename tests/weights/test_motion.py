"""AnimateDiff's U-Net and motion adapters against diffusers' UNetMotionModel and MotionAdapter."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax import weights
from emu_jax.errors import InputError
from emu_jax.models.motion import MotionConfig, frame_positions
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.systems.animatediff import animated
from emu_jax.trees import merge, partition
from emu_jax.typing import Conditions
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  assert_same_output,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)
from tests.weights.unet_inputs import unet_inputs

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
SIZE = (4, 6)  # of latents


@pytest.mark.parametrize("name", CONFIGS)
def test_motion_unet_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.UNetMotionModel(**CONFIGS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = unet_inputs(model.config, SIZE, frames=5, text_of_frames=True)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  first = name == next(iter(CONFIGS))
  expected = model(**theirs).sample
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, gradients=first)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.UNetMotionModel)


IMAGE = {  # what SMALL moves
  "block_out_channels": (16, 32),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
  "attention_head_dim": 2,
}
ADAPTER = {
  "block_out_channels": (16, 32),
  "motion_layers_per_block": 1,
  "motion_norm_num_groups": 8,
  "motion_num_attention_heads": 4,
}
ADAPTERS = {
  "AnimateDiff": ADAPTER,
  "PIA": ADAPTER | {"conv_in_channels": 9, "motion_max_seq_length": 5},
  "without middle": ADAPTER | {"use_motion_mid_block": False, "motion_num_attention_heads": (4, 2)},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_round_trip_and_the_video_unet_that_it_makes(name, tmp_path):
  image = drawn_anew(diffusers.UNet2DConditionModel(**IMAGE))
  adapter = drawn_anew(diffusers.MotionAdapter(**ADAPTERS[name]), seed=1)
  ours = reopened(adapter, tmp_path / "adapter")
  assert_round_trip(ours, tmp_path / "adapter", tmp_path / "again", diffusers.MotionAdapter)
  config = json.loads((tmp_path / "again" / "config.json").read_text())
  assert config["conv_in_channels"] == adapter.config.conv_in_channels

  of_images = reopened(image, tmp_path / "image")
  video = UNet(animated(of_images.module.config, ours.module.config))
  modules = {tree: leaves for tree, leaves in ours.params.items() if tree != "conv_in"}
  params = merge(of_images.params, modules)
  model = diffusers.UNetMotionModel.from_unet2d(image, adapter).eval()
  theirs, inputs = unet_inputs(model.config, SIZE, frames=5, text_of_frames=True)
  apply = lambda params: video.apply({"params": params}, *inputs)
  with torch.no_grad():
    expected = channels_last(model(**theirs).sample)
  assert_same_output(jax.jit(apply)(params), expected)

  # What was trained leaves as an adapter again: the part alone tells which class is meant.
  motion = partition(params, (("temporal_*", "motion"), ("*", "image")))["motion"]
  if name != "PIA":
    weights.save(tmp_path / "trained", video.config, motion)
    assert diffusers.MotionAdapter.from_pretrained(tmp_path / "trained").dtype == torch.float32


def test_an_adapter_of_another_family_is_refused(tmp_path):
  image = reopened(diffusers.UNet2DConditionModel(**IMAGE), tmp_path / "image")
  other = diffusers.MotionAdapter(**ADAPTER | {"block_out_channels": (16, 16)})
  with pytest.raises(InputError, match=r"channels=\(16, 32\), the motion adapter \(16, 16\)"):
    animated(image.module.config, reopened(other, tmp_path / "other").module.config)


@pytest.mark.parametrize(
  ("option", "line"),
  [
    ({"mid_block_layers": 2}, "mid_block_layers=2 is not supported"),
    ({"temporal_transformer_layers_per_block": [[1], [1]]}, "differs within a level"),
    ({"reverse_temporal_transformer_layers_per_block": [1, 2]}, "the mirror, is"),
    ({"motion_num_attention_heads": [4, 4, 4]}, "3 values for 2 levels"),
    ({"time_cond_proj_dim": 8}, "time_cond_proj_dim=8 is not supported"),
  ],
)
def test_motion_options_that_we_do_not_build_are_refused(option, line, tmp_path):
  values = {"_class_name": "UNetMotionModel", **SMALL, **option}
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(InputError, match=line):
    weights.load(tmp_path)


TINY = UNetConfig(
  in_channels=2,
  out_channels=2,
  channels=(8,),
  num_res_blocks=(1,),
  transformer_depth=(1,),
  num_heads=2,
  context_dims=(6,),
  norm_groups=4,
  temporal=MotionConfig(num_heads=(2,), max_frames=4),
)


def test_at_init_a_clip_with_motion_modules_is_its_frames(key):
  image, video = UNet(TINY.image()), UNet(TINY)
  keys = jax.random.split(key)
  x, text = jax.random.normal(keys[0], (2, 3, 4, 6, 2)), jax.random.normal(keys[1], (2, 3, 6))
  t, conditions = jnp.array([3.0, 871.0]), Conditions((text,))
  start = jax.jit(lambda k: video.init_with_output(k, x, t, conditions))
  clip, variables = start(jax.random.key(1, impl="rbg"))
  parts = partition(variables["params"], (("temporal_*", "motion"), ("*", "image")))
  one = jax.jit(lambda p, frame: image.apply({"params": p}, frame, t, conditions))
  frames = [one(parts["image"], x[:, i : i + 1]) for i in range(3)]
  assert float(jnp.std(clip)) > 0.05
  np.testing.assert_allclose(clip, jnp.concatenate(frames, axis=1), atol=1e-5)


def test_stored_positions_begin_as_sinusoids():
  theirs = diffusers.MotionAdapter(**ADAPTER).down_blocks[1].motion_modules[0]
  ours = frame_positions(jax.random.key(0), (32, 32))
  np.testing.assert_allclose(ours, theirs.transformer_blocks[0].pos_embed.pe[0], atol=1e-5)


def test_more_frames_than_positions_are_refused(key):
  inputs = jnp.zeros((1, 5, 4, 4, 2)), jnp.zeros(1), Conditions((jnp.zeros((1, 3, 6)),))
  with pytest.raises(ValueError, match="a clip of 5 frames, but positions are stored for 4"):
    jax.eval_shape(UNet(TINY).init, key, *inputs)


def test_numbers_that_fit_no_level_are_refused(key):
  three = dataclasses.replace(TINY, temporal=MotionConfig(num_heads=(2, 2, 2)))
  inputs = jnp.zeros((1, 3, 4, 4, 2)), jnp.zeros(1), Conditions((jnp.zeros((1, 3, 6)),))
  with pytest.raises(ValueError, match="3 values for 1 levels"):
    jax.eval_shape(UNet(three).init, key, *inputs)
