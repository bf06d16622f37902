"""Runs and releases of before version 2, when every configuration was one of Emu Video.

runs.tar.xz holds the runs `image` and `video` of the tiny recipe as the last version 1 left them,
without what only training reads (metrics, samples, the optimiser's numbers); frames.npz what that
version drew of them, under the compiler's options of conftest.py.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from emu_jax.checkpoints.stored import stored
from emu_jax.config import to_dict
from emu_jax.diffusion.loss import Times
from emu_jax.diffusion.process import Sampling
from emu_jax.errors import InputError
from emu_jax.model import SHIPPED, loaded
from emu_jax.systems import registry
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.old_emu_video import UNREAD

OLD = pathlib.Path(__file__).with_name("old")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("old")
  with tarfile.open(OLD / "runs.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder


@pytest.mark.parametrize(("run", "frames"), [("image", 1), ("video", 1), ("video", 8)])
def test_an_old_run_draws_what_the_version_that_trained_it_drew(runs, run, frames):
  model = loaded(stored(runs / run))
  with np.load(OLD / "frames.npz") as file:
    expected = file[f"{run}_{frames}"].astype(int)
  made = model.sample("red", negative="blue", frames=frames, seed=3, solver="dpm++", steps=4)
  assert (made.frames.shape, made.fps) == ((1, *expected.shape), 4.0)
  assert expected.std() > 20
  # Programs are cut in other places by now, and round otherwise: by a last bit, seen as one level.
  np.testing.assert_allclose(made.frames[0].astype(int), expected, atol=1)


def test_of_old_runs_the_one_that_begins_with_the_others_is_the_model(runs):
  assert stored(runs).run == runs / "video"
  assert set(stored(runs).names) == {"autoencoder", "latents", "text", "spatial", "temporal"}


def test_an_old_runs_fields_are_where_they_belong(runs):
  values = json.loads((runs / "image" / "config.json").read_text())
  values |= {"offset_noise": 0.1, "times": {"mean": 0.5, "uniform": 0.25}, "num_samples": 3}
  values["data"]["first_frames"], values["model"]["guidance"]["picture"] = True, 5.0
  new = registry.upgraded(values, "run")
  assert (new["version"], new["part"]) == (2, "image")
  assert new["loop"]["num_samples"] == 3
  system = registry.from_config(values, "run")
  assert isinstance(system, EmuVideo)
  assert (system.image.guidance, system.guidance.text) == (5.0, 7.5)
  assert (system.first_frames, system.image.train_text) == (True, True)
  assert (system.image.preview, system.image.size) == (Sampling(num_steps=2), (16, 16))
  times = Times(mean=0.5, uniform=0.25)
  # What an experiment said of noise was said of the part that it trained.
  assert (system.image.offset_noise, system.image.process.times) == (0.1, times)
  assert (system.offset_noise, system.process.times) == (0.0, Times())
  of_video = registry.from_config(values | {"stage": "video"}, "run")
  assert (of_video.offset_noise, of_video.process.times) == (0.1, times)
  assert (of_video.image.offset_noise, of_video.image.process.times) == (0.0, Times())


def test_an_old_releases_config_is_the_system_that_its_recipe_had():
  values = json.loads((OLD / "shipped_config.json").read_text())
  old, system = values["model"], registry.from_config(values, "release")
  assert isinstance(system, EmuVideo)
  image = system.image
  for values, config in (
    (old["image"]["unet"], image.unet),
    (old["image"]["autoencoder"], image.first_stage.config),
    (old["image"]["text"][0], image.text[0]),
    (old["temporal"], system.temporal),
    (old["schedule"], system.process.schedule),
    (old["augmentation"], system.augmentation.schedule),
  ):
    new = to_dict(config)
    # Fields that are new have their defaults; strips are no field any more.
    known = {name: value for name, value in values.items() if name not in (*UNREAD, "temporal")}
    assert known == {name: new[name] for name in known}
  assert system.image.size == (old["image"]["size"],) * 2
  assert (system.num_frames, system.fps) == (old["num_frames"], old["fps"])
  assert system.interpolation_steps == old["interpolation_steps"]
  names = {tree for tree in stored(SHIPPED).names if tree != "latents"}
  assert names <= set(system.trees())


@pytest.mark.parametrize(
  "values", [{}, {"model": {}}, {"model": 3}, {"stage": "video", "model": {}}]
)
def test_an_old_config_that_lacks_parts_is_refused_in_one_line(values):
  with pytest.raises(InputError, match=r"^run/config\.json: ") as caught:
    registry.from_config(values, "run/config.json")
  assert "\n" not in str(caught.value)
