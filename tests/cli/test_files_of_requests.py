"""Files that requests name are decoded as seldom as can be; no network runs here."""

import jax
import numpy as np
import PIL.Image
import pytest

from emu_jax import cli
from emu_jax.checkpoints.release import write_release
from emu_jax.config import to_dict
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.systems import registry, requests
from emu_jax.systems.system import tree_shapes
from tests.tiny import MODEL

TREES = ("autoencoder", "latents", "text", "spatial", "temporal")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  folder = tmp_path_factory.mktemp("release")
  train_tokenizer(["red", "blue"], folder / "words", 300)
  shapes = {name: tree_shapes(MODEL, name) for name in TREES}
  trees = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  config = {"version": registry.VERSION, "system": to_dict(MODEL)}
  (folder / "model").mkdir()
  write_release(folder / "model", config, trees, [folder / "words"] * 2)
  return folder / "model"


@pytest.fixture
def decoded(monkeypatch):
  """The names of pictures, in the order in which they are decoded."""
  names, load = [], requests.load_picture

  def counting(path, size):
    names.append(path.name)
    return load(path, size)

  monkeypatch.setattr(requests, "load_picture", counting)
  frames = lambda arrays: jax.numpy.zeros((len(arrays["seeds"]), 8, 16, 16, 3), np.uint8)
  run = lambda trees, arrays, static: {"frames": frames(arrays)}
  monkeypatch.setattr("emu_jax.model.program", lambda function: run)
  return names


@pytest.fixture
def sample(release, tmp_path):
  for name in "ab":
    PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")

  def sample(*words):
    cli.main(["sample", *map(str, words), "--checkpoint", str(release), "--steps", "2"])

  return sample


def test_a_picture_is_decoded_once(sample, decoded, tmp_path):
  sample("red", "--image", tmp_path / "a.png", "--enlarge", 2, "--out", tmp_path / "a.gif")
  assert decoded == ["a.png"]


def test_pictures_of_many_requests_are_decoded_once_to_plan_and_once_to_sample(
  sample, decoded, tmp_path
):
  """Once for all samples of a line in a batch, and for what fills it up; never of what is there."""
  lines, out = tmp_path / "lines.jsonl", tmp_path / "out"
  lines.write_text('{"prompt": "red", "image": "a.png"}\n{"prompt": "red", "image": "b.png"}\n')
  words = ("--prompts", lines, "--samples", 3, "--out", out, "--suffix", ".png")
  sample(*words, "--enlarge", 2, "--batch-size", 3)
  assert decoded == ["a.png", "b.png", "a.png", "b.png"]
  decoded.clear()
  (out / "00001_02.png").unlink()
  sample(*words, "--enlarge", 2, "--batch-size", 3)
  assert decoded == ["b.png", "b.png"]
