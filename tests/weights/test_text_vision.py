"""Encoders of text and images against transformers'."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from emu_jax import weights
from emu_jax.errors import InputError
from emu_jax.models.text import (
  ClipText,
  ClipTextConfig,
  clip_vit_big_g,
  clip_vit_h,
  clip_vit_l,
  t5_xl,
  t5_xxl,
)
from emu_jax.models.vision import ClipVisionConfig, clip_normalised, clip_pixels, squeezed_pixels
from emu_jax.weights.model import described
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  drawn_anew,
  reopened,
  torch,
)

transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

END = 40  # not the highest id of the texts: the two rules for the end differ
TEXT = {
  "vocab_size": 50,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "max_position_embeddings": 9,
  "hidden_act": "gelu",
  "eos_token_id": END,
}
T5 = {
  "vocab_size": 50,
  "d_model": 16,
  "d_kv": 6,
  "d_ff": 24,
  "num_layers": 2,
  "num_heads": 4,
  "feed_forward_proj": "gated-gelu",
}
# Our choices; transformers' options.
CLIPS = {
  "SD 1": ({}, {"hidden_act": "quick_gelu", "eos_token_id": 2}),
  "SD 2": ({}, {"num_hidden_layers": 3}),
  "SDXL, first": ({"penultimate": True, "final_norm": False}, {"hidden_act": "quick_gelu"}),
  "SDXL, second": (
    {"penultimate": True, "final_norm": False},
    {"projection_dim": 12, "eos_token_id": 2},
  ),
  "unCLIP": ({}, {"projection_dim": 20, "hidden_act": "quick_gelu", "num_attention_heads": 2}),
  "masked": ({"use_padding_mask": True}, {"projection_dim": 16}),
  "penultimate, normalised": ({"penultimate": True}, {"num_hidden_layers": 3}),
}
T5S = {
  "narrow heads": T5,
  "three layers": T5 | {"num_layers": 3, "d_kv": 4, "d_ff": 40},
  "other buckets": T5 | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6},
}

VISION = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "image_size": 28,
  "patch_size": 7,
  "projection_dim": 12,
}
VISIONS = {
  "quick": VISION,
  "SVD": VISION | {"hidden_act": "gelu", "num_hidden_layers": 3, "projection_dim": 20},
  "patches leave a margin": VISION | {"patch_size": 8, "num_attention_heads": 2},
}


TRAINING = {"initializer_factor": 1.0, "initializer_range": 0.02, "attention_dropout": 0.0}
CLIP_FILE = TRAINING | {"dropout": 0.0, "layer_norm_eps": 1e-5, "torch_dtype": "float32"}
TEXT_FILE = CLIP_FILE | {
  "_name_or_path": "openai/clip-vit-large-patch14",
  "architectures": ["CLIPTextModel"],
  "bos_token_id": 0,
  "eos_token_id": 2,
  "hidden_act": "gelu",
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "pad_token_id": 1,
  "transformers_version": "4.22.0.dev0",
  "vocab_size": 49408,
}
T5_FILE = {
  "architectures": ["T5EncoderModel"],
  "classifier_dropout": 0.0,
  "d_kv": 64,
  "decoder_start_token_id": 0,
  "dense_act_fn": "gelu_new",
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "feed_forward_proj": "gated-gelu",
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "is_gated_act": True,
  "layer_norm_epsilon": 1e-6,
  "model_type": "t5",
  "n_positions": 512,
  "num_decoder_layers": 24,
  "num_layers": 24,
  "output_past": True,
  "pad_token_id": 0,
  "relative_attention_max_distance": 128,
  "relative_attention_num_buckets": 32,
  "tie_word_embeddings": False,
  "use_cache": True,
  "vocab_size": 32128,
}


def sizes(width, mlp, layers, heads, **fields):
  """The four numbers of a CLIP transformer, as its file calls them."""
  names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
  return dict(zip(names, (width, mlp, layers, heads), strict=True)) | fields


# The published files, by our preset of them.
FILES = {
  clip_vit_l: TEXT_FILE | sizes(768, 3072, 12, 12, hidden_act="quick_gelu", projection_dim=768),
  clip_vit_h: TEXT_FILE | sizes(1024, 4096, 23, 16, projection_dim=512),
  clip_vit_big_g: TEXT_FILE
  | sizes(1280, 5120, 32, 20, projection_dim=1280, architectures=["CLIPTextModelWithProjection"]),
  t5_xl: T5_FILE | {"d_model": 2048, "d_ff": 5120, "num_heads": 32},
  t5_xxl: T5_FILE | {"d_model": 4096, "d_ff": 10240, "num_heads": 64},
  ClipVisionConfig: CLIP_FILE
  | {
    **sizes(1280, 5120, 32, 16, hidden_act="gelu", projection_dim=1024),
    "architectures": ["CLIPVisionModelWithProjection"],
    "image_size": 224,
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "patch_size": 14,
    "torch_dtype": "float16",
  },
}


class Prefixed(torch.nn.Module):
  """transformers' CLIPTextModel under the names of every public file."""

  def __init__(self, model):
    super().__init__()
    self.text_model = model


def rename(folder, old, new):
  """Another spelling of the names of a folder's tensors."""
  file = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def prompts(length=9):
  """Ids with ends in the midst, the end not the highest of them; and which are real."""
  tokens = np.random.default_rng(0).integers(0, 50, (3, length))
  tokens[tokens == END] = END + 1
  tokens[[0, 1, 1, 2], [length - 1, 4, 6, 2]] = END
  return tokens, np.arange(length)[None] <= np.array([length - 1, 4, 2])[:, None]


def flat(*outputs):
  """Several outputs as one, so that one program compares them all."""
  return [x.reshape(x.shape[0], -1) for x in outputs]


@pytest.mark.parametrize("name", CLIPS)
def test_clip_text_is_transformers(name, tmp_path):
  chosen, options = CLIPS[name]
  kind = transformers.CLIPTextModel
  if "projection_dim" in options:
    kind = transformers.CLIPTextModelWithProjection
  model = drawn_anew(kind(transformers.CLIPTextConfig(**TEXT | options)))
  loaded = reopened(model, tmp_path / "theirs")
  if kind is transformers.CLIPTextModel:
    rename(tmp_path / "theirs", "", "text_model.")
  config = dataclasses.replace(loaded.module.config, **chosen)
  loaded = weights.Loaded(ClipText(config), loaded.params)

  tokens, mask = prompts()
  masked = {"attention_mask": torch.tensor(mask).long()} if config.use_padding_mask else {}
  out = model(torch.tensor(tokens), output_hidden_states=True, **masked)
  body = model.text_model if config.projection_dim else model
  if config.penultimate:
    features = out.hidden_states[-2]
    features = body.final_layer_norm(features) if config.final_norm else features
  else:
    features = out.last_hidden_state
  pooled = out.text_embeds if config.projection_dim else out.pooler_output
  expected = torch.cat(flat(features, pooled), 1)

  def apply(params):
    both = loaded.module.apply(
      {"params": params}, jnp.asarray(tokens), jnp.asarray(mask), method="features_and_pooled"
    )
    return jnp.concatenate(flat(*both), 1)

  named = model if config.projection_dim else Prefixed(model)
  assert_same_function(
    loaded,
    tmp_path / "theirs",
    named,
    apply,
    expected,
    layout=jnp.asarray,
    flat=lambda name: "k_proj.bias" in name,
  )
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


@pytest.mark.parametrize("name", T5S)
def test_t5_encoder_is_transformers(name, tmp_path):
  model = drawn_anew(transformers.T5EncoderModel(transformers.T5Config(**T5S[name])))
  loaded = reopened(model, tmp_path / "theirs")
  tokens, mask = prompts(13)
  expected = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).last_hidden_state
  ours = jnp.asarray(tokens), jnp.asarray(mask)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, layout=jnp.asarray)
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", transformers.T5EncoderModel)


@pytest.mark.parametrize("name", VISIONS)
def test_clip_vision_is_transformers(name, tmp_path):
  kind = transformers.CLIPVisionModelWithProjection
  model = drawn_anew(kind(transformers.CLIPVisionConfig(**VISIONS[name])))
  loaded = reopened(model, tmp_path / "theirs")
  images = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
  out = model(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True)
  expected = torch.cat(flat(out.hidden_states[-2], out.image_embeds), 1)

  def apply(params):
    both = loaded.module.apply(
      {"params": params}, jnp.asarray(images), method="states_and_embedding"
    )
    return jnp.concatenate(flat(*both), 1)

  assert_same_function(
    loaded,
    tmp_path / "theirs",
    model,
    apply,
    expected,
    layout=jnp.asarray,
    flat=lambda name: "k_proj.bias" in name,
  )
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


@pytest.mark.parametrize("size", [(90, 61), (33, 47), (32, 32)])
def test_clip_pixels_are_torchs_antialiased_bicubic_and_pillows(size):
  """PyTorch's filter is Pillow's without rounding and, between the axes, without clipping."""
  # Of half the range, so that nothing overshoots it and is clipped.
  levels = np.random.default_rng(0).integers(64, 192, (1, *size, 3)).astype(np.uint8)
  pixels = jnp.asarray(levels, jnp.float32) / 127.5 - 1
  got = clip_pixels(pixels, 32)
  assert got.shape == (1, 32, 32, 3)
  h, w = (int(32 * side / min(size)) for side in size)
  top, left = (h - 32) // 2, (w - 32) // 2
  whole = torch.nn.functional.interpolate(
    torch.tensor(np.array(pixels)).permute(0, 3, 1, 2), (h, w), mode="bicubic", antialias=True
  )
  cut = whole.permute(0, 2, 3, 1)[:, top : top + 32, left : left + 32].clip(-1, 1)
  np.testing.assert_allclose(got, clip_normalised(jnp.asarray(cut.numpy())), atol=1e-4)
  pillow = np.asarray(Image.fromarray(levels[0]).resize((w, h), Image.Resampling.BICUBIC))
  pillow = pillow[None, top : top + 32, left : left + 32] / np.float32(127.5) - 1
  rounding = np.abs(np.asarray(clip_normalised(jnp.asarray(pillow)) - got)).max()
  # Half a level on the first axis, whose weights add up to at most 1.4 in absolute value, and half
  # on the second: 1.2 levels of 1 / 255 / 0.26.
  assert rounding <= 1.2 / 255 / 0.26


@pytest.mark.parametrize("size", [(90, 61), (33, 200), (20, 32)])
def test_squeezed_pixels_are_diffusers(size):
  svd = pytest.importorskip(
    "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion",
    reason="diffusers is the oracle",
  )
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  expected = svd._resize_with_antialiasing(torch.tensor(pixels).permute(0, 3, 1, 2), (32, 32))
  expected = transformers.CLIPImageProcessor()(
    images=(expected + 1) / 2,
    do_normalize=True,
    do_center_crop=False,
    do_resize=False,
    do_rescale=False,
    return_tensors="np",
  ).pixel_values
  got = squeezed_pixels(jnp.asarray(pixels), 32)
  np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize("projected", [False, True])
def test_older_spellings_of_clip_files_are_the_same_model(projected, tmp_path):
  kind = transformers.CLIPTextModel
  if projected:
    kind = transformers.CLIPTextModelWithProjection
  first = reopened(kind(transformers.CLIPTextConfig(**TEXT)), tmp_path)
  old, new = ("text_model.", "") if projected else ("", "text_model.")
  rename(tmp_path, old, new)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  tensors["text_model.embeddings.position_ids"] = np.arange(9)[None]
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  second = weights.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_t5s_second_name_of_its_tokens_is_read(tmp_path):
  first = reopened(transformers.T5EncoderModel(transformers.T5Config(**T5)), tmp_path)
  rename(tmp_path, "shared.", "encoder.embed_tokens.")
  second = weights.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_t5s_two_names_of_its_tokens_are_one_tensor_or_refused(tmp_path):
  first = reopened(transformers.T5EncoderModel(transformers.T5Config(**T5)), tmp_path)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  for other in (tensors["shared.weight"], tensors["shared.weight"] + 1):
    both = tensors | {"encoder.embed_tokens.weight": other}
    safetensors.numpy.save_file(both, tmp_path / "model.safetensors")
    if other is tensors["shared.weight"]:
      second = weights.load(tmp_path)
      jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    else:
      with pytest.raises(
        InputError, match=r"two different tensors, encoder\.embed_tokens\.weight and"
      ):
        weights.load(tmp_path)


@pytest.mark.parametrize(
  ("kind", "surplus"),
  [
    ("CLIPTextModel", ("text_projection.weight", "logit_scale", "vision_model.a.weight")),
    ("CLIPTextModelWithProjection", ("logit_scale", "visual_projection.weight")),
    ("CLIPVisionModelWithProjection", ("logit_scale", "text_projection.weight", "text_model.a")),
    ("T5EncoderModel", ("decoder.block.0.a", "lm_head.weight")),
  ],
)
def test_surplus_tensors_that_transformers_skips_are_skipped(kind, surplus, tmp_path):
  configs = {
    "CLIPTextModel": (transformers.CLIPTextConfig, TEXT),
    "CLIPTextModelWithProjection": (transformers.CLIPTextConfig, TEXT),
    "CLIPVisionModelWithProjection": (transformers.CLIPVisionConfig, VISION),
    "T5EncoderModel": (transformers.T5Config, T5),
  }
  config, options = configs[kind]
  first = reopened(getattr(transformers, kind)(config(**options)), tmp_path)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  extra = {name: np.zeros((2, 2), np.float32) for name in surplus}
  safetensors.numpy.save_file(
    tensors | extra, tmp_path / "model.safetensors", metadata={"format": "pt"}
  )
  second = weights.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  model = getattr(transformers, kind).from_pretrained(tmp_path)
  assert len(list(model.parameters())) == len(jax.tree.leaves(second.params))


@pytest.mark.parametrize(
  ("kind", "options", "words"),
  [
    ("CLIPTextModel", {"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
    ("CLIPTextModel", {"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 is not supported"),
    ("CLIPTextModel", {"hidden_size": 10}, "width=10 is not a positive multiple of num_heads=8"),
    ("CLIPTextModel", {"rotary": 1}, "rotary=1 is not supported"),
    ("CLIPVisionModelWithProjection", {"num_channels": 1}, "num_channels=1 is not supported"),
    ("CLIPVisionModelWithProjection", {"patch_size": 0}, "patch=0 must be at least 1"),
    ("T5EncoderModel", {}, "feed_forward_proj is not 'gated-gelu'"),
    ("T5EncoderModel", {"feed_forward_proj": "relu"}, "feed_forward_proj is not 'gated-gelu'"),
  ],
)
def test_other_encoders_are_refused_in_one_line(kind, options, words, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"architectures": [kind]} | options))
  with pytest.raises(InputError, match=words) as info:
    weights.load(tmp_path)
  assert "\n" not in str(info.value)


@pytest.mark.parametrize("preset", FILES, ids=lambda preset: preset.__name__)
def test_published_files_are_our_presets_tensor_for_tensor(preset, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(FILES[preset]))
  architecture, config = described(tmp_path)
  # Which state the features are is no part of a file.
  if isinstance(config, ClipTextConfig):
    wanted = preset()
    config = dataclasses.replace(
      config, penultimate=wanted.penultimate, final_norm=wanted.final_norm
    )
  assert config == preset()
  kind = getattr(transformers, architecture.name)
  with torch.device("meta"):
    model = kind(kind.config_class(**architecture.write(config)))
  if kind is transformers.CLIPTextModel:
    model = Prefixed(model)
  theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
  groups = architecture.groups(config)
  assert {name: row.public_shape for name, (row,) in groups.items()} == theirs
