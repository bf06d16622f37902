"""What a run begins with: public networks and their tokenizers, in the precision they lie in."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from emu_jax import weights
from emu_jax.checkpoints.stored import Stored
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.systems.system import tree_shapes
from emu_jax.systems.text import init_text
from emu_jax.train.clips import stage_tokenizers
from emu_jax.train.config import Experiment
from emu_jax.train.inherit import check_network, check_public_trees, inherit
from tests.tiny import MODEL


@pytest.fixture
def encoders(tmp_path):
  """Public folders of the tiny model's text encoders, with tokenizers, and their trees."""
  trees = init_text(MODEL.image.text, jax.random.key(3))
  folders = [tmp_path / "clip", tmp_path / "t5"]
  for i, (folder, config) in enumerate(zip(folders, MODEL.image.text, strict=True)):
    weights.save(folder, config, trees[str(i)])
    train_tokenizer([f"red circle {i}"], folder / "tokenizer.json", 270)
  return tuple(map(str, folders)), trees


def with_encoders(system, *folders):
  named = tuple(f"text/{i}={folder}" for i, folder in enumerate(folders))
  return Experiment(system, "image", init_trees=named)


def test_a_part_begins_with_public_text_encoders_and_their_tokenizers(encoders, tmp_path):
  folders, trees = encoders
  experiment = with_encoders(MODEL, *folders)
  found, _ = inherit(experiment, None)
  chex.assert_trees_all_equal(found, {"text": trees})
  # No device holds them whole, before each is given its part.
  assert {type(leaf) for leaf in jax.tree.leaves(found)} == {np.ndarray}
  (tmp_path / "run").mkdir()
  kept = stage_tokenizers(experiment, tmp_path / "run", [])
  for tokenizer, folder in zip(kept, folders, strict=True):
    assert tokenizer.encode(["red circle"]) == load_tokenizer(folder, 10).encode(["red circle"])


def test_tokenizers_of_a_run_that_never_saved_make_room_for_the_next_config(encoders, tmp_path):
  folders, _ = encoders
  (tmp_path / "run" / "tokenizers" / "0").mkdir(parents=True)
  train_tokenizer(["other"], tmp_path / "run/tokenizers/0/tokenizer.json", 265)
  kept = stage_tokenizers(with_encoders(MODEL, *folders), tmp_path / "run", [])
  assert kept[0].encode(["red circle"]) == load_tokenizer(folders[0], 10).encode(["red circle"])


def test_text_encoders_are_held_in_the_dtype_that_they_compute_in(encoders):
  half = tuple(dataclasses.replace(c, dtype="bfloat16") for c in MODEL.image.text)
  model = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, text=half))
  text = inherit(with_encoders(model, *encoders[0]), None)[0]["text"]
  assert {leaf.dtype for leaf in jax.tree.leaves(text)} == {jax.numpy.dtype("bfloat16")}
  model = dataclasses.replace(model, image=dataclasses.replace(model.image, train_text=True))
  text = inherit(with_encoders(model, *encoders[0]), None)[0]["text"]
  assert {leaf.dtype for leaf in jax.tree.leaves(text)} == {np.dtype("float32")}


def test_a_tree_of_several_precisions_is_read_in_none_of_them():
  """Each of its networks is then given its own."""
  readings = []
  for dtypes, dtype in ((("bfloat16", "float32"), None), (("bfloat16",) * 2, "bfloat16")):
    pairs = zip(MODEL.image.text, dtypes, strict=True)
    text = tuple(dataclasses.replace(encoder, dtype=d) for encoder, d in pairs)
    model = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, text=text))
    shapes = tree_shapes(model, "text")
    load = lambda names, reading, s=shapes: readings.append(reading["dtype"]) or {"text": s}
    inherit(Experiment(model, "image"), Stored(model, ("text",), load, (), "here", public=True))
    assert readings.pop() == dtype


def test_networks_are_those_of_trees():
  """What a network was trained with, such as its schedule, is none."""
  with pytest.raises(
    InputError, match="no network 'schedule'; it has autoencoder, spatial, text/0"
  ):
    check_network(MODEL, "schedule", "folder")


def test_a_network_of_another_config_is_refused(encoders):
  folders, _ = encoders
  with pytest.raises(InputError, match=r"t5: its text/0: .* the config's is"):
    check_public_trees(with_encoders(MODEL, folders[1], folders[1]))
  with pytest.raises(InputError, match="no network 'vision'; it has autoencoder"):
    check_public_trees(Experiment(MODEL, "image", init_trees=(f"vision={folders[0]}",)))
  with pytest.raises(InputError, match="not of the form tree=folder"):
    Experiment(MODEL, "image", init_trees=(folders[0],))


def test_the_whole_of_t5_gives_its_encoder(tmp_path):
  """As Flan-T5 is published; against transformers' own encoder of the same checkpoint."""
  transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
  options = {"vocab_size": 50, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2}
  whole = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      **options, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
  )
  whole.save_pretrained(tmp_path / "whole")
  transformers.T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "part")
  named = json.loads((tmp_path / "whole" / "config.json").read_text())["architectures"]
  assert named == ["T5ForConditionalGeneration"]
  found, expected = weights.load(tmp_path / "whole"), weights.load(tmp_path / "part")
  assert found.module == expected.module
  chex.assert_trees_all_equal(found.params, expected.params)
