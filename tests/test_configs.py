"""Every shipped config loads, fits together, and its networks build."""

import functools
import pathlib

import jax
import pytest

from emu_jax.config import from_dict, to_dict
from train.config import Experiment, load_stages
from train.stages import _PARTS, NEEDS

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_all_its_stages(path):
  stages = load_stages(str(path))
  trained = set()
  for experiment in stages:
    begin = functools.partial(_PARTS[experiment.stage][0], experiment)
    shapes = jax.eval_shape(begin, jax.random.key(0))
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
