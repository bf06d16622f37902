"""AnimateDiff against diffusers' AnimateDiffPipeline: the latents after every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import TextFeatures
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.sampler import ddim, time_grid
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.motion import MotionConfig
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.animatediff import AnimateDiff, animated, denoiser, sample_clip
from emu_jax.systems.emu import Emu
from emu_jax.systems.first_stage import KlAutoencoder
from tests.weights.oracle import (
  assert_same_output,
  channels_last,
  drawn_anew,
  reopened,
  torch,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

WIDTH, TOKENS, FRAMES, STEPS, SCALE = 24, 5, 3, 4, 7.5
# Errors of single calls (1e-4) add up over the steps, and guidance multiplies them by its scale.
TOLERANCE = 1e-4 * STEPS


@pytest.fixture(scope="module")
def pipe():
  """A tiny pipeline, every tensor drawn anew; text is given as features."""
  image = diffusers.UNet2DConditionModel(
    block_out_channels=(16, 32),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=WIDTH,
    attention_head_dim=2,
    sample_size=8,
  )
  adapter = diffusers.MotionAdapter(
    block_out_channels=(16, 32),
    motion_layers_per_block=1,
    motion_norm_num_groups=8,
    motion_num_attention_heads=4,
  )
  text = transformers.CLIPTextConfig(
    vocab_size=8,
    hidden_size=WIDTH,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=TOKENS,
  )
  made = diffusers.AnimateDiffPipeline(
    vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
    text_encoder=transformers.CLIPTextModel(text).eval(),
    tokenizer=None,
    unet=drawn_anew(image),
    motion_adapter=drawn_anew(adapter, seed=1),
    scheduler=diffusers.DDIMScheduler(
      beta_schedule="linear",
      beta_start=8.5e-4,
      beta_end=1.2e-2,
      timestep_spacing="leading",
      steps_offset=1,
      clip_sample=False,
    ),
  )
  made.unet.eval()
  made.set_progress_bar_config(disable=True)
  return image, adapter, made


def test_clips_equal_diffusers_at_every_step(pipe, tmp_path):
  image, adapter, made = pipe
  rng = np.random.default_rng(0)
  texts = rng.standard_normal((2, 2, TOKENS, WIDTH)).astype(np.float32)
  text, empty = (TextFeatures((jnp.asarray(t),), (None,)) for t in texts)

  spatial, motion = reopened(image, tmp_path / "image"), reopened(adapter, tmp_path / "adapter")
  video = animated(spatial.module.config, motion.module.config)
  trees = {"spatial": spatial.params, "temporal": motion.params}
  config = AnimateDiff(
    image=Emu(
      first_stage=KlAutoencoder(AutoencoderConfig(channels=(8,), z_channels=4, norm_groups=4)),
      text=(ClipTextConfig(width=WIDTH, max_length=TOKENS, num_heads=2),),
      unet=video.image(),
      size=(8, 8),
    ),
    motion=video.temporal,
    num_frames=FRAMES,
  )
  sampling = Sampling(num_steps=STEPS, spacing="leading", offset=1)

  @functools.partial(jax.jit)
  def states(trees, text, empty, noise, scale):
    grid = time_grid(config.process.schedule.num_steps, STEPS, "leading", 1)
    predict = denoiser(config, trees, text, empty, scale)
    return ddim(predict, config.process.schedule, noise, grid, trajectory=True)

  # The noise that sample_clip draws with this key, so that its clip can be compared too.
  noise = jax.random.normal(jax.random.split(jax.random.key(3))[0], (2, FRAMES, 8, 8, 4))
  found = states(trees, text, empty, noise, SCALE)

  expected = []

  def keep(_, step, t, values):
    expected.append(channels_last(values["latents"]))
    return values

  made(
    num_frames=FRAMES,
    height=8,
    width=8,
    num_inference_steps=STEPS,
    guidance_scale=SCALE,
    prompt_embeds=torch.tensor(texts[0]),
    negative_prompt_embeds=torch.tensor(texts[1]),
    latents=torch.tensor(np.asarray(noise).transpose(0, 4, 1, 2, 3)),
    output_type="latent",
    callback_on_step_end=keep,
  )
  assert len(expected) == STEPS
  for ours, theirs in zip(found, expected, strict=True):
    assert_same_output(ours, theirs, TOLERANCE)
  sample = jax.jit(functools.partial(sample_clip, config, sampling=sampling))
  assert_same_output(sample(trees, text, empty, jax.random.key(3), SCALE), expected[-1], TOLERANCE)


def test_a_clip_has_no_more_frames_than_positions():
  stage = KlAutoencoder(AutoencoderConfig(channels=(8,), z_channels=4, norm_groups=4))
  image = Emu(first_stage=stage, text=(ClipTextConfig(),), unet=UNetConfig())
  with pytest.raises(ValueError, match=r"num_frames=33 is above motion.max_frames=32"):
    AnimateDiff(image=image, motion=MotionConfig(), num_frames=33)
