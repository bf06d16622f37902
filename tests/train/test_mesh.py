"""A step is the same on every shape of the mesh, and so are checkpoints."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.guidance import guided, text_guidance
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.parallel import placement
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import global_batch, place, replicated
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.stage import Stage
from emu_jax.train.state import initial_state
from emu_jax.train.step import jitted_step, mean_gradients
from emu_jax.typing import Conditions
from tests.tiny import perturbed

# Every kind of layer once: shapes of the mesh are many, and each has a program of its own.
UNET = UNetConfig(
  channels=(8,), num_res_blocks=(1,), transformer_depth=(0,), mid_depth=1, num_heads=2,
  context_dims=(8,), norm_groups=4, temporal=TemporalConfig(num_layers=1),
)  # fmt: skip
# Each axis alone, every two of them, and all three.
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 4, 1), (4, 1, 2), (1, 2, 4), (2, 2, 2)]
# Adam's first step is the gradient's sign: another order of sums would turn the smallest ones.
# With a large epsilon it is a multiple of the gradient, which keeps the gradient's rounding.
OPTIM = OptimConfig(peak_lr=1e-1, warmup_steps=0, eps=1.0, ema_decay=0.5, clip_norm=0.0)


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
  """The parameters of these tests are split too."""
  monkeypatch.setattr(placement, "SMALL", 64)


@functools.cache
def batch():
  draw = np.random.default_rng(0).normal
  shapes = {"x": (8, 8, 8, 2, 4), "target": (8, 8, 8, 2, 4), "text": (8, 3, 8)}
  drawn = {name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return drawn | {"t": np.arange(8, dtype=np.float32)}


def init(key):
  x, text = jnp.zeros((1, 2, 8, 2, 4)), jnp.zeros((1, 3, 8))
  return {"net": UNet(UNET).init(key, x, jnp.zeros(1), Conditions(texts=(text,)))["params"]}


@functools.cache
def given():
  """Nothing in it is zero, as the last kernels are at initialisation."""
  return jax.device_get(perturbed(jax.jit(init)(jax.random.key(0)), 3))


def loss(params, frozen, batch, key, step):
  conditions = Conditions(texts=(batch["text"],))
  y = UNet(UNET).apply({"params": params["net"]}, batch["x"], batch["t"], conditions)
  return jnp.square(y - batch["target"]).mean(axis=(1, 2, 3, 4)), {}


def step_on(mesh, reduce="compiler", loss=loss):
  """State and metrics after a step."""
  optim = dataclasses.replace(OPTIM, reduce=reduce)
  with jax.set_mesh(mesh):
    state = initial_state(Stage(init, {}, loss), optim, jax.random.key(0), mesh, given())
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    new, metrics, _ = jitted_step(loss, optim, 10, state)(
      state, {}, global_batch(batch(), mesh), key
    )
  return new, metrics


@pytest.fixture(scope="module")
def one():
  return jax.device_get(step_on(make_mesh(jax.devices()[:1])))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_that_of_one_device(shape, one):
  # Numbers of order 1 in float32, some hundreds of them summed in another order, through some
  # thirty layers: sqrt(300 * 30) roundings of 6e-8 are 6e-6 of the gradient's largest entries.
  mesh = make_mesh(None, MeshConfig(*shape))
  state, metrics = step_on(mesh)
  if shape[1] > 1:
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    kernel = moments["net"]["mid_res_0"]["conv_1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * shape[1] == kernel.size
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(metrics[name], one[1][name], rtol=6e-6)
  for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(one[0]), strict=True):
    np.testing.assert_allclose(got, want, rtol=6e-6, atol=6e-6)


def test_explicit_collectives_are_the_compilers(one):
  """The same step by shard_map, which adds up gradients once; bfloat16 rounds each to 2^-9."""
  mesh = make_mesh()
  state, metrics = step_on(mesh, "float32")
  for got, want in zip(jax.tree.leaves((state, metrics)), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(got, want, rtol=6e-6, atol=6e-6)
  rounded, _ = step_on(mesh, "bfloat16")
  moments = [optax.tree_utils.tree_get(s.opt_state, "mu")["net"] for s in (rounded, state)]
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moments[1]))
  # Each of eight terms and each of their sums is rounded once: 16 roundings of 2^-9 of the largest.
  chex.assert_trees_all_close(*jax.device_get(moments), atol=16 * 2**-9 * largest)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, moments), strict=True))


def test_every_device_draws_noise_of_its_own():
  """The step by shard_map with noise is the mean of the devices' steps, each with its key."""
  mesh = make_mesh()
  rows = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)

  def noisy(params, frozen, batch, key, step):
    return (batch @ params["w"] * jax.random.normal(key, (len(batch),))), {}

  def gradient(reduce):
    given = {"w": jnp.ones(3)}, {}, jnp.asarray(rows), jax.random.key(0), jnp.int32(0)
    with jax.set_mesh(mesh):
      run = jax.jit(lambda *a: mean_gradients(noisy, *a, 1, reduce)[1]["w"])
      return run(*given)

  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(8)]
  draws = [jax.random.normal(jax.random.fold_in(k, 0), (1,)) for k in keys]
  want = np.mean([row * np.asarray(z) for row, z in zip(rows, draws, strict=True)], axis=0)
  np.testing.assert_allclose(gradient("float32"), want, rtol=1e-6)  # 8 sums, each of 6e-8


def test_explicit_collectives_need_whole_parameters():
  with pytest.raises(InputError, match=r"--optim\.reduce float32: needs a mesh of the axis data"):
    step_on(make_mesh(None, MeshConfig(fsdp=2)), "float32")


def test_samples_are_those_of_one_device():
  """Guidance branches over `data`, frames over `frames`."""
  params, sampling = given(), Sampling(num_steps=3)
  noise, text = batch()["x"][:2], batch()["text"]

  def sample(params, noise, text, none):
    net = lambda x, t, c: UNet(UNET).apply({"params": params["net"]}, x, t, c)
    branches = (Conditions(texts=(text,)), Conditions(texts=(none,)))
    predict = guided(net, branches, text_guidance(3.0))
    return Discrete(Schedule()).sample(predict, noise, jax.random.key(0), sampling)

  results = []
  for mesh in (make_mesh(jax.devices()[:1]), make_mesh(None, MeshConfig(2, 2, 2))):
    with jax.set_mesh(mesh):
      results.append(np.asarray(jax.jit(sample)(place(params, mesh), noise, text[:2], text[2:4])))
  # As above, magnified by guidance (3) and by a step's division by alpha (up to 15 at the start).
  np.testing.assert_allclose(results[1], results[0], rtol=3e-4, atol=3e-4 * np.abs(results).max())


def test_checkpoints_of_eight_devices_are_read_on_fewer(tmp_path, monkeypatch):
  monkeypatch.setattr(placement, "SMALL", 16)
  wrote = tiny_run.run(tmp_path, 3, mesh=make_mesh(None, MeshConfig(data=2, fsdp=4)))
  kernel = lambda state: state.params["net"]["first"]["kernel"]
  assert kernel(wrote).addressable_shards[0].data.shape == (4, 2)
  wrote = jax.device_get(wrote)
  for num, config in ((4, MeshConfig(fsdp=2)), (2, MeshConfig(fsdp=2)), (1, MeshConfig())):
    mesh = make_mesh(jax.devices()[:num], config)
    read = tiny_run.run(tmp_path, 3, mesh=mesh)  # it has all its steps: nothing is trained
    assert len(kernel(read).sharding.device_set) == num
    assert kernel(read).addressable_shards[0].data.shape == (4, 8 // mesh.shape["fsdp"])
    chex.assert_trees_all_equal(jax.device_get(read), wrote)
