"""Public models at their full width: the output of Stable Diffusion 1.5's U-Net always.

Its gradients, and the others, on demand; they take minutes and up to 20 GB:

  EMU_JAX_FULL_WIDTH=1 python -m pytest -s tests/weights/test_full_width.py
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.typing import Conditions
from tests.weights.oracle import (
  assert_same_function,
  assert_same_output,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)
from tests.weights.test_autoencoders import as_it_is, moments_and_pixels
from tests.weights.test_controlnet import control_inputs, flat, row
from tests.weights.test_plain_transformers import LATTE
from tests.weights.test_spatio_temporal import frames_last
from tests.weights.test_spatio_temporal import inputs as svd_inputs
from tests.weights.unet_inputs import unet_inputs

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

ON_DEMAND = bool(os.environ.get("EMU_JAX_FULL_WIDTH"))
SD_1 = {"cross_attention_dim": 768}
SIZE = (8, 16)  # of latents: three halvings


def draw(*shape):
  return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def read_once(model, folder):
  """What we read of a model's file, which is then deleted: pytest would keep three of them."""
  loaded = reopened(model, folder)
  for file in folder.glob("*.safetensors"):
    file.unlink()
  return loaded


def test_stable_diffusions_unet_of_860_million(tmp_path):
  model = drawn_anew(diffusers.UNet2DConditionModel(**SD_1))
  loaded = read_once(model, tmp_path / "theirs")
  theirs, ours = unet_inputs(model.config, SIZE, tokens=5)
  apply = lambda params: loaded.module.apply({"params": params}, *ours)
  if ON_DEMAND:
    assert_same_function(loaded, tmp_path / "theirs", model, apply, model(**theirs).sample)
    return
  with torch.no_grad():
    expected = channels_last(model(**theirs).sample)
  assert_same_output(jax.jit(apply)(loaded.params), expected)


# Each gives a model, and of it and our module: PyTorch's output as ours, and our output.


def image_unet():
  model = diffusers.UNet2DConditionModel(
    cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
  )
  return model, lambda model, net: called(model, net, unet_inputs(model.config, SIZE, tokens=5))


def svd():
  model = diffusers.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
  both = lambda model: svd_inputs(model.config, 3, size=SIZE)
  return model, lambda model, net: called(model, net, both(model), frames_last)


def animate_diff():
  model = diffusers.UNetMotionModel(**SD_1)
  both = lambda model: unet_inputs(model.config, SIZE, frames=3, text_of_frames=True)
  return model, lambda model, net: called(model, net, both(model))


def modelscope():
  model = diffusers.UNet3DConditionModel()
  both = lambda model: unet_inputs(model.config, SIZE, frames=3)
  return model, lambda model, net: called(model, net, both(model))


def i2vgen():
  def run(model, net):
    theirs, (x_t, t, conditions) = unet_inputs(model.config, SIZE, frames=3)
    latents, picture = draw(2, 4, 3, *SIZE), draw(2, 1, model.config.cross_attention_dim)
    fps = np.array([8, 16])
    theirs |= {
      "fps": torch.tensor(fps),
      "image_latents": torch.tensor(latents),
      "image_embeddings": torch.tensor(picture),
    }
    conditions = Conditions(
      (*conditions.texts, jnp.asarray(picture)),
      concat=channels_last(latents),
      vectors={"micro": jnp.asarray(fps, jnp.float32)[:, None]},
    )
    return called(model, net, (theirs, (x_t, t, conditions)))

  return diffusers.I2VGenXLUNet(), run


def controlnet():
  def run(model, net):
    theirs, ours, hint = control_inputs(model.config, frames=1, size=SIZE)
    down, middle = model(**theirs, return_dict=False)
    return row(flat([*down, middle])), lambda params: flat(
      net.apply({"params": params}, *ours, hint)
    )

  return diffusers.ControlNetModel(**SD_1), run


def autoencoder():
  model = diffusers.AutoencoderKL(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
  )
  return model, in_and_out


def temporal_decoder():
  model = diffusers.AutoencoderKLTemporalDecoder(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    layers_per_block=2,
  )
  return model, lambda model, net: in_and_out(model, net, num_frames=3)


def in_and_out(model, net, **decoding):
  apply, expected = moments_and_pixels(model, net, 4, 8, **decoding)
  return as_it_is(expected), apply


def latte():
  model = diffusers.LatteTransformer3DModel(
    **LATTE
    | {
      "num_attention_heads": 16,
      "attention_head_dim": 72,
      "num_layers": 28,
      "cross_attention_dim": 1152,
      "caption_channels": 4096,
      "sample_size": 64,
    }
  )

  def run(model, net):
    x, text, t = draw(2, 4, 3, *SIZE), draw(2, 5, 4096), np.array([3, 871])
    expected = model(torch.tensor(x), torch.tensor(t), torch.tensor(text)).sample
    ours = channels_last(x), jnp.asarray(t, jnp.float32), Conditions((jnp.asarray(text),))
    return channels_last(expected), lambda params: net.apply({"params": params}, *ours)

  return model, run


def prior():
  def run(model, net):
    x, pooled, text, t = draw(2, 768), draw(2, 768), draw(2, 77, 768), np.array([3, 871])
    # Without a mask diffusers leaves out the causal one too.
    arrays = (torch.tensor(a) for a in (x, t, pooled, text, np.ones((2, 77), bool)))
    expected = model(*arrays).predicted_image_embedding
    conditions = Conditions(
      (jnp.asarray(text),), (jnp.ones((2, 77), bool),), vectors={"pooled": jnp.asarray(pooled)}
    )
    ours = jnp.asarray(x)[:, None, None, None], jnp.asarray(t, jnp.float32), conditions
    return jnp.asarray(expected)[:, None, None, None], lambda params: net.apply(
      {"params": params}, *ours
    )

  return diffusers.PriorTransformer(), run


def text(width, mlp, layers, heads, projection_dim=0):
  config = transformers.CLIPTextConfig(
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    hidden_act="gelu" if projection_dim else "quick_gelu",
    projection_dim=projection_dim or 512,
    eos_token_id=2,
  )
  tokens = np.random.default_rng(0).integers(3, 49407, (2, 77))
  tokens[:, -1] = 49407  # the highest id ends a text
  kind = "CLIPTextModelWithProjection" if projection_dim else "CLIPTextModel"

  def run(model, net):
    out = model(torch.tensor(tokens))
    expected = out.text_embeds if projection_dim else out.last_hidden_state
    ours = jnp.asarray(tokens), jnp.ones(tokens.shape, bool)
    read = lambda params: net.apply({"params": params}, *ours, method="features_and_pooled")
    return jnp.asarray(expected), lambda params: read(params)[1 if projection_dim else 0]

  return getattr(transformers, kind)(config), run


def vision():
  config = transformers.CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    hidden_act="gelu",
    projection_dim=1024,
  )

  def run(model, net):
    images = draw(2, 224, 224, 3)
    expected = model(torch.tensor(images).permute(0, 3, 1, 2)).image_embeds
    return jnp.asarray(expected), lambda params: net.apply({"params": params}, jnp.asarray(images))

  return transformers.CLIPVisionModelWithProjection(config), run


def t5_xl():
  config = transformers.T5Config(
    d_model=2048,
    d_kv=64,
    d_ff=5120,
    num_layers=24,
    num_heads=32,
    vocab_size=32128,
    feed_forward_proj="gated-gelu",
  )
  tokens = np.random.default_rng(0).integers(0, 32100, (2, 77))

  def run(model, net):
    mask = np.arange(77)[None] < np.array([[77], [20]])
    theirs = {"attention_mask": torch.tensor(mask).long()}
    expected = model(torch.tensor(tokens), **theirs).last_hidden_state
    ours = jnp.asarray(tokens), jnp.asarray(mask)
    return jnp.asarray(expected), lambda params: net.apply({"params": params}, *ours)

  return transformers.T5EncoderModel(config), run


def called(model, net, both, layout=channels_last):
  theirs, ours = both
  return layout(model(**theirs).sample), lambda params: net.apply({"params": params}, *ours)


MODELS = {
  "AutoencoderKL, SD": autoencoder,
  "AutoencoderKLTemporalDecoder, SVD": temporal_decoder,
  "CLIPTextModel, ViT-L": lambda: text(768, 3072, 12, 12),
  "CLIPTextModelWithProjection, ViT-bigG": lambda: text(1280, 5120, 32, 20, 1280),
  "CLIPVisionModelWithProjection, ViT-H": vision,
  "ControlNetModel, SD 1.5": controlnet,
  "I2VGenXLUNet": i2vgen,
  "LatteTransformer3DModel, Latte-1": latte,
  "PriorTransformer, Karlo": prior,
  "T5EncoderModel, XL": t5_xl,
  "UNet2DConditionModel, SD 2": image_unet,
  "UNet3DConditionModel, ModelScope": modelscope,
  "UNetMotionModel, AnimateDiff": animate_diff,
  "UNetSpatioTemporalConditionModel, SVD": svd,
}


@pytest.mark.skipif(
  not ON_DEMAND, reason="takes minutes and up to 20 GB; EMU_JAX_FULL_WIDTH=1 runs it"
)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_at_full_width(name, tmp_path):
  model, run = MODELS[name]()
  model = drawn_anew(model)
  with torch.no_grad():
    for part, parameter in model.named_parameters():
      if part.endswith("SelfAttention.q.weight"):
        # T5 does not scale its logits: its queries are that much smaller. Drawn like the others,
        # each softmax would be nearly one-hot, and float32 itself be off by more than the bound.
        parameter.mul_(64**-0.5)
  loaded = read_once(model, tmp_path / "theirs")
  with torch.no_grad():
    expected, apply = run(model, loaded if name.startswith("Autoencoder") else loaded.module)
  found = np.asarray(jax.jit(apply)(loaded.params))
  count = sum(p.numel() for p in model.parameters())
  error = np.abs(found - np.asarray(expected)).max() / np.asarray(expected).std()
  print(f"{name}: {count / 1e6:.0f} M parameters, off by {error:.1e} standard deviations")
  assert_same_output(found, expected)
