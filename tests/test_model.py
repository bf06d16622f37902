"""From prompts to frames: what can be asked for, what follows from what, and what compiles when."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from emu_jax import pipeline as module
from emu_jax.cli_shared import Options
from emu_jax.conditioning import every_fourth, first_frame
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.generation import Request, check_frames, extend, generate, interpolate, keys_at
from emu_jax.loading import check_trees
from emu_jax.pipeline import Pipeline
from emu_jax.systems.emu_video import Guidance
from emu_jax.systems.latent import Sampling
from tests.tiny import MODEL, trees

PROMPT, OTHER = "a red circle", "a blue square"
SHORT = Sampling(num_steps=2)
REQUEST = Request(sampling=SHORT)
LONG_MODEL = dataclasses.replace(MODEL, num_frames=16)


def trained_tokenizers(folder):
  return tuple(
    load_tokenizer(train_tokenizer([PROMPT, OTHER], folder / str(i), 300), text.max_length)
    for i, text in enumerate(MODEL.image.text)
  )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return Pipeline(MODEL, trees(), trained_tokenizers(tmp_path_factory.mktemp("text")), "runs/tiny")


@pytest.fixture(scope="module")
def long_model(model):
  return dataclasses.replace(model, config=LONG_MODEL)


def ask(model, prompt=PROMPT, picture=None, **changes):
  request = dataclasses.replace(REQUEST, **changes)
  frames, fps = generate(model, [prompt], request, picture)
  assert frames.dtype == np.uint8
  assert frames.shape == (1, request.frames, 16, 16, 3)
  return frames, fps


def picture(seed=0, T=1):
  return np.random.default_rng(seed).integers(0, 256, (1, T, 16, 16, 3), np.uint8)


def without(model, *names):
  kept = {name: tree for name, tree in model.trees.items() if name not in names}
  return dataclasses.replace(model, trees=kept)


@pytest.mark.parametrize(("frames", "fps"), [(1, 4), (8, 4), (37, 16)])
def test_a_model_of_8_frames_gives_1_and_8_and_37(model, frames, fps):
  assert ask(model, frames=frames)[1] == fps


@pytest.mark.parametrize(("frames", "fps"), [(16, 4), (65, 16)])
def test_a_model_of_16_frames_gives_16_and_65_besides(long_model, frames, fps):
  assert ask(long_model, frames=frames)[1] == fps


def test_both_seams_hold_the_same_two_halves(long_model):
  """They keep other frames of each: all but the first 4 of the first, or all but its last 5."""
  gapless, published = (
    ask(long_model, frames=65, seam=seam)[0] for seam in ("gapless", "published")
  )
  np.testing.assert_array_equal(gapless[:, :28], published[:, 4:32])
  np.testing.assert_array_equal(gapless[:, 33:], published[:, 33:])


def test_the_same_seed_gives_the_same_bytes_and_everything_asked_matters(model):
  once, again = ask(model)[0], ask(model)[0]
  np.testing.assert_array_equal(once, again)
  for changed in (
    ask(model, seed=1),
    ask(model, prompt=OTHER),
    ask(model, negative=OTHER),
    ask(model, guidance=Guidance(picture=7.5, image=3.0, text=7.5)),
    ask(model, guidance=Guidance(picture=7.5, image=2.0, text=5.0)),
    ask(model, guidance=Guidance(picture=5.0, image=2.0, text=7.5)),
  ):
    assert np.any(changed[0] != once)


def test_the_users_picture_takes_the_place_of_the_drawn_one(model):
  own = picture()
  np.testing.assert_array_equal(
    ask(model, picture=own, frames=1)[0], model.decode(model.encode(own))
  )
  drawn = ask(model, frames=1)[0]
  assert np.any(ask(model, picture=own, frames=1)[0] != drawn)
  clip = ask(model, picture=own)[0]
  assert np.any(clip != ask(model, picture=picture(seed=1))[0])
  # The drawing's text scale has nothing left to act on.
  other = dataclasses.replace(REQUEST.guidance, picture=1.0)
  np.testing.assert_array_equal(clip, ask(model, picture=own, guidance=other)[0])


def test_a_picture_of_another_size_is_refused(model):
  with pytest.raises(InputError, match="frames of 8x8 pixels; this model works at 16x16"):
    ask(model, picture=picture()[:, :, ::2, ::2])


def test_interpolation_has_the_given_frames_as_its_keys(model):
  keys = picture(T=8)
  frames, fps = interpolate(model, keys, [PROMPT], REQUEST)
  assert frames.shape == (1, 37, 16, 16, 3)
  assert fps == 16
  moved = keys.copy()
  moved[:, 3] = 255 - moved[:, 3]
  assert np.any(interpolate(model, moved, [PROMPT], REQUEST)[0] != frames)


def test_interpolation_leaves_its_keys_as_they_are_unless_told_to_draw_them_anew(model):
  keys, known = picture(T=8), list(every_fourth().positions)
  coded = model.decode(model.encode(keys)).astype(int)
  np.testing.assert_array_equal(interpolate(model, keys, [PROMPT], REQUEST)[0][:, known], keys)
  anew = dataclasses.replace(REQUEST, keep_keys=False)
  assert np.abs(interpolate(model, keys, [PROMPT], anew)[0][:, known] - coded).max() > 10
  drawn = ask(model)[0].astype(int)
  assert np.abs(ask(model, frames=37)[0][:, known] - drawn).max() <= 1


def test_interpolation_may_have_scales_of_its_own(model):
  own = Guidance(picture=7.5, image=3.0, text=5.0, interpolation=1.5)
  shared = dataclasses.replace(own, interpolation=None)
  made = [
    interpolate(model, picture(T=8), [PROMPT], dataclasses.replace(REQUEST, guidance=guidance))[0]
    for guidance in (own, Guidance(image=1.5, text=1.5), shared)
  ]
  np.testing.assert_array_equal(made[0], made[1])
  assert np.any(made[0] != made[2])
  # A scale that the user gives goes before the model's own.
  assert Options().request(own, 37).guidance == own
  assert Options(text_guidance=2.0).request(own, 37).guidance.between.text == 2.0


def test_interpolation_may_have_a_number_of_steps_of_its_own(model):
  keys, own = picture(T=8), dataclasses.replace(model.config, interpolation_steps=1)
  told = dataclasses.replace(model, config=own)
  one = dataclasses.replace(REQUEST, interpolation_steps=1)
  made = interpolate(model, keys, [PROMPT], one)[0]
  np.testing.assert_array_equal(interpolate(told, keys, [PROMPT], REQUEST)[0], made)
  assert np.any(interpolate(model, keys, [PROMPT], REQUEST)[0] != made)
  # What is asked for goes before the model's own, and only interpolation hears of it.
  asked = dataclasses.replace(REQUEST, interpolation_steps=REQUEST.sampling.num_steps)
  usual = interpolate(model, keys, [PROMPT], REQUEST)[0]
  np.testing.assert_array_equal(interpolate(told, keys, [PROMPT], asked)[0], usual)
  np.testing.assert_array_equal(generate(told, [PROMPT], one)[0], ask(model)[0])
  with pytest.raises(InputError, match=r"interpolation.*0"):
    interpolate(model, keys, [PROMPT], dataclasses.replace(REQUEST, interpolation_steps=0))


def test_65_frames_are_two_interpolations_joined(model):
  frames, _ = interpolate(model, picture(T=16), [PROMPT], REQUEST)
  assert frames.shape == (1, 65, 16, 16, 3)
  # The first half knows the first 8 keys alone.
  other = np.concatenate([picture(T=16)[:, :8], picture(seed=2, T=8)], axis=1)
  changed, _ = interpolate(model, other, [PROMPT], REQUEST)
  np.testing.assert_array_equal(frames[:, :32], changed[:, :32])
  # Every fourth frame is a key; the published seam leaves out the eighth.
  keys = picture(T=16)
  np.testing.assert_array_equal(frames[:, :64:4], keys)
  published = dataclasses.replace(REQUEST, seam="published")
  of_16 = keys_at(2, "published")
  assert [k for k in of_16 if k >= 0] == [k for k in range(16) if k != 7]
  made = interpolate(model, keys, [PROMPT], published)[0]
  np.testing.assert_array_equal(made[:, of_16 >= 0], keys[:, of_16[of_16 >= 0]])
  assert np.any(frames[:, 33:] != changed[:, 33:])


def test_extension_keeps_the_clip_and_reads_its_last_16_frames(model):
  clip = picture(T=18)
  frames, fps = extend(model, clip, [OTHER], REQUEST)
  assert frames.shape == (1, 34, 16, 16, 3)
  assert fps == 4
  np.testing.assert_array_equal(frames[:, :18], clip)
  later, _ = extend(model, clip[:, 2:], [OTHER], REQUEST)
  np.testing.assert_array_equal(frames[:, 18:], later[:, 16:])
  other, _ = extend(model, clip, [PROMPT], REQUEST)
  np.testing.assert_array_equal(other[:, :18], clip)
  assert np.any(other[:, 18:] != frames[:, 18:])


def test_steps_are_told_in_order(model):
  said = []
  generate(model, [PROMPT], dataclasses.replace(REQUEST, frames=37), say=said.append)
  assert said == [
    "text -> image",
    "image + text -> 8 frames",
    "8 -> 37 frames, part 1 of 1",
    "latents -> pixels",
  ]


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


def test_another_seed_prompt_or_scale_compiles_nothing(model):
  ask(model, frames=37)
  COMPILED.clear()
  traced = module._image.here._cache_size(), module._video.here._cache_size()
  ask(model, frames=37, seed=12, prompt=OTHER, negative="blue")
  ask(model, frames=37, guidance=Guidance(picture=3.0, image=1.0, text=2.5))
  assert (module._image.here._cache_size(), module._video.here._cache_size()) == traced
  assert not COMPILED
  ask(model, frames=1, sampling=Sampling(num_steps=3))  # what would be seen, were it otherwise
  assert COMPILED


SCRIPT = """
import collections, json, pathlib, sys
import jax

jax.config.update("jax_platforms", "cpu")
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))

from emu_jax.parallel.compilation import enable_cache
from tests import test_pipeline as here

enable_cache()
tokenizers = here.trained_tokenizers(pathlib.Path(sys.argv[1]))
shapes = jax.eval_shape(here.trees)  # weights matter to no program
trees = jax.tree.map(lambda a: here.np.full(a.shape, 0.01, a.dtype), shapes)
model = here.Pipeline(here.MODEL, trees, tokenizers, "tiny")
request = here.dataclasses.replace(here.REQUEST, frames=1)
frames, _ = here.generate(model, [here.PROMPT], request)
print(json.dumps([counts["cache_hits"], counts["cache_misses"], int(frames.sum())]))
"""


def test_a_second_process_reads_what_the_first_one_compiled(tmp_path):
  def sample():
    found = subprocess.run(
      [sys.executable, "-c", SCRIPT, str(tmp_path / "text")],
      env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
      cwd=pathlib.Path(__file__).parents[1],
      capture_output=True,
      text=True,
      check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])

  hits, misses, total = sample()
  assert misses > 0
  hits_before, kept = hits, misses  # a program that is met twice is a hit already in the first
  hits, misses, again = sample()
  assert (hits, misses, again) == (kept + hits_before, 0, total)


def test_sampling_is_one_scan_over_the_steps_with_no_host_inside(model):
  """Steps = 7, so that the scan over them is told from any other."""
  prompts = model.prompts([PROMPT])
  key = jax.random.key(0)
  sampling = Sampling(num_steps=7)
  image = functools.partial(module._image, config=MODEL.image, sampling=sampling)
  parts = {"image": jax.make_jaxpr(image)(model.trees, prompts, prompts, True, key, 3.0)}
  for name, known in (("temporal", first_frame(8)), ("interpolation", every_fourth())):
    how = {"config": MODEL, "known": known, "name": name, "sampling": sampling}
    video = functools.partial(module._video, **how)
    given = np.zeros(MODEL.image.latent_shape(1, len(known.positions)), np.float32)
    parts[name] = jax.make_jaxpr(video)(model.trees, given, prompts, prompts, key, (2.0, 3.0))
  for name, jaxpr in parts.items():
    equations = list(walk(jaxpr.jaxpr))
    scans = [e.params["length"] for e, inside in equations if e.primitive.name == "scan"]
    assert scans.count(7) == 1, name
    assert [inside for e, inside in equations if is_convolution(e)].count(True) > 0
    on_host = [e for e, _ in equations if "callback" in e.primitive.name or "feed" in str(e)[:80]]
    assert not on_host, name


def is_convolution(equation):
  return equation.primitive.name == "conv_general_dilated"


def walk(jaxpr, inside=False):
  """Every equation, whatever it is nested in, and whether a scan is around it."""
  for equation in jaxpr.eqns:
    yield equation, inside
    for value in equation.params.values():
      for nested in value if isinstance(value, tuple | list) else (value,):
        nested = getattr(nested, "jaxpr", nested)
        if hasattr(nested, "eqns"):
          yield from walk(nested, inside or equation.primitive.name == "scan")


@pytest.mark.parametrize(
  ("missing", "frames", "stage"),
  [
    ("spatial", 1, "image"),
    ("text", 1, "image"),
    ("latents", 1, "image"),
    ("autoencoder", 1, "autoencoder"),
    ("temporal", 8, "video"),
    ("interpolation", 37, "interpolation"),
  ],
)
def test_the_stage_that_was_not_trained_is_named(model, missing, frames, stage):
  message = f"runs/tiny: the model has no '{missing}' weights; train its '{stage}' stage"
  with pytest.raises(InputError, match=message):
    ask(without(model, missing), frames=frames)


def test_interpolation_and_extension_name_their_stage_too(model):
  with pytest.raises(InputError, match="train its 'interpolation' stage"):
    interpolate(without(model, "interpolation"), picture(T=8), [PROMPT], REQUEST)
  with pytest.raises(InputError, match="train its 'extension' stage"):
    extend(without(model, "extension"), picture(T=16), [PROMPT], REQUEST)


@pytest.mark.parametrize("frames", [0, 2, 9, 64, -1])
def test_frames_that_no_model_gives_are_refused(model, frames):
  with pytest.raises(InputError, match=rf"frames={frames} cannot be had; choose one of \(1, 8, 16"):
    check_frames(model, frames)


@pytest.mark.parametrize("frames", [16, 65])
def test_frames_that_this_model_does_not_give_are_refused(model, frames):
  with pytest.raises(InputError, match=f"frames={frames} needs a model trained on 16 frames, "
                     "runs/tiny was trained on 8; choose 8 or 37"):  # fmt: skip
    check_frames(model, frames)


@pytest.mark.parametrize("T", [7, 9, 37])
def test_only_8_or_16_frames_can_be_keys(model, T):
  with pytest.raises(InputError, match=f"the clip has {T} frames; give one of 8 or of 16"):
    interpolate(model, picture(T=T), [PROMPT], REQUEST)


def test_a_clip_that_is_too_short_to_go_on_from_is_refused(model):
  with pytest.raises(InputError, match=r"the clip has 15 frames, .* the last 16"):
    extend(model, picture(T=15), [PROMPT], REQUEST)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"seed": -1}, "seed=-1 is not from 0 to 4294967295"),
    ({"seed": 2**32}, "seed=4294967296 is not from 0"),
    ({"guidance": Guidance(text=float("nan"))}, "text guidance nan is not a number"),
    ({"guidance": Guidance(image=float("inf"))}, "image guidance inf is not a number"),
    ({"sampling": Sampling(rescale=1.5)}, r"rescale=1\.5 is not from 0 to 1"),
  ],
)
def test_numbers_that_no_model_can_use_are_refused(fields, says):
  with pytest.raises(InputError, match=says):
    Request(**fields)


@pytest.mark.parametrize(
  "sampling",
  [Sampling(num_steps=0), Sampling(num_steps=1001), Sampling(spacing="leading"), Sampling(eta=0.5)],
)
def test_a_sampler_that_does_not_fit_the_schedule_is_refused_before_any_work(model, sampling):
  said = []
  with pytest.raises(InputError, match=r"^sampling: "):
    generate(model, [PROMPT], Request(sampling=sampling), say=said.append)
  assert not said


@pytest.mark.parametrize("where", ["prompt", "negative"])
def test_a_prompt_that_is_too_long_is_refused_before_any_work(model, where):
  said, long = [], "red circle " * 20
  asked = {"prompt": PROMPT, "negative": ""} | {where: long}
  with pytest.raises(InputError, match=r"has \d+ tokens, .* the limit is 12"):
    generate(model, [asked["prompt"]], Request(negative=asked["negative"]), say=said.append)
  assert not said


def test_a_model_without_its_tokenizers_is_refused(model):
  with pytest.raises(InputError, match="has 0 tokenizers for 2 text encoders; copy its folder"):
    ask(dataclasses.replace(model, tokenizers=()))


def test_weights_of_another_config_are_refused_by_name_and_shape(model):
  check_trees(MODEL, model.trees, "runs/tiny")
  text = (dataclasses.replace(MODEL.image.text[0], mlp_width=32), MODEL.image.text[1])
  other = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, text=text))
  with pytest.raises(InputError, match=r"another config: text/0/\S+ is \(16,?.*\) there and \(32"):
    check_trees(other, model.trees, "runs/tiny")
  deeper = dataclasses.replace(MODEL.temporal, num_layers=2)
  with pytest.raises(InputError, match=r"temporal/\S+ is absent there and \("):
    check_trees(dataclasses.replace(MODEL, temporal=deeper), model.trees, "runs/tiny")
