"""Public pipelines in, out and trained from, on a tiny Stable Diffusion that we write ourselves."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from emu_jax import cli
from emu_jax.checkpoints.release import write_release
from emu_jax.checkpoints.run import latest_step
from emu_jax.config import to_dict
from emu_jax.model import load
from emu_jax.systems import registry
from emu_jax.systems.system import System
from emu_jax.train import command
from tests import tiny_public, tiny_recipe, tiny_runs

CONFIG = """
import dataclasses

from emu_jax.configs.emu_video_sd15_256 import MODEL as SD, STAGES as SHIPPED
from emu_jax.diffusion.process import Sampling
from emu_jax.models.temporal import TemporalConfig
from emu_jax.systems.first_stage import KlAutoencoder
from tests.tiny_public import PARTS
from emu_jax.train.config import DataConfig
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

NETS = {{name: net.config for name, (net, _) in PARTS.items()}}
IMAGE = dataclasses.replace(
  SD.image, size=(16, 16), first_stage=KlAutoencoder(NETS["vae"]), text=(NETS["text_encoder"],),
  unet=NETS["unet"], preview=Sampling(num_steps=2),
)
STAGES = tuple(
  dataclasses.replace(
    stage,
    system=dataclasses.replace(SD, image=IMAGE, temporal=TemporalConfig(num_layers=1), fps=4.0),
    init_from={source!r},
    data=DataConfig(sources=({clips!r},), batch_size=4),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, ema_decay=0.5),
    loop=LoopConfig(num_steps=2, log_every=1, sample_every=0),
  )
  for stage in SHIPPED[:1]
)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return tiny_public.stable_diffusion(tmp_path_factory.mktemp("public") / "tiny-diffusion")


def tensors(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    f"{file.parent.name}/{name}": array.tobytes()
    for file in sorted(folder.rglob("*.safetensors"))
    for name, array in safetensors.numpy.load_file(file).items()
  }


def test_there_and_back_every_tensor_has_its_bytes(source, tmp_path):
  cli.main(["convert", str(source), str(tmp_path / "ours")])
  assert not list((tmp_path / "ours").rglob("*.safetensors"))
  cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "diffusers"])
  assert tensors(tmp_path / "back") == tensors(source)
  kept = json.loads((tmp_path / "back" / "model_index.json").read_text())
  assert kept == json.loads((source / "model_index.json").read_text())


def test_a_converted_pipeline_samples_what_the_original_does(source, tmp_path):
  cli.main(["convert", str(source), str(tmp_path / "ours")])
  drawn = []
  for folder in (source, tmp_path / "ours"):
    out = tmp_path / f"{folder.name}.png"
    words = ["sample", "circle", "--frames", "1", "--steps", "2", "--checkpoint"]
    cli.main([*words, str(folder), "--out", str(out)])
    drawn.append(out.read_bytes())
  assert drawn[0] == drawn[1]


def test_half_the_bits_are_a_choice(source):
  whole, half = (load(source, dtype=dtype) for dtype in (None, "bfloat16"))
  assert half.system.unet.dtype == half.system.text[0].dtype == "bfloat16"
  assert whole.system.unet.dtype == "float32"
  assert {str(a.dtype) for a in jax.tree.leaves(half.trees["spatial"])} == {"bfloat16"}


def test_a_run_has_the_precision_that_was_asked_for_in_its_public_form_too(source, tmp_path):
  """Of a release, which is a trained model like a run; statistics of latents stay as they are."""
  model = load(source)
  config = {"version": registry.VERSION, "system": to_dict(model.system)}
  (tmp_path / "release").mkdir()
  write_release(tmp_path / "release", config, model.trees, model.tokenizer_folders)
  words = ["convert", str(tmp_path / "release"), str(tmp_path / "public"), "--to", "diffusers"]
  cli.main([*words, "--precision", "bfloat16"])
  found = safetensors.numpy.load_file(
    tmp_path / "public" / "unet" / "diffusion_pytorch_model.safetensors"
  )
  assert {str(array.dtype) for array in found.values()} == {"bfloat16"}
  vae = json.loads((tmp_path / "public" / "vae" / "config.json").read_text())
  assert vae["scaling_factor"] == 0.5


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
  """A run of Emu Video's video stage that begins with the public folder."""
  base = tmp_path_factory.mktemp("on_public")
  clips = tiny_recipe.shapes(base) / "videos"
  config = base / "tiny_sd.py"
  config.write_text(CONFIG.format(source=str(source), clips=str(clips)))
  with tiny_recipe.one_device():
    command.main(["run", "--config", str(config), "--out", str(base / "runs")])
  return base / "runs" / "video", config


def test_emu_video_trains_on_a_frozen_public_model(source, trained, tmp_path):
  run, _ = trained
  assert latest_step(run) == 2
  model, public = load(run), load(source)
  for a, b in zip(
    jax.tree.leaves(model.trees["spatial"]), jax.tree.leaves(public.trees["spatial"]), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  moved = [np.abs(np.asarray(a)).max() for a in jax.tree.leaves(model.trees["temporal"])]
  assert max(moved) > 0
  out = tmp_path / "clip.mp4"
  cli.main(["sample", "a red circle", "--checkpoint", str(run), "--steps", "2", "--out", str(out)])
  assert out.stat().st_size > 0


def test_a_trained_run_goes_back_out(source, trained, tmp_path):
  cli.main(["convert", str(trained[0]), str(tmp_path / "out"), "--to", "diffusers"])
  assert tensors(tmp_path / "out") == tensors(source)
  out, public = (load(folder).system for folder in (tmp_path / "out", source))
  trained_by = load(
    trained[0]
  ).system.image.process  # and how it is sampled, which are the recipe's
  assert out == dataclasses.replace(public, process=trained_by)


def test_a_run_is_handed_on_as_one_folder_of_safetensors(trained, tmp_path):
  run, _ = trained
  for name, precision in (("whole", "stored"), ("half", "bfloat16")):
    words = ["--to", "safetensors", "--precision", precision]
    cli.main(["convert", str(run), str(tmp_path / name), *words])
  of_run, whole = load(run), load(tmp_path / "whole")
  assert whole.system == of_run.system
  jax.tree.map(np.testing.assert_array_equal, whole.trees, of_run.trees)
  half = load(tmp_path / "half")
  rounded = jax.tree.map(
    lambda a: np.asarray(a).astype(jnp.bfloat16).astype(np.float32), whole.trees
  )
  rounded["latents"] = whole.trees["latents"]
  jax.tree.map(np.testing.assert_array_equal, half.trees, rounded)
  drawn = []
  for folder in (run, tmp_path / "whole"):
    out = tmp_path / f"{folder.name}.gif"
    words = ["sample", "circle", "--steps", "2", "--checkpoint", str(folder), "--out", str(out)]
    cli.main(words)
    drawn.append(out.read_bytes())
  assert drawn[0] == drawn[1]


def test_a_cut_release_is_refused(trained, tmp_path, capsys):
  cli.main(["convert", str(trained[0]), str(tmp_path / "cut"), "--to", "safetensors"])
  file = tmp_path / "cut" / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  words = ["sample", "circle", "--checkpoint", tmp_path / "cut", "--out", tmp_path / "a.gif"]
  assert "no whole safetensors file" in tiny_runs.refusal(cli.main, words, capsys)


def test_bad_input_is_one_line_and_leaves_nothing(source, trained, tmp_path, capsys):
  target = tmp_path / "out"
  refused = lambda *words: tiny_runs.refusal(cli.main, ["convert", *words], capsys)
  assert "there is no such folder" in refused(tmp_path / "absent", target)
  assert "is not empty" in refused(source, source)
  assert "--to diffusers" in refused(trained[0], target)
  assert "no run of emu-train" in refused(source, target, "--to", "safetensors")
  assert not target.exists()
  assert [p.name for p in tmp_path.iterdir()] == []


def test_a_config_of_another_model_is_refused_before_training(source, trained, tmp_path, capsys):
  config = trained[1].read_text().replace("size=(16, 16),", "size=(16, 16), zero_empty=True,")
  (tmp_path / "other.py").write_text(config)
  words = ["run", "--config", tmp_path / "other.py", "--out", tmp_path / "runs"]
  with tiny_recipe.one_device():
    assert "zero_empty" in tiny_runs.refusal(command.main, words, capsys)
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../../planted", "/tmp/planted", "..", "a/b", "a\\b"])
def test_a_part_that_lies_elsewhere_is_refused(name, source, tmp_path, capsys):
  """A downloaded index cannot have files read or written outside its folder."""
  folder = shutil.copytree(source, tmp_path / "in" / "public")
  index = json.loads((folder / "model_index.json").read_text())
  (folder / "model_index.json").write_text(json.dumps({name: ["transformers", "Tok"]} | index))
  (tmp_path / "planted").mkdir()
  (tmp_path / "planted" / "x.json").write_text("{}")
  words = ["convert", folder, tmp_path / "out" / "ours"]
  assert "which is no folder in it" in tiny_runs.refusal(cli.main, words, capsys)
  assert sorted(p.name for p in tmp_path.rglob("x.json")) == ["x.json"]
  assert not (tmp_path / "out" / "ours").exists()


def test_what_nothing_needs_may_be_missing(source, tmp_path):
  """Folders that people leave out of their downloads; others say what is missing."""
  folder = shutil.copytree(source, tmp_path / "public")
  index = json.loads((folder / "model_index.json").read_text())
  others = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
  }
  (folder / "model_index.json").write_text(json.dumps(index | others))
  cli.main(["convert", str(folder), str(tmp_path / "ours")])
  written = json.loads((tmp_path / "ours" / "model_index.json").read_text())
  assert written["feature_extractor"] == written["safety_checker"] == [None, None]
  shutil.rmtree(folder / "tokenizer")
  with pytest.raises(SystemExit):
    cli.main(["convert", str(folder), str(tmp_path / "less")])
  assert not (tmp_path / "less").exists()


def test_what_others_read_of_a_config_is_kept(source, tmp_path):
  folder = shutil.copytree(source, tmp_path / "public")
  file = folder / "text_encoder" / "config.json"
  kept = {"bos_token_id": 0, "pad_token_id": 1}
  file.write_text(json.dumps(json.loads(file.read_text()) | kept))
  cli.main(["convert", str(folder), str(tmp_path / "ours")])
  cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "diffusers"])
  values = json.loads((tmp_path / "back" / "text_encoder" / "config.json").read_text())
  assert kept.items() <= values.items()


def test_a_release_is_compared_with_its_system_once(
  tmp_path_factory, tmp_path, monkeypatch, capsys
):
  """As it is written; afterwards only where the one or the other is no longer what it was."""
  run = tiny_runs.runs(tmp_path_factory.getbasetemp()) / "image"
  cli.main(["convert", str(run), str(tmp_path / "release"), "--to", "safetensors"])
  compared = []
  monkeypatch.setattr("emu_jax.model.check_trees", lambda *given: compared.append(given))
  load(tmp_path / "release")
  assert not compared
  file = tmp_path / "release" / "config.json"
  values = json.loads(file.read_text())
  values["system"]["image"]["unet"]["num_res_blocks"] = [2, 1]
  file.write_text(json.dumps(values))
  load(tmp_path / "release")
  assert compared
  monkeypatch.undo()
  words = ["sample", "circle", "--checkpoint", tmp_path / "release", "--out", tmp_path / "a.png"]
  assert "holds the weights of another config" in tiny_runs.refusal(cli.main, words, capsys)


def test_a_system_without_a_public_form_says_so(tmp_path_factory, tmp_path, capsys, monkeypatch):
  run = tiny_runs.runs(tmp_path_factory.getbasetemp()) / "video"
  system = type(load(run).system)
  monkeypatch.setattr(system, "write_pipeline", System.write_pipeline)
  words = ["convert", run, tmp_path / "out", "--to", "diffusers"]
  line = tiny_runs.refusal(cli.main, words, capsys)
  assert "convert: EmuVideo has no form that diffusers reads" in line
  assert not (tmp_path / "out").exists()


def test_a_release_says_its_version_and_system_and_is_one_again(tmp_path_factory, tmp_path):
  """Also of a release: what was handed on can be handed on in half."""
  run = tiny_runs.runs(tmp_path_factory.getbasetemp()) / "extension"
  for source, target in ((run, "first"), (tmp_path / "first", "second")):
    cli.main(["convert", str(source), str(tmp_path / target), "--to", "safetensors"])
  config = json.loads((tmp_path / "first" / "config.json").read_text())
  assert (config["version"], config["system"]["@kind"]) == (registry.VERSION, "emu_video")
  first, second = load(tmp_path / "first"), load(tmp_path / "second")
  assert first.system == second.system == load(run).system
  assert set(first.trees) == set(load(run).trees)
  jax.tree.map(np.testing.assert_array_equal, first.trees, second.trees)
