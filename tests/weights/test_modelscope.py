"""ModelScope's and I2VGen-XL's U-Nets against UNet3DConditionModel and I2VGenXLUNet."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax import weights
from emu_jax.errors import InputError
from emu_jax.models.i2vgen import averaged
from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.trees import partition
from emu_jax.typing import Conditions
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)
from tests.weights.unet_inputs import unet_inputs

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

SMALL = {
  "block_out_channels": (16, 32),
  "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
  "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
  "attention_head_dim": 8,
}
LAST = {  # attention at the coarsest level only; fewer latents
  "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
  "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
  "in_channels": 3,
  "out_channels": 3,
  "attention_head_dim": 4,
}
CONFIGS = {
  "text-to-video": SMALL,
  "two blocks": SMALL | {"layers_per_block": 2, "norm_num_groups": 4, "in_channels": 6},
  "last": SMALL | LAST,
}
SIZE = (4, 6)  # of latents


@pytest.mark.parametrize("name", CONFIGS)
def test_modelscope_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.UNet3DConditionModel(**CONFIGS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = unet_inputs(model.config, SIZE, frames=5)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  first = name == next(iter(CONFIGS))
  expected = model(**theirs).sample
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, gradients=first)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.UNet3DConditionModel)


PICTURES = {
  "I2VGen-XL": SMALL,
  "two blocks": SMALL | {"layers_per_block": 2, "norm_num_groups": 4, "num_attention_heads": 2},
  "last": SMALL | {name: LAST[name] for name in LAST if "channels" not in name},
}


@pytest.mark.parametrize("name", PICTURES)
def test_i2vgen_output_gradients_and_round_trip(name, tmp_path):
  model = drawn_anew(diffusers.I2VGenXLUNet(**PICTURES[name]))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, (x_t, t, conditions) = unet_inputs(model.config, SIZE, frames=5)
  rng = np.random.default_rng(2)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  latents, picture = draw(2, 4, 5, 4, 6), draw(2, 1, model.config.cross_attention_dim)
  fps = np.array([8, 16])
  expected = model(
    **theirs,
    fps=torch.tensor(fps),
    image_latents=torch.tensor(latents),
    image_embeddings=torch.tensor(picture),
  ).sample
  image_conditions = Conditions(
    (*conditions.texts, jnp.asarray(picture)),
    concat=channels_last(latents),
    vectors={"micro": jnp.asarray(fps, jnp.float32)[:, None]},
  )
  apply = lambda params: loaded.module.apply({"params": params}, x_t, t, image_conditions)
  first = name == next(iter(PICTURES))
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, gradients=first)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.I2VGenXLUNet)


@pytest.mark.parametrize("size", [(4, 6), (32, 40), (64, 45)])
def test_windows_average_as_pytorch_does(size):
  x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
  expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), 32)
  np.testing.assert_allclose(averaged(channels_last(x), 32), channels_last(expected), atol=1e-6)


@pytest.mark.parametrize(
  ("option", "line"),
  [
    ({"attention_head_dim": [8, 8]}, r"attention_head_dim=\[8, 8\] or .* is not supported"),
    ({"num_attention_heads": 4}, "num_attention_heads=4 is not supported"),
    ({"time_cond_proj_dim": 8}, "time_cond_proj_dim=8 is not supported"),
  ],
)
def test_modelscope_options_that_we_do_not_build_are_refused(option, line, tmp_path):
  values = {"_class_name": "UNet3DConditionModel", **SMALL, **option}
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(InputError, match=line):
    weights.load(tmp_path)


def test_at_init_a_clip_of_modelscope_is_its_frames(key):
  config = UNetConfig(
    in_channels=2,
    out_channels=2,
    channels=(8,),
    num_res_blocks=(1,),
    transformer_depth=(1,),
    num_heads=2,
    context_dims=(6,),
    norm_groups=4,
    temporal=ModelScopeConfig(in_heads=2),
  )
  keys = jax.random.split(key)
  x, text = jax.random.normal(keys[0], (2, 3, 4, 6, 2)), jax.random.normal(keys[1], (2, 3, 6))
  t, conditions = jnp.array([3.0, 871.0]), Conditions((text,))
  video, image = UNet(config), UNet(config.image())
  start = jax.jit(lambda k: video.init_with_output(k, x, t, conditions))
  clip, variables = start(jax.random.key(1, impl="rbg"))
  parts = partition(variables["params"], (("temporal_*", "motion"), ("*", "image")))
  one = jax.jit(lambda p, frame: image.apply({"params": p}, frame, t, conditions))
  frames = [one(parts["image"], x[:, i : i + 1]) for i in range(3)]
  assert float(jnp.std(clip)) > 0.05
  np.testing.assert_allclose(clip, jnp.concatenate(frames, axis=1), atol=1e-5)
