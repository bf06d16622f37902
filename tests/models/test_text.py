"""CLIP text and T5 encoders: laws and counts; tests/weights compares them with transformers."""

import copy
import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.models.text import (
  ClipLayer,
  ClipText,
  ClipTextConfig,
  T5Config,
  T5Encoder,
  T5Layer,
  clip_vit_big_g,
  clip_vit_h,
  clip_vit_l,
  relative_buckets,
  t5_xl,
  t5_xxl,
  text_encoder,
)

CLIP = ClipTextConfig(
  vocab_size=50, width=16, max_length=9, num_layers=2, num_heads=4, mlp_width=32
)
T5 = T5Config(
  vocab_size=50, width=16, max_length=9, num_layers=2, num_heads=4, head_dim=6, mlp_width=24
)
REFERENCE = "parity needs the extra 'reference': torch and transformers"


def tokens_and_mask():
  """Three prompts of 9, 5 and 1 tokens."""
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 9)), jnp.int32)
  return tokens, jnp.arange(9)[None, :] < jnp.asarray([9, 5, 1])[:, None]


def randomised(config):
  """Parameters drawn anew: no bias at zero, no norm scale at 1."""
  net = text_encoder(config)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *tokens_and_mask())["params"]
  rng = np.random.default_rng(1)

  def draw(a):
    base = 0.7 if a.ndim == 1 else 0.0
    return jnp.asarray(base + 0.3 * rng.standard_normal(a.shape), jnp.float32)

  return jax.tree.map(draw, shapes)


def features(config, params, tokens, mask):
  return jax.jit(text_encoder(config).apply)({"params": params}, tokens, mask)


# Laws


def test_the_config_chooses_the_module():
  assert isinstance(text_encoder(CLIP), ClipText)
  assert isinstance(text_encoder(T5, name="t5"), T5Encoder)
  assert text_encoder(T5, name="t5").name == "t5"


@pytest.mark.parametrize("config", [CLIP, T5], ids=["clip", "t5"])
def test_no_prompt_sees_another(config):
  tokens, mask = tokens_and_mask()
  params = randomised(config)
  whole = features(config, params, tokens, mask)
  assert whole.shape == (3, 9, 16)
  assert whole.dtype == jnp.float32
  other = features(config, params, tokens.at[1:].add(1), mask.at[1:].set(True))
  np.testing.assert_array_equal(other[0], whole[0])
  assert np.abs(other[1:] - whole[1:]).max() > 1e-2


def test_clip_is_causal_and_t5_is_not():
  tokens, mask = tokens_and_mask()
  changed = tokens.at[0, 5].set((tokens[0, 5] + 1) % 50)
  strict = dataclasses.replace(CLIP, use_padding_mask=True)
  for config, reaches_back in ((CLIP, False), (strict, False), (T5, True)):
    params = randomised(config)
    before, after = (features(config, params, t, mask)[0] for t in (tokens, changed))
    difference = np.abs(before - after).max(axis=-1)
    assert (difference[5:] > 1e-4).all()
    assert (difference[:5] > 1e-4).all() if reaches_back else (difference[:5] == 0).all()


def test_the_pooled_vector_is_the_last_state_at_the_first_end_token():
  tokens = jnp.asarray([[3, 49, 7, 49], [5, 20, 20, 6]], jnp.int32)
  mask = jnp.ones_like(tokens, bool)
  params = randomised(CLIP)
  states = features(CLIP, params, tokens, mask)
  for end_id, where in ((None, (1, 1)), (20, (0, 1)), (6, (0, 3))):  # none: the first token
    for chosen in ({}, {"penultimate": True}, {"penultimate": True, "final_norm": False}):
      config = dataclasses.replace(CLIP, end_id=end_id, **chosen)
      both = lambda p, config=config: ClipText(config).apply(
        {"params": p}, tokens, mask, method="features_and_pooled"
      )
      got, pooled = jax.jit(both)(params)
      np.testing.assert_allclose(pooled, states[jnp.arange(2), jnp.array(where)], atol=1e-5)
      assert (np.abs(got - states).max() > 1e-2) == ("penultimate" in chosen)


def test_which_state_is_read_changes_no_parameter():
  shapes = jax.tree.map(jnp.shape, randomised(CLIP))
  for chosen in ({"penultimate": True}, {"final_norm": False}, {"end_id": 2}):
    assert jax.tree.map(jnp.shape, randomised(dataclasses.replace(CLIP, **chosen))) == shapes


def test_padding_is_seen_by_stable_diffusions_clip_and_by_nothing_else():
  tokens, mask = tokens_and_mask()
  changed = jnp.where(mask, tokens, (tokens + 1) % 50)  # another padding token
  strict = dataclasses.replace(CLIP, use_padding_mask=True)
  for config, seen in ((CLIP, True), (strict, False), (T5, False)):
    params = randomised(config)
    before, after = (features(config, params, t, mask) for t in (tokens, changed))
    real = np.asarray(mask)
    np.testing.assert_allclose(before[real], after[real], rtol=0, atol=1e-5)
    assert np.abs(before - after)[~real].max() > 1e-3
    unmasked = features(config, params, tokens, jnp.ones_like(mask))
    if seen:
      np.testing.assert_array_equal(unmasked, before)
    else:
      assert np.abs(unmasked - before).max() > 1e-3


def test_t5_sees_the_order_of_tokens_only_through_its_relative_bias():
  tokens, _ = tokens_and_mask()
  mask = jnp.ones_like(tokens, bool)
  params = randomised(T5)
  forth, back = (features(T5, params, t, mask) for t in (tokens, tokens[:, ::-1]))
  assert np.abs(forth - back[:, ::-1]).max() > 1e-2
  params["relative_bias"]["embedding"] = jnp.zeros((32, 4))
  forth, back = (features(T5, params, t, mask) for t in (tokens, tokens[:, ::-1]))
  np.testing.assert_allclose(forth, back[:, ::-1], atol=1e-5)


def test_t5_reads_prompts_of_any_length_and_clip_no_longer_than_it_has_positions():
  tokens, mask = jnp.zeros((1, 40), jnp.int32), jnp.ones((1, 40), bool)
  shapes = jax.eval_shape(T5Encoder(T5).init_with_output, jax.random.key(0), tokens, mask)
  assert shapes[0].shape == (1, 40, 16)
  with pytest.raises(ValueError, match=r"40 tokens, but max_length=9 positions are learned"):
    jax.eval_shape(ClipText(CLIP).init, jax.random.key(0), tokens, mask)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CLIP, T5], ids=["clip", "t5"])
def test_the_residual_stream_is_float32_whatever_the_weights_are_stored_in(config, stored):
  config = dataclasses.replace(config, dtype="bfloat16")
  tokens, mask = tokens_and_mask()
  params = jax.tree.map(lambda a: a.astype(stored), randomised(config))
  streams = []

  def watched(method, args, kwargs, context):
    result = method(*args, **kwargs)
    if isinstance(context.module, ClipLayer | T5Layer):
      streams.extend([args[0].dtype.name, result.dtype.name])
    return result

  with nn.intercept_methods(watched):
    jax.eval_shape(text_encoder(config).apply, {"params": params}, tokens, mask)
  assert streams == ["float32"] * 2 * config.num_layers


@pytest.mark.parametrize("config", [CLIP, T5], ids=["clip", "t5"])
def test_bfloat16_changes_rounding_only(config):
  tokens, mask = tokens_and_mask()
  params = randomised(config)
  full = features(config, params, tokens, mask)
  half = features(dataclasses.replace(config, dtype="bfloat16"), params, tokens, mask)
  assert half.dtype == jnp.float32
  # 2^-9 in each of some ten products in a row, amplified by norms: a few per cent at most.
  assert 1e-4 < np.std(half - full) / np.std(full) < 0.05


def test_initial_t5_logits_are_of_order_one():
  """Without the usual 1 / sqrt(head size) in attention, the initial weights must bring it."""
  wide = dataclasses.replace(T5, width=64, head_dim=64, num_heads=2, num_layers=1)
  tokens, mask = tokens_and_mask()
  params = jax.jit(T5Encoder(wide).init)(jax.random.key(0), tokens, mask)["params"]
  params = params["layer_0"]["attention"]
  x = jax.random.normal(jax.random.key(1), (500, 64))
  q, k = (np.asarray(x @ params[name]["kernel"])[:, :64] for name in "qk")
  assert 0.7 < np.std(q @ k.T) < 1.3


# Counts


def count(config):
  token = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 4), bool)
  params = jax.eval_shape(text_encoder(config).init, jax.random.key(0), token, mask)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ("config", "width", "layers", "published"),
  [
    (clip_vit_l(), 768, 12, 123_060_480),
    (clip_vit_h(), 1024, 23, 340_387_840),
    (clip_vit_big_g(), 1280, 32, 694_659_840),
  ],
)
def test_clip_presets_have_the_published_number_of_parameters(config, width, layers, published):
  attention = 4 * (width**2 + width)
  mlp = width * 4 * width + 4 * width + 4 * width * width + width
  embeddings = (49408 + 77) * width
  derived = embeddings + layers * (attention + mlp + 4 * width) + 2 * width
  derived += width * config.projection_dim
  assert count(config) == derived == published


@pytest.mark.parametrize(
  ("config", "width", "heads", "mlp", "derived"),
  [(t5_xl(), 2048, 32, 5120, 1_223_527_424), (t5_xxl(), 4096, 64, 10240, 4_762_310_656)],
)
def test_t5_presets_have_the_number_of_parameters_derived_by_hand(
  config, width, heads, mlp, derived
):
  attention = 4 * width * heads * 64  # q, k, v, out; no biases
  layer = attention + 3 * width * mlp + 2 * width  # gate, in, out; two norm scales
  total = 32128 * width + 32 * heads + 24 * layer + width  # one table of 32 buckets for all layers
  assert count(config) == total == derived


# Relative positions


def test_relative_buckets_are_those_of_the_paper():
  buckets = relative_buckets(300, 32, 128)
  ahead, behind = buckets[0], buckets[:, 0]  # keys after and before the query
  np.testing.assert_array_equal(behind[:8], range(8))  # one distance a bucket
  np.testing.assert_array_equal(ahead[1:8], 16 + np.arange(1, 8))
  np.testing.assert_array_equal(ahead[1:], 16 + behind[1:])
  # From 8 on, eight buckets evenly in the logarithm up to 128, and all the rest in the last one:
  # bucket 8 + j begins at 8 * 16^(j / 8), rounded up.
  starts = [8, 12, 16, 23, 32, 46, 64, 91]
  expected = 7 + np.searchsorted(starts, np.arange(8, 300), side="right")
  np.testing.assert_array_equal(behind[8:], expected)
  np.testing.assert_array_equal(buckets[5:, 5:], buckets[:-5, :-5])  # only the offset counts


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 64), (8, 20)])
def test_relative_buckets_equal_transformers(num_buckets, max_distance):
  torch = pytest.importorskip("torch", reason=REFERENCE)
  t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason=REFERENCE)
  offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
  expected = t5.T5Attention._relative_position_bucket(offset, True, num_buckets, max_distance)
  np.testing.assert_array_equal(relative_buckets(600, num_buckets, max_distance), expected.numpy())


# Errors


@pytest.mark.parametrize(
  ("config", "change", "words"),
  [
    (CLIP, {"num_heads": 3}, "width=16 is not a positive multiple of num_heads=3"),
    (CLIP, {"activation": "relu"}, "activation='relu' is unknown"),
    (CLIP, {"max_length": 0}, "max_length=0 must be at least 1"),
    (T5, {"num_layers": 0}, "num_layers=0 must be at least 1"),
    (T5, {"num_buckets": 6}, "num_buckets=6 is not a positive multiple of 4"),
    (T5, {"max_distance": 8}, "max_distance=8 leaves nothing beyond the 8 exact"),
  ],
)
def test_impossible_configurations_do_not_start(config, change, words):
  broken = copy.copy(config)
  for name, value in change.items():  # past the annotations, which only tests enforce
    object.__setattr__(broken, name, value)
  with pytest.raises(ValueError, match=re.escape(words)):
    broken.__post_init__()
