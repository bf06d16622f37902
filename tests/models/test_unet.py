"""Laws of the image and video U-Net."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.models.rematerialisation import POLICIES
from emu_jax.models.temporal import Temporal, TemporalConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.systems.emu_video import published_unet
from emu_jax.train.planning import flops
from emu_jax.typing import Conditions

SMALL = UNetConfig(
  in_channels=4,
  out_channels=4,
  concat_channels=5,
  channels=(16, 32),
  num_res_blocks=(1, 1),
  transformer_depth=(2, 0),
  mid_depth=1,
  num_heads=0,
  head_dim=8,
  context_dims=(12, 20),
  layer_contexts=(0, 1),
  norm_groups=8,
  temporal=TemporalConfig(num_layers=1),
)


def initialise(cfg, *inputs):
  return jax.jit(UNet(cfg).init)(jax.random.key(1), *inputs)["params"]


def apply(cfg, params, *inputs):
  return jax.jit(UNet(cfg).apply)({"params": params}, *inputs)


def redrawn(cfg, *inputs, seed=1):
  """Every tensor drawn anew, so that no zero or one of the initialisation hides a fault."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    fan_in = max(leaf.size / leaf.shape[-1], 1)
    drawn = 0.3 * rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (len(leaf.shape) == 1)
    return jnp.asarray(drawn, jnp.float32)

  return jax.tree.map(draw, shapes_of(cfg, *inputs))


def shapes_of(cfg, *inputs):
  return jax.eval_shape(UNet(cfg).init, jax.random.key(1), *inputs)["params"]


def example(cfg, key, B=2, T=3, H=4, W=6):
  keys = iter(jax.random.split(key, 8))
  concat = None
  if cfg.concat_channels:
    concat = jax.random.normal(next(keys), (B, T, H, W, cfg.concat_channels))
  vectors = {}
  if cfg.temporal and cfg.temporal.noise_level:
    vectors["noise_level"] = jnp.arange(1.0, B + 1)
  conditions = Conditions(
    texts=tuple(
      jax.random.normal(next(keys), (B, 5 + i, d)) for i, d in enumerate(cfg.context_dims)
    ),
    masks=(None, jnp.ones((B, 6), bool).at[:, 4:].set(False)),
    concat=concat,
    vectors=vectors,
  )
  return jax.random.normal(next(keys), (B, T, H, W, 4)), jnp.linspace(3.0, 700.0, B), conditions


def frame(conditions):
  return dataclasses.replace(conditions, concat=None)


@pytest.mark.parametrize("attends_text", [False, True])
def test_at_init_a_video_is_its_frames(key, attends_text):
  temporal = dataclasses.replace(SMALL.temporal, attends_text=attends_text)
  cfg = dataclasses.replace(SMALL, temporal=temporal)
  x, t, conditions = example(cfg, key)
  params = initialise(cfg, x, t, conditions)
  image_names = flatten_dict(shapes_of(cfg.image(), x, t, frame(conditions)))
  drawn = redrawn(cfg, x, t, conditions)
  # Spatial weights far from their initialisation, temporal ones and concat_in at theirs.
  params = merge_by_name(params, drawn, image_names)
  video = apply(cfg, params, x, t, conditions)
  image = functools.partial(jax.jit(UNet(cfg.image()).apply), {"params": keep(params, image_names)})
  frames = [image(x[:, i : i + 1], t, frame(conditions)) for i in range(x.shape[1])]
  assert float(jnp.std(video)) > 0.1
  np.testing.assert_allclose(video, jnp.concatenate(frames, axis=1), atol=1e-5)


def merge_by_name(base, drawn, names):
  base, drawn = flatten_dict(base), flatten_dict(drawn)
  return unflatten_dict({k: drawn[k] if k in names else base[k] for k in base})


def keep(params, names):
  return unflatten_dict({k: v for k, v in flatten_dict(params).items() if k in names})


@pytest.fixture(scope="module")
def trained():
  """A network whose temporal layers do something, and inputs for it."""
  temporal = dataclasses.replace(SMALL.temporal, attends_text=True, noise_level=True)
  cfg = dataclasses.replace(SMALL, temporal=temporal)
  x, t, conditions = example(cfg, jax.random.key(0))
  params = redrawn(cfg, x, t, conditions)
  return jax.jit(lambda *a: UNet(cfg).apply({"params": params}, *a)), x, t, conditions


def test_no_example_sees_another(trained):
  net, x, t, conditions = trained

  def first(x, texts, concat):
    changed = dataclasses.replace(conditions, texts=texts, concat=concat)
    return net(x, t, changed)[0].sum()

  gradient = jax.grad(first, argnums=(0, 1, 2))(x, conditions.texts, conditions.concat)
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf[1:], 0)
    assert float(jnp.abs(leaf[0]).max()) > 0


def test_frames_see_one_another_only_through_temporal_layers(trained):
  net, x, t, conditions = trained
  gradient = jax.grad(lambda x: net(x, t, conditions)[:, 0].sum())(x)
  assert float(jnp.abs(gradient[:, -1]).max()) > 1e-4


def test_masked_tokens_do_not_matter(trained):
  net, x, t, conditions = trained
  texts = conditions.texts[0], conditions.texts[1].at[:, 4:].add(9.0)
  changed = dataclasses.replace(conditions, texts=texts)
  np.testing.assert_array_equal(net(x, t, conditions), net(x, t, changed))
  texts = conditions.texts[0], conditions.texts[1].at[:, :4].add(9.0)
  seen = net(x, t, dataclasses.replace(conditions, texts=texts))
  assert float(jnp.abs(seen - net(x, t, conditions)).max()) > 1e-4


@pytest.fixture(scope="module")
def small():
  """Parameters and inputs of the small network."""
  inputs = example(SMALL, jax.random.key(0))
  return redrawn(SMALL, *inputs), inputs


def gradients(small, **changes):
  params, (x, t, conditions) = small
  net = UNet(dataclasses.replace(SMALL, **changes))
  loss = lambda p: (net.apply({"params": p}, x, t, conditions) ** 2).mean()
  return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def stored(small):
  """The gradients with everything kept for the backward pass."""
  return gradients(small, remat=False)


@pytest.mark.parametrize("keeps", POLICIES)
def test_rematerialisation_changes_no_gradient(small, stored, keeps):
  recomputed = gradients(small, remat=True, remat_keeps=keeps)
  # The same sums in another order: a few float32 roundings of gradients of order one.
  chex.assert_trees_all_close(stored, recomputed, atol=2e-5, rtol=2e-4)


def test_what_a_block_keeps_is_not_computed_again(small):
  """Counted in the gradient's program: products of every kind, with their arithmetic."""
  params, (x, t, conditions) = small

  def arithmetic(**changes):
    net = UNet(dataclasses.replace(SMALL, **changes))
    loss = lambda p: (net.apply({"params": p}, x, t, conditions) ** 2).mean()
    return flops.count(jax.grad(loss), params)

  stored = arithmetic(remat=False)
  products, nothing = (
    arithmetic(remat=True, remat_keeps=keeps) for keeps in ("products", "nothing")
  )
  # Forward is a third of forward and backward; of that the products are all but attention's.
  assert 1.25 < nothing / stored < 1.34
  assert 1 < products / stored < 1.03


def test_bfloat16_stays_near_float32(small):
  params, (x, t, conditions) = small
  full = apply(SMALL, params, x, t, conditions)
  half = apply(dataclasses.replace(SMALL, dtype="bfloat16"), params, x, t, conditions)
  assert half.dtype == jnp.float32
  # bfloat16 rounds by 2^-9 an operation; some 40 in sequence add up, as a random walk, to 1 %.
  assert float(jnp.std(half - full) / jnp.std(full)) < 0.05


def count(tree) -> int:
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@functools.cache
def published_shapes(**changes):
  cfg = published_unet(**changes)
  B, T = 1, 2
  conditions = Conditions(
    texts=tuple(jnp.zeros((B, 4, d)) for d in cfg.context_dims),
    concat=jnp.zeros((B, T, 8, 8, 9)) if cfg.concat_channels else None,
  )
  x = jnp.zeros((B, T, 8, 8, 8))
  return shapes_of(cfg, x, jnp.zeros(B), conditions)


def res(i, o, e=1536):
  skip = i * o + o if i != o else 0
  return 2 * i + (9 * i * o + o) + (e * o + o) + 2 * o + (9 * o * o + o) + skip


def spatial_transformer(c):
  layers = sum(
    (3 * c * c + c * c + c)  # self-attention
    + (c * c + 2 * c * d + c * c + c)  # cross-attention
    + (12 * c * c + 9 * c)  # GEGLU
    + 6 * c  # three LayerNorms
    for d in (768, 2048)
  )
  return 2 * c + 2 * (c * c + c) + layers


def temporal_transformer(c):
  layer = 2 * (4 * c * c + c) + 12 * c * c + 9 * c + 6 * c
  return 2 * c + 2 * (c * c + c) + 2 * layer


def emu_video_blocks():
  """Parameters by block of arXiv:2311.10709, app. table 1: name -> (spatial, temporal)."""
  conv3 = lambda i, o: 9 * i * o + o
  temporal_conv = lambda c: 3 * c * c + c
  channels, encoder = (384, 768, 1536, 1536), (3, 4, 4, 4)
  blocks = {"time": (384 * 1536 + 1536 + 1536 * 1536 + 1536, 0)}
  blocks["conv_in"] = conv3(8, 384), temporal_conv(384)
  skips, width = [384], 384

  def attention(level, c):
    site = level < 3
    return site * spatial_transformer(c), site * temporal_transformer(c)

  def resample(name, c):
    blocks[name] = conv3(c, c), temporal_conv(c)

  for level, c in enumerate(channels):
    for i in range(encoder[level]):
      blocks[f"down_{level}_res_{i}"] = res(width, c), 2 * temporal_conv(c)
      blocks[f"down_{level}_attention_{i}"] = attention(level, c)
      width = c
      skips.append(c)
    if level < 3:
      resample(f"down_{level}_sample", c)
      skips.append(c)
  for i in (0, 1):
    blocks[f"mid_res_{i}"] = res(1536, 1536), 2 * temporal_conv(1536)
  blocks["mid_attention"] = spatial_transformer(1536), temporal_transformer(1536)
  for level, c in reversed(list(enumerate(channels))):
    for i in range(encoder[level] + 1):
      blocks[f"up_{level}_res_{i}"] = res(width + skips.pop(), c), 2 * temporal_conv(c)
      blocks[f"up_{level}_attention_{i}"] = attention(level, c)
      width = c
    if level > 0:
      resample(f"up_{level}_sample", c)
  blocks["norm_out"] = 2 * 384, 0
  blocks["conv_out"] = conv3(384, 8), 0
  return {name: counts for name, counts in blocks.items() if any(counts)}


def test_emu_video_counts_the_published_parameters_block_by_block():
  shapes = dict(published_shapes())
  assert count(shapes.pop("concat_in")) == 9 * 384 * 9
  counted = {}
  for path, leaf in flatten_dict(shapes).items():
    temporal = any(part.startswith("temporal_") for part in path)
    block = counted.setdefault(path[0].removeprefix("temporal_"), [0, 0])
    block[temporal] += int(np.prod(leaf.shape))
  derived = emu_video_blocks()
  assert {name: tuple(pair) for name, pair in counted.items()} == derived
  assert sum(spatial for spatial, _ in derived.values()) == 2_662_694_024  # "2.7 B"
  assert sum(map(sum, derived.values())) == 4_267_756_424  # "4.3 B"


def test_emu_video_with_text_in_the_temporal_layers_counts_too():
  shapes = dict(published_shapes(temporal=TemporalConfig(attends_text=True)))
  del shapes["concat_in"]
  assert count(shapes) == 4_288_596_872


def test_the_image_model_is_a_subset_of_the_video_model():
  image = flatten_dict(published_shapes(temporal=Temporal(), concat_channels=0))
  video = flatten_dict(published_shapes())
  assert {path: leaf.shape for path, leaf in image.items()} == {
    path: leaf.shape
    for path, leaf in video.items()
    if path[0] != "concat_in" and not any(part.startswith("temporal_") for part in path)
  }


def test_stable_diffusion_1_counts_its_published_parameters():
  cfg = UNetConfig()
  x, t = jnp.zeros((1, 1, 8, 8, 4)), jnp.zeros(1)
  shapes = shapes_of(cfg, x, t, Conditions(texts=(jnp.zeros((1, 77, 768)),)))
  assert count(shapes) == 859_520_964


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"num_res_blocks": (1,)}, "1 values for 2 levels"),
    ({"head_dim": 0}, "exactly one"),
    ({"norm_groups": 7}, "not a multiple"),
    ({"head_dim": 5}, "not a multiple"),
    ({"layer_contexts": (0, 2)}, "names context 2"),
  ],
)
def test_impossible_configurations_do_not_start(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x, c: (x[..., :3], c), "3 channels, in_channels=4"),
    (lambda x, c: (x[:, :, :3], c), "multiples of 2"),
    (lambda x, c: (x, dataclasses.replace(c, concat=None)), "bring 0 concatenated"),
    (lambda x, c: (x, dataclasses.replace(c, texts=c.texts[:1])), "context_dims"),
    (lambda x, c: (x, dataclasses.replace(c, vectors={"task": jnp.zeros(2, int)})), "'task'"),
  ],
)
def test_inputs_that_do_not_fit_are_refused_at_trace_time(key, change, words):
  x, t, conditions = example(SMALL, key)
  x, conditions = change(x, conditions)
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(UNet(SMALL).init, key, x, t, conditions)


def test_every_vector_condition_moves_the_output_of_its_own_example_only(key):
  cfg = dataclasses.replace(
    SMALL,
    temporal=Temporal(),
    concat_channels=0,
    num_classes=3,
    num_tasks=2,
    num_micro=2,
    pooled_dim=5,
  )
  x, t, conditions = example(cfg, key)
  vectors = {
    "class": jnp.array([0, 1]),
    "task": jnp.array([1, 0]),
    "micro": jnp.array([[64.0, 8.0], [32.0, 4.0]]),
    "pooled": jax.random.normal(jax.random.key(1), (2, 5)),
  }
  conditions = dataclasses.replace(conditions, vectors=vectors)
  params = redrawn(cfg, x, t, conditions)
  net = jax.jit(functools.partial(UNet(cfg).apply, {"params": params}))
  before = net(x, t, conditions)
  for name, value in vectors.items():
    changed = {**vectors, name: value.at[1].set(value[1] + 1)}
    after = net(x, t, dataclasses.replace(conditions, vectors=changed))
    np.testing.assert_array_equal(after[0], before[0])
    assert float(jnp.abs(after[1] - before[1]).max()) > 1e-5, name
  # The sinusoids, the tables and the two MLPs, beside what the network has without them.
  without = dataclasses.replace(cfg, num_classes=0, num_tasks=0, num_micro=0, pooled_dim=0)
  plain = shapes_of(without, x, t, dataclasses.replace(conditions, vectors={}))
  tables, wide = (3 + 2) * 64, (5 + 2 * 256) * 64 + 64 + 64 * 64 + 64
  assert count(params) - count(plain) == tables + wide
