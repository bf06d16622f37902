"""AnimateDiff, InstructPix2Pix and Stable Video Diffusion by the command, on tiny folders."""

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from emu_jax import cli, stable_video
from emu_jax import pipeline as programs
from emu_jax.generation import Request, generate
from emu_jax.loading import load_pipeline
from emu_jax.systems.latent import Sampling
from tests import tiny_public, tiny_recipe
from tests.test_cli import read

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
  return lambda *words: tiny_recipe.refusal(cli.main, words, capsys)


def emu(*words):
  cli.main([*map(str, words), "--steps", "2"])


# AnimateDiff.


@pytest.mark.parametrize("way", ["a folder of its own", "a motion adapter"])
def test_animate_diff_makes_clips_of_prompts(folders, tmp_path, way):
  own = ("--checkpoint", folders["animation"])
  lent = ("--checkpoint", folders["image"], "--motion-adapter", folders["adapter"])
  model = own if way == "a folder of its own" else lent

  def clip(*words):
    emu("sample", PROMPT, *model, "--out", tmp_path / "a.gif", *words)
    return (tmp_path / "a.gif").read_bytes()

  whole = clip()
  frames, fps = read(tmp_path / "a.gif")
  assert len(frames) == 16
  assert fps == pytest.approx(8, rel=0.05)  # a GIF counts in hundredths of a second
  assert np.any(frames[0] != frames[-1])
  compiled = programs._clip.here._cache_size()
  assert clip() == whole
  changed = [clip("--seed", 1), clip("--negative", "left"), clip("--text-guidance", 1)]
  assert len({whole, *changed}) == 4
  assert programs._clip.here._cache_size() == compiled  # none of these is another program
  clip("--frames", 3)
  assert len(read(tmp_path / "a.gif")[0]) == 3
  emu("sample", PROMPT, *model, "--frames", 1, "--out", tmp_path / "a.png")  # the image model's


def test_the_image_model_in_an_animation_is_untouched(folders):
  """Its weights are the same bytes, and with 1 frame it draws the same picture."""
  image = load_pipeline(folders["image"])
  lent = load_pipeline(folders["image"], motion_adapter=folders["adapter"])
  own = load_pipeline(folders["animation"])
  for model in (lent, own):
    assert model.config.image.unet == image.config.image.unet
    assert model.config.schedule.kind == "linear"  # what motion modules were trained with
  assert image.config.image.schedule.kind == lent.config.image.schedule.kind == "scaled_linear"
  request = Request(frames=1, sampling=Sampling(num_steps=2))
  for name in ("autoencoder", "text", "spatial"):
    jax.tree.map(np.testing.assert_array_equal, lent.trees[name], image.trees[name])
  np.testing.assert_array_equal(*(generate(m, [PROMPT], request)[0] for m in (lent, image)))


def test_animate_diff_says_what_it_cannot_do(folders, picture, refused, tmp_path):
  own, out = ("--checkpoint", folders["animation"]), ("--out", tmp_path / "a.mp4")
  assert "frames=17 cannot be had" in refused("sample", PROMPT, *own, *out, "--frames", 17)
  assert "begins with no picture" in refused("sample", PROMPT, *own, *out, "--image", picture)
  lent = ("--motion-adapter", folders["adapter"])
  assert "is not read here" in refused("sample", PROMPT, *own, *lent, *out)
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

  own = edited()
  assert PIL.Image.open(tmp_path / "e.png").size == (256, 256)  # 16, shown 16 times as large
  assert edited("--image-guidance", 1.5, "--text-guidance", 7.5) == own
  assert (
    len({own, edited("--image-guidance", 1), edited("--text-guidance", 1), edited("--seed", 1)})
    == 4
  )


def test_models_that_edit_and_models_that_draw_are_told_apart(folders, picture, refused, tmp_path):
  out = ("--out", tmp_path / "a.png")
  assert "reads 4 channels of a given picture; give one that reads prompts alone" in refused(
    "sample", PROMPT, "--checkpoint", folders["edit"], *out
  )
  assert "give one that reads 4, such as InstructPix2Pix" in refused(
    "edit", picture, "red", "--checkpoint", folders["image"], *out
  )


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
  compiled = stable_video._animate.here._cache_size()
  assert clip() == whole
  told = [("--seed", 1), ("--motion", 30), ("--noise", 0.5), ("--last-guidance", 1)]
  assert len({whole, *(clip(*words) for words in told)}) == 5
  assert stable_video._animate.here._cache_size() == compiled
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
  assert "seed=-1" in line("--seed", -1)
  assert "cannot animate a picture" in line(folder=folders["image"])
  assert "model_index.json is missing" in line(folder=tmp_path)
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
  model = stable_video.load_stable_video(folders["video"], dtype="bfloat16")
  assert {c.dtype for c in (model.nets.svd.unet, model.nets.autoencoder, model.nets.vision)} == {
    "bfloat16"
  }
  clips = model.animate(
    np.zeros((1, 1, 12, 20, 3), np.uint8), 0, sampling=stable_video.SvdSampling("euler", 2, 5)
  )
  assert (clips.shape, clips.dtype) == ((1, 5, 12, 20, 3), np.uint8)


def test_float16_is_taken_only_where_it_may_be_widened(folders, refused, tmp_path):
  folder = tiny_public.stable_diffusion(tmp_path / "half")
  file = folder / "unet" / "diffusion_pytorch_model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file({k: v.astype(np.float16) for k, v in tensors.items()}, file)
  words = ("sample", PROMPT, "--checkpoint", folder, "--out", tmp_path / "a.png")
  assert "--widen" in refused(*words)
  emu(*words, "--widen")
  assert PIL.Image.open(tmp_path / "a.png").size == (256, 256)
