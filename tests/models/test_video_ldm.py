"""Laws of Video LDM's temporal layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.typing import Conditions

VIDEO = UNetConfig(
  channels=(16,),
  num_res_blocks=(1,),
  transformer_depth=(2,),
  num_heads=0,
  head_dim=8,
  context_dims=(12,),
  norm_groups=8,
  num_micro=3,
  micro_dim=4,
  temporal=VideoLdmConfig(),
)
T = 3


def draw(params, seed):
  """Every tensor drawn anew, so that no zero or one of the initialisation hides a fault."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    structure,
    [
      jnp.asarray(rng.standard_normal(a.shape) / max(a.size / a.shape[-1], 1) ** 0.5, jnp.float32)
      for a in leaves
    ],
  )


def temporal(path):
  return any(part.startswith("temporal_") for part in path)


def chosen(spatial, other):
  """Spatial parameters of one tree, temporal ones of another."""
  spatial, other = flatten_dict(spatial), flatten_dict(other)
  return unflatten_dict({k: (other if temporal(k) else spatial)[k] for k in spatial})


def with_factor(params, value):
  flat = flatten_dict(params)
  return unflatten_dict(
    {k: jnp.full_like(v, value) if k[-1] == "factor" else v for k, v in flat.items()}
  )


@pytest.fixture(scope="module")
def model():
  """The video model as a function of parameters, its parameters at the start, the image model."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, T, 4, 6, 4))
  text = jax.random.normal(keys[1], (2, 5, 12))
  t, micro = jnp.array([-0.7, 1.5]), jnp.array([[6.0, 127.0, 0.02], [3.0, 40.0, 0.1]])
  conditions = Conditions((text,), vectors={"micro": micro})
  init = jax.jit(UNet(VIDEO).init)(keys[2], x, t, conditions)["params"]
  apply = lambda params, x: UNet(VIDEO).apply({"params": params}, x, t, conditions)
  video = jax.jit(apply)

  def image(params, x):
    flat = {k: v for k, v in flatten_dict(params).items() if not temporal(k)}
    each = lambda a: jnp.repeat(a, T, axis=0)
    conditions = Conditions((each(text),), vectors={"micro": each(micro)})
    frames = x.reshape(2 * T, 1, *x.shape[2:])
    net = dataclasses.replace(VIDEO.image(), concat_channels=0)
    out = UNet(net).apply({"params": unflatten_dict(flat)}, frames, each(t), conditions)
    return out.reshape(x.shape)

  return video, init, jax.jit(image), x


def test_a_fresh_video_model_is_its_image_model_frame_by_frame(model):
  video, init, image, x = model
  params = chosen(draw(init, 1), init)
  frames = image(params, x)
  assert float(jnp.std(frames)) > 0.1
  np.testing.assert_allclose(video(params, x), frames, atol=1e-5)


def test_with_alpha_1_the_image_model_is_restored_whatever_the_temporal_layers_are(model):
  video, init, image, x = model
  spatial = draw(init, 1)
  off = [with_factor(chosen(spatial, draw(init, seed)), 100.0) for seed in (2, 3)]
  outputs = [video(params, x) for params in off]
  np.testing.assert_array_equal(*outputs)
  np.testing.assert_allclose(outputs[0], image(spatial, x), atol=1e-5)
  on = with_factor(off[0], 0.5)
  assert float(jnp.abs(video(on, x) - outputs[0]).max()) > 0.1


def test_frames_see_one_another_and_know_their_places(model):
  video, init, _, x = model
  params = draw(init, 4)
  output = video(params, x)
  other = video(params, x.at[0, 0].add(1.0))
  assert float(jnp.abs(other - output)[0, 1:].max()) > 1e-3
  np.testing.assert_array_equal(other[1], output[1])
  reversed_ = video(params, x[:, ::-1])[:, ::-1]
  assert float(jnp.abs(reversed_ - output).max()) > 1e-3


def test_what_stands_at_zero_at_the_start_learns(model):
  video, init, _, x = model
  loss = lambda params: jnp.square(video.__wrapped__(params, x)).sum()
  gradient = jax.jit(jax.grad(loss))
  flat = flatten_dict(gradient(init))
  last = {k: v for k, v in flat.items() if temporal(k) and k[-2] in ("out", "conv_2")}
  assert len(last) > 20
  for path, gradient in last.items():
    assert float(jnp.abs(gradient).max()) > 0, path


def test_a_kernel_without_a_middle_is_refused():
  with pytest.raises(ValueError, match="kernel=2 has no middle"):
    VideoLdmConfig(kernel=2)
