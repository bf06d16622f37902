"""The table of autoencoder channels, on a few drawn pictures and two steps of training."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emu_jax.data import shapes
from emu_jax.data.batches import open_source
from emu_jax.errors import InputError
from emu_jax.systems.first_stage import KlAutoencoder
from experiments import autoencoder_channels as channels
from experiments.artefact import made
from tests.tiny_recipe import one_device


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  out = tmp_path_factory.mktemp("channels") / "shapes"
  shapes.prepare_shapes(out, size=64, num_images=40, num_clips=1, progress=False)
  return out / "images"


def pictures(num):
  drawn = [shapes.draw(shapes.scene("images", "test", i, 0), 64) for i in range(num)]
  return np.stack(drawn)


def test_the_four_differ_in_what_meets_latents_or_input_and_in_nothing_else():
  def bare(e):
    image = e.system.image
    autoencoder = dataclasses.replace(image.first_stage.config, z_channels=1, fourier_features=0)
    unet = dataclasses.replace(image.unet, in_channels=1, out_channels=1)
    image = dataclasses.replace(image, first_stage=KlAutoencoder(autoencoder), unet=unet)
    return dataclasses.replace(e, system=dataclasses.replace(e.system, image=image))

  made = [channels.experiment("default", *shape, seed=1) for shape in channels.ARMS.values()]
  assert len({bare(e) for e in made}) == 1
  found = [e.system.image.first_stage.config for e in made]
  assert [(c.z_channels, c.fourier_features > 0) for c in found] == [
    (4, False), (8, False), (16, False), (16, True)
  ]  # fmt: skip
  assert len({channels.experiment("default", 4, 0, seed).loop.seed for seed in range(3)}) == 3


def test_the_distance_is_none_of_a_set_from_itself_and_grows_with_blur():
  real = pictures(64)
  blurred = lambda sigma: gaussian_filter(real, (0, 0, sigma, sigma, 0))
  found = [channels.distance(x, real) for x in (real, blurred(0.5), blurred(1.5))]
  # Traces of some 100 unit variances cancel.
  assert found[0] < 1e-6
  assert 0.01 < found[1] < found[2]


def test_held_out_pictures_are_of_validation_and_spread_evenly(records):
  table = open_source(records, "validation").records
  frames = [frame for i in range(len(table)) for frame in table[i]["frames"]]
  found = channels.held_out(records, 10_000)
  np.testing.assert_array_equal(found[:, 0], frames)
  np.testing.assert_array_equal(channels.held_out(records, 1)[0, 0], frames[0])


def test_records_that_are_there_are_used_where_they_are(records, tmp_path):
  artefact = channels.given(records)
  folder = made(artefact, tmp_path)
  assert folder.resolve() == records.resolve()
  assert made(artefact, tmp_path) == folder
  with pytest.raises(InputError, match="holds no prepared records"):
    channels.given(tmp_path)


def test_one_command_gives_the_table_and_a_second_one_trains_nothing(
  records, tmp_path, monkeypatch
):
  arms = dict(list(channels.ARMS.items())[-2:])
  monkeypatch.setattr(channels, "ARMS", arms)
  words = ["--data", str(records), "--size", "tiny", "--seeds", "2", "--name", "table"]
  words += ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
  with one_device():
    channels.main(words)
  found = json.loads((tmp_path / "out" / "table.json").read_text())
  assert list(found["arms"]) == list(arms)
  for figures in found["arms"].values():
    assert all(len(figure["seeds"]) == 2 for figure in figures.values())
  (criterion,) = found["criteria"]
  psnr = [np.array(figures["PSNR"]["seeds"]) for figures in found["arms"].values()]
  # Means of differences are differences of means; figures are dB of some 10.
  np.testing.assert_allclose(criterion["found"]["value"], np.mean(psnr[1] - psnr[0]), atol=1e-9)
  assert (tmp_path / "out" / "table.png").is_file()

  def refuse(*_):
    raise AssertionError("trained again")

  monkeypatch.setattr("emu_jax.train.command.train_part", refuse)
  page = (tmp_path / "out" / "table.md").read_text()
  channels.main(words)
  assert (tmp_path / "out" / "table.md").read_text() == page
