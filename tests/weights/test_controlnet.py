"""ControlNets against diffusers' ControlNetModel, alone and through a U-Net."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.controlnet import ControlNet, ControlNetConfig
from emu_jax.typing import Conditions
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  assert_same_output,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

SMALL = {
  "block_out_channels": (16, 32),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
  "attention_head_dim": 2,
  "conditioning_embedding_out_channels": (4, 8),
}
OTHER = {
  "conditioning_channels": 2,
  "conditioning_embedding_out_channels": (4, 6, 8),
  "controlnet_conditioning_channel_order": "bgr",
  "attention_head_dim": (2, 4),
  "use_linear_projection": True,
  "layers_per_block": 2,
}
XL = {
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
  "transformer_layers_per_block": (1, 2),
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 8 * 6 + 20,
}
CONFIGS = {  # and how each is called
  "SD 1": (SMALL, {}),
  "bgr": (SMALL | OTHER, {"guess": True}),
  "SD XL": (SMALL | XL, {"scale": 0.7}),
  "pooled": (SMALL | {"global_pool_conditions": True}, {"guess": True, "scale": 0.7}),
}


def control_inputs(config, frames, batch=2, size=(4, 6), tokens=3):
  """The same random inputs for both sides: PyTorch's keywords, a frame an image, and ours."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
  x = draw(batch, frames, *size, config.in_channels)
  pixels = (factor * side for side in size)
  hint = rng.random((batch, frames, *pixels, config.conditioning_channels), np.float32)
  text, t = draw(batch, tokens, config.cross_attention_dim), np.array([3, 871][:batch])
  vectors, every_frame = {}, lambda a: torch.tensor(a).repeat_interleave(frames, 0)
  theirs = {
    "sample": as_images(x),
    "timestep": every_frame(t),
    "encoder_hidden_states": every_frame(text),
    "controlnet_cond": as_images(hint),
  }
  if config.addition_embed_type:
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    vectors["pooled"] = draw(batch, pooled)
    vectors["micro"] = rng.integers(0, 1024, (batch, 6)).astype(np.float32)
    names = {"text_embeds": "pooled", "time_ids": "micro"}
    theirs["added_cond_kwargs"] = {name: every_frame(vectors[n]) for name, n in names.items()}
  vectors = {name: jnp.asarray(value) for name, value in vectors.items()}
  conditions = Conditions((jnp.asarray(text),), vectors=vectors)
  return theirs, (jnp.asarray(x), jnp.asarray(t, jnp.float32), conditions), jnp.asarray(hint)


def as_images(video):
  """[B, T, H, W, C] to PyTorch's [B T, C, H, W]."""
  return torch.tensor(np.asarray(video).reshape(-1, *video.shape[2:]).transpose(0, 3, 1, 2))


def flat(features):
  """All features as one row an image, PyTorch's or ours."""
  if torch.is_tensor(features[0]):
    return torch.cat([f.permute(0, 2, 3, 1).flatten(1) for f in features], dim=1)
  return jnp.concatenate([f.reshape(f.shape[0] * f.shape[1], -1) for f in features], axis=1)


def row(features):
  """PyTorch's `flat` features as ours."""
  return jnp.asarray(features.detach() if torch.is_tensor(features) else features)


@pytest.mark.parametrize("name", CONFIGS)
def test_controlnet_output_gradients_and_round_trip(name, tmp_path):
  options, call_options = CONFIGS[name]
  model = drawn_anew(diffusers.ControlNetModel(**options))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours, hint = control_inputs(model.config, frames=1)
  down, middle = model(
    **theirs,
    conditioning_scale=call_options.get("scale", 1.0),
    guess_mode=call_options.get("guess", False),
    return_dict=False,
  )
  apply = lambda params: flat(loaded.module.apply({"params": params}, *ours, hint, **call_options))
  compared = {"layout": row, "gradients": name == next(iter(CONFIGS))}
  expected = flat([*down, middle])
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, **compared)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.ControlNetModel)


def test_controlnet_through_the_unet_frame_by_frame(tmp_path):
  net = drawn_anew(diffusers.ControlNetModel(**SMALL))
  options = {name: value for name, value in SMALL.items() if "embedding_out" not in name}
  ups = ("UpBlock2D", "CrossAttnUpBlock2D")
  model = drawn_anew(diffusers.UNet2DConditionModel(**options, up_block_types=ups), seed=1)
  ours = {"net": reopened(net, tmp_path / "net"), "unet": reopened(model, tmp_path / "unet")}
  theirs, (x_t, t, conditions), hint = control_inputs(net.config, frames=3)

  def apply(params):
    control = ours["net"].module.apply({"params": params["net"]}, x_t, t, conditions, hint)
    controlled = dataclasses.replace(conditions, control=control)
    return ours["unet"].module.apply({"params": params["unet"]}, x_t, t, controlled)

  with torch.no_grad():
    down, middle = net(**theirs, return_dict=False)
    del theirs["controlnet_cond"]
    expected = model(
      **theirs, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    assert (expected - model(**theirs).sample).abs().max() > 0.1, "the ControlNet says nothing"
  expected = expected.permute(0, 2, 3, 1).reshape(x_t.shape)
  program = jax.jit(apply)
  assert_same_output(program({name: one.params for name, one in ours.items()}), expected)


TINY = {
  "in_channels": 2,
  "out_channels": 2,
  "channels": (8, 8),
  "num_res_blocks": (1, 1),
  "transformer_depth": (0, 1),
  "num_heads": 2,
  "context_dims": (6,),
  "norm_groups": 4,
}


def test_a_fresh_controlnet_says_nothing(key):
  net = ControlNet(ControlNetConfig(**TINY, hint_widths=(4, 4)))
  keys = jax.random.split(key, 3)
  x_t, text = jax.random.normal(keys[0], (2, 3, 4, 6, 2)), jax.random.normal(keys[1], (2, 3, 6))
  hint = jax.random.uniform(keys[2], (2, 3, 8, 12, 3))
  inputs = x_t, jnp.array([3.0, 871.0]), Conditions((text,)), hint
  fresh = jax.jit(lambda k: net.init_with_output(k, *inputs)[0])
  control = fresh(jax.random.key(1, impl="rbg"))
  assert [c.shape[2:] for c in control] == [(4, 6, 8), (4, 6, 8), (2, 3, 8), (2, 3, 8), (2, 3, 8)]
  assert not any(c.any() for c in control)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8, 3), (2, 3, 8, 12, 1)])
def test_a_hint_of_another_shape_is_refused(key, shape):
  net = ControlNet(ControlNetConfig(**TINY, hint_widths=(4, 4)))
  inputs = jnp.zeros((2, 3, 4, 6, 2)), jnp.zeros(2), Conditions((jnp.zeros((2, 3, 6)),))
  with pytest.raises(ValueError, match=r"asks for \(2, 3, 8, 12, 3\)"):
    jax.eval_shape(net.init, key, *inputs, jnp.zeros(shape))
