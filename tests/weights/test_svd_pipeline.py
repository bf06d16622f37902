"""Stable Video Diffusion from noise to latents, step by step against diffusers' own pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.process import Sampling
from emu_jax.systems import registry, svd
from tests.weights.oracle import assert_same_output, drawn_anew, torch
from tests.weights.test_spatio_temporal import TWO, frames_last

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
transformers = pytest.importorskip("transformers", reason="its image encoder is part of it")

STEPS, FRAMES, SCALES = 6, 5, (1.0, 3.0)


def pipeline():
  """All of Stable Video Diffusion at the smallest size, every tensor drawn anew."""
  vision = transformers.CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    patch_size=112,
    projection_dim=TWO["cross_attention_dim"],
  )
  autoencoder = diffusers.AutoencoderKLTemporalDecoder(
    block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=2
  )
  scheduler = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    timestep_type="continuous",
    timestep_spacing="leading",
    steps_offset=1,
    use_karras_sigmas=True,
    sigma_min=0.002,
    sigma_max=700.0,
  )
  return diffusers.StableVideoDiffusionPipeline(
    vae=drawn_anew(autoencoder, 1),
    image_encoder=drawn_anew(transformers.CLIPVisionModelWithProjection(vision), 2),
    unet=drawn_anew(diffusers.UNetSpatioTemporalConditionModel(**TWO), 3),
    scheduler=scheduler,
    feature_extractor=transformers.CLIPImageProcessor(),
  )


def test_every_step_is_that_of_diffusers_pipeline(tmp_path, monkeypatch):
  pipe = pipeline()
  pipe.set_progress_bar_config(disable=True)
  rng = np.random.default_rng(0)
  pictures = [PIL.Image.fromarray(a) for a in rng.integers(0, 256, (2, 16, 24, 3), np.uint8)]
  noise = rng.standard_normal((2, FRAMES, 4, 8, 12)).astype(np.float32)
  given, theirs = [], []
  pipe.unet.register_forward_pre_hook(
    lambda module, args, kwargs: given.append((args[0], kwargs)), with_kwargs=True
  )

  def after_step(pipe, step, t, tensors):
    theirs.append(frames_last(tensors["latents"]))
    return tensors

  final = pipe(
    pictures,
    height=16,
    width=24,
    num_frames=FRAMES,
    num_inference_steps=STEPS,
    min_guidance_scale=SCALES[0],
    max_guidance_scale=SCALES[1],
    fps=7,
    motion_bucket_id=127,
    noise_aug_strength=0.02,
    latents=torch.tensor(noise),
    generator=torch.Generator().manual_seed(0),
    output_type="latent",
    callback_on_step_end=after_step,
  ).frames

  pipe.save_pretrained(tmp_path / "pipe")
  system, trees = read(tmp_path / "pipe")
  # What its own encoders made of the pictures is what ours receives.
  inputs, kwargs = given[0]
  branches = frames_last(inputs)[..., 4:], np.asarray(kwargs["encoder_hidden_states"])
  assert all(not np.any(b[:2]) and np.any(b[2:]) for b in branches)
  latents, embedding = (jnp.asarray(b[2:]) for b in branches)
  each = lambda value: jnp.full(2, value)
  micro = svd.micro_conditions(each(7.0), each(127.0), each(0.02))
  np.testing.assert_array_equal(kwargs["added_time_ids"][2:], micro)
  picture = svd.Picture(embedding, latents[:, :1], micro)

  ours = []
  network = svd.network

  def watched(config, params):
    def call(x_t, t, conditions):
      jax.debug.callback(lambda x: ours.append(np.asarray(x)), x_t, ordered=True)
      return network(config, params)(x_t, t, conditions)

    return call

  monkeypatch.setattr(svd, "network", watched)
  sampling = Sampling("euler", STEPS)
  sample = jax.jit(
    lambda trees, picture, noise, first, last: svd.sample_latents(
      system, trees, picture, noise, first, last, sampling=sampling
    )
  )
  reached = sample(trees, picture, frames_last(noise), *SCALES)
  jax.effects_barrier()
  # A network sees c_in x, the first of two branches of an example; x is what a step ended at.
  levels = Edm().levels(STEPS)
  states = [x[::2] * np.hypot(sigma, 1) for x, sigma in zip(ours, levels, strict=False)]
  # The bar of one call of the network holds for all of them: the next call is given a step's error
  # divided by sigma. Seen: 1e-6 at first, 1.5e-5 at last.
  for a, b in zip([*states[1:], reached], theirs, strict=True):
    assert_same_output(a, b)
  np.testing.assert_array_equal(theirs[-1], frames_last(final))


def read(folder):
  """A pipeline's system and all of its trees."""
  found = registry.read_pipeline(folder)
  return found.system, found.load(found.names, {})


def run_once(pipe, pixels, **options):
  """What the pipeline's network is given, and what the pipeline makes of that in one step."""
  pipe.set_progress_bar_config(disable=True)
  given = []
  hook = pipe.unet.register_forward_pre_hook(
    lambda module, args, kwargs: given.append((args[0], kwargs)), with_kwargs=True
  )
  made = pipe(
    [PIL.Image.fromarray(a) for a in pixels],
    height=16,
    width=24,
    num_frames=3,
    num_inference_steps=1,
    noise_aug_strength=0.0,
    **options,
  ).frames
  hook.remove()
  return given[0], made


def test_what_the_network_receives_of_a_picture_is_what_diffusers_gives_it(tmp_path):
  """Image encoder, its antialiased input and the autoencoder's mean, from the same bytes."""
  pipe = pipeline()
  pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
  (inputs, kwargs), _ = run_once(pipe, pixels, output_type="latent")
  pipe.save_pretrained(tmp_path / "pipe")
  system, trees = read(tmp_path / "pipe")
  assert isinstance(system, svd.StableVideo)
  assert system.process == Edm()
  assert (system.num_frames, system.size) == (pipe.unet.config.num_frames, (576, 1024))
  np.testing.assert_allclose(trees["latents"]["scale"], pipe.vae.config.scaling_factor)
  each = lambda value: jnp.full(2, value)
  program = jax.jit(
    lambda trees, pixels: svd.encode_picture(
      system, trees, pixels, each(7.0), each(127.0), each(0.0), jax.random.key(0)
    )
  )
  picture = program(trees, jnp.asarray(pixels[:, None], jnp.float32) / 127.5 - 1)
  assert_same_output(picture.embedding, kwargs["encoder_hidden_states"][2:])
  assert_same_output(picture.latents[:, 0], frames_last(inputs)[2:, 0, ..., 4:])
  np.testing.assert_array_equal(picture.micro, kwargs["added_time_ids"][2:])


def test_the_task_gives_the_pixels_of_diffusers_pipeline(tmp_path, monkeypatch):
  """From a picture's bytes to a clip's, decoded in chunks; the noise alone is handed over.

  One example: chunks of diffusers' go on over the end of one clip into the next.
  """
  pipe = pipeline()
  pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
  noise = np.random.default_rng(1).standard_normal((1, 3, 4, 8, 12)).astype(np.float32)
  options = {
    "latents": torch.tensor(noise),
    "decode_chunk_size": 2,
    "fps": 9,
    "motion_bucket_id": 60,
  }
  _, theirs = run_once(pipe, pixels, output_type="np", **options)
  pipe.save_pretrained(tmp_path / "pipe")
  system, trees = read(tmp_path / "pipe")
  request = svd.Animate(
    picture=pixels[:, None], frames=3, height=16, width=24, fps=9.0, motion=60.0, noise=0.0,
    steps=1, decode_chunk=2,
  )  # fmt: skip
  monkeypatch.setattr(svd, "normal", lambda key, shape: (
    frames_last(noise) if shape[1] == 3 else jnp.zeros(shape)))  # fmt: skip
  task = system.tasks()["animate"]
  arrays = task.arrays(request) | {"seeds": jnp.zeros((1, 2), jnp.uint32)}
  for step in task.steps(request, set(trees)):
    arrays |= jax.jit(step.program, static_argnums=2)(trees, arrays, step.static)
  # A byte's rounding, and theirs is cut to 0..1 after it is shifted.
  np.testing.assert_allclose(arrays["frames"] / 255.0, np.asarray(theirs), atol=0.5 / 255 + 1e-3)
  assert np.asarray(theirs).std() > 0.1
