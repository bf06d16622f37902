"""What is asked of the systems is checked before any sampling, and no more than it needs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.stored import stored
from emu_jax.conditioning import TextFeatures
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.model import Model, load
from emu_jax.systems.emu import batch_without_text, without_text
from emu_jax.systems.instruct_pix2pix import InstructPix2Pix
from tests import tiny_public
from tests.tiny import MODEL

SIZE = {"num_micro": 6, "micro_dim": 8}
FLOW = dataclasses.replace(MODEL, process=Flow())
PICTURE = np.zeros((1, 1, 16, 16, 3), np.uint8)


def steps(system, task="sample", **fields):
  """The programs of a request of a model that has all trees, none of them made."""
  model = Model(system, {key: {} for key in system.trees()}, (), "here")
  return [step.says for step in model.steps(task, model.request(task, prompt="red", **fields))]


def test_each_length_is_made_by_its_own_programs():
  draw, video, end = "text -> image", "image + text -> 8 frames", "latents -> pixels"
  assert steps(MODEL) == steps(MODEL, frames=8) == [draw, video, end]
  assert steps(MODEL, frames=1) == [draw, end]
  between = ["8 -> 37 frames, part 1 of 1", "joining the parts"]
  assert steps(MODEL, frames=37) == [draw, video, *between, end]
  assert steps(MODEL, frames=8, image=PICTURE) == ["pixels -> latents", video, end]
  assert steps(dataclasses.replace(MODEL, num_frames=16), frames=65)[1:5] == [
    "image + text -> 16 frames",
    "8 -> 37 frames, part 1 of 2",
    "8 -> 37 frames, part 2 of 2",
    "joining the parts",
  ]


@pytest.mark.parametrize("frames", [0, -1, 9, 65])
def test_a_length_that_cannot_be_had_is_refused_with_those_that_can(frames):
  with pytest.raises(InputError, match=f"frames={frames} cannot be had .* one of 1, 8, 37"):
    steps(MODEL, frames=frames)


def test_a_request_is_judged_by_the_processes_that_it_uses():
  """A picture needs no video process, and a clip of a given picture no picture's."""
  assert steps(FLOW, frames=1)
  with pytest.raises(InputError, match="solver='ddim' does not sample this process"):
    steps(FLOW, frames=8)
  picture = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, process=Flow()))
  assert steps(picture, frames=8, image=PICTURE)
  with pytest.raises(InputError, match="solver='ddim' does not sample this process"):
    steps(picture, frames=8)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"seed": -1}, "seed=-1 is no whole number from 0"),
    ({"seed": 2**32}, "seed=4294967296 is no whole number"),
    ({"seed": 2.5}, "seed: 2.5 is not of type int"),
    ({"seed": "3"}, "seed: '3' is not of type int"),
    ({"rescale": 1.5}, "rescale=1.5 is not from 0 to 1"),
    ({"text_guidance": float("nan")}, "text_guidance=nan is not a number"),
    ({"steps": 0}, "num_steps=0"),
    ({"interpolation_steps": 0, "frames": 37}, "interpolation_steps=0; give 1 or more"),
    ({"sise": 3}, "has no field 'sise'"),
  ],
)
def test_a_wrong_value_is_refused_in_one_line(fields, says):
  with pytest.raises(InputError) as caught:
    steps(MODEL, **fields)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_without_text_is_zeros_only_in_a_model_that_was_trained_so():
  text = TextFeatures(
    (jnp.ones((2, 3, 4)),), (None,), {"pooled": jnp.ones((2, 5)), "micro": jnp.ones((2, 6))}
  )
  zeros = dataclasses.replace(MODEL.image, zero_empty=True)
  jax.tree.map(np.testing.assert_array_equal, without_text(MODEL.image, text, True), text)
  jax.tree.map(np.testing.assert_array_equal, without_text(zeros, text, False), text)
  blank = without_text(zeros, text, True)
  assert float(jnp.abs(blank.texts[0]).max()) == float(jnp.abs(blank.vectors["pooled"]).max()) == 0
  np.testing.assert_array_equal(blank.vectors["micro"], 1)
  # Samples that are drawn while training lead away from the same.
  empty = {"text": {"texts": (jnp.ones((1, 3, 4)),), "masks": (None,), "vectors": {}}}
  drawn = batch_without_text(zeros, {}, empty, 2)
  np.testing.assert_array_equal(drawn.texts[0], np.zeros((2, 3, 4)))


def test_captions_encoded_ahead_depend_on_the_size_that_the_network_is_told():
  depends = lambda **changes: (
    dataclasses.replace(MODEL.image, **changes).parts()["image"].encoders["captions"].depends_on
  )
  assert depends() == depends(size=(32, 32))
  unet = dataclasses.replace(MODEL.image.unet, **SIZE)
  assert depends(unet=unet) != depends(unet=unet, size=(32, 32))


def test_a_model_that_edits_is_written_under_its_own_name(tmp_path):
  model = load(tiny_public.instruct_pix2pix(tmp_path / "public"))
  model.system.write_pipeline(model, tmp_path / "written", lambda line: None)
  index = json.loads((tmp_path / "written" / "model_index.json").read_text())
  assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
  assert isinstance(stored(tmp_path / "written").system, InstructPix2Pix)


def test_noise_that_no_public_scheduler_describes_is_not_written(tmp_path):
  system = dataclasses.replace(MODEL.image, process=Flow())
  model = Model(system, {key: {} for key in system.trees()}, (), "here")
  with pytest.raises(InputError, match="the noise of a Flow process has no place"):
    system.write_pipeline(model, tmp_path, lambda line: None)
  assert Discrete(Schedule()) == MODEL.image.process
