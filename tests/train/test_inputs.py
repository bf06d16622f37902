"""What a stage begins with."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from emu_jax import weights
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.systems.emu import init_text
from tests.tiny import MODEL
from train.config import Experiment
from train.inputs import inherit
from train.tokenizers import stage_tokenizers


@pytest.fixture
def encoders(tmp_path):
  """Public folders of the tiny model's text encoders, with tokenizers, and their trees."""
  trees = init_text(MODEL.image, jax.random.key(3))
  folders = [tmp_path / "clip", tmp_path / "t5"]
  for i, (folder, config) in enumerate(zip(folders, MODEL.image.text, strict=True)):
    weights.save(folder, config, trees[str(i)])
    train_tokenizer([f"red circle {i}"], folder / "tokenizer.json", 270)
  return tuple(map(str, folders)), trees


def test_a_stage_begins_with_public_text_encoders_and_their_tokenizers(encoders, tmp_path):
  folders, trees = encoders
  experiment = Experiment("image", MODEL, text_encoders=folders)
  found = inherit(experiment)
  chex.assert_trees_all_equal(found, {"text": trees})
  # No device holds them whole, before each is given its part.
  assert {type(leaf) for leaf in jax.tree.leaves(found)} == {np.ndarray}
  (tmp_path / "run").mkdir()
  kept = stage_tokenizers(experiment, tmp_path / "run", [])
  for tokenizer, folder in zip(kept, folders, strict=True):
    assert tokenizer.encode(["red circle"]) == load_tokenizer(folder, 10).encode(["red circle"])


def test_text_encoders_are_held_in_the_dtype_that_they_compute_in(encoders):
  half = tuple(dataclasses.replace(c, dtype="bfloat16") for c in MODEL.image.text)
  model = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, text=half))
  text = inherit(Experiment("image", model, text_encoders=encoders[0]))["text"]
  assert {leaf.dtype for leaf in jax.tree.leaves(text)} == {jax.numpy.dtype("bfloat16")}


def test_a_text_encoder_of_another_config_is_refused(encoders):
  folders, _ = encoders
  with pytest.raises(InputError, match=r"t5: its .* the config's model.image.text\."):
    inherit(Experiment("image", MODEL, text_encoders=(folders[1], folders[1])))


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
