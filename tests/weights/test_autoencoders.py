"""Autoencoders against diffusers' AutoencoderKL and AutoencoderKLTemporalDecoder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from emu_jax import weights
from emu_jax.errors import InputError
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

WIDTHS = {  # levels need not widen
  "SD 1": (8, 16),
  "FLUX": (8, 16, 24),
  "no post_quant": (8,),
  "no attention": (16, 8),
}
OPTIONS = {
  "SD 1": {"layers_per_block": 2},
  "FLUX": {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
  },
  "no post_quant": {"use_post_quant_conv": False},
  "no attention": {"mid_block_add_attention": False, "latent_channels": 8},
}


def public(name, **options):
  """diffusers' autoencoder of a configuration, redrawn."""
  channels = WIDTHS[name]
  config = {
    "block_out_channels": channels,
    "down_block_types": ("DownEncoderBlock2D",) * len(channels),
    "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    "norm_num_groups": 4,
  }
  return drawn_anew(diffusers.AutoencoderKL(**config | OPTIONS[name] | options))


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def frames_first(x):
  """[B, T, C, H, W] to PyTorch's frames in its batch."""
  return torch.tensor(x.reshape(-1, *x.shape[2:]))


def ours(x):
  """[B, T, C, H, W] to [B, T, H, W, C]."""
  return jnp.asarray(x.transpose(0, 1, 3, 4, 2))


def moments_and_pixels(model, loaded, z_channels, side, frames=3, **decoding):
  """One array that every parameter takes part in, ours as a function and PyTorch's with its graph.

  Moments [B, T, 2 Z h w] and pixels [B, T, 3 H W] stand side by side, in PyTorch's order.
  """
  B, T = 2, frames
  x, z = draw(1, B, T, 3, 4 * side, 5 * side), draw(2, B, T, z_channels, 4, 5)

  def flat(a):
    return jnp.moveaxis(a, -1, 2).reshape(B, T, -1)

  def apply(params):
    moments = jnp.concatenate(
      loaded.module.apply({"params": params}, ours(x), method="encode"), axis=-1
    )
    pixels = loaded.module.apply({"params": params}, ours(z), method="decode")
    return jnp.concatenate([flat(moments), flat(pixels)], axis=-1)

  moments = model.encode(frames_first(x)).latent_dist.parameters
  pixels = model.decode(frames_first(z), **decoding).sample
  assert moments.abs().max() < 20  # no log-variance reaches its clip
  expected = torch.cat([moments.reshape(B, T, -1), pixels.reshape(B, T, -1)], dim=-1)
  return apply, expected


def as_it_is(x):
  return jnp.asarray(x.detach().numpy() if torch.is_tensor(x) else x)


def is_key_bias(name):
  return name.endswith("to_k.bias")


@pytest.mark.parametrize("name", WIDTHS)
def test_moments_pixels_gradients_and_round_trip(name, tmp_path):
  model = public(name)
  loaded = reopened(model, tmp_path / "theirs")
  config = loaded.module.config
  apply, expected = moments_and_pixels(model, loaded, config.z_channels, config.downsample)
  assert_same_function(
    loaded, tmp_path / "theirs", model, apply, expected, layout=as_it_is, flat=is_key_bias
  )
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", diffusers.AutoencoderKL)


# Widths and latent channels. The class fixes 32 groups, and a group of one channel would take the
# influence from the biases before it.
VIDEO = {"SVD": ((64, 96), 4), "one level": ((64,), 8), "narrowing": ((96, 64), 3)}


@pytest.mark.parametrize("name", VIDEO)
def test_temporal_decoder(name, tmp_path):
  channels, z_channels = VIDEO[name]
  kind = diffusers.AutoencoderKLTemporalDecoder
  model = drawn_anew(
    kind(
      block_out_channels=channels,
      down_block_types=("DownEncoderBlock2D",) * len(channels),
      layers_per_block=2,
      latent_channels=z_channels,
    )
  )
  loaded = reopened(model, tmp_path / "theirs")
  side = loaded.module.config.downsample
  apply, expected = moments_and_pixels(model, loaded, z_channels, side, num_frames=3)
  assert_same_function(
    loaded, tmp_path / "theirs", model, apply, expected, layout=as_it_is, flat=is_key_bias
  )
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


def test_a_pipelines_scale_and_shift_survive_the_round_trip(tmp_path):
  loaded = reopened(public("FLUX"), tmp_path / "theirs")
  config = loaded.module.config
  assert (config.latent_scale, config.latent_shift) == (0.3611, 0.1159)
  weights.save(tmp_path / "ours", config, loaded.params)
  again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours").config
  assert (again.scaling_factor, again.shift_factor) == (0.3611, 0.1159)
  assert weights.load(tmp_path / "ours").module.config == config
  plain = reopened(public("SD 1"), tmp_path / "plain").module.config
  assert (plain.latent_scale, plain.latent_shift) == (0.18215, 0.0)


def test_older_names_of_the_attention_are_read(tmp_path):
  folder = tmp_path / "theirs"
  loaded = reopened(public("SD 1"), folder)
  file = folder / "diffusion_pytorch_model.safetensors"
  older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  tensors = {}
  for name, array in safetensors.numpy.load_file(file).items():
    for new, old in older.items():
      name = name.replace(f".{new}.", f".{old}.")
    tensors[name] = array
  assert any(".proj_attn." in name for name in tensors)
  safetensors.numpy.save_file(tensors, file)
  jax.tree.map(np.testing.assert_array_equal, weights.load(folder).params, loaded.params)


def test_a_middle_with_unused_parts_is_refused(tmp_path):
  diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,)).save_config(tmp_path)
  with pytest.raises(InputError, match="layers_per_block=1 is not supported; 2 is"):
    weights.load(tmp_path)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"latents_mean": [0.0] * 4}, "latents_mean=[0.0, 0.0, 0.0, 0.0] is not supported"),
    ({"in_channels": 4}, "in_channels=4 is not supported; 3 is"),
    ({"act_fn": "relu"}, "act_fn='relu' is not supported"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "2 of DownEncoderBlock2D are"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "2 of UpDecoderBlock2D are"),
    ({"block_out_channels": [8, 18]}, "18 of channels=(8, 18) is not a positive multiple"),
  ],
)
def test_unsupported_options_are_named(change, words, tmp_path):
  file = tmp_path / "config.json"
  public("SD 1").save_config(tmp_path)
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(InputError) as caught:
    weights.load(tmp_path)
  assert words in str(caught.value)
  assert str(file) in str(caught.value)


def test_what_is_ours_alone_is_not_exported(tmp_path):
  config = reopened(public("SD 1"), tmp_path / "theirs").module.config
  for change in ({"patch": 2}, {"fourier_features": 1}, {"norm_out": False}):
    with pytest.raises(InputError, match="no public form"):
      weights.save(tmp_path / "ours", dataclasses.replace(config, **change), {})
