"""Places that hold no model: what was found there, and what to do."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from emu_jax.checkpoints.stored import stored
from emu_jax.errors import InputError

LORA = {"unet.mid_block.attentions.0.to_q.lora.up.weight": np.zeros((2, 2), np.float32)}
PLAIN = {"conv_in.weight": np.zeros(2, np.float32)}


def hub_cache(folder):
  revision = folder / "models--org--name" / "snapshots" / "abc"
  revision.mkdir(parents=True)
  (folder / "version.txt").touch()


def one_network(folder):
  (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
  safetensors.numpy.save_file(PLAIN, folder / "diffusion_pytorch_model.safetensors")


def unfinished(folder):
  (folder / "config.json").write_text(json.dumps({"version": 2}))
  (folder / "checkpoints" / "2").mkdir(parents=True)


def lora(folder):
  safetensors.numpy.save_file(LORA, folder / "pytorch_lora_weights.safetensors")


def peft(folder):
  (folder / "adapter_config.json").write_text("{}")


def clips(folder):
  for name in "abcdef":
    (folder / f"{name}.mp4").touch()


@pytest.mark.parametrize(
  ("make", "inner", "says"),
  [
    (lambda folder: None, "", "holds no model but nothing; give the folder of a run of emu-train"),
    (clips, "", "holds no model but a.mp4, b.mp4, c.mp4, d.mp4 and 2 more; give the folder of a"),
    (hub_cache, "", "is the cache of the Hugging Face hub, which holds models--org--name; give"),
    (hub_cache, "models--org--name", "give one of its snapshots, such as {}/snapshots/abc"),
    (one_network, "", "holds one network, a UNet2DConditionModel, and no whole model; give"),
    (unfinished, "", "holds no checkpoint that is complete; let the run go on"),
    (lora, "", r"is a LoRA \(pytorch_lora_weights.safetensors\), changes to a model and no model"),
    (peft, "", r"is a LoRA \(adapter_config.json\)"),
  ],
)
def test_a_folder_without_a_model_is_named_for_what_it_is(make, inner, says, tmp_path):
  make(tmp_path)
  place = tmp_path / inner
  with pytest.raises(InputError, match=says.replace("{}", str(place))) as caught:
    stored(place)
  assert str(caught.value).startswith(f"{place}: ")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("model.safetensors", "is a single file of weights, .*from_single_file, then save_pretrained"),
    ("lora.safetensors", "is a LoRA, changes to a model and no model"),
    ("model.ckpt", "is a pickle, which can run code when opened"),
    ("clip.mp4", "is a file and no folder; give the folder of a run"),
  ],
)
def test_a_file_is_named_for_what_it_is(name, says, tmp_path):
  (tmp_path / name).touch()
  if name.endswith(".safetensors"):
    safetensors.numpy.save_file(LORA if "lora" in name else PLAIN, tmp_path / name)
  with pytest.raises(InputError, match=says):
    stored(tmp_path / name)


def test_a_name_on_the_hub_says_how_to_download_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
  with pytest.raises(InputError, match=f"hf download {name} --local-dir FOLDER"):
    stored(name)
  with pytest.raises(InputError, match="there is no such folder; give the folder of a run"):
    stored(pathlib.Path(tmp_path / "absent"))
