"""Latte and unCLIP's prior against diffusers' LatteTransformer3DModel and PriorTransformer."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax import weights
from emu_jax.errors import InputError
from emu_jax.models.dit import DiT, DiTConfig
from emu_jax.models.prior import Prior, PriorConfig
from emu_jax.typing import Conditions
from emu_jax.weights.architectures import ARCHITECTURES
from emu_jax.weights.model import described
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  assert_same_output,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

LATTE = {
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 4,
  "out_channels": 8,
  "num_layers": 2,
  "cross_attention_dim": 16,
  "attention_bias": True,
  "sample_size": 8,
  "patch_size": 2,
  "activation_fn": "gelu-approximate",
  "num_embeds_ada_norm": 1000,
  "norm_type": "ada_norm_single",
  "norm_elementwise_affine": False,
  "norm_eps": 1e-6,
  "caption_channels": 12,
  "video_length": 3,
}
LATTES = {
  "Latte-1": LATTE,
  "a large grid, learned norms": LATTE
  | {
    "sample_size": 130,
    "norm_elementwise_affine": True,
    "activation_fn": "geglu",
    "attention_bias": False,
    "norm_eps": 1e-5,
  },
  "single latents, plain GELU": LATTE
  | {"patch_size": 1, "activation_fn": "gelu", "out_channels": None, "video_length": 5},
  "one frame": LATTE | {"video_length": 1, "num_layers": 1},
  "images": LATTE,
}
PRIOR = {
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "num_layers": 2,
  "embedding_dim": 12,
  "num_embeddings": 7,
}
PRIORS = {
  "Karlo": PRIOR,
  "more heads": PRIOR | {"num_attention_heads": 4, "num_embeddings": 5},
  "wide embeddings": PRIOR | {"embedding_dim": 24, "num_layers": 3, "attention_head_dim": 6},
}

DIT = DiTConfig(num_heads=2, head_dim=8, num_layers=1, caption_dim=12, size=8)


@pytest.mark.parametrize("name", LATTES)
def test_latte_is_diffusers(name, tmp_path):
  options = LATTES[name]
  model = drawn_anew(diffusers.LatteTransformer3DModel(**options))
  images, masked = name == "images", name != "Latte-1"
  loaded = reopened(model, tmp_path / "theirs")
  B, T, H, W, L = 2, options["video_length"], 4, 6, 5
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x, text, t = draw(B, 4, T, H, W), draw(B, L, options["caption_channels"]), np.array([3, 871])
  mask = np.arange(L)[None] < np.array([[L], [2]])
  # diffusers hands the mask to attention as it is: numbers to add, one row a frame.
  bias = np.repeat(np.where(mask, 0, -1e4).astype(np.float32)[:, None], T, axis=0)
  expected = model(
    torch.tensor(x),
    torch.tensor(t),
    torch.tensor(text),
    encoder_attention_mask=torch.tensor(bias) if masked else None,
    enable_temporal_attentions=not images,
  ).sample
  module = DiT(dataclasses.replace(loaded.module.config, temporal=not images))
  masks = (jnp.asarray(mask),) if masked else ()
  ours = channels_last(x), jnp.asarray(t, jnp.float32), Conditions((jnp.asarray(text),), masks)
  apply = lambda params: module.apply({"params": params}, *ours)
  if images or T == 1:  # what they leave out has no gradient; queries and keys of one frame neither
    assert_same_output(jax.jit(apply)(loaded.params), channels_last(expected))
    return
  assert_same_function(
    loaded, tmp_path / "theirs", model, apply, expected, flat=lambda name: "to_k.bias" in name
  )
  kind = diffusers.LatteTransformer3DModel
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_is_diffusers(name, tmp_path):
  model = drawn_anew(diffusers.PriorTransformer(**PRIORS[name]))
  loaded = reopened(model, tmp_path / "theirs")
  B, D, L = 3, model.config.embedding_dim, model.config.num_embeddings
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x, pooled, text, t = draw(B, D), draw(B, D), draw(B, L, D), np.array([3, 400, 871])
  mask = np.arange(L)[None] < np.array([[L], [2], [1]])
  predicted = model(
    torch.tensor(x), torch.tensor(t), torch.tensor(pooled), torch.tensor(text), torch.tensor(mask)
  ).predicted_image_embedding
  expected = model.post_process_latents(predicted)
  vectors = {"pooled": jnp.asarray(pooled)}
  conditions = Conditions((jnp.asarray(text),), (jnp.asarray(mask),), vectors=vectors)
  video = jnp.asarray(x)[:, None, None, None]

  def apply(params):
    p, net = {"params": params}, loaded.module
    return net.apply(
      p, net.apply(p, video, jnp.asarray(t, jnp.float32), conditions), method="embedding"
    )

  assert_same_function(
    loaded,
    tmp_path / "theirs",
    model,
    apply,
    expected,
    layout=jnp.asarray,
    flat=lambda name: "to_k.bias" in name,
  )
  kind = diffusers.PriorTransformer
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


# The published files, by our default of them.
FILES = {
  DiTConfig: {
    "_class_name": "LatteTransformer3DModel",
    "_diffusers_version": "0.29.0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 64,
    "upcast_attention": False,
    "use_linear_projection": False,
    "video_length": 16,
  },
  PriorConfig: {
    "_class_name": "PriorTransformer",
    "_diffusers_version": "0.12.0.dev0",
    "additional_embeddings": 4,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "embedding_dim": 768,
    "num_attention_heads": 32,
    "num_embeddings": 77,
    "num_layers": 20,
  },
}


@pytest.mark.parametrize("default", FILES, ids=lambda default: default.__name__)
def test_published_files_are_our_defaults_tensor_for_tensor(default, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(FILES[default]))
  architecture, config = described(tmp_path)
  assert config == default()
  with torch.device("meta"):
    model = getattr(diffusers, architecture.name)(**architecture.write(config))
  theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
  groups = architecture.groups(config)
  assert {name: row.public_shape for name, (row,) in groups.items()} == theirs


@pytest.mark.parametrize(
  ("kind", "options", "words"),
  [
    ("LatteTransformer3DModel", {"norm_type": "ada_norm"}, "norm_type is not 'ada_norm_single'"),
    ("LatteTransformer3DModel", {"cross_attention_dim": 8}, "cross_attention_dim is not 16, the"),
    ("LatteTransformer3DModel", {"activation_fn": "swiglu"}, "activation_fn='swiglu' is not"),
    ("LatteTransformer3DModel", {"rope": True}, "rope=True is not supported"),
    ("LatteTransformer3DModel", {"patch_size": 0}, "patch=0 must be at least 1"),
    ("PriorTransformer", {"added_emb_type": None}, "added_emb_type=None is not supported"),
    ("PriorTransformer", {"num_embeddings": 0}, "num_tokens=0 must be at least 1"),
    ("PriorTransformer", {"clip_embed_dim": 5}, "clip_embed_dim=5 is not supported"),
    ("PriorTransformer", {"norm_in_type": "layer"}, "norm_in_type='layer' is not supported"),
  ],
)
def test_other_plain_transformers_are_refused_in_one_line(kind, options, words, tmp_path):
  public = LATTE if kind.startswith("Latte") else PRIOR
  (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind} | public | options))
  with pytest.raises(InputError, match=re.escape(words)) as info:
    weights.load(tmp_path)
  assert "\n" not in str(info.value)


def test_latte_crosses_frames_only_where_its_names_say_so():
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
  params = jax.tree.map(draw, ARCHITECTURES["LatteTransformer3DModel"].shapes(DIT))
  x, text = draw(jnp.zeros((2, 3, 4, 6, 4))), draw(jnp.zeros((2, 5, 12)))

  @functools.partial(jax.jit, static_argnames=("temporal", "dtype"))
  def net(params, x, temporal=True, dtype="float32"):
    config = dataclasses.replace(DIT, temporal=temporal, dtype=dtype)
    t = jnp.asarray([3.0, 871.0])
    return DiT(config).apply({"params": params}, x, t, Conditions((text,)))

  spatial = {name: leaf for name, leaf in params.items() if not name.startswith("temporal_")}
  image = net(spatial, x, temporal=False)
  moved = net(spatial, x.at[:, 2].add(1.0), temporal=False)
  np.testing.assert_array_equal(image[:, :2], moved[:, :2])
  whole, moved = net(params, x), net(params, x.at[:, 2].add(1.0))
  assert np.abs(whole - moved)[:, :2].max() > 1e-3
  half = net(params, x, dtype="bfloat16")
  assert half.dtype == jnp.float32
  # Some ten products in a row, each rounded by 2^-9: a few per cent.
  assert 1e-4 < np.std(half - whole) / np.std(whole) < 0.05


def test_the_prior_sees_no_padding_and_undoes_the_normalisation():
  config = PriorConfig(embedding_dim=12, num_tokens=7, num_layers=1, num_heads=2, head_dim=8)
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
  params = jax.tree.map(draw, ARCHITECTURES["PriorTransformer"].shapes(config))
  x, text, pooled = (draw(jnp.zeros(s)) for s in ((2, 1, 1, 1, 12), (2, 7, 12), (2, 12)))
  mask = jnp.arange(7)[None] < jnp.asarray([[7], [3]])

  def net(params, text, mask):
    conditions = Conditions((text,), (mask,), vectors={"pooled": pooled})
    return Prior(config).apply({"params": params}, x, jnp.asarray([3.0, 871.0]), conditions)

  program = jax.jit(net)
  before, after = program(params, text, mask), program(params, text.at[:, 5].add(1.0), mask)
  assert np.abs(before - after)[0].max() > 1e-3
  np.testing.assert_array_equal(before[1], after[1])  # padding there
  embedding = Prior(config).apply({"params": params}, before, method="embedding")
  np.testing.assert_allclose(
    embedding, before[:, 0, 0, 0] * params["std"][None] + params["mean"][None], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("x", "conditions", "words"),
  [
    ((1, 2, 4, 4, 3), {}, "x_t has 3 channels, in_channels=4"),
    ((1, 2, 5, 4, 4), {}, "height 5 and width 4 must be multiples of patch=2"),
    ((1, 2, 4, 4, 4), {"texts": (jnp.zeros((1, 2, 9)),)}, "texts have (9,) features"),
    ((1, 2, 4, 4, 4), {"vectors": {"class": jnp.zeros(1)}}, "no vector conditions"),
  ],
)
def test_latte_names_what_does_not_fit(x, conditions, words):
  conditions = Conditions(**{"texts": (jnp.zeros((1, 2, 12)),)} | conditions)
  with pytest.raises(ValueError, match=re.escape(words)):
    DiT(DIT).apply({"params": {}}, jnp.zeros(x), jnp.zeros(1), conditions)


@pytest.mark.parametrize(
  ("x", "text", "vectors", "words"),
  [
    ((1, 1, 1, 1, 5), (1, 7, 12), ("pooled",), "x_t is (1, 1, 1, 1, 5), not B 1 1 1"),
    ((1, 1, 1, 2, 12), (1, 7, 12), ("pooled",), "x_t is (1, 1, 1, 2, 12), not B 1 1 1"),
    ((1, 1, 1, 1, 12), (1, 6, 12), ("pooled",), "not one of num_tokens=7"),
    ((1, 1, 1, 1, 12), (1, 7, 12), (), "it asks for 'pooled' alone"),
  ],
)
def test_the_prior_names_what_does_not_fit(x, text, vectors, words):
  config = PriorConfig(embedding_dim=12, num_tokens=7, num_layers=1, num_heads=2, head_dim=8)
  vectors = {name: jnp.zeros((1, 12)) for name in vectors}
  conditions = Conditions((jnp.zeros(text),), vectors=vectors)
  with pytest.raises(ValueError, match=re.escape(words)):
    Prior(config).apply({"params": {}}, jnp.zeros(x), jnp.zeros(1), conditions)
