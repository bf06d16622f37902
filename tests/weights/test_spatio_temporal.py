"""Stable Video Diffusion's U-Net against diffusers' UNetSpatioTemporalConditionModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import InputError
from emu_jax.typing import Conditions
from emu_jax.weights import spatio_temporal
from emu_jax.weights.options import Options
from emu_jax.weights.table import tensor_shape
from tests.weights.oracle import (
  assert_round_trip,
  assert_same_function,
  assert_same_output,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")

SPATIAL = ("DownBlockSpatioTemporal", "UpBlockSpatioTemporal")
ATTENDED = ("CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")


def blocks(*attends):
  """The types of the levels, finest first."""
  kinds = [ATTENDED if attend else SPATIAL for attend in attends]
  return {
    "down_block_types": tuple(down for down, _ in kinds),
    "up_block_types": tuple(up for _, up in reversed(kinds)),
  }


SMALL = {
  "layers_per_block": 1,
  "cross_attention_dim": 24,
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 24,
}
TWO = SMALL | blocks(True, False) | {"block_out_channels": (64, 96), "num_attention_heads": 4}
COARSEST = "heads a level, two layers, attention at the coarsest level"
CONFIGS = {
  "two levels": (TWO, 5),
  COARSEST: (
    TWO
    | blocks(False, True)
    | {"num_attention_heads": (4, 6), "transformer_layers_per_block": 2, "num_frames": 14},
    3,
  ),
  "three levels, other depths and channels": (
    SMALL
    | blocks(True, True, False)
    | {
      "block_out_channels": (64, 64, 96),
      "num_attention_heads": (2, 2, 3),
      "layers_per_block": (1, 2, 1),
      "transformer_layers_per_block": (2, 1, 1),
      "in_channels": 9,
      "projection_class_embeddings_input_dim": 32,
    },
    7,
  ),
}


def inputs(config, frames, seed=0, batch=2, size=(8, 12)):
  """The same random inputs for both sides: PyTorch's keywords and our arguments."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x = draw(batch, frames, config.in_channels, *size)
  image = draw(batch, 2, config.cross_attention_dim)
  t = np.array([-1.2, 1.6], np.float32)[:batch]
  numbers = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
  micro = np.abs(draw(batch, numbers)) * np.geomspace(100, 0.02, numbers, dtype=np.float32)
  theirs = {
    "sample": torch.tensor(x),
    "timestep": torch.tensor(t),
    "encoder_hidden_states": torch.tensor(image),
    "added_time_ids": torch.tensor(micro),
  }
  video, n = frames_last(x), config.out_channels
  conditions = Conditions(
    (jnp.asarray(image),), concat=video[..., n:], vectors={"micro": jnp.asarray(micro)}
  )
  return theirs, (video[..., :n], jnp.asarray(t), conditions)


def frames_last(x):
  """[B, T, C, H, W] of SVD to [B, T, H, W, C]."""
  x = np.asarray(x.detach() if torch.is_tensor(x) else x)
  return jnp.asarray(x.transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("name", CONFIGS)
def test_output_gradients_and_round_trip(name, tmp_path):
  options, frames = CONFIGS[name]
  model = drawn_anew(diffusers.UNetSpatioTemporalConditionModel(**options))
  loaded = reopened(model, tmp_path / "theirs")
  theirs, ours = inputs(model.config, frames)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  expected = model(**theirs).sample
  compared = {"layout": frames_last, "gradients": name == next(iter(CONFIGS))}
  assert_same_function(loaded, tmp_path / "theirs", model, apply, expected, **compared)
  kind = diffusers.UNetSpatioTemporalConditionModel
  assert_round_trip(loaded, tmp_path / "theirs", tmp_path / "ours", kind)


def test_features_as_small_as_the_norms_epsilons(tmp_path):
  """Features of 1e-3 show each norm's epsilon, 1e-5 or 1e-6, which a unit variance hides."""
  options, frames = CONFIGS[COARSEST]
  model = drawn_anew(diffusers.UNetSpatioTemporalConditionModel(**options))
  words = ("conv_in", ".conv1", ".conv2", "time_emb_proj", "proj_out")
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if any(word in name for word in words):
        parameter.mul_(1e-3)
    loaded = reopened(model, tmp_path)
    theirs, ours = inputs(model.config, frames)
    expected = model(**theirs).sample
  apply = jax.jit(lambda params: loaded.module.apply({"params": params}, *ours))
  assert_same_output(apply(loaded.params), frames_last(expected))


def test_the_published_network_has_these_tensors():
  with torch.device("meta"):
    model = diffusers.UNetSpatioTemporalConditionModel()
  config = spatio_temporal.read(Options(dict(model.config), "config.json"))
  groups = spatio_temporal.ARCHITECTURE.groups(config)
  theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
  assert {name: tensor_shape(group) for name, group in groups.items()} == theirs
  assert sum(np.prod(shape) for shape in theirs.values()) == 1_524_623_082
  assert config.head_dim == 64


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"num_attention_heads": (4, 2)}, "have several sizes"),
    ({"cross_attention_dim": (24, 32)}, "one width for all levels"),
    ({"transformer_layers_per_block": ((1,), (1,))}, "one depth a level"),
    ({"projection_class_embeddings_input_dim": 25}, "not a multiple of addition_time_embed_dim=8"),
    ({"in_channels": 3}, "in_channels=3 is below out_channels=4"),
    ({"up_block_types": TWO["up_block_types"][::-1]}, "the encoder's mirror"),
  ],
)
def test_what_is_not_supported_is_one_line(change, words):
  with pytest.raises(InputError, match=words):
    spatio_temporal.read(Options(TWO | change, "config.json"))
