"""Every shipped config loads, fits together, and its networks build."""

import functools
import pathlib

import jax
import pytest

from emu_jax.config import from_dict, to_dict
from emu_jax.data import shapes
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.systems.text import init_text
from emu_jax.train.config import Experiment, load_stages
from emu_jax.train.parts import Split

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("[!_]*.py"))


SHAPES = {}
# Trees of what recipes begin with: an image model, or a public image-to-video model.
PUBLIC = {"autoencoder", "latents", "text", "spatial", "vision", "unet"}


def tree_shapes(system, name):
  """Of a system's tree; traced once for all systems whose networks are equal."""
  networks = {n: net for n, net in system.networks.items() if n != "process"}
  key = (type(system), repr(networks), name)
  if key not in SHAPES:
    SHAPES[key] = jax.eval_shape(system.trees()[name].init, jax.random.key(0))
  return SHAPES[key]


def trained_shapes(experiment):
  """The trees that an experiment trains."""
  system, split = experiment.system, Split(experiment.system, experiment.part)
  return split.trained({name: tree_shapes(system, name) for name in split.part.reads})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_all_its_stages(path):
  present = set()
  for experiment in load_stages(str(path)):
    part, trained = experiment.definition, set(trained_shapes(experiment))
    if experiment.init_from:  # a model that others trained
      present |= PUBLIC & set(experiment.system.trees())
    present |= {text.partition("/")[0] for text in experiment.init_trees}
    needed = set(part.reads) - trained - set(part.measures)
    needed |= {part.begins[name] for name in trained - present if name in part.begins}
    assert needed <= present, f"{experiment.run_name} comes before what trains {needed - present}"
    present |= trained | set(part.measures)


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_full_size_configs_have_the_published_parameters():
  """arXiv:2311.10709, app. table 1, derived block by block (tests/models/test_unet.py)."""
  image = load_stages(str(FOLDER / "emu_2b7.py"))[1]
  video = load_stages(str(FOLDER / "emu_video_4b3.py"))[0]
  assert count(trained_shapes(image)["spatial"]) == 2_662_694_024
  # With the kernel of the first frame and its mask.
  temporal = count(trained_shapes(video)["temporal"])
  assert temporal == 4_267_756_424 - 2_662_694_024 + 9 * 384 * 9
  init = functools.partial(init_text, image.system.text)
  encoders = jax.eval_shape(init, jax.random.key(0))
  assert [count(encoders[name]) for name in ("0", "1")] == [123_060_480, 1_223_527_424]


def test_full_size_batches_split_over_the_devices_that_they_are_meant_for():
  """Each micro-batch too, and with no example left over."""
  fewer = {"interpolation": 128, "quality": 64}
  for file in ("emu_2b7.py", "emu_video_4b3.py"):
    for e in load_stages(str(FOLDER / file)):
      devices = fewer.get(e.run_name, 256)
      e.check_mesh(devices)
      data, fsdp, _ = e.mesh.shape(devices)
      assert e.data.batch_size // e.optim.accumulate % (data * fsdp) == 0, e.run_name


def test_emu_video_trains_as_published():
  """arXiv:2311.10709, app. table 3."""
  stages = load_stages(str(FOLDER / "emu_video_4b3.py"))
  table = {
    e.run_name: (
      e.system.image.size,
      e.num_frames,
      e.definition.inputs.first.clip.fps,
      e.system.process.schedule.prediction,
      e.system.process.schedule.zero_terminal_snr,
      e.data.batch_size,
      e.optim.peak_lr,
      e.optim.warmup_steps,
      e.optim.weight_decay,
    )
    for e in stages
  }
  assert table == {
    "video_256": ((256, 256), 8, 8.0, "epsilon", False, 512, 1e-4, 1000, 0.0),
    "video_512": ((512, 512), 8, 4.0, "v", True, 512, 1e-4, 1000, 0.0),
    "video_512_16": ((512, 512), 16, 4.0, "v", True, 512, 1e-4, 1000, 0.0),
    "high_motion": ((512, 512), 16, 4.0, "v", True, 64, 2.5e-5, 10_000, 1e-4),
    "interpolation": ((512, 512), 37, 16.0, "v", True, 384, 1.5e-4, 1500, 0.0),
  }
  assert [e.loop.num_steps for e in stages[:3]] == [70_000, 15_000, 25_000]
  assert {e.optim.betas for e in stages} == {(0.9, 0.999)}
  assert {e.optim.decay for e in stages} == {"constant"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_survives_json(path):
  for experiment in load_stages(str(path)):
    assert from_dict(to_dict(experiment), Experiment, "test") == experiment


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_how_to_run_it(path):
  assert f"emu-train run --config {path.stem}" in path.read_text()


def test_a_shipped_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "shapes_32").mkdir()  # a folder of that name, of runs for instance, is no config
  assert load_stages("shapes_32") == load_stages(str(FOLDER / "shapes_32.py"))


def test_the_shapes_tokenizer_learns_every_word_and_takes_every_prompt(tmp_path):
  """A vocabulary too small for whole words cuts long captions, and prompts are then refused."""
  (encoder,) = load_stages(str(FOLDER / "shapes_32.py"))[0].system.texts
  scenes = [shapes.scene(kind, "train", i, 0) for kind in ("images", "videos") for i in range(2000)]
  train_tokenizer(map(shapes.caption, scenes), tmp_path / "0", encoder.vocab_size)
  tokenizer = load_tokenizer(tmp_path / "0", encoder.max_length)
  for split in ("validation", "test", "image_only"):
    captions = [caption for caption, _ in shapes.prompts(split, 500, 0)]
    _, masks = tokenizer(captions, overflow="error")
    words = [len(caption.split()) for caption in captions]
    assert masks.sum(axis=1).tolist() == [n + 2 for n in words]  # and its start and end
