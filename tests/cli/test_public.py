"""AnimateDiff, InstructPix2Pix and Stable Video Diffusion by the command, on tiny folders."""

import dataclasses
import inspect
import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from emu_jax import cli
from emu_jax.checkpoints.stored import stored
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.model import load, program
from emu_jax.systems import animatediff, pipelines, svd
from emu_jax.systems.animatediff import ANIMATED
from tests import tiny_public
from tests.cli.test_task import read
from tests.tiny_runs import refusal

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  base = tmp_path_factory.mktemp("public")
  return {
    "image": tiny_public.stable_diffusion(base / "image"),
    "edit": tiny_public.instruct_pix2pix(base / "edit"),
    "animation": tiny_public.animate_diff(base / "animation"),
    "adapter": tiny_public.motion_adapter(base / "adapter"),
    "video": tiny_public.stable_video(base / "video"),
  }


@pytest.fixture
def picture(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  PIL.Image.fromarray(pixels).save(tmp_path / "own.png")
  return tmp_path / "own.png"


@pytest.fixture
def refused(capsys):
  return lambda *words: refusal(cli.main, words, capsys)


def emu(*words):
  cli.main([*map(str, words), "--steps", "2"])


# AnimateDiff.


@pytest.mark.parametrize("way", ["a folder of its own", "a motion adapter"])
def test_animate_diff_makes_clips_of_prompts(folders, tmp_path, way):
  animation = ("--checkpoint", folders["animation"])
  lent = ("--checkpoint", folders["image"], "--motion-adapter", folders["adapter"])
  model = animation if way == "a folder of its own" else lent

  def clip(*words):
    emu("sample", PROMPT, *model, "--out", tmp_path / "a.gif", *words)
    return (tmp_path / "a.gif").read_bytes()

  whole = clip()
  frames, fps = read(tmp_path / "a.gif")
  assert len(frames) == 16
  assert fps == pytest.approx(8, rel=0.05)  # a GIF counts in hundredths of a second
  assert np.any(frames[0] != frames[-1])
  compiled = program(animatediff.clip_program).here._cache_size()
  assert clip() == whole
  changed = [clip("--seed", 1), clip("--negative", "left"), clip("--text-guidance", 2)]
  assert len({whole, *changed}) == 4
  assert (
    program(animatediff.clip_program).here._cache_size() == compiled
  )  # none of these is another program
  clip("--frames", 3)
  assert len(read(tmp_path / "a.gif")[0]) == 3
  emu("sample", PROMPT, *model, "--frames", 1, "--out", tmp_path / "a.png")  # the image model's


def test_the_image_model_in_an_animation_is_untouched(folders):
  """Its weights are the same bytes, and with 1 frame it draws the same picture."""
  image = load(folders["image"])
  lent = load(folders["image"], motion_adapter=folders["adapter"])
  animation = load(folders["animation"])
  for model in (lent, animation):
    assert model.system.image.unet == image.system.unet
    assert model.system.process.schedule.kind == "linear"  # what motion modules were trained with
  assert image.system.process == lent.system.image.process
  assert image.system.process.schedule.kind == "scaled_linear"
  for name in ("autoencoder", "text", "spatial"):
    jax.tree.map(np.testing.assert_array_equal, lent.trees[name], image.trees[name])
  np.testing.assert_array_equal(
    *(m.sample(PROMPT, frames=1, steps=2).frames for m in (lent, image))
  )


def test_motion_modules_change_the_betas_of_an_image_model_and_nothing_else(folders, tmp_path):
  """What its network predicts, zero terminal SNR, steps and the grid stay."""
  schedule = tiny_public.SCHEDULE | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "num_train_timesteps": 500,
    "beta_end": 0.02,
  }
  folder = tiny_public.written(
    tmp_path / "v", "StableDiffusionPipeline", tiny_public.PARTS, schedule
  )
  image = stored(folder).system.process
  adapted = stored(folder, motion_adapter=folders["adapter"]).system
  assert adapted.image.process == image
  betas = {"kind": "linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}
  expected = dataclasses.replace(image.schedule, **betas)
  assert adapted.process == dataclasses.replace(image, schedule=expected)
  assert expected.prediction == "v"
  assert expected.zero_terminal_snr
  assert expected.num_steps == 500
  plain = stored(folders["image"], motion_adapter=folders["adapter"]).system.process
  assert (plain.spacing, plain.offset, plain.ends_clean) == ("leading", 1, False)


def test_animate_diff_says_what_it_cannot_do(folders, picture, refused, tmp_path):
  animation, out = ("--checkpoint", folders["animation"]), ("--out", tmp_path / "a.mp4")
  assert "frames=17 cannot be had" in refused("sample", PROMPT, *animation, *out, "--frames", 17)
  assert "sample: has no option --image" in refused(
    "sample", PROMPT, *animation, *out, "--image", picture
  )
  lent = ("--motion-adapter", folders["adapter"])
  assert "is not read here" in refused("sample", PROMPT, *animation, *lent, *out)
  assert "config.json is missing" in refused(
    "sample", PROMPT, "--checkpoint", folders["image"], "--motion-adapter", tmp_path, *out
  )
  lent = ("--checkpoint", folders["image"], "--motion-adapter")
  other = tiny_public.motion_adapter(tmp_path / "wide", channels=(8, 24))
  line = refused("sample", PROMPT, *lent, other, *out)
  assert "channels=(8, 16)" in line
  assert "choose an adapter" in line
  reads = tiny_public.motion_adapter(tmp_path / "pia", concat_channels=5)
  line = refused("sample", PROMPT, *lent, reads, *out)
  assert "5 channels of a given picture" in line
  assert not (tmp_path / "a.mp4").exists()


# InstructPix2Pix.


def test_a_picture_is_edited(folders, picture, tmp_path):
  def edited(*words):
    out = tmp_path / "e.png"
    emu("edit", picture, "red", "--checkpoint", folders["edit"], "--out", out, *words)
    return out.read_bytes()

  default = edited()
  assert PIL.Image.open(tmp_path / "e.png").size == (256, 256)  # 16, shown 16 times as large
  assert edited("--image-guidance", 1.5, "--text-guidance", 7.5) == default
  assert (
    len({default, edited("--image-guidance", 1), edited("--text-guidance", 1), edited("--seed", 1)})
    == 4
  )


def test_models_that_edit_and_models_that_draw_are_told_apart(folders, picture, refused, tmp_path):
  out = ("--out", tmp_path / "a.png")
  assert "has no task 'sample'; this model's are edit" in refused(
    "sample", PROMPT, "--checkpoint", folders["edit"], *out
  )
  assert "has no task 'edit'; this model's are sample" in refused(
    "edit", picture, "red", "--checkpoint", folders["image"], *out
  )
  reads = tiny_public.inpainting(tmp_path / "inpainting")
  assert "reads 5 channels of a given picture; give one that reads prompts alone" in refused(
    "sample", PROMPT, "--checkpoint", reads, *out
  )


# What a family of models takes for granted.


def test_xl_has_its_own_guidance_and_zeros_for_the_empty_prompt(tmp_path):
  """diffusers' pipelines take 5.0, and zeros where the index does not say otherwise."""
  for index, zeros in (({}, True), ({"force_zeros_for_empty_prompt": False}, False)):
    system = stored(tiny_public.stable_diffusion_xl(tmp_path / str(zeros), **index)).system
    assert (system.guidance, system.zero_empty) == (5.0, zeros)
  diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle")
  for name, family in (pipelines.TEXT_TO_IMAGE | ANIMATED).items():
    kind = getattr(diffusers, name)
    default = inspect.signature(kind.__call__).parameters["guidance_scale"].default
    assert family.guidance == default, kind
    made = inspect.signature(kind.__init__).parameters
    zeros = made.get("force_zeros_for_empty_prompt")
    assert family.zero_empty == (zeros is not None and zeros.default), kind


def test_xl_goes_back_out_under_its_own_name(tmp_path):
  model = load(tiny_public.stable_diffusion_xl(tmp_path / "public"))
  model.system.write_pipeline(model, tmp_path / "written", lambda line: None)
  again = load(tmp_path / "written")
  assert again.system == model.system
  jax.tree.map(np.testing.assert_array_equal, again.trees, model.trees)


# What every command is told.


def test_paths_may_be_relative(folders, tmp_path, monkeypatch):
  """Of what is converted, of what was, and of a motion adapter."""
  for name in ("image", "adapter"):
    shutil.copytree(folders[name], tmp_path / "models" / name)
  monkeypatch.chdir(tmp_path)
  cli.main(["convert", "models/image", "ours/image"])
  cli.main(["convert", "models/adapter", "ours/adapter"])
  cli.main(["convert", "ours/image", "back", "--to", "diffusers"])
  given = ("--checkpoint", "ours/image", "--out", "a.png", "--frames", 1)
  emu("sample", PROMPT, *given)
  emu("sample", PROMPT, *given, "--motion-adapter", "ours/adapter")
  jax.tree.map(np.testing.assert_array_equal, load("back").trees, load("ours/image").trees)


def spoilt(folder, part="unet", name="conv_out.bias"):
  """The folder with one number of a part that is none."""
  file = next((folder / part).glob("*.safetensors"))
  tensors = safetensors.numpy.load_file(file)
  tensors[name].flat[1] = np.nan
  safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
  return folder


@pytest.mark.parametrize(
  ("part", "name"),
  [
    ("unet", "conv_out.bias"),
    ("vae", "decoder.conv_in.weight"),
    ("text_encoder", "text_model.final_layer_norm.weight"),
  ],
)
def test_one_number_that_is_none_is_named_with_its_part(part, name, refused, tmp_path):
  folder = spoilt(tiny_public.stable_diffusion(tmp_path / "public"), part, name)
  for words in (
    ("sample", PROMPT, "--checkpoint", folder, "--out", tmp_path / "a.png"),
    ("convert", folder, tmp_path / "ours"),
  ):
    assert f"public/{part}: {name} holds 1 of" in refused(*words)
  assert [path.name for path in tmp_path.iterdir()] == ["public"]


def test_a_tokenizer_with_more_ids_than_its_encoder_is_refused(refused, tmp_path):
  folder = tiny_public.stable_diffusion(tmp_path / "public")
  words = [f"word{i} other{i}" for i in range(300)]
  train_tokenizer(words, folder / "tokenizer", 400)
  line = refused("sample", "word1", "--checkpoint", folder, "--out", tmp_path / "a.png")
  assert "tokenizer: has 400 tokens, its text encoder vocab_size=300" in line


def test_a_scheduler_of_other_noise_is_refused_before_any_work(refused, tmp_path):
  """CosXL's and Playground's, say; the model is not sampled as if it were another."""
  edm = {"_class_name": "EDMEulerScheduler", "sigma_max": 80.0, "prediction_type": "v_prediction"}
  folder = tiny_public.written(tmp_path / "e", "StableDiffusionPipeline", tiny_public.PARTS, edm)
  line = refused("sample", PROMPT, "--checkpoint", folder, "--out", tmp_path / "a.png")
  assert "scheduler_config.json: _class_name='EDMEulerScheduler' is not supported" in line


def test_options_that_a_picture_model_has_not_are_refused(folders, picture, refused, tmp_path):
  given = ("sample", PROMPT, "--checkpoint", folders["image"], "--out", tmp_path / "a.png")
  for words in (("--text-guidance", 3), ("--image-guidance", 3), ("--image", picture)):
    assert f"sample: has no option {words[0]}" in refused(*given, *words)


# Stable Video Diffusion.


SIZE = ("--height", 12, "--width", 20)


def test_a_picture_becomes_a_clip(folders, picture, tmp_path):
  def clip(*words):
    out = tmp_path / "a.gif"
    emu("animate", picture, "--checkpoint", folders["video"], *SIZE, "--out", out, *words)
    return out.read_bytes()

  whole = clip()
  frames, fps = read(tmp_path / "a.gif")
  scale = frames.shape[1] // 12
  assert frames.shape == (5, 12 * scale, 20 * scale, 3)
  assert fps == pytest.approx(7, rel=0.05)  # a GIF counts in hundredths of a second
  compiled = program(svd.animate).here._cache_size()
  assert clip() == whole
  changes = [("--seed", 1), ("--motion", 30), ("--noise", 0.5), ("--last-guidance", 2)]
  assert len({whole, *(clip(*words) for words in changes)}) == 5
  assert program(svd.animate).here._cache_size() == compiled
  clip("--frames", 3, "--solver", "heun")
  assert len(read(tmp_path / "a.gif")[0]) == 3


def test_stable_video_says_what_it_cannot_do(folders, picture, refused, tmp_path):
  def line(*words, folder=folders["video"]):
    out = tmp_path / "a.mp4"
    found = refused("animate", picture, "--checkpoint", folder, *SIZE, "--out", out, *words)
    assert not out.exists()
    return found

  assert "14x20 pixels; height and width must be multiples of 4" in line("--height", 14)
  assert "fps=0" in line("--fps", 0)
  assert "noise=nan is not a number" in line("--noise", "nan")
  assert "0 frames" in line("--frames", 0)
  assert "chunks of 0" in line("--decode-chunk", 0)
  assert "needs 'picture'; give it" in refused("animate", "--checkpoint", folders["video"])
  assert "seed=-1" in line("--seed", -1)
  assert "has no task 'animate'; this model's are sample" in line(folder=folders["image"])
  assert "holds no model but own.png; give the folder" in line(folder=picture.parent)
  other = tiny_public.stable_video(tmp_path / "discrete", timestep_type="discrete")
  assert "timestep_type='discrete' is not supported" in line(folder=other)
  other = tiny_public.stable_video(tmp_path / "unbounded", sigma_max=None)
  assert "sigma_max" in line(folder=other)


def test_a_converted_pipeline_animates_what_the_original_does(folders, picture, tmp_path):
  cli.main(["convert", str(folders["video"]), str(tmp_path / "ours")])
  written = []
  for folder in (folders["video"], tmp_path / "ours"):
    out = tmp_path / f"{folder.name}.gif"
    emu("animate", picture, "--checkpoint", folder, *SIZE, "--out", out)
    written.append(out.read_bytes())
  assert written[0] == written[1]


def test_half_precision_reaches_every_network(folders):
  model = load(folders["video"], dtype="bfloat16")
  floats = [leaf for leaf in jax.tree.leaves(model.trees) if np.ndim(leaf) > 1]
  assert {str(leaf.dtype) for leaf in floats} == {"bfloat16"}
  picture = np.zeros((1, 1, 12, 20, 3), np.uint8)
  clips = model.animate(picture, height=12, width=20, steps=2).frames
  assert (clips.shape, clips.dtype) == ((1, 5, 12, 20, 3), np.uint8)


def test_accelerators_compute_in_half_precision_unless_told_otherwise(folders, monkeypatch):
  dtypes = lambda model: {str(leaf.dtype) for leaf in jax.tree.leaves(model.trees["unet"])}
  assert dtypes(load(folders["video"])) == {"float32"}
  monkeypatch.setattr("emu_jax.model.platform", lambda: "gpu")
  model = load(folders["video"])
  assert dtypes(model) == {"bfloat16"}
  assert model.system.unet.dtype == "bfloat16"
  assert dtypes(load(folders["video"], dtype="stored")) == {"float32"}


def test_float16_is_taken_only_where_it_may_be_widened(folders, refused, tmp_path):
  folder = tiny_public.stable_diffusion(tmp_path / "half")
  file = folder / "unet" / "diffusion_pytorch_model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file({k: v.astype(np.float16) for k, v in tensors.items()}, file)
  words = ("sample", PROMPT, "--checkpoint", folder, "--out", tmp_path / "a.png")
  assert "--widen" in refused(*words)
  emu(*words, "--widen")
  assert PIL.Image.open(tmp_path / "a.png").size == (256, 256)


# Many requests.


def test_a_file_of_lines_edits_pictures_and_animates_them(folders, picture, tmp_path):
  """Lines name pictures; of a task without a prompt their text is the caption."""
  lines = [{"picture": "own.png", "prompt": "red"}, {"picture": "own.png", "text": "blue"}]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
  many = ("--prompts", tmp_path / "a.jsonl", "--enlarge", 1)
  emu("edit", "--checkpoint", folders["edit"], *many, "--out", tmp_path / "edited")
  (tmp_path / "t.txt").write_text("red\nblue\n")
  words = ("edit", picture, "--prompts", tmp_path / "t.txt", "--enlarge", 1)
  emu(*words, "--checkpoint", folders["edit"], "--out", tmp_path / "again")
  for name in ("00000_00.png", "00001_00.png"):
    a, b = ((tmp_path / folder / name).read_bytes() for folder in ("edited", "again"))
    assert a == b
  lines = [{"picture": "own.png", "text": f"clip {i}"} for i in range(2)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
  emu("animate", "--checkpoint", folders["video"], *SIZE, *many, "--out", tmp_path / "clips")
  rows = [json.loads(line) for line in (tmp_path / "clips" / "metadata.jsonl").open()]
  assert [row["text"] for row in rows] == ["clip 0", "clip 1"]
  assert [len(read(tmp_path / "clips" / row["file_name"])[0]) for row in rows] == [5, 5]


def test_requests_of_every_system_are_those_of_its_tasks(folders):
  """So that help without a model is help with one."""
  seen = set()
  for folder in folders.values():
    if folder != folders["adapter"]:
      system = load(folder).system
      seen.add(type(system))
      assert system.requests() == {name: task.request for name, task in system.tasks().items()}
  assert len(seen) == 4
