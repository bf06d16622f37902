"""Laws of Stable Video Diffusion: its parts, what its network receives, and its sampling."""

import dataclasses
import fnmatch
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax import config as configs
from emu_jax.diffusion.edm import Edm, edm_loss
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.discriminator import PatchDiscriminatorConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVisionConfig
from emu_jax.systems import registry, svd
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.systems.svd import Animate, StableVideo
from emu_jax.systems.system import System, seed_halves
from emu_jax.typing import Conditions
from tests.tiny import perturbed

SYSTEM = StableVideo(
  unet=UNetConfig(
    concat_channels=4,
    channels=(8, 16),
    num_res_blocks=(1, 1),
    transformer_depth=(0, 1),
    num_heads=2,
    context_dims=(6,),
    linear_projection=True,
    norm_groups=4,
    num_micro=3,
    micro_dim=4,
    temporal=VideoLdmConfig(num_frames=3),
  ),
  first_stage=KlAutoencoder(
    AutoencoderConfig(
      channels=(8,), num_res_blocks=1, norm_groups=4, mid_attention=False, patch=2,
      temporal_decoder=True,
    )
  ),
  vision=ClipVisionConfig(
    width=8, num_layers=1, num_heads=2, mlp_width=8, image_size=8, patch=4, projection_dim=6
  ),
  size=(8, 12),
  num_frames=3,
  rates=(4.0, 8.0),
  motion_scale=10.0,
  train_vision=True,
  objective=AutoencoderObjective(
    discriminator=PatchDiscriminatorConfig(width=4, num_layers=1, norm_groups=4)
  ),
)  # fmt: skip
B, T, H, W = 2, 3, 8, 12
CLIP_PARTS = ("video", "high_resolution", "high_quality")
STEPS = 2


@pytest.fixture(scope="module")
def fresh():
  """Every tree at its initialisation."""
  keys = jax.random.split(jax.random.key(0), 8)
  named = zip(SYSTEM.trees().items(), keys, strict=False)
  return {name: jax.jit(tree.init)(key) for (name, tree), key in named}


@pytest.fixture(scope="module")
def trees(fresh):
  """Trees of which no tensor is zero, and latents with statistics of their own."""
  moved = {name: perturbed(tree, 1) for name, tree in fresh.items()}
  draw = lambda a: jnp.asarray(
    np.random.default_rng(a.size).standard_normal(a.shape) / max(a.size / a.shape[-1], 1) ** 0.5,
    jnp.float32,
  )
  return moved | {
    "unet": jax.tree.map(draw, fresh["unet"]),
    "latents": {"shift": jnp.full(4, 0.1), "scale": jnp.full(4, 2.0)},
  }


def batch(seed=0, frames=T, **changes):
  clips = np.random.default_rng(seed).integers(0, 256, (B, frames, H, W, 3), np.uint8)
  usual = {
    "frames": jnp.asarray(clips),
    "fps": jnp.array([4.0, 8.0]),
    "motion": jnp.array([3.0, 90.0]),
    "image_dropped": jnp.array([False, False]),
  }
  return usual | changes


@pytest.fixture(scope="module")
def losses():
  """Losses of one program a part: (part, trees, batch, key) -> [B]."""
  parts = SYSTEM.parts()
  step = jnp.array(0)
  programs = {
    name: jax.jit(lambda trees, batch, key, loss=part.loss: loss(trees, batch, key, step)[0])
    for name, part in parts.items()
  }
  return lambda name, *arguments: programs[name](*arguments)


def random_picture(seed):
  keys = jax.random.split(jax.random.key(seed), 2)
  each = lambda value: jnp.full(B, value)
  return svd.Picture(
    jax.random.normal(keys[0], (B, 1, 6)),
    jax.random.normal(keys[1], (B, 1, 4, 6, 4)),
    svd.micro_conditions(each(7.0), each(127.0), each(0.02)),
  )


@pytest.fixture(scope="module")
def sample():
  return jax.jit(
    lambda trees, picture, noise, first, last: svd.sample_latents(
      SYSTEM, trees, picture, noise, first, last, sampling=svd.Sampling("euler", STEPS)
    )
  )


# The network and what it receives.


def test_at_init_the_video_model_is_its_image_model_frame_by_frame(key, fresh):
  x, t = jax.random.normal(key, (B, T, 4, 6, 4)), jnp.array([-1.0, 1.0])
  conditions = random_picture(3).conditions(T)
  video = jax.jit(UNet(SYSTEM.unet).apply)
  image = jax.jit(UNet(svd.image_unet(SYSTEM)).apply)
  # Zero layers would hide the rest of the network; those over frames stay at their start.
  tree = flatten_dict(perturbed(fresh["unet"], 1), sep="/")
  start = flatten_dict(fresh["unet"], sep="/")
  kept = [p for p in tree if "temporal_" in p or p.startswith("concat_in")]
  assert len(kept) > 20
  params = unflatten_dict(tree | {p: start[p] for p in kept}, sep="/")
  alone = Conditions(conditions.texts, vectors=conditions.vectors)
  frames = [image({"params": params}, x[:, i : i + 1], t, alone) for i in range(T)]
  found = video({"params": params}, x, t, conditions)
  assert float(jnp.std(found)) > 0.05
  np.testing.assert_allclose(found, jnp.concatenate(frames, axis=1), atol=1e-5)
  moved = video({"params": unflatten_dict(tree, sep="/")}, x, t, conditions)
  assert float(jnp.abs(moved - found).max()) > 1e-2


def test_the_network_receives_the_rate_less_one_the_bucket_and_the_noise():
  micro = svd.micro_conditions(jnp.array([7.0, 25.0]), jnp.array([127.0, 3.0]), jnp.zeros(2))
  np.testing.assert_array_equal(micro, [[6.0, 127.0, 0.0], [24.0, 3.0, 0.0]])


def test_a_bucket_is_the_records_motion_scaled_and_cut_to_its_range():
  motion = jnp.array([-1.0, 0.0, 3.0, 25.5, 90.0])
  np.testing.assert_allclose(svd.motion_bucket(SYSTEM, motion), [0, 0, 30, 255, 255])


@pytest.mark.parametrize("column", range(3))
def test_each_micro_condition_changes_the_output(column, trees):
  x, t, conditions = jnp.ones((B, T, 4, 6, 4)), jnp.zeros(B), random_picture(1).conditions(T)
  net = jax.jit(UNet(SYSTEM.unet).apply)
  micro = conditions.vectors["micro"].at[:, column].add((1.0, 40.0, 0.5)[column])
  other = dataclasses.replace(conditions, vectors={"micro": micro})
  one, two = (net({"params": trees["unet"]}, x, t, c) for c in (conditions, other))
  assert float(jnp.abs(one - two).max()) > 1e-3


def test_noise_of_the_picture_has_its_strength_and_that_is_log_normal(key):
  noised = svd.noised_picture(jnp.zeros((2, 1, 64, 64, 3)), jnp.array([0.02, 0.5]), key)
  np.testing.assert_allclose(noised.std(axis=(1, 2, 3, 4)), [0.02, 0.5], rtol=0.05)
  logs = jnp.log(svd.training_strength(jax.random.key(1), 10_000))
  np.testing.assert_allclose([logs.mean(), logs.std()], [-3.0, 0.5], atol=0.02)


def test_the_encoder_sees_the_clean_picture_and_the_autoencoder_the_noised_one(key, trees):
  picture = jax.random.uniform(key, (B, 1, H, W, 3), minval=-1)
  keys = jax.random.split(jax.random.key(2), 2)
  each = lambda value: jnp.full(B, value)
  run = jax.jit(
    lambda noise, k: svd.encode_picture(SYSTEM, trees, picture, each(7.0), each(1.0), noise, k)
  )
  one, two = (run(each(0.3), k) for k in keys)
  np.testing.assert_array_equal(one.embedding, two.embedding)
  assert float(jnp.abs(one.latents - two.latents).max()) > 1e-3
  # As the autoencoder gives them: the statistics of the clip's latents are not applied.
  plain = SYSTEM.first_stage.posterior(trees, picture).mean
  np.testing.assert_allclose(run(each(0.0), keys[0]).latents, plain, atol=1e-5)


def test_the_picture_stands_beside_every_frame_and_dropped_is_zero():
  picture = random_picture(0)
  conditions = picture.conditions(T, jnp.array([False, True]))
  assert conditions.concat.shape == (B, T, 4, 6, 4)
  np.testing.assert_array_equal(conditions.concat[0, 2], picture.latents[0, 0])
  np.testing.assert_array_equal(conditions.texts[0][0], picture.embedding[0])
  assert not jnp.any(conditions.concat[1])
  assert not jnp.any(conditions.texts[0][1])
  np.testing.assert_array_equal(conditions.vectors["micro"], picture.micro)


# Parts.


def test_every_leaf_that_a_part_reads_has_a_rate():
  shapes = {name: jax.eval_shape(tree.init, jax.random.key(0)) for name, tree in
            SYSTEM.trees().items()}  # fmt: skip
  for name, part in SYSTEM.parts().items():
    paths = flatten_dict({tree: shapes[tree] for tree in part.reads}, sep="/")
    for path in paths:
      assert any(fnmatch.fnmatchcase(path, glob) for glob, _ in part.trains), (name, path)


def rates(part, shapes):
  paths = flatten_dict({tree: shapes[tree] for tree in part.reads}, sep="/")
  return {p: next(r for glob, r in part.trains if fnmatch.fnmatchcase(p, glob)) for p in paths}


@pytest.mark.parametrize("train", ["all", "temporal"])
def test_the_parts_train_the_paths_that_they_should(train, fresh):
  system = dataclasses.replace(SYSTEM, train=train)
  parts = system.parts()
  over_frames = lambda p: "temporal_" in p or p.startswith(("unet/concat_in", "unet/micro"))
  for path, rate in rates(parts["image"], fresh).items():
    wanted = path.startswith(("unet/", "vision/")) and not over_frames(path)
    assert rate == float(wanted), path
  for name in CLIP_PARTS:
    for path, rate in rates(parts[name], fresh).items():
      whole = train == "all" and path.startswith(("unet/", "vision/"))
      assert rate == float(whole or (path.startswith("unet/") and over_frames(path))), path
  frozen = dataclasses.replace(system, train_vision=False).parts()
  assert not any(rate for name in ("image", *CLIP_PARTS)
                 for path, rate in rates(frozen[name], fresh).items()
                 if path.startswith("vision/"))  # fmt: skip


@pytest.fixture(scope="module")
def gradients(trees):
  """Gradients of the summed losses by part."""

  def gradient(name, frames):
    loss = SYSTEM.parts()[name].loss
    total = lambda trees: loss(trees, batch(frames=frames), jax.random.key(3), jnp.array(0))[
      0
    ].sum()
    return flatten_dict(jax.jit(jax.grad(total))(trees), sep="/")

  return {"image": gradient("image", 1), "video": gradient("video", T)}


def test_the_image_part_does_not_touch_the_layers_over_frames(gradients, fresh):
  rates_of = rates(SYSTEM.parts()["image"], fresh)
  for path, gradient in gradients["image"].items():
    if path.startswith("unet/") and not rates_of[path] and "micro" not in path:
      assert not jnp.any(gradient), path
  assert sum(bool(jnp.any(g)) for p, g in gradients["image"].items() if p.startswith("vision/")) > 5


def test_what_a_part_trains_gets_a_gradient_and_the_first_stage_none(gradients, fresh):
  for name in ("image", "video"):
    for path, rate in rates(SYSTEM.parts()[name], fresh).items():
      found = bool(jnp.any(gradients[name][path]))
      # A key's bias shifts every logit of a query alike; one context vector leaves softmax no
      # choice, so its queries and keys, and the norm before them, have no effect either.
      if rate and found is False:
        assert any(part in path for part in ("key", "query", "norm_cross", "norm_2", "k/", "q/")), (
          path
        )
      if path.startswith(("autoencoder/", "latents/")):
        assert not found, path


def test_parts_differ_in_the_noise_alone_and_it_has_its_mean_and_deviation(losses, trees):
  noises = {"image": (-1.2, 1.0), "video": (0.7, 1.6), "high_resolution": (1.0, 1.6)}
  for name, (mean, std) in noises.items():
    process = svd.process_of(SYSTEM, getattr(SYSTEM, f"{name}_noise"))
    assert dataclasses.replace(process, log_mean=1.0, log_std=1.6) == SYSTEM.process
    logs = jnp.log(process.draw(jax.random.key(0), 20_000))
    np.testing.assert_allclose([logs.mean(), logs.std()], [mean, std], atol=0.04)
  found = [losses(name, trees, batch(), jax.random.key(3)) for name in CLIP_PARTS]
  assert float(jnp.abs(found[0] - found[1]).max()) > 1e-3
  np.testing.assert_array_equal(found[1], found[2])  # the same noise


def test_the_loss_is_edms_of_this_network_at_the_noise_of_its_part(losses, trees):
  one, keys = batch(), jax.random.split(jax.random.key(3), 4)
  clip = one["frames"].astype(jnp.float32) / 127.5 - 1

  @jax.jit
  def wanted(trees):
    stage = SYSTEM.first_stage
    strength = jnp.exp(-3 + 0.5 * jax.random.normal(keys[1], (B,)))
    bucket = jnp.array([30.0, 255.0])
    picture = svd.encode_picture(SYSTEM, trees, clip[:, :1], one["fps"], bucket, strength, keys[2])
    conditions = picture.conditions(T)
    latents = stage.encode(trees, clip, keys[0])
    net = lambda x, t: UNet(SYSTEM.unet).apply({"params": trees["unet"]}, x, t, conditions)
    return edm_loss(net, Edm(log_mean=0.7, log_std=1.6), latents, keys[3])

  np.testing.assert_allclose(
    losses("video", trees, one, jax.random.key(3)), wanted(trees), rtol=1e-5
  )


@pytest.mark.parametrize("name", ["image", "video"])
def test_a_dropped_picture_leaves_no_trace_in_the_loss(name, trees):
  """Another first frame changes the loss where it is given, and only the target where dropped."""
  frames = 1 if name == "image" else T
  conditions = []

  def network(config, params):
    def call(x_t, t, given):
      conditions.append(given)
      return x_t

    return call

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(svd, "network", network)
    one = batch(frames=frames, image_dropped=jnp.array([True, False]))
    SYSTEM.parts()[name].loss(trees, one, jax.random.key(0), jnp.array(0))
  given = conditions[0]
  assert not jnp.any(given.texts[0][0])
  assert jnp.any(given.texts[0][1])
  if name == "video":
    assert not jnp.any(given.concat[0])
    assert jnp.all(jnp.any(given.concat[1], axis=(-1, -2, -3)))
    # Rate and motion are still said of a clip whose picture is dropped.
    np.testing.assert_array_equal(given.vectors["micro"][:, :2], [[3.0, 30.0], [7.0, 255.0]])


def test_losses_of_an_example_do_not_see_the_others(losses, trees):
  one = batch()
  changed = one | {"frames": one["frames"].at[1].set(255 - one["frames"][1])}
  a, b = (losses("video", trees, x, jax.random.key(3)) for x in (one, changed))
  np.testing.assert_array_equal(a[0], b[0])
  assert float(a[1]) != float(b[1])


def test_a_batch_without_motion_is_refused_in_one_line(trees):
  one = batch()
  del one["motion"]
  with pytest.raises(InputError, match="has no number 'motion'; pack records") as raised:
    SYSTEM.parts()["video"].loss(trees, one, jax.random.key(3), jnp.array(0))
  assert "\n" not in str(raised.value)


def test_public_weights_must_agree_with_every_network():
  assert set(SYSTEM.networks) == {"autoencoder", "vision", "unet", "process"}
  configs.to_dict(SYSTEM.networks)
  assert StableVideo.requests() == {name: task.request for name, task in SYSTEM.tasks().items()}


def test_clips_ask_for_their_rates_and_motion_and_pictures_for_neither():
  parts = SYSTEM.parts()
  assert parts["image"].inputs.numbers == ()
  assert parts["image"].inputs.first.clip.num_frames == 1
  for name in CLIP_PARTS:
    inputs = parts[name].inputs
    assert (inputs.numbers, inputs.first.clip.rates) == (("motion",), (4.0, 8.0))
    assert (inputs.first.clip.num_frames, inputs.first.size) == (T, (H, W))
    assert not parts[name].encoders


@pytest.mark.parametrize("name", ["image", "video"])
def test_samples_stand_beside_the_real_frames(name, trees):
  frames = 1 if name == "image" else T
  system = dataclasses.replace(SYSTEM, preview=svd.Sampling("euler", STEPS))
  draw = jax.jit(system.parts()[name].samples)
  one = batch(frames=frames)
  previews = draw(trees, one, {}, jax.random.key(0))
  assert set(previews) == {name}
  assert previews[name].shape == (B, frames, H, 2 * W, 3)
  np.testing.assert_allclose(
    previews[name][:, :, :, :W], one["frames"].astype(jnp.float32) / 127.5 - 1, atol=1e-6
  )
  assert float(jnp.abs(previews[name]).max()) <= 1


# Sampling.


def test_at_scale_0_the_picture_is_withheld_and_above_it_is_not(key, trees, sample):
  noise = jax.random.normal(key, (B, T, 4, 6, 4))
  one, other = random_picture(1), random_picture(2)
  without = sample(trees, one, noise, 0.0, 0.0)
  np.testing.assert_allclose(sample(trees, other, noise, 0.0, 0.0), without, atol=1e-5)
  assert float(jnp.abs(sample(trees, one, noise, 1.0, 1.0) - without).max()) > 1e-2
  growing = sample(trees, one, noise, 1.0, 3.0)
  assert float(jnp.abs(growing - sample(trees, one, noise, 1.0, 1.0)).max()) > 1e-2
  # No example sees another's picture.
  mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), one, other)
  np.testing.assert_allclose(sample(trees, mixed, noise, 1.0, 3.0)[0], growing[0], atol=1e-5)


def test_the_first_frames_scale_of_1_is_the_conditional_prediction(key, trees):
  """Of one step: the prediction of the first frame is that of the conditions alone."""
  noise, picture = jax.random.normal(key, (B, T, 4, 6, 4)), random_picture(1)
  one_step = svd.Sampling("euler", 1)
  run = jax.jit(
    lambda first, last: svd.sample_latents(
      SYSTEM, trees, picture, noise, first, last, sampling=one_step
    )
  )
  net = lambda x, t: UNet(SYSTEM.unet).apply({"params": trees["unet"]}, x, t, picture.conditions(T))
  alone = jax.jit(lambda: SYSTEM.process.sample(net, noise, None, one_step))()
  guided = run(1.0, 3.0)
  np.testing.assert_allclose(guided[:, 0], alone[:, 0], atol=1e-5)
  assert float(jnp.abs(guided[:, 1:] - alone[:, 1:]).min(axis=(0, 2, 3, 4)).max()) > 0
  np.testing.assert_allclose(run(1.0, 1.0), alone, atol=1e-5)
  # Equal scales are one scale for all frames: half way between 1 and 3 the middle frame has 2.
  np.testing.assert_allclose(run(2.0, 2.0)[:, 1], guided[:, 1], atol=1e-5)


def animated(trees, request, seeds):
  """The task as a model runs it: arrays, then each step's program."""
  task = SYSTEM.tasks()["animate"]
  arrays = task.arrays(request) | {"seeds": seed_halves(np.asarray(seeds, np.uint64))}
  for step in task.steps(request, tuple(trees)):
    program = jax.jit(step.program, static_argnums=2)
    read = {name: trees[name] for name in step.reads}
    arrays = arrays | program(read, arrays, step.static)
  return np.asarray(arrays["frames"])


def pictures(n, size=(H, W)):
  return np.random.default_rng(5).integers(0, 256, (n, 1, *size, 3), np.uint8)


def test_a_clip_has_the_requested_length_size_and_rate(trees):
  request = Animate(picture=pictures(1, (4, 8)), frames=5, height=4, width=8, fps=12.0, steps=STEPS)
  frames = animated(trees, request, [0])
  assert (frames.shape, frames.dtype) == ((1, 5, 4, 8, 3), np.uint8)
  assert SYSTEM.tasks()["animate"].fps(request, ()) == 12
  plain = Animate(picture=pictures(1), steps=STEPS)
  assert animated(trees, plain, [0]).shape == (1, T, H, W, 3)
  assert SYSTEM.tasks()["animate"].fps(plain, ()) == 7


def test_an_example_is_the_same_whatever_batch_it_is_in(trees):
  both = pictures(2)
  request = lambda picture: Animate(picture=picture, steps=STEPS, noise=0.3)
  together = animated(trees, request(both), [4, 5]).astype(int)
  alone = animated(trees, request(both[1:]), [5]).astype(int)
  np.testing.assert_allclose(together[1:], alone, atol=1)
  other = animated(trees, request(both[1:]), [6]).astype(int)
  assert np.abs(other - alone).max() > 8


@pytest.mark.parametrize(
  "change",
  [{"fps": 3.0}, {"motion": 5.0}, {"noise": 1.5}, {"first_guidance": 4.0}, {"last_guidance": 9.0}],
)
def test_every_number_of_a_request_reaches_the_clip(change, trees):
  usual = animated(trees, Animate(picture=pictures(1), steps=STEPS), [0]).astype(int)
  changed = animated(trees, Animate(picture=pictures(1), steps=STEPS, **change), [0]).astype(int)
  assert np.abs(usual - changed).max() > 0


def test_a_temporal_decoder_sees_the_frames_of_its_chunk_alone(key, trees):
  stage = SYSTEM.first_stage
  latents = jax.random.normal(key, (1, 5, 4, 6, 4))
  decode = jax.jit(stage.decode, static_argnums=2)
  parts = [decode(trees, latents[:, i : i + 2], 2) for i in (0, 2, 4)]
  found = decode(trees, latents, 2)
  np.testing.assert_allclose(found, jnp.concatenate(parts, axis=1), atol=1e-5)
  assert float(jnp.abs(decode(trees, latents, 5) - found).max()) > 1e-3


# Configurations and requests.


def test_the_configuration_comes_back_from_json():
  text = json.dumps(configs.to_dict(SYSTEM))
  assert configs.from_dict(json.loads(text), System, "test") == SYSTEM
  assert registry.system_class("svd") is StableVideo


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"unet": dataclasses.replace(SYSTEM.unet, concat_channels=5)}, "concat_channels=5"),
    ({"unet": dataclasses.replace(SYSTEM.unet, context_dims=(7,))}, "projection_dim=6 alone"),
    ({"unet": dataclasses.replace(SYSTEM.unet, num_micro=2)}, "num_micro=2 must be 3"),
    ({"size": (8, 14)}, "8x14 pixels must be multiples of 4"),
    ({"rates": (0.5, 4.0)}, r"rates=\(0\.5, 4\.0\) must be at least 1"),
    ({"motion": 300.0}, "motion=300.0 must be 0 to 255"),
    ({"video_noise": (0.7, 0.0)}, r"video_noise=\(0\.7, 0\.0\)"),
    ({"preview": svd.Sampling("ddim", 5)}, "ddim"),
  ],
)
def test_a_system_whose_parts_do_not_fit_does_not_start(change, words):
  with pytest.raises(ValueError, match=words) as raised:
    dataclasses.replace(SYSTEM, **change)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"height": 14, "width": 20}, "14x20 pixels; height and width must be multiples of 4"),
    ({"fps": 0.0}, "fps=0 is below 1"),
    ({"noise": float("nan")}, "noise=nan is not a number"),
    ({"noise": -1.0}, "noise=-1 is negative"),
    ({"motion": 256.0}, "motion=256 is not from 0 to 255"),
    ({"frames": 0}, "0 frames"),
    ({"steps": 0}, "0 steps"),
    ({"decode_chunk": 0}, "chunks of 0"),
    ({"seed": -1}, "seed=-1"),
    ({"picture": pictures(1, (4, 4))}, "works at 8x12"),
    ({"picture": np.zeros((1, 2, H, W, 3), np.uint8)}, "2 frames were given"),
  ],
)
def test_what_cannot_be_had_is_refused_in_one_line(change, words):
  task = SYSTEM.tasks()["animate"]

  def run():
    request = Animate(**({"picture": pictures(1)} | change))
    task.steps(request, ())
    task.arrays(request)

  with pytest.raises(InputError, match=words) as raised:
    run()
  assert "\n" not in str(raised.value)
