"""Laws of the factorized model."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import (
  KnownFrames,
  TextFeatures,
  concat_known,
  every_fourth,
  first_frame,
)
from emu_jax.diffusion.process import Sampling
from emu_jax.models.unet import UNet
from emu_jax.systems.emu import image_loss
from emu_jax.systems.emu_video import (
  Guidance,
  augmented,
  clip_loss,
  init_temporal,
  join_interpolated,
  sample_video,
  vectors,
  video_network,
)
from emu_jax.systems.first_stage import Pixels
from emu_jax.typing import Conditions
from tests.tiny import MODEL, perturbed, trees


@pytest.fixture(scope="module")
def model():
  return trees()


def changed_unet(**changes):
  return dataclasses.replace(MODEL.image.unet, **changes)


def features(key, B):
  keys = jax.random.split(key, 2)
  texts = tuple(
    jax.random.normal(k, (B, t.max_length, t.width))
    for k, t in zip(keys, MODEL.image.text, strict=True)
  )
  return TextFeatures(texts, (None, None))


def test_at_init_the_video_model_is_its_image_model_whatever_frames_are_known(key, model):
  keys = jax.random.split(key, 5)
  x = jax.random.normal(keys[0], MODEL.image.latent_shape(2, 3))
  t, text = jnp.array([5.0, 900.0]), features(keys[1], 2)
  known = concat_known(first_frame(3), jax.random.normal(keys[2], x[:, :1].shape))
  fresh = init_temporal(MODEL, keys[3])
  conditions = Conditions(text.texts, text.masks, known, vectors(MODEL, jnp.array([0.0, 100.0])))
  net = jax.jit(video_network(MODEL, {"spatial": model["spatial"], "temporal": fresh}))
  video = net(x, t, conditions)
  image = jax.jit(UNet(MODEL.image.unet).apply)
  frames = [
    image({"params": model["spatial"]}, x[:, i : i + 1], t, Conditions(text.texts, text.masks))
    for i in range(3)
  ]
  assert float(jnp.std(video)) > 0.05
  np.testing.assert_allclose(video, jnp.concatenate(frames, axis=1), atol=1e-5)
  # The law is about initialisation: with other temporal weights the two part.
  moved = {"spatial": model["spatial"], "temporal": perturbed(fresh, 4)}
  other = jax.jit(video_network(MODEL, moved))(x, t, conditions)
  assert float(jnp.abs(other - video).max()) > 1e-2


def test_a_withheld_image_gives_the_direct_model(key, model):
  """Mask and latents both zero: no trace of the image may remain in the loss."""
  frames = jax.random.uniform(key, (2, 8, 16, 16, 3), minval=-1)
  text, dropped = features(jax.random.key(1), 2), jnp.array([True, False])
  loss = jax.jit(lambda f: clip_loss(
    MODEL, first_frame(8), "temporal", model, f, text, dropped, jax.random.key(2)))  # fmt: skip

  def concat_gradient(withheld):
    known = jnp.ones(MODEL.image.latent_shape(2))
    drop = jnp.full(2, withheld)
    return jax.grad(lambda z: (concat_known(first_frame(8), z, drop) ** 2).sum())(known)

  assert loss(frames).shape == (2,)
  np.testing.assert_array_equal(concat_gradient(True), 0)
  assert float(jnp.abs(concat_gradient(False)).min()) > 0


def test_losses_of_an_example_do_not_see_the_others(key, model):
  frames = jax.random.uniform(key, (2, 8, 16, 16, 3), minval=-1)
  text, kept = features(jax.random.key(1), 2), jnp.array([False, False])

  def first(frames):
    losses = clip_loss(
      MODEL, first_frame(8), "temporal", model, frames, text, kept, jax.random.key(2)
    )
    return losses[0]

  # Frames reach the loss through the encoder, whose gradient is stopped at the latents: perturb.
  changed = frames.at[1].set(-frames[1])
  loss = jax.jit(first)
  np.testing.assert_array_equal(loss(frames), loss(changed))
  assert float(loss(frames)) != float(loss(frames.at[0].set(-frames[0])))


def test_clips_of_another_length_are_refused_with_both_numbers(key, model):
  frames = jnp.zeros((1, 4, 16, 16, 3))
  with pytest.raises(ValueError, match="4 frames, the mask is for 8"):
    clip_loss(
      MODEL, first_frame(8), "temporal", model, frames, features(key, 1), jnp.array([False]), key
    )


def test_known_frames_are_augmented_only_where_the_stage_says_so(key):
  latents = jnp.ones((2, 8, 4, 4, 4))
  level = jnp.array([0.0, 250.0])
  np.testing.assert_array_equal(augmented(MODEL, first_frame(8), latents, level, key), latents)
  noisy = augmented(MODEL, every_fourth(), latents, level, key)
  alpha, sigma = MODEL.augmentation.alpha_sigma(level)
  np.testing.assert_allclose(alpha[1], 0.8208, atol=1e-4)  # the published t = 250
  # 512 draws: the standard deviation's own error is sigma / sqrt(2 * 512) = 3 %; 4 of those.
  np.testing.assert_allclose(noisy.std(axis=(1, 2, 3, 4)), sigma, rtol=0.13)


def test_ticks_of_two_joined_clips():
  """Emu Video's erratum: the published rule jumps by 5 ticks at the seam."""
  ticks = np.arange(37)
  first, second = ticks - 4, ticks + 28
  as_video = lambda t: jnp.asarray(t, jnp.float32).reshape(1, -1, 1, 1, 1)
  joined = {
    rule: np.asarray(join_interpolated(as_video(first), as_video(second), rule)).ravel()
    for rule in ("gapless", "published")
  }
  np.testing.assert_array_equal(joined["gapless"], np.arange(65))
  steps = np.diff(joined["published"])
  assert len(joined["published"]) == 65
  assert sorted(steps)[-2:] == [1, 5]


def test_scales_of_one_give_the_fully_conditioned_sampler(key, model):
  """Eq. 1 at (1, 1) is X(I, p): guidance then changes nothing, whatever the negative prompt."""
  known, steps = KnownFrames(2, (0,)), Sampling(num_steps=2)
  given = jax.random.normal(key, MODEL.image.latent_shape(1))
  text = features(jax.random.key(1), 1)
  run = jax.jit(
    lambda empty, scales: sample_video(
      MODEL,
      known,
      "temporal",
      model,
      given,
      text,
      empty,
      jax.random.key(5),
      scales,
      sampling=steps,
    )
  )
  one, other = (run(features(jax.random.key(k), 1), (1.0, 1.0)) for k in (2, 3))
  np.testing.assert_allclose(one, other, atol=2e-5)
  alone = run(features(jax.random.key(2), 1), Guidance(image=1.0, text=1.0).scales)
  np.testing.assert_allclose(one, alone, atol=2e-5)
  guided = run(features(jax.random.key(4), 1), (3.0, 3.0))
  assert float(jnp.abs(guided - one).max()) > 1e-3


def test_kept_frames_are_told_without_noise_and_others_with_the_papers(key, model):
  known = KnownFrames(4, (0, 2), max_noise=250)
  given = jax.random.normal(key, (1, 2, *MODEL.image.latent_shape(1)[2:]))
  all_trees = model | {"interpolation": model["temporal"]}
  words = features(jax.random.key(1), 1), features(jax.random.key(2), 1)
  run = lambda **options: sample_video(
    MODEL, known, "interpolation", all_trees, given, *words, jax.random.key(5), None,
    sampling=Sampling(num_steps=1), **options,
  )  # fmt: skip
  np.testing.assert_array_equal(run(keep=True), run(keep=True, noise_level=0))
  usual = run()
  np.testing.assert_array_equal(usual, run(noise_level=100))
  assert float(jnp.abs(usual - run(noise_level=0)).max()) > 1e-3


def test_the_image_loss_is_one_number_an_example_and_finite(key, model):
  frames = jax.random.randint(key, (3, 1, 16, 16, 3), 0, 256).astype(jnp.uint8)
  words = features(jax.random.key(1), 3)
  text = {"texts": words.texts, "masks": words.masks, "vectors": {}}
  loss = jax.jit(partial(image_loss, MODEL.image))
  losses, _ = loss(model, {"frames": frames, "text": text}, jax.random.key(2), jnp.array(0))
  assert losses.shape == (3,)
  assert bool(jnp.isfinite(losses).all())


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"size": (18, 16)}, "size=18x16 pixels must be multiples of 8"),
    ({"size": (16, 20)}, "size=16x20 pixels must be multiples of 8"),
    ({"text": MODEL.image.text[:1]}, "context_dims"),
    ({"first_stage": Pixels()}, "channels=3"),
    ({"unet": changed_unet(in_channels=8)}, "in_channels=8"),
    ({"unet": changed_unet(num_micro=3)}, "num_micro=3 must be 0, or 6"),
    ({"unet": changed_unet(num_micro=6, pooled_dim=5)}, "pooled_dim=5 must be projection_dim=0"),
  ],
)
def test_networks_that_do_not_fit_one_another_do_not_start(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(MODEL.image, **change)
