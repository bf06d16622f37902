"""Laws of every denoising network's configuration, and of networks made of one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.guidance import guided, text_guidance
from emu_jax.models.controlnet import ControlNet, ControlNetConfig
from emu_jax.models.dit import DiTConfig
from emu_jax.models.i2vgen import I2VGenConfig
from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.net import Net, controlled, network
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.typing import Conditions

SHAPE = {
  "channels": (16, 32),
  "num_res_blocks": (1, 1),
  "transformer_depth": (1, 0),
  "num_heads": 0,
  "head_dim": 8,
  "context_dims": (12,),
  "norm_groups": 8,
}
NETS = {
  "U-Net": UNetConfig(**SHAPE),
  "U-Net with every condition": UNetConfig(
    **SHAPE | {"context_dims": (12, 20)},
    concat_channels=5,
    num_classes=3,
    num_tasks=2,
    num_micro=2,
    pooled_dim=6,
    temporal=TemporalConfig(noise_level=True),
  ),
  "I2VGen-XL": I2VGenConfig(**SHAPE, micro_dim=8, temporal=ModelScopeConfig(in_heads=2)),
  "DiT": DiTConfig(num_heads=2, head_dim=8, num_layers=1, caption_dim=12, size=8),
}


def drawn(seed, tree):
  rng = np.random.default_rng(seed)
  scale = lambda a: max(a.size / a.shape[-1], 1) ** -0.5
  return jax.tree.map(
    lambda a: jnp.asarray(rng.standard_normal(a.shape) * scale(a), jnp.float32), tree
  )


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_blank_conditions_are_all_that_a_network_reads(net):
  """At sides that are other multiples of what it names, and no less."""
  assert isinstance(net, Net)
  T, H, W = (n * m for n, m in zip((3, 2, 3), net.multiple, strict=True))
  x, t = jnp.zeros((2, T, H, W, net.in_channels)), jnp.zeros(2)
  blank = net.blank(x.shape)
  assert all(not leaf.any() for leaf in jax.tree.leaves(blank))
  params = jax.eval_shape(net.module().init, jax.random.key(0), x, t, blank)["params"]
  made = jax.eval_shape(lambda params: network(net, params)(x, t, blank), params)
  assert made.shape == (*x.shape[:-1], net.out_channels)
  for axis in (2, 3):
    size = [*x.shape]
    size[axis] += 1
    if net.multiple[axis - 1] > 1:
      inputs = jnp.zeros(size), t, net.blank(tuple(size))
      with pytest.raises(ValueError, match="multiples of"):
        jax.eval_shape(net.module().init, jax.random.key(0), *inputs)


def test_a_network_is_its_module_with_parameters():
  net, x, t = NETS["U-Net"], jnp.ones((1, 1, 2, 2, 4)), jnp.ones(1)
  conditions = drawn(1, net.blank(x.shape))
  params = drawn(2, jax.eval_shape(net.module().init, jax.random.key(0), x, t, conditions))
  expected = net.module().apply(params, x, t, conditions)
  np.testing.assert_array_equal(network(net, params["params"])(x, t, conditions), expected)


@pytest.mark.parametrize("name", ["class", "task", "micro", "pooled", "noise_level"])
def test_a_vector_condition_of_another_shape_is_refused(name):
  net, shape = NETS["U-Net with every condition"], (2, 1, 2, 2, 4)
  blank = net.blank(shape)
  vectors = blank.vectors | {name: jnp.zeros((2, 7), blank.vectors[name].dtype)}
  with pytest.raises(ValueError, match=rf"'{name}' is \(2, 7\), .* ask for \(2"):
    jax.eval_shape(
      net.module().init,
      jax.random.key(0),
      jnp.zeros(shape),
      jnp.zeros(2),
      dataclasses.replace(blank, vectors=vectors),
    )


def test_guidance_of_a_controlled_network_is_that_of_its_branches():
  """Each branch has its own text, picture and features, at every x_t and t."""
  net = NETS["U-Net"]
  control_net = ControlNetConfig(**SHAPE, hint_widths=(4, 8))
  shape = (2, 2, 4, 6, 4)
  x, t = drawn(0, jnp.zeros(shape)), jnp.asarray([3.0, 500.0])
  texts = drawn(1, jnp.zeros((2, 2, 3, 12)))
  hints = drawn(2, jnp.zeros((2, *shape[:2], 8, 12, 3)))
  branches = tuple(
    Conditions(texts=(text,), hint=hint) for text, hint in zip(texts, hints, strict=True)
  )
  shapes = (
    jax.eval_shape(net.module().init, jax.random.key(0), x, t, branches[0])["params"],
    jax.eval_shape(ControlNet(control_net).init, jax.random.key(0), x, t, branches[0], hints[0]),
  )
  params, control_params = drawn(3, shapes)

  def control(x_t, t, conditions):
    return ControlNet(control_net).apply(control_params, x_t, t, conditions, conditions.hint)

  both = controlled(network(net, params), control)

  def by_hand(conditions):
    features = control(x, t, conditions)
    conditions = dataclasses.replace(conditions, control=features)
    return net.module().apply({"params": params}, x, t, conditions)

  @jax.jit
  def run(x, t):
    without, with_text = map(by_hand, branches)
    expected = without + 3.0 * (with_text - without)
    return guided(both, branches, text_guidance(3.0))(x, t), expected

  found, expected = run(x, t)
  plain = guided(network(net, params), branches, text_guidance(3.0))(x, t)
  assert float(jnp.abs(found - plain).max()) > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_branches_that_differ_in_having_a_hint_are_refused():
  text, hint = jnp.zeros((1, 2, 12)), jnp.zeros((1, 1, 4, 4, 3))
  branches = Conditions((text,)), Conditions((text,), hint=hint)
  with pytest.raises(ValueError, match="hint differs between branches"):
    guided(lambda x, t, c: x, branches, text_guidance(2.0))
