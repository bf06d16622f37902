"""From requests to frames: what can be had, what follows from what, and what compiles when."""

import dataclasses
import inspect
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import every_fourth
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.model import Model, program
from emu_jax.systems import emu_video, fields
from emu_jax.systems.emu_video import Extend, Guidance, Interpolate, encode_picture, keys_at
from emu_jax.systems.first_stage import decoded
from emu_jax.systems.instruct_pix2pix import Edit
from emu_jax.systems.system import check_trees, example_keys
from tests.tiny import MODEL, trees

PROMPT, OTHER = "a red circle", "a blue square"
LONG_MODEL = dataclasses.replace(MODEL, num_frames=16)


def trained_tokenizers(folder):
  return tuple(
    load_tokenizer(train_tokenizer([PROMPT, OTHER], folder / str(i), 300), text.max_length)
    for i, text in enumerate(MODEL.image.text)
  )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return Model(MODEL, trees(), trained_tokenizers(tmp_path_factory.mktemp("text")), "runs/tiny")


@pytest.fixture(scope="module")
def long_model(model):
  return dataclasses.replace(model, system=LONG_MODEL)


def with_system(model, **changes):
  return dataclasses.replace(model, system=dataclasses.replace(model.system, **changes))


def sample(model, prompt=PROMPT, frames=8, **options):
  clips = model.sample(prompt, frames=frames, **{"steps": 2} | options)
  assert clips.frames.dtype == np.uint8
  assert clips.frames.shape == (1, frames, 16, 16, 3)
  return clips


def frames_of(model, *args, **options):
  return sample(model, *args, **options).frames


def between(model, clip, prompt=PROMPT, **options):
  return model.interpolate(clip, prompt=prompt, **{"steps": 2} | options)


def picture(seed=0, T=1):
  return np.random.default_rng(seed).integers(0, 256, (1, T, 16, 16, 3), np.uint8)


def coded(model, frames):
  """What the autoencoder makes of frames."""
  latents = encode_picture(model.trees, {"given": jnp.asarray(frames)}, model.system)
  return np.asarray(decoded(model.trees, latents, (model.system.image.first_stage, 8))["frames"])


def without(model, *names):
  kept = {name: tree for name, tree in model.trees.items() if name not in names}
  return dataclasses.replace(model, trees=kept)


# What can be had.


@pytest.mark.parametrize(("frames", "fps"), [(1, 4), (8, 4), (37, 16)])
def test_a_model_of_8_frames_gives_1_and_8_and_37(model, frames, fps):
  assert sample(model, frames=frames).fps == fps


@pytest.mark.parametrize(("frames", "fps"), [(16, 4), (65, 16)])
def test_a_model_of_16_frames_gives_16_and_65_besides(long_model, frames, fps):
  assert sample(long_model, frames=frames).fps == fps


def test_without_a_length_it_is_the_models_own_and_1_of_an_image_model(model):
  assert model.sample(PROMPT, steps=2).frames.shape[1] == 8
  assert without(model, "temporal").sample(PROMPT, steps=2).frames.shape[1] == 1


def test_both_seams_hold_the_same_two_halves(long_model):
  """They keep other frames of each: all but the first 4 of the first, or all but its last 5."""
  gapless, published = (
    frames_of(long_model, frames=65, seam=seam) for seam in ("gapless", "published")
  )
  np.testing.assert_array_equal(gapless[:, :28], published[:, 4:32])
  np.testing.assert_array_equal(gapless[:, 33:], published[:, 33:])


def test_the_same_seed_gives_the_same_bytes_and_all_that_a_request_says_matters(model):
  once = frames_of(model)
  np.testing.assert_array_equal(once, frames_of(model))
  usual = {"picture_guidance": 7.5, "image_guidance": 2.0, "text_guidance": 7.5}
  np.testing.assert_array_equal(once, frames_of(model, **usual))
  changes = [
    {"seed": 1},
    {"prompt": OTHER},
    {"negative": OTHER},
    {"image_guidance": 3.0},
    {"text_guidance": 5.0},
    {"picture_guidance": 5.0},
    {"rescale": 0.7},
    {"steps": 3},
    {"image": picture()},
  ]
  made = [frames_of(model, **changed).tobytes() for changed in changes]
  assert len({once.tobytes(), *made}) == 1 + len(changes)


def test_the_users_picture_takes_the_place_of_the_drawn_one(model):
  clip = frames_of(model, image=picture())
  assert np.any(clip != frames_of(model, image=picture(seed=1)))


def test_a_picture_of_another_size_is_refused(model):
  with pytest.raises(InputError, match="frames of 8x8 pixels; this model works at 16x16"):
    sample(model, image=picture()[:, :, ::2, ::2])


def test_interpolation_has_the_given_frames_as_its_keys(model):
  keys = picture(T=8)
  clips = between(model, keys)
  assert clips.frames.shape == (1, 37, 16, 16, 3)
  assert clips.fps == 16
  moved = keys.copy()
  moved[:, 3] = 255 - moved[:, 3]
  assert np.any(between(model, moved).frames != clips.frames)


def test_interpolation_leaves_its_keys_as_they_are_unless_they_are_to_be_drawn_anew(model):
  keys, known = picture(T=8), list(every_fourth().positions)
  np.testing.assert_array_equal(between(model, keys).frames[:, known], keys)
  redrawn = between(model, keys, keep_keys=False).frames[:, known]
  assert np.abs(redrawn - coded(model, keys).astype(int)).max() > 10
  drawn = frames_of(model).astype(int)
  assert np.abs(frames_of(model, frames=37, keep_keys=True)[:, known] - drawn).max() <= 1


def test_a_clip_of_which_all_frames_are_likely_alike_does_not_pulse_at_its_keys(model, monkeypatch):
  """The exact denoiser of still clips, of keys that were drawn with an error each.

  All 37 frames then are the keys' mean; keys that are kept stand out by their errors.
  """
  system = dataclasses.replace(MODEL, fps=3.0)  # programs of its own
  monkeypatch.setattr(emu_video, "video_network", still_clips)
  still = dataclasses.replace(model, system=system)
  steps = lambda **options: np.abs(
    np.diff(frames_of(still, frames=37, **options).astype(int), axis=1)
  )
  assert steps(keep_keys=True).max() > 10
  assert steps().max() == 0


def still_clips(config, trees, name):
  """In place of `video_network`: frames that differ as keys, else the mean of the known ones."""

  def net(x_t, t, conditions):
    mask, known = conditions.concat[..., :1], conditions.concat[..., 1:]
    if name == "temporal":
      clean = jax.random.normal(jax.random.key(0), x_t.shape[1:])[None] + 0 * x_t
    else:
      mean = (mask * known).sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1)
      clean = mean + 0 * x_t
    return config.process.output(clean, x_t, t)

  return net


def test_interpolation_may_have_scales_of_its_own(model):
  guidance = Guidance(image=3.0, text=5.0, interpolation=1.5)
  same = with_system(model, guidance=guidance)
  plain = with_system(model, guidance=dataclasses.replace(guidance, interpolation=None))
  keys = picture(T=8)
  made = between(same, keys).frames
  given = {"image_guidance": 1.5, "text_guidance": 1.5}
  np.testing.assert_array_equal(made, between(plain, keys, **given).frames)
  assert np.any(made != between(plain, keys).frames)
  # A scale that the user gives goes before the model's own.
  usual, other = (same.request("sample", prompt="", **g) for g in ({}, {"text_guidance": 2.0}))
  assert usual.guidance(guidance) == guidance
  assert other.guidance(guidance).between.text == 2.0


def test_interpolation_may_have_a_number_of_steps_of_its_own(model):
  keys, configured = picture(T=8), with_system(model, interpolation_steps=1)
  made = between(model, keys, interpolation_steps=1).frames
  np.testing.assert_array_equal(between(configured, keys).frames, made)
  usual = between(model, keys).frames
  assert np.any(usual != made)
  # What is asked for goes before the model's own.
  np.testing.assert_array_equal(between(configured, keys, interpolation_steps=2).frames, usual)
  with pytest.raises(InputError, match=r"interpolation.*0"):
    between(model, keys, interpolation_steps=0)


def test_65_frames_are_two_interpolations_joined(model):
  keys = picture(T=16)
  frames = between(model, keys).frames
  assert frames.shape == (1, 65, 16, 16, 3)
  # The first half knows the first 8 keys alone.
  changed = between(model, np.concatenate([keys[:, :8], picture(seed=2, T=8)], axis=1)).frames
  np.testing.assert_array_equal(frames[:, :32], changed[:, :32])
  assert np.any(frames[:, 33:] != changed[:, 33:])
  # Every fourth frame is a key; the published seam leaves out the eighth.
  np.testing.assert_array_equal(frames[:, :64:4], keys)
  of_16 = keys_at(8, 2, "published")
  assert [k for k in of_16 if k >= 0] == [k for k in range(16) if k != 7]
  made = between(model, keys, seam="published").frames
  np.testing.assert_array_equal(made[:, of_16 >= 0], keys[:, of_16[of_16 >= 0]])


def test_extension_keeps_the_clip_and_reads_its_last_16_frames(model):
  clip = picture(T=18)
  frames, fps = model.extend(clip, OTHER, steps=2)
  assert frames.shape == (1, 34, 16, 16, 3)
  assert fps == 4
  np.testing.assert_array_equal(frames[:, :18], clip)
  later = model.extend(clip[:, 2:], OTHER, steps=2).frames
  np.testing.assert_array_equal(frames[:, 18:], later[:, 16:])
  other = model.extend(clip, PROMPT, steps=2).frames
  np.testing.assert_array_equal(other[:, :18], clip)
  assert np.any(other[:, 18:] != frames[:, 18:])


# Examples of a batch.


def nearly(a, b):
  """Frames that differ by no more than rounding.

  The noise is equal, and the networks are evaluated in float32 with sums in another order: a value
  moves by some 1e-5 of 255 levels, which changes a byte only where it lies that near to the middle
  between two. One pixel in a hundred is far more than that gives.
  """
  difference = np.abs(a.astype(int) - b.astype(int))
  assert difference.max(initial=0) <= 1
  assert (difference > 0).mean() <= 0.01


def test_an_example_of_a_batch_is_what_it_is_alone(model):
  prompts, seeds = [PROMPT, OTHER, PROMPT], [5, 2, 9]
  requests = [
    model.request("sample", prompt=prompt, seed=seed, steps=2)
    for prompt, seed in zip(prompts, seeds, strict=True)
  ]
  together = model.run_all("sample", requests)
  assert together.fps == 4
  for frames, prompt, seed in zip(together.frames, prompts, seeds, strict=True):
    nearly(frames[None], frames_of(model, prompt, seed=seed))
  assert np.any(together.frames[0] != together.frames[2])
  # Several prompts in one request have seeds that follow one another.
  several = model.sample(prompts, seed=5, steps=2).frames
  nearly(several[0], together.frames[0])
  nearly(several[1:2], frames_of(model, OTHER, seed=6))


def test_pictures_of_a_batch_go_with_their_prompts(model):
  requests = [
    model.request("sample", prompt=PROMPT, image=picture(seed), steps=2, seed=seed)
    for seed in (0, 1)
  ]
  for frames, seed in zip(model.run_all("sample", requests).frames, (0, 1), strict=True):
    nearly(frames[None], frames_of(model, image=picture(seed), seed=seed))


def test_requests_of_another_number_are_no_batch(model):
  requests = [model.request("sample", prompt=PROMPT, text_guidance=s, steps=2) for s in (2.0, 3.0)]
  with pytest.raises(InputError, match="scales differs between requests of one batch"):
    model.run_all("sample", requests)
  with pytest.raises(InputError, match=r"\{'given': 2, 'prompt': 3\} examples do not go together"):
    model.sample([PROMPT] * 3, image=np.concatenate([picture()] * 2), steps=2)


def test_the_shape_of_what_a_request_gives_is_known_without_weights(model):
  outline = dataclasses.replace(model, trees={name: {} for name in model.trees})
  for frames in (1, 8, 37):
    request = outline.request("sample", prompt=PROMPT, frames=frames, steps=2)
    assert outline.shape("sample", request) == (1, frames, 16, 16, 3)
  assert outline.shape("extend", outline.request("extend", clip=picture(T=16), prompt="")) == (
    1, 32, 16, 16, 3,
  )  # fmt: skip


# Tasks as methods.


def test_every_task_is_a_method_and_files_go_before_prompts(model):
  assert {"sample", "interpolate", "extend"} <= set(dir(model))
  assert [fields.positional(kind) for kind in (Extend, Interpolate, Edit)] == [
    ["clip", "prompt"],
    ["clip"],
    ["picture", "prompt"],
  ]
  with pytest.raises(AttributeError, match="has no 'draw'; its tasks are sample, interpolate"):
    model.draw(PROMPT)
  with pytest.raises(InputError, match=r"2 values without a name; it takes \['prompt'\]"):
    model.sample(PROMPT, 8)


def test_requests_of_a_system_are_those_of_its_tasks():
  assert MODEL.requests() == {name: task.request for name, task in MODEL.tasks().items()}


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"length": 3}, "sample: has no field 'length'; it has seed, prompt"),
    ({"prompt": 3}, "prompt=3 is no text and no list of texts"),
    ({"prompt": []}, r"prompt=\[\] is no text"),
    ({"negative": [3]}, r"negative=\[3\] is no text"),
    ({"steps": "2"}, "steps: '2' is not of type int"),
    ({"frames": 8.0}, "frames: 8.0 is not of type int . None"),
    ({"text_guidance": True}, "text_guidance: True is not of type float . None"),
    ({"solver": "midpoint"}, "solver: 'midpoint' is not of type .*ddim"),
  ],
)
def test_fields_that_there_are_not_or_of_another_type_are_refused(model, values, says):
  with pytest.raises(InputError, match=says):
    model.request("sample", **{"prompt": PROMPT} | values)


def test_numbers_of_numpy_are_numbers_and_a_prompt_is_needed(model):
  request = model.request("sample", prompt=PROMPT, steps=np.int64(2), text_guidance=3)
  assert (request.steps, request.text_guidance) == (2, 3)
  with pytest.raises(InputError, match="sample: needs 'prompt'; give it"):
    model.request("sample")


def test_a_field_without_a_source_to_read_has_no_help():
  bare = dataclasses.make_dataclass("Bare", [("size", int)])
  assert fields.helps(bare) == {}
  assert fields.helps(Extend)["prompt"] == "what happens next"
  assert fields.helps(Extend)["steps"].startswith("network evaluations of each sampling run")
  assert set(fields.helps(Extend)) == {field.name for field in dataclasses.fields(Extend)}


# What compiles when.


def test_steps_are_named_in_order(model):
  named = []
  sample(model, frames=37, progress=named.append)
  assert named == [
    "prompts -> features",
    "text -> image",
    "image + text -> 8 frames",
    "8 -> 37 frames, part 1 of 1",
    "joining the parts",
    "latents -> pixels",
  ]


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


def traced(model, **options):
  """How many programs each step of a request has by now."""
  steps = model.steps("sample", model.request("sample", prompt=PROMPT, **options))
  return [program(step.program).here._cache_size() for step in steps]


def test_another_seed_prompt_or_scale_compiles_nothing(model):
  sample(model, frames=37)
  COMPILED.clear()
  before = traced(model, frames=37)
  sample(model, frames=37, seed=12, prompt=OTHER, negative="blue")
  scales = {"picture_guidance": 3.0, "image_guidance": 1.0, "text_guidance": 2.5}
  sample(model, frames=37, **scales)
  assert traced(model, frames=37) == before
  assert not COMPILED
  pictures = traced(model, frames=1)
  sample(model, frames=1, steps=11)  # what would be seen, were it otherwise
  assert traced(model, frames=1) != pictures


SCRIPT = """
import collections, json, pathlib, sys
import jax

jax.config.update("jax_platforms", "cpu")
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))

from emu_jax.parallel.compilation import enable_cache
from tests import test_model as here

enable_cache()
tokenizers = here.trained_tokenizers(pathlib.Path(sys.argv[1]))
shapes = jax.eval_shape(here.trees)  # weights matter to no program
trees = jax.tree.map(lambda a: here.np.full(a.shape, 0.01, a.dtype), shapes)
model = here.Model(here.MODEL, trees, tokenizers, "tiny")
frames = here.frames_of(model, frames=1)
print(json.dumps([counts["cache_hits"], counts["cache_misses"], int(frames.sum())]))
"""


def test_a_second_process_reads_what_the_first_one_compiled(tmp_path):
  def run():
    found = subprocess.run(
      [sys.executable, "-c", SCRIPT, str(tmp_path / "text")],
      env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
      cwd=pathlib.Path(__file__).parents[1],
      capture_output=True,
      text=True,
      check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])

  hits, misses, total = run()
  assert misses > 0
  hits_before, kept = hits, misses  # a program that is met twice is a hit already in the first
  hits, misses, again = run()
  assert (hits, misses, again) == (kept + hits_before, 0, total)


def test_sampling_is_one_scan_over_the_steps_with_no_host_inside(model):
  """Steps = 7, so that the scan over them is told from any other."""
  request = model.request("sample", prompt=PROMPT, frames=37, steps=7)
  arrays, sampled = model.arrays("sample", [request]), []
  for step in model.steps("sample", request):
    trees = {name: model.trees[name] for name in step.reads}
    run = lambda trees, arrays, step=step: step.program(trees, arrays, step.static)
    jaxpr, made = jax.make_jaxpr(run, return_shape=True)(trees, arrays)
    arrays |= jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made)
    equations = list(walk(jaxpr.jaxpr))
    on_host = [e for e, _ in equations if "callback" in e.primitive.name or "feed" in str(e)[:80]]
    assert not on_host, step.says
    scans = [e.params["length"] for e, inside in equations if e.primitive.name == "scan"]
    if scans.count(7):
      assert scans.count(7) == 1, step.says
      assert [inside for e, inside in equations if is_convolution(e)].count(True) > 0
      sampled.append(step.says)
  assert sampled == ["text -> image", "image + text -> 8 frames", "8 -> 37 frames, part 1 of 1"]


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


# What is refused.


@pytest.mark.parametrize(
  ("missing", "frames", "part"),
  [
    ("spatial", 1, "image"),
    ("text", 1, ""),
    ("latents", 1, ""),
    ("autoencoder", 1, "autoencoder"),
    ("temporal", 8, "video"),
    ("interpolation", 37, "interpolation"),
  ],
)
def test_the_part_that_was_not_trained_is_named(model, missing, frames, part):
  maker = f"train its '{part}' part" if part else ""
  with pytest.raises(InputError, match=f"runs/tiny: the model has no '{missing}' weights; {maker}"):
    sample(without(model, missing), frames=frames)


def test_interpolation_and_extension_name_their_part_too(model):
  with pytest.raises(InputError, match="train its 'interpolation' part"):
    between(without(model, "interpolation"), picture(T=8))
  with pytest.raises(InputError, match="train its 'extension' part"):
    without(model, "extension").extend(picture(T=16), PROMPT)


@pytest.mark.parametrize("frames", [2, 9, 16, 64, 65, -1])
def test_frames_that_this_model_does_not_give_are_refused(model, frames):
  says = f"frames={frames} cannot be had of a model trained on 8; choose one of 1, 8, 37"
  with pytest.raises(InputError, match=says):
    model.sample(PROMPT, frames=frames)


@pytest.mark.parametrize("T", [7, 9, 37])
def test_only_8_or_16_frames_can_be_keys(model, T):
  with pytest.raises(InputError, match=f"{T} key frames; give 8 of them, or 16"):
    between(model, picture(T=T))


def test_a_clip_that_is_too_short_to_go_on_from_is_refused(model):
  with pytest.raises(InputError, match=r"the clip has 15 frames, .* the last 16"):
    model.extend(picture(T=15), PROMPT)


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"seed": -1}, "seed=-1 is no whole number from 0 to 18446744073709551615"),
    ({"seed": 2**64}, "seed=18446744073709551616 is no whole number from 0"),
    ({"text_guidance": float("nan")}, "text_guidance=nan is not a number"),
    ({"image_guidance": float("inf")}, "image_guidance=inf is not a number"),
    ({"rescale": 1.5}, r"rescale=1\.5 is not from 0 to 1"),
  ],
)
def test_numbers_that_no_model_can_use_are_refused(model, values, says):
  with pytest.raises(InputError, match=says):
    model.request("sample", prompt=PROMPT, **values)


def test_what_came_out_as_no_number_is_an_error_and_no_black_picture(model):
  """Born on the way, of finite weights: in the latents, or in the decoder alone."""
  large = lambda tree: jax.tree.map(lambda leaf: 1e38 * jnp.ones_like(leaf), tree)
  latents = {**model.trees, "spatial": large(model.trees["spatial"])}
  decoder = {**model.trees, "autoencoder": large(model.trees["autoencoder"])}
  for trees_, step in ((latents, "text -> image"), (decoder, "latents -> pixels")):
    with pytest.raises(FloatingPointError, match=f"sample, {step}: of 1 examples some came out as"):
      dataclasses.replace(model, trees=trees_).sample(PROMPT, frames=1, steps=2)


def test_seeds_are_of_64_bits_and_their_keys_are_jaxs_own(model):
  large = 2**64 - 1
  requests = [model.request("sample", prompt=PROMPT, seed=seed) for seed in (3, large, 2**32 + 3)]
  keys = example_keys(model.arrays("sample", requests))
  with jax.enable_x64(True):
    expected = [jax.random.key(np.uint64(seed)) for seed in (3, large, 2**32 + 3)]
  found, wanted = (np.stack([jax.random.key_data(k) for k in row]) for row in (keys, expected))
  np.testing.assert_array_equal(found, wanted)
  # Of several examples the one after the last seed is the first.
  two = model.arrays("sample", [model.request("sample", prompt=[PROMPT, OTHER], seed=large)])
  assert example_keys(two)[1] == jax.random.key(0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_sampler_that_does_not_fit_the_schedule_is_refused_before_any_work(model, steps):
  named = []
  with pytest.raises(InputError, match=f"steps={steps}"):
    model.sample(PROMPT, steps=steps, progress=named.append)
  assert not named


@pytest.mark.parametrize("where", ["prompt", "negative"])
def test_a_prompt_that_is_too_long_is_refused_before_any_work(model, where):
  named, long = [], "red circle " * 20
  with pytest.raises(InputError, match=r"has \d+ tokens, .* the limit is 12"):
    model.sample(**{"prompt": PROMPT, where: long}, progress=named.append)
  assert not named


def test_a_model_without_its_tokenizers_is_refused(model):
  with pytest.raises(InputError, match="has 0 tokenizers for 2 text encoders; copy its folder"):
    sample(dataclasses.replace(model, tokenizers=()))


def test_weights_of_another_config_are_refused_by_name_and_shape(model):
  check_trees(MODEL, model.trees, "runs/tiny")
  text = (dataclasses.replace(MODEL.image.text[0], mlp_width=32), MODEL.image.text[1])
  other = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, text=text))
  with pytest.raises(InputError, match=r"another config: text/0/\S+ is \(16,?.*\) there and \(32"):
    check_trees(other, model.trees, "runs/tiny")
  deeper = dataclasses.replace(MODEL.temporal, num_layers=2)
  with pytest.raises(InputError, match=r"temporal/\S+ is absent there and \("):
    check_trees(dataclasses.replace(MODEL, temporal=deeper), model.trees, "runs/tiny")


def test_the_model_names_no_system():
  import emu_jax.model

  source = inspect.getsource(emu_jax.model)
  for name in ("emu_video", "animatediff", "svd", "instruct_pix2pix", "Emu"):
    assert name not in source
