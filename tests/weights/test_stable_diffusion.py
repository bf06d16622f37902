"""Whole Stable Diffusion pipelines against diffusers' own: the same noise, latent by latent."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from emu_jax.conditioning import image_branches, known_branches
from emu_jax.diffusion.guidance import emu_video_guidance, guided, rescale, text_guidance
from emu_jax.diffusion.sampler import ddim, time_grid
from emu_jax.model import load
from emu_jax.models.net import network
from emu_jax.systems.emu import text_features, without_text
from emu_jax.systems.first_stage import pixels, to_bytes, unnormalised
from tests.weights.oracle import channels_last, drawn_anew, torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

PROMPTS = ["A red fox, jumping!", "café 12"]
STEPS = 4
# Each step is the network (1e-4 of its output's spread, as for single networks) times guidance 5,
# and steps add up: 4 x 5 x 1e-4. Seen: 1e-5.
TOLERANCE = 2e-3
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def tokenizer(folder, pad="<|endoftext|>"):
  """CLIP's byte-pair tokenizer without merges: letters are tokens."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
  folder.mkdir(parents=True)
  (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  return transformers.CLIPTokenizer(
    str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=20
  )


def text_config(width, vocab_size=514, **changes):
  return transformers.CLIPTextConfig(
    hidden_size=width,
    intermediate_size=2 * width,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=20,
    vocab_size=vocab_size,
    eos_token_id=vocab_size - 1,
    bos_token_id=vocab_size - 2,
    **changes,
  )


def unet(context, in_channels=4, **changes):
  return diffusers.UNet2DConditionModel(
    sample_size=8,
    in_channels=in_channels,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=8,
    cross_attention_dim=context,
    attention_head_dim=2,
    **changes,
  )


def parts(tmp_path, kind):
  """The pieces of a tiny pipeline, every tensor drawn anew."""
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=0.3,
  )
  made = {"vae": drawn_anew(vae), "tokenizer": tokenizer(tmp_path / "words")}
  schedule = ZERO_SNR if kind != "epsilon" else {}
  made["scheduler"] = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=8.5e-4,
    beta_end=1.2e-2,
    timestep_spacing="trailing",
    clip_sample=False,
    steps_offset=1,  # no part of trailing grids; diffusers warns of any other
    **schedule,
  )
  if kind == "xl":
    second = text_config(24, projection_dim=12, hidden_act="gelu")
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    made |= {
      "text_encoder": drawn_anew(transformers.CLIPTextModel(text_config(16))),
      "text_encoder_2": drawn_anew(transformers.CLIPTextModelWithProjection(second), 1),
      "tokenizer_2": tokenizer(tmp_path / "words2", pad="!"),
      "unet": drawn_anew(unet(40, **extra, projection_class_embeddings_input_dim=8 * 6 + 12)),
    }
    return diffusers.StableDiffusionXLPipeline(**made, add_watermarker=False)
  made |= {
    "text_encoder": drawn_anew(transformers.CLIPTextModel(text_config(16))),
    "unet": drawn_anew(unet(16, in_channels=8 if kind == "edit" else 4)),
    "safety_checker": None,
    "feature_extractor": None,
  }
  if kind == "edit":
    return diffusers.StableDiffusionInstructPix2PixPipeline(**made, requires_safety_checker=False)
  return diffusers.StableDiffusionPipeline(**made, requires_safety_checker=False)


def theirs(pipe, **inputs):
  """The latents after each step, and the finished pictures."""
  states = []

  def keep(_, step, t, values):
    states.append(channels_last(values["latents"]))
    return values

  pipe.set_progress_bar_config(disable=True)
  done = pipe(**inputs, num_inference_steps=STEPS, output_type="pt", callback_on_step_end=keep)
  return states, channels_last(done.images)


def assert_same_steps(found, expected):
  assert len(found) == len(expected) == STEPS
  for i, (ours, other) in enumerate(zip(found, expected, strict=True)):
    error = np.abs(np.asarray(ours - other)).max() / np.asarray(other).std()
    assert error <= TOLERANCE, f"step {i}: off by {error:.1e} standard deviations"


def noise(seed=0, batch=2):
  return np.random.default_rng(seed).standard_normal((batch, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["epsilon", "zero-SNR v", "xl"])
def test_text_to_image_equals_diffusers_at_every_step(kind, tmp_path):
  pipe, start = parts(tmp_path, kind), noise()
  pipe.save_pretrained(tmp_path / "pipeline")
  options = {} if kind == "xl" else {"negative_prompt": ["blurry", "blurry"]}
  size = {"original_size": (16, 16), "target_size": (16, 16)} if kind == "xl" else {}
  expected, pictures = theirs(
    pipe,
    prompt=PROMPTS,
    latents=torch.tensor(start),
    guidance_scale=5.0,
    guidance_rescale=0.7,
    **options,
    **size,
  )

  ours = load(tmp_path / "pipeline")
  image = ours.system

  def states(trees, prompts, negative, x):
    text, none = (text_features(image, trees, *words) for words in (prompts, negative))
    none = without_text(image, none, blank=kind == "xl")
    net = network(image.unet, trees["spatial"])
    combine = rescale(text_guidance(5.0), 0.7)
    predict = guided(net, image_branches(text, none), combine)
    grid = time_grid(image.process.schedule.num_steps, STEPS, "trailing")
    return ddim(predict, image.process.schedule, x, grid, trajectory=True)

  negative = ours.tokens(["" if kind == "xl" else "blurry"] * 2)
  program = jax.jit(states)
  found = program(ours.trees, ours.tokens(PROMPTS), negative, channels_last(start))
  assert_same_steps(found, expected)
  # Bytes: a difference of one step is rounding.
  decoded = np.asarray(to_bytes(jax.jit(image.first_stage.decode)(ours.trees, found[-1])), float)
  assert np.abs(decoded - np.asarray(pictures) * 255).max() < 1.01


def test_instruct_pix2pix_equals_diffusers_at_every_step(tmp_path):
  pipe, start = parts(tmp_path, "edit"), noise()
  pipe.save_pretrained(tmp_path / "pipeline")
  source = np.random.default_rng(1).random((2, 3, 16, 16)).astype(np.float32)
  expected, _ = theirs(
    pipe,
    prompt=PROMPTS,
    image=torch.tensor(source),
    latents=torch.tensor(start),
    guidance_scale=5.0,
    image_guidance_scale=1.5,
  )

  ours = load(tmp_path / "pipeline")
  image = ours.system.image
  with torch.no_grad():
    picture = pipe.vae.encode(torch.tensor(source) * 2 - 1).latent_dist.mode()

  def states(trees, prompts, empty, given, x):
    text, none = (text_features(image, trees, *words) for words in (prompts, empty))
    net = network(image.unet, trees["spatial"])
    predict = guided(net, known_branches(text, none, given), emu_video_guidance(1.5, 5.0))
    grid = time_grid(image.process.schedule.num_steps, STEPS, "trailing")
    return ddim(predict, image.process.schedule, x, grid, trajectory=True)

  prompts, empty = ours.tokens(PROMPTS), ours.tokens(["", ""])
  program = jax.jit(states)
  given = channels_last(picture)
  assert_same_steps(program(ours.trees, prompts, empty, given, channels_last(start)), expected)
  frames = np.round(source.transpose(0, 2, 3, 1) * 255).astype(np.uint8)[:, None]
  encoded = jax.jit(image.first_stage.encode)(ours.trees, pixels(jnp.asarray(frames)))
  unscaled = unnormalised(ours.trees, encoded)
  # The picture was rounded to bytes: 0.5 / 127.5 of a pixel, through a network of gain near 1.
  assert np.abs(unscaled - given).max() < 0.05
