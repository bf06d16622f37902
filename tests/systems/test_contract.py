"""What every system keeps, whatever it is: the trainer, the loaders and the commands rely on it."""

import ast
import dataclasses
import fnmatch
import inspect
import itertools
import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.config import from_dict, kind_of, to_dict
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.model import Model
from emu_jax.models.motion import MotionConfig
from emu_jax.systems import instruct_pix2pix
from emu_jax.systems.animatediff import AnimateDiff
from emu_jax.systems.emu import Emu
from emu_jax.systems.first_stage import Pixels
from emu_jax.systems.instruct_pix2pix import InstructPix2Pix
from emu_jax.systems.system import System
from emu_jax.trees import leaf_shapes
from tests.tiny import MODEL, perturbed

IMAGE = MODEL.image
UNET = IMAGE.unet
MOTION = MotionConfig(num_heads=(2,), max_frames=6)
SYSTEMS = {
  "emu": IMAGE,
  "emu with text": dataclasses.replace(IMAGE, train_text=True),
  "emu in pixels": dataclasses.replace(
    IMAGE,
    first_stage=Pixels(),
    unet=dataclasses.replace(UNET, in_channels=3, out_channels=3),
  ),
  "emu_video": MODEL,
  "emu_video with image": dataclasses.replace(MODEL, train_spatial=True),
  "animatediff": AnimateDiff(IMAGE, MOTION, num_frames=3),
  "instruct_pix2pix": InstructPix2Pix(
    dataclasses.replace(IMAGE, unet=dataclasses.replace(UNET, concat_channels=4))
  ),
}
PICTURE = np.zeros((1, 1, 16, 16, 3), np.uint8)
GIVEN = {
  "prompt": "a",
  "picture": PICTURE,
  "clip": np.zeros((1, 16, 16, 16, 3), np.uint8),
}
systems = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())


@systems
def test_a_system_is_its_configuration(system):
  values = json.loads(json.dumps(to_dict(system)))
  assert from_dict(values, System, "file") == system
  assert hash(system) == hash(from_dict(values, type(system), "file"))


@systems
def test_trees_that_parts_name_are_there_and_every_leaf_of_them_has_a_rate(system):
  table = system.trees()
  for name, part in system.parts().items():
    assert set(part.reads) <= set(table), name
    assert set(part.begins) | set(part.measures) <= set(part.reads), name
    assert set(part.begins.values()) <= set(table), name
    for encoder in part.encoders.values():
      assert set(encoder.trees) <= set(part.reads), name
    for measure in part.measures.values():
      assert set(measure.reads) <= set(part.reads), name
    rates = {}
    for tree in part.reads:
      shapes = leaf_shapes(jax.eval_shape(table[tree].init, jax.random.key(0)))
      assert shapes
      for leaf in shapes:
        fitting = [
          rate for glob, rate in part.trains if fnmatch.fnmatchcase(f"{tree}/{leaf}", glob)
        ]
        assert fitting, f"{name}: no rate for {tree}/{leaf}"
        rates.setdefault(tree, set()).add(fitting[0])
        assert any(fnmatch.fnmatchcase(leaf, glob) for glob, _ in table[tree].dtypes)
    trained = {tree for tree, found in rates.items() if max(found) > 0}
    assert trained, name
    # What is measured, or comes from a pretrained text encoder, is no part's to train by default.
    assert not trained & set(part.measures), name
    if "reconstruct" not in name and name != "autoencoder":
      assert "autoencoder" not in trained


@systems
def test_what_a_tree_begins_with_has_its_shape(system):
  table = system.trees()
  shapes = lambda tree: leaf_shapes(jax.eval_shape(table[tree].init, jax.random.key(0)))
  for part in system.parts().values():
    for new, old in part.begins.items():
      assert shapes(new) == shapes(old)


@systems
def test_steps_of_every_task_read_trees_that_a_release_has(system):
  table = system.trees()
  released = {name for name, tree in table.items() if tree.released}
  assert "discriminator" not in released
  for name, task in system.tasks().items():
    request = task.request(**{
      field.name: GIVEN[field.name]
      for field in dataclasses.fields(task.request)
      if field.default is dataclasses.MISSING
    })  # fmt: skip
    steps = task.steps(request, set(table))
    read = [tree for step in steps for tree in step.reads]
    assert steps, name
    assert set(read) <= released, name
    for step in steps:
      hash(step.static)
      assert step.says
      assert "<locals>" not in step.program.__qualname__
    assert task.fps(request, set(table)) > 0


@systems
def test_a_request_says_what_it_is_and_what_each_field_means(system):
  """A command's help is made of nothing else."""
  for task in system.tasks().values():
    assert task.request.__doc__
    assert not task.request.__doc__.startswith(f"{task.request.__name__}("), "dataclass wrote it"
    assert set(documented(task.request)) >= {f.name for f in dataclasses.fields(task.request)}


def documented(request):
  """Fields of a request, its bases' among them, that a docstring follows."""
  for cls in request.__mro__[:-1]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    for field, text in itertools.pairwise(body):
      if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
        yield field.target.id


def test_each_system_has_a_kind_of_its_own():
  kinds = [kind_of(SYSTEMS[name]) for name in SYSTEMS if " " not in name]
  assert kinds == [name for name in SYSTEMS if " " not in name]


WIDE = (16, 24)  # height and width


def random_frames(batch, num_frames, size=WIDE, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (batch, num_frames, *size, 3), dtype=np.uint8)


def wide(system):
  """The system at a size that is not square, two frames a clip."""
  if isinstance(system, Emu):
    return dataclasses.replace(system, size=WIDE)
  changed = dataclasses.replace(system, image=dataclasses.replace(system.image, size=WIDE))
  return dataclasses.replace(changed, num_frames=2) if hasattr(system, "num_frames") else changed


def made(system, seed=0):
  """All trees of a system that tasks read, away from their initialisation."""
  table = {name: tree for name, tree in system.trees().items() if tree.released}
  keys = jax.random.split(jax.random.key(seed), len(table))
  trees = {
    name: perturbed(jax.jit(tree.init)(key), seed + i)
    for i, ((name, tree), key) in enumerate(zip(table.items(), keys, strict=True))
  }
  if "latents" in trees:
    trees["latents"] = {"shift": jnp.full(4, 0.1), "scale": jnp.full(4, 2.0)}
  return trees


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  """A tokenizer a text encoder."""
  folder = tmp_path_factory.mktemp("words")
  train_tokenizer(["a red dot", "blue"] * 4, folder, 300)
  return tuple(load_tokenizer(folder, t.max_length) for t in IMAGE.text)


def model_of(system, words):
  return Model(system, made(system), words, "here")


def batch_of(system, part, words, seed=0):
  """Two examples of what a part trains on."""
  arrays = {
    name: jnp.asarray(random_frames(2, frames.clip.num_frames, frames.size, seed + i))
    for i, (name, frames) in enumerate(part.inputs.frames.items())
  }
  pairs = [tokenizer(["red", "blue"], overflow="error") for tokenizer in words]
  tokens, masks = zip(*((jnp.asarray(i), jnp.asarray(m)) for i, m in pairs), strict=True)
  return arrays | {"tokens": tokens, "masks": masks, "image_dropped": jnp.array([False, True])}


def test_a_clip_that_is_not_square_trains_and_is_drawn(words):
  system = wide(MODEL)
  part, model = system.parts()["video"], model_of(wide(MODEL), words)
  assert part.inputs.first.size == WIDE
  batch = batch_of(system, part, words)
  trees = {name: model.trees[name] for name in part.reads}
  losses, _ = jax.jit(part.loss)(trees, batch, jax.random.key(1), jnp.array(0))
  assert losses.shape == (2,)
  assert bool(jnp.isfinite(losses).all())
  clips = model.run("sample", prompt="red", frames=2, steps=2)
  assert clips.frames.shape == (1, 2, 16, 24, 3)
  assert clips.frames.std() > 5
  given = random_frames(1, 1)
  assert model.sample("red", frames=2, steps=1, image=given).frames.shape == (1, 2, 16, 24, 3)
  with pytest.raises(InputError, match="frames of 24x16 pixels; this model works at 16x24"):
    model.sample("red", frames=2, image=random_frames(1, 1, (24, 16)))


def test_pixels_are_drawn_without_an_autoencoder(words):
  model = model_of(wide(SYSTEMS["emu in pixels"]), words)
  assert set(model.trees) == {"text", "spatial"}
  assert model.sample("red", steps=2).frames.shape == (1, 1, 16, 24, 3)


@pytest.mark.parametrize("name", ["emu_video", "animatediff", "instruct_pix2pix"])
def test_an_example_of_a_batch_is_what_its_seed_draws_alone(name, words):
  """Example i has the noise of seed + i, whatever stands beside it."""
  system = wide(SYSTEMS[name])
  model, task = model_of(system, words), "edit" if name == "instruct_pix2pix" else "sample"
  options = {"steps": 2} | ({"picture": random_frames(1, 1)} if task == "edit" else {"frames": 2})
  together = model.run(task, prompt=("red", "blue"), seed=3, **options).frames.astype(int)
  for i, prompt in enumerate(("red", "blue")):
    alone = model.run(task, prompt=prompt, seed=3 + i, **options).frames.astype(int)
    # The noise is equal to the last bit; programs of one and of two examples round apart.
    np.testing.assert_allclose(together[i : i + 1], alone, atol=1)
  other = model.run(task, prompt="blue", seed=3, **options).frames.astype(int)
  assert np.abs(other - together[1:]).max() > 5


def test_the_part_edit_sees_its_source_and_zeros_where_that_is_dropped(words, monkeypatch):
  system = wide(SYSTEMS["instruct_pix2pix"])
  part, trees = system.parts()["edit"], made(system)
  assert set(part.inputs.frames) == {"frames", "source"}
  batch = batch_of(system, part, words)
  loss = jax.jit(lambda b: part.loss(trees, b, jax.random.key(1), jnp.array(0))[0])
  usual = loss(batch)
  other = loss(batch | {"source": 255 - batch["source"]})
  # The first example has its source, the second one is told none.
  assert abs(float(other[0] - usual[0])) > 1e-4
  assert float(other[1]) == float(usual[1])

  def seen(config, params):
    """A network whose output is what it reads beside x_t."""
    return lambda x_t, t, conditions: conditions.concat

  monkeypatch.setattr(instruct_pix2pix, "network", seen)
  read = []
  monkeypatch.setattr(
    type(system.image.process),
    "loss",
    lambda self, predict, x_0, key, **_: read.append(predict(x_0, None)) or x_0.sum((1, 2, 3, 4)),
  )
  part.loss(trees, batch, jax.random.key(1), jnp.array(0))
  given = instruct_pix2pix.pixels(batch["source"])
  mean = system.image.first_stage.posterior(trees, given).mean  # as InstructPix2Pix has it
  np.testing.assert_allclose(read[0][0], mean[0], atol=1e-5)
  np.testing.assert_array_equal(read[0][1], 0)
