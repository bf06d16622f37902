"""Laws of Stable Video Diffusion's sampling and loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.edm import edm_loss
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.systems import svd

CONFIG = svd.SvdConfig(
  UNetConfig(
    concat_channels=4,
    channels=(8,),
    num_res_blocks=(1,),
    transformer_depth=(1,),
    num_heads=2,
    context_dims=(6,),
    linear_projection=True,
    norm_groups=4,
    num_micro=3,
    micro_dim=4,
    temporal=VideoLdmConfig(),
  )
)
B, T, H, W = 2, 3, 4, 6
SAMPLING = svd.SvdSampling(num_steps=2, num_frames=T)


@pytest.fixture(scope="module")
def trees():
  """A network that hears every condition: no tensor is zero."""
  picture = pictures(jax.random.key(0))
  noise = jnp.zeros((B, T, H, W, 4))
  make = lambda key: UNet(CONFIG.unet).init(key, noise, jnp.zeros(B), picture.conditions(T))
  shapes = jax.eval_shape(make, jax.random.key(0))["params"]
  rng = np.random.default_rng(0)
  draw = lambda a: rng.standard_normal(a.shape) / max(a.size / a.shape[-1], 1) ** 0.5
  return {"unet": jax.tree.map(lambda a: jnp.asarray(draw(a), jnp.float32), shapes)}


def pictures(key):
  keys = jax.random.split(key, 2)
  each = lambda value: jnp.full(B, value)
  return svd.Picture(
    jax.random.normal(keys[0], (B, 1, 6)),
    jax.random.normal(keys[1], (B, 1, H, W, 4)),
    svd.micro_conditions(each(7.0), each(127.0), each(0.02)),
  )


@pytest.fixture(scope="module")
def sample():
  return jax.jit(
    lambda trees, picture, noise, first, last: svd.sample_latents(
      CONFIG, trees, picture, noise, first, last, sampling=SAMPLING
    )
  )


@pytest.fixture(scope="module")
def loss():
  return jax.jit(
    lambda trees, latents, picture, dropped, key: svd.video_loss(
      CONFIG, trees, latents, picture, dropped, key
    )
  )


def test_the_network_is_told_of_frames_less_one():
  micro = svd.micro_conditions(jnp.array([7.0, 25.0]), jnp.array([127.0, 3.0]), jnp.zeros(2))
  np.testing.assert_array_equal(micro, [[6.0, 127.0, 0.0], [24.0, 3.0, 0.0]])


def test_noise_of_the_picture_has_its_strength(key):
  picture = jnp.zeros((2, 1, 64, 64, 3))
  noised = svd.noised_picture(picture, jnp.array([0.02, 0.5]), key)
  np.testing.assert_allclose(noised.std(axis=(1, 2, 3, 4)), [0.02, 0.5], rtol=0.05)
  logs = jnp.log(svd.training_strength(jax.random.key(1), 10_000))
  np.testing.assert_allclose([logs.mean(), logs.std()], [-3.0, 0.5], atol=0.02)


def test_the_picture_stands_beside_every_frame_and_withheld_is_zero(key):
  picture = pictures(key)
  conditions = picture.conditions(T, jnp.array([False, True]))
  assert conditions.concat.shape == (B, T, H, W, 4)
  np.testing.assert_array_equal(conditions.concat[0, 2], picture.latents[0, 0])
  np.testing.assert_array_equal(conditions.texts[0][0], picture.embedding[0])
  assert not jnp.any(conditions.concat[1])
  assert not jnp.any(conditions.texts[0][1])
  np.testing.assert_array_equal(conditions.vectors["micro"], picture.micro)


def test_at_scale_0_the_picture_is_withheld_and_above_it_is_not(key, trees, sample):
  noise = jax.random.normal(key, (B, T, H, W, 4))
  one, other = pictures(jax.random.key(1)), pictures(jax.random.key(2))
  without = sample(trees, one, noise, 0.0, 0.0)
  np.testing.assert_allclose(sample(trees, other, noise, 0.0, 0.0), without, atol=1e-5)
  assert float(jnp.abs(sample(trees, one, noise, 1.0, 1.0) - without).max()) > 1e-2
  growing = sample(trees, one, noise, 1.0, 3.0)
  assert float(jnp.abs(growing - sample(trees, one, noise, 1.0, 1.0)).max()) > 1e-2
  # No example hears another's picture.
  mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), one, other)
  np.testing.assert_allclose(sample(trees, mixed, noise, 1.0, 3.0)[0], growing[0], atol=1e-5)


def test_a_clip_is_one_program(trees, sample):
  decode = lambda z: z[..., :3].repeat(2, axis=2).repeat(2, axis=3)
  program = jax.jit(
    lambda trees, picture, key: svd.sample_video(
      CONFIG, trees, picture, key, 1.0, 3.0, decode=decode, sampling=SAMPLING, chunk=2
    )
  )
  picture = pictures(jax.random.key(1))
  clip = program(trees, picture, jax.random.key(5))
  assert clip.shape == (B, T, 2 * H, 2 * W, 3)
  assert float(jnp.abs(clip).max()) <= 1
  noise = jax.random.normal(jax.random.key(5), (B, T, H, W, 4))
  latents = sample(trees, picture, noise, 1.0, 3.0)
  wanted = jnp.clip(decode(latents / 0.18215), -1, 1)
  np.testing.assert_allclose(clip, wanted, atol=1e-3)  # latents are divided by a fifth


def test_noise_of_another_length_is_refused(key, trees):
  with pytest.raises(ValueError, match="noise has 2 frames, num_frames=3"):
    svd.sample_latents(
      CONFIG, trees, pictures(key), jnp.zeros((B, 2, H, W, 4)), 1.0, 3.0, sampling=SAMPLING
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 9])
def test_a_chunk_sees_its_own_frames_only(key, chunk):
  latents = jax.random.normal(key, (2, 5, 2, 2, 3))
  decode = lambda z: z + z.mean(axis=1, keepdims=True)
  parts = [decode(latents[:, i : i + chunk]) for i in range(0, 5, chunk)]
  decoded = svd.decode_in_chunks(decode, latents, chunk)
  np.testing.assert_allclose(decoded, jnp.concatenate(parts, axis=1), atol=1e-6)


def test_the_loss_hears_the_picture_unless_it_is_dropped(key, trees, loss):
  latents = jax.random.normal(key, (B, T, H, W, 4))
  one, other = pictures(jax.random.key(1)), pictures(jax.random.key(2))
  dropped = jnp.array([False, True])
  a, b = (loss(trees, latents, p, dropped, jax.random.key(3)) for p in (one, other))
  assert a.shape == (B,)
  assert float(jnp.abs(a - b)[0]) > 1e-3
  np.testing.assert_allclose(a[1], b[1], rtol=1e-6)


def test_the_loss_is_edms_of_this_network(key, trees, loss):
  latents, picture = jax.random.normal(key, (B, T, H, W, 4)), pictures(jax.random.key(1))
  conditions = picture.conditions(T)
  network = UNet(CONFIG.unet)
  wanted = jax.jit(
    lambda params: edm_loss(
      lambda x, t: network.apply({"params": params}, x, t, conditions),
      CONFIG.edm,
      latents,
      jax.random.key(3),
    )
  )(trees["unet"])
  ours = loss(trees, latents, picture, jnp.zeros(B, bool), jax.random.key(3))
  np.testing.assert_allclose(ours, wanted, rtol=1e-5)
