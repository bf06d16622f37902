"""The blocks of a traced loss against the loss itself, and the memory of a few made by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.planning import blocks, flops, piecewise
from emu_jax.train.planning.blocks import Array, Call
from emu_jax.train.planning.compiling import Measured
from emu_jax.train.planning.programs import Training
from tests.tiny import MODEL


def experiment(stage):
  unet = dataclasses.replace(MODEL.image.unet, remat=True)
  model = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, unet=unet))
  return Experiment(model, stage, data=DataConfig(batch_size=2))


@functools.cache
def step(stage, encoded=False):
  return Training(experiment(stage), make_mesh(jax.devices()[:1]), encoded)


@functools.cache
def of_step(stage, encoded=False):
  return step(stage, encoded).calls()


# Interpolation encodes its 37 frames 8 at a time, in a loop of four rounds and a rest.
@pytest.mark.parametrize(
  ("stage", "encoded"), [("image", False), ("interpolation", False), ("interpolation", True)]
)
def test_blocks_hold_all_the_arithmetic_of_the_step(stage, encoded):
  """Which parameters and inputs have gradients is found here by following the equations, there by
  JAX's own differentiation."""
  total = 0
  for call in of_step(stage, encoded):
    shapes = [
      [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
      for arrays in (call.inputs, call.smooth_outputs)
    ]
    total += call.times * flops.count(piecewise.block_step(call, None), *shapes)
  assert total == step(stage, encoded).flops()


def test_a_step_on_encoded_records_has_no_encoders():
  calls = of_step("interpolation", encoded=True)
  assert not [call.kind for call in calls if call.kind in ("ClipLayer", "T5Layer")]
  arguments = step("interpolation", encoded=True).arguments
  assert {"autoencoder", "text"}.isdisjoint(arguments[1])
  assert set(arguments[2]) == {"moments", "text", "fps", "image_dropped"}


def test_only_what_trains_has_gradients():
  calls = of_step("interpolation")
  trained = {
    (call.name, path)
    for call in calls
    for path, array in zip(call.paths, call.inputs, strict=False)
    if array.trained
  }
  assert all("temporal" in f"{name}/{path}" or name == "concat_in" for name, path in trained)
  initial = jax.eval_shape(step("interpolation").stage.init, jax.random.key(0))
  assert len(trained) == len(jax.tree.leaves(initial))
  assert not any(call.differentiated for call in calls if call.kind in ("ClipLayer", "T5Layer"))
  attention = [call for call in calls if "SpatialTransformer" in call.kind]
  assert attention
  assert all(call.policy == () for call in attention)


def test_equal_blocks_are_one():
  keys = {call.name: call.key for call in of_step("interpolation")}
  assert keys["mid_res_0"] == keys["mid_res_1"]
  assert keys["mid_res_0"] != keys["up_1_res_0"]
  encoder = {key for name, key in keys.items() if name.startswith("encoder")}
  assert not encoder & {key for name, key in keys.items() if not name.startswith("encoder")}


def test_loops_inside_loops_count_as_often_as_they_run(monkeypatch):
  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="layer")(x)

  monkeypatch.setattr(blocks, "NETWORKS", (Network,))
  net, x = Network(), jnp.zeros((2, 3))
  params = jax.eval_shape(net.init, jax.random.key(0), x)

  def function(params, x):
    inner = lambda x, _: (net.apply(params, x), None)
    outer = lambda x, _: (jax.lax.scan(inner, x, length=5)[0], None)
    return jax.lax.scan(outer, x, length=7)[0]

  (call,) = blocks.trace(function, params, x)
  assert (call.kind, call.name, call.times) == ("Dense", "layer", 35)
  # From the second round on the input depends on the parameters too.
  assert [array.trained for array in call.inputs] == [True, True, True]
  (call,) = blocks.trace(lambda _, params, x: function(params, x), None, params, x)
  assert not call.differentiated


def test_videos_stacked_for_a_loop_take_what_each_of_them_takes():
  mesh = make_mesh(None, MeshConfig(data=2, fsdp=2, frames=2))
  on_one_device = lambda a: piecewise.share(a, piecewise.activation_sharding(mesh, a.shape))
  video = jax.ShapeDtypeStruct((4, 2, 6, 8, 3), jnp.float32)
  stack = jax.ShapeDtypeStruct((3, *video.shape), video.dtype)
  assert on_one_device(video) == video.size * 4 // 8
  assert on_one_device(stack) == 3 * on_one_device(video)


def test_memory_is_that_of_the_fullest_moment():
  """Two blocks, the first rematerialised: inputs of 4 kB, results of 8 kB, a parameter of 1 kB."""
  kb = lambda key, size, **marks: Array(key, (size, 256), jnp.dtype("float32"), **marks)
  weights = [kb(i, 1, trained=True, weight=True) for i in (10, 11)]
  x, y, z = kb(0, 4, trained=True), kb(1, 8, trained=True), kb(2, 8, trained=True)
  first = Call(
    "A", "a", jax.make_jaxpr(jnp.sin)(1.0), ("kernel",), (weights[0], x), (y,), 1, (), ()
  )
  second = Call(
    "B", "b", jax.make_jaxpr(jnp.cos)(1.0), ("kernel",), (weights[1], y), (z,), 1, None, ()
  )
  one = make_mesh(jax.devices()[:1])
  measured = {
    first.key: Measured(arguments=1024, peak=1024 + 100),
    second.key: Measured(arguments=1024, temporaries=2048, peak=1024 + 3000),
  }
  memory = piecewise.held_at_most([first, second], measured, lambda array: array.size, one)
  # Backward through the second: both inputs, what it keeps, its own 3000 and its cotangent.
  assert memory == (4 + 8) * 1024 + 2048 + 3000 + 8 * 1024
