"""What is asked of the systems is checked before any sampling, and no more than it needs."""

import copy
import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.stored import Stored, stored
from emu_jax.conditioning import TextFeatures
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.log_snr import LogSnr
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.model import Model, load, loaded
from emu_jax.systems.animatediff import AnimateDiff
from emu_jax.systems.emu import batch_without_text, without_text
from emu_jax.systems.instruct_pix2pix import InstructPix2Pix
from emu_jax.systems.system import System, Tree
from tests import tiny_public
from tests.tiny import MODEL

SIZE = {"num_micro": 6, "micro_dim": 8}
UNSET = Sampling(None, 25)  # each process takes its own solver
FLOW = dataclasses.replace(
  MODEL, process=Flow(), image=dataclasses.replace(MODEL.image, preview=UNSET)
)
PICTURE = np.zeros((1, 1, 16, 16, 3), np.uint8)


def outline(system=MODEL):
  """A model that has all trees, none of them made."""
  return Model(system, {key: {} for key in system.trees()}, (), "here")


def steps(system, task="sample", **fields):
  """The programs of a request."""
  model = outline(system)
  return [step.says for step in model.steps(task, model.request(task, prompt="red", **fields))]


def test_each_length_is_made_by_its_own_programs():
  text, end = "prompts -> features", "latents -> pixels"
  draw, video = "text -> image", "image + text -> 8 frames"
  assert steps(MODEL) == steps(MODEL, frames=8) == [text, draw, video, end]
  assert steps(MODEL, frames=1) == [text, draw, end]
  between = ["8 -> 37 frames, part 1 of 1", "joining the parts"]
  assert steps(MODEL, frames=37) == [text, draw, video, *between, end]
  assert steps(MODEL, frames=8, image=PICTURE) == [text, "pixels -> latents", video, end]
  assert steps(dataclasses.replace(MODEL, num_frames=16), frames=65)[2:6] == [
    "image + text -> 16 frames",
    "8 -> 37 frames, part 1 of 2",
    "8 -> 37 frames, part 2 of 2",
    "joining the parts",
  ]


def test_prompts_are_encoded_once_whatever_follows():
  long_model = outline(dataclasses.replace(MODEL, num_frames=16))
  for task, fields in (
    ("sample", {"frames": 65}),
    ("interpolate", {"clip": np.repeat(PICTURE, 16, axis=1)}),
    ("extend", {"clip": np.repeat(PICTURE, 16, axis=1)}),
  ):
    made = long_model.steps(task, long_model.request(task, prompt="red", **fields))
    assert ["text" in step.reads for step in made].count(True) == 1


@pytest.mark.parametrize("frames", [0, -1, 9, 65])
def test_a_length_that_cannot_be_had_is_refused_with_those_that_can(frames):
  with pytest.raises(InputError, match=f"frames={frames} cannot be had .* one of 1, 8, 37"):
    steps(MODEL, frames=frames)


def test_a_request_is_judged_by_the_processes_that_it_uses():
  """A picture needs no video process, and a clip of a given picture no picture's."""
  assert steps(FLOW, frames=1, solver="ddim")
  with pytest.raises(InputError, match="solver='ddim' does not sample this process"):
    steps(FLOW, frames=8, solver="ddim")
  image = dataclasses.replace(MODEL.image, process=Flow(), preview=UNSET)
  picture = dataclasses.replace(MODEL, image=image)
  assert steps(picture, frames=8, image=PICTURE, solver="ddim")
  with pytest.raises(InputError, match="solver='ddim' does not sample this process"):
    steps(picture, frames=8, solver="ddim")


def test_each_process_takes_its_usual_solver_where_none_is_named():
  assert steps(FLOW, frames=8) == steps(MODEL, frames=8)
  predict = lambda x_t, t: 0.1 * x_t
  noise = jnp.ones((1, 1, 2, 2, 1))
  for process in (Discrete(), Flow(), LogSnr(), Edm()):
    drawn = [process.sample(predict, noise, None, Sampling(solver, 2))
             for solver in (None, process.solvers[0])]  # fmt: skip
    np.testing.assert_array_equal(*drawn)


def test_samples_while_training_must_fit_the_process_of_their_model():
  """Of a picture's model, and of both processes of a video model."""
  for make in (
    lambda: dataclasses.replace(MODEL.image, process=Flow()),
    lambda: dataclasses.replace(MODEL, process=Flow()),
    lambda: AnimateDiff(MODEL.image, process=Flow()),
  ):
    with pytest.raises(ValueError, match="preview: Flow: solver='ddim' does not sample this"):
      make()


def test_how_many_frames_are_decoded_at_a_time_is_an_option_of_every_task():
  """What it bounds is measured beside `in_chunks`."""
  model = outline()
  for frames in (1, 8, 37):
    fields = {"prompt": "red", "frames": frames, "decode_chunk": 3}
    last = model.steps("sample", model.request("sample", **fields))[-1]
    assert last.static == (MODEL.image.first_stage, 3)


def test_requests_of_several_programs_are_no_batch():
  model = outline()
  first = model.request("sample", prompt="red", steps=2)
  for fields in ({"steps": 40}, {"solver": "dpm++"}, {"frames": 1}, {"image": PICTURE}):
    other = model.request("sample", **{"prompt": "red", "steps": 2} | fields)
    with pytest.raises(InputError, match="sample: request 1 takes other programs than request 0"):
      model.run_all("sample", [first, other])


@pytest.mark.parametrize(
  ("task", "fields", "says"),
  [
    ("interpolate", {"clip": np.zeros(5)}, "interpolate: float64 .5. are no frames"),
    ("sample", {"image": np.zeros((1, 4, 16, 16, 3), np.uint8)}, "sample: 4 frames were given"),
    ("sample", {"picture_guidance": 10**400}, "sample: picture_guidance: the number is too large"),
    ("sample", {"task": 3}, "sample: has no field 'task'; it has"),
    ("sample", {"rescale": 2.0}, r"sample: rescale=2\.0 is not from 0 to 1"),
    ("sample", {"seed": -1}, "sample: seed=-1 is no whole number"),
  ],
)
def test_a_wrong_value_from_python_is_refused_with_its_task(task, fields, says):
  with pytest.raises(InputError, match=f"^{says}"):
    outline().run(task, **{"prompt": ""} | fields)


def test_a_field_with_the_name_of_an_argument_of_run_is_refused():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Request:
    progress: int = 0

  @dataclasses.dataclass(frozen=True)
  class OneTask(type(MODEL)):
    def tasks(self):
      return {"draw": dataclasses.replace(MODEL.tasks()["sample"], request=Request)}

  with pytest.raises(InputError, match="draw: its request has a field 'progress', which"):
    outline(OneTask(MODEL.image)).request("draw")


def test_weights_that_are_missing_are_those_of_the_part_that_trains_them():
  """The first rule that matches a leaf decides, not whether any rule names its tree."""

  @dataclasses.dataclass(frozen=True)
  class AllButText(type(MODEL)):
    def parts(self):
      part = MODEL.parts()["video"]
      return {"rest": dataclasses.replace(part, trains=(("text/*", 0.0), ("*", 1.0)))}

  model = Model(AllButText(MODEL.image), {}, (), "here")
  with pytest.raises(InputError, match="no 'text' weights; give one that has them"):
    model.require("text")
  with pytest.raises(InputError, match="no 'spatial' weights; train its 'rest' part"):
    model.require("spatial")
  with pytest.raises(InputError, match="no 'latents' weights; train its 'rest' part"):
    model.require("latents")


def test_a_precision_is_of_what_networks_read_in_it_whatever_its_shape():
  @dataclasses.dataclass(frozen=True)
  class Toy(System):
    dtype: str = "float32"

    def trees(self):
      zeros = lambda *shape: lambda key: {"a": jnp.zeros(shape)}
      return {"bias": Tree(zeros(2), (("*", self.dtype),)), "table": Tree(zeros(2, 2))}

    def parts(self):
      return {}

    def tasks(self):
      return {}

  toy = Toy()
  read = lambda names, reading: {name: toy.trees()[name].init(None) for name in names}
  model = loaded(Stored(toy, ("bias", "table"), read, (), "here"), dtype="bfloat16")
  assert {name: str(tree["a"].dtype) for name, tree in model.trees.items()} == {
    "bias": "bfloat16",
    "table": "float32",
  }


def test_a_model_can_be_copied_and_pickled():
  model = outline()
  for made in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
    assert made == model
  with pytest.raises(AttributeError, match="has no '_draw'"):
    model._draw  # noqa: B018


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"seed": -1}, "seed=-1 is no whole number from 0"),
    ({"seed": 2**64}, "seed=18446744073709551616 is no whole number"),
    ({"frames": 1, "image": PICTURE}, "image with 1 frame would come back as it is"),
    ({"frames": 1, "text_guidance": 3.0}, "text_guidance=3.0 has no effect on a single picture"),
    ({"frames": 1, "image_guidance": 3.0}, "image_guidance=3.0 has no effect on a single picture"),
    ({"image": PICTURE, "picture_guidance": 3.0}, "picture_guidance=3.0 has no effect where a pic"),
    ({"interpolation_steps": 1}, "interpolation_steps=1 has no effect on 8 frames"),
    ({"keep_keys": True}, "keep_keys=True has no effect on 8 frames"),
    ({"seam": "published", "frames": 37}, "seam='published' has no effect on 37 frames"),
    ({"seed": 2.5}, "seed: 2.5 is not of type int"),
    ({"seed": "3"}, "seed: '3' is not of type int"),
    ({"rescale": 1.5}, "rescale=1.5 is not from 0 to 1"),
    ({"text_guidance": float("nan")}, "text_guidance=nan is not a number"),
    ({"steps": 0}, "num_steps=0"),
    ({"decode_chunk": 0}, "decode_chunk=0 is below 1 frame"),
    ({"interpolation_steps": 0, "frames": 37}, "interpolation_steps=0; give 1 or more"),
    ({"sise": 3}, "has no field 'sise'"),
  ],
)
def test_a_wrong_value_is_refused_in_one_line(fields, says):
  with pytest.raises(InputError) as caught:
    steps(MODEL, **fields)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"picture_guidance": 3.0}, "picture_guidance=3.0 has no effect on 16 frames; leave it out"),
    ({"frames": 1, "text_guidance": 3.0}, "text_guidance=3.0 has no effect on 1 frame; leave it"),
  ],
)
def test_an_animated_model_refuses_the_scale_that_it_does_not_read(fields, says):
  animated = AnimateDiff(dataclasses.replace(MODEL.image, unet=MODEL.image.unet))
  with pytest.raises(InputError, match=says):
    steps(animated, **fields)


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
  # Of a batch each example has its own.
  mixed = without_text(zeros, text, jnp.array([True, False]))
  for values in (mixed.texts[0], mixed.vectors["pooled"]):
    np.testing.assert_array_equal(values.any(axis=tuple(range(1, values.ndim))), [False, True])
  # Samples that are drawn while training lead away from the same.
  empty = {"text": {"texts": (jnp.ones((1, 3, 4)),), "masks": (None,), "vectors": {}}}
  drawn = batch_without_text(zeros, {}, empty, 2)
  np.testing.assert_array_equal(drawn.texts[0], np.zeros((2, 3, 4)))


def test_each_example_says_for_itself_whether_its_negative_prompt_is_empty(tmp_path):
  folder = train_tokenizer(["red", "blue"], tmp_path, 300)
  words = tuple(load_tokenizer(folder, text.max_length) for text in MODEL.image.text)
  model = dataclasses.replace(outline(), tokenizers=words)
  arrays = lambda *requests: model.arrays(
    "sample", [model.request("sample", prompt=prompt, negative=negative)
               for prompt, negative in requests]
  )  # fmt: skip
  assert arrays((("red", "red"), ("", "blue")))["blank"].tolist() == [True, False]
  assert arrays((("red", "red"), ""))["blank"].tolist() == [True, True]
  assert arrays(("red", ""), ("red", "blue"))["blank"].tolist() == [True, False]


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
  system = dataclasses.replace(MODEL.image, process=Flow(), preview=UNSET)
  model = outline(system)
  with pytest.raises(InputError, match="the noise of a Flow process has no place"):
    system.write_pipeline(model, tmp_path, lambda line: None)
  assert Discrete(Schedule()) == MODEL.image.process
