"""The model in the package: of its recipe, small enough, and trained."""

import json
import pathlib

from emu_jax.checkpoints.stored import stored
from emu_jax.data import shapes
from emu_jax.evaluation import oracle
from emu_jax.model import SHIPPED, load, outlined
from emu_jax.systems import registry
from emu_jax.systems.system import check_trees

OLD = pathlib.Path(__file__).with_name("old") / "shipped_config.json"
# Of a video model and of its image model: what sampling depends on, beside the networks.
VIDEO = ("guidance", "interpolation_steps", "num_frames", "num_keys", "fps")
IMAGE = ("size", "zero_empty", "guidance")


def test_it_is_of_its_recipe_and_small():
  """Its networks and what sampling depends on; a release does not say how it was trained."""
  from emu_jax.configs.shapes_64 import MODEL

  system = stored(SHIPPED).system
  assert system.networks == MODEL.networks
  assert system.unet == MODEL.unet
  assert system.process.schedule == MODEL.process.schedule
  for name in VIDEO:
    assert getattr(system, name) == getattr(MODEL, name), name
  for name in IMAGE:
    assert getattr(system.image, name) == getattr(MODEL.image, name), name
  assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 25e6


def test_its_configuration_of_before_there_were_versions_is_the_same_system():
  new = json.loads((SHIPPED / "config.json").read_text())
  old = json.loads(OLD.read_text())
  assert list(old) == ["model"]
  assert new["version"] == registry.VERSION
  assert registry.from_config(old, "old") == registry.from_config(new, "new")


def test_its_trees_are_those_of_its_system_and_say_so():
  """No network is traced to compare them again."""
  found = stored(SHIPPED)
  assert found.fits
  check_trees(found.system, found.load(found.names, {}), "shipped")


def test_its_clips_go_where_prompts_say_by_motions_that_training_has_not_seen():
  pairs = list(shapes.prompts("test", 8, 0))
  clips, fps = load().sample([caption for caption, _ in pairs], frames=8, solver="dpm++", steps=8)
  read = oracle.read_clips(clips, fps).clips["direction"]
  right = [str(word) == truth["direction"] for word, (_, truth) in zip(read, pairs, strict=True)]
  # Drawn at random of four, six of eight are right once in 200 times.
  assert sum(right) >= 6


def test_it_has_all_that_37_frames_take():
  outline = outlined(stored(SHIPPED))
  assert outline.steps("sample", outline.request("sample", prompt="", frames=37))


def test_its_pictures_have_the_colours_of_the_prompts():
  pairs = list(shapes.prompts("test", 8, 0))
  prompts = [caption for caption, _ in pairs]
  pictures, fps = load().sample(prompts, frames=1, solver="dpm++", steps=8)
  read = oracle.read_clips(pictures, fps).clips
  for attribute in ("colour", "background"):
    truths = [truth[attribute] for _, truth in pairs]
    right = [str(word) == other for word, other in zip(read[attribute], truths, strict=True)]
    # Drawn at random of four, six of eight are right once in 200 times.
    assert sum(right) >= 6, attribute
