"""Every shipped config loads, fits together, and its networks build."""

import functools
import pathlib

import jax
import pytest

from emu_jax.config import from_dict, to_dict
from emu_jax.data import shapes
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from train.config import Experiment, load_stages
from train.stages import _PARTS, NEEDS

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("[!_]*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_all_its_stages(path):
  stages = load_stages(str(path))
  trained = set()
  for experiment in stages:
    begin = functools.partial(_PARTS[experiment.stage][0], experiment)
    shapes = jax.eval_shape(begin, jax.random.key(0))
    if experiment.init_from:  # an image model that others trained
      trained |= {"autoencoder", "text", "spatial"}
    missing = set(NEEDS[experiment.stage]) - trained - {"latents"}
    assert not missing, f"{experiment.stage} comes before what trains {missing}"
    trained |= set(shapes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_survives_json(path):
  for experiment in load_stages(str(path)):
    assert from_dict(to_dict(experiment), Experiment, "test") == experiment


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_how_to_run_it(path):
  assert "emu-train run --config configs/" in path.read_text()


def test_the_shapes_tokenizer_learns_every_word_and_takes_every_prompt(tmp_path):
  """A vocabulary too small for whole words cuts long captions, and prompts are then refused."""
  (encoder,) = load_stages(str(FOLDER / "shapes_32.py"))[0].model.image.text
  scenes = [shapes.scene(kind, "train", i, 0) for kind in ("images", "videos") for i in range(2000)]
  train_tokenizer(map(shapes.caption, scenes), tmp_path / "0", encoder.vocab_size)
  tokenizer = load_tokenizer(tmp_path / "0", encoder.max_length)
  for split in ("validation", "test", "image_only"):
    captions = [caption for caption, _ in shapes.prompts(split, 500, 0)]
    _, masks = tokenizer(captions, overflow="error")
    words = [len(caption.split()) for caption in captions]
    assert masks.sum(axis=1).tolist() == [n + 2 for n in words]  # and its start and end
