"""What trains is chosen by rules, inside trees too; what does not lies where it was made."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emu_jax.checkpoints.run import Origin, load_trees, origins, stored_metadata, write_origins
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.train import command
from emu_jax.train.config import load_stages, todays_form
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.parts import Split
from emu_jax.train.stage import Stage
from emu_jax.train.state import initial_state
from emu_jax.train.step import train_step
from tests import tiny_recipe

QUERIES = (("spatial/*/q/*", 1.0), ("temporal/*", 0.5), ("*", 0.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def runs(base):
  return tiny_recipe.trained(base)


def flat(tree):
  return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def test_a_rate_is_a_factor_of_every_update():
  """Adam's first update is the rate itself, whatever the gradient: with half of it, half as far."""
  config = OptimConfig(peak_lr=1e-2, warmup_steps=0, weight_decay=0.0, clip_norm=0.0)

  def loss(params, frozen, batch, key, step):
    return jnp.square(params["net"]["a"]["kernel"] + params["net"]["b"]["kernel"] - batch), {}

  ones = {"kernel": jnp.ones(3)}
  rates = (("net/a/*", 0.5), ("*", 1.0))
  stage = Stage(init=lambda key: {"net": {"a": ones, "b": ones}}, frozen={}, loss=loss, rates=rates)
  mesh = make_mesh(jax.devices()[:1])
  state = initial_state(stage, config, jax.random.key(0), mesh)
  batch, key = jnp.zeros(3), jax.random.key(1)
  new, _, _ = train_step(state, {}, batch, key, loss=loss, config=config, num_steps=10, rates=rates)
  moved = {name: 1 - np.asarray(new.params["net"][name]["kernel"]) for name in "ab"}
  np.testing.assert_allclose(moved["b"], 1e-2, rtol=1e-5)
  np.testing.assert_allclose(moved["a"], 0.5e-2, rtol=1e-5)
  with pytest.raises(ValueError, match="no rule covers net/b/kernel"):
    train_step(
      state, {}, batch, key, loss=loss, config=config, num_steps=10, rates=(("net/a/*", 1.0),)
    )


@pytest.fixture(scope="module")
def queries(base, runs, tmp_path_factory):
  """A run that trains the queries of the image model's attentions beside the temporal layers."""
  out = tmp_path_factory.mktemp("queries")
  experiment = next(e for e in load_stages(str(tiny_recipe.config(base))) if e.part == "video")
  experiment = dataclasses.replace(experiment, init_from=str(runs / "image"))
  parts = EmuVideo.parts
  with pytest.MonkeyPatch.context() as patch, tiny_recipe.one_device():
    changed = lambda part: dataclasses.replace(part, trains=QUERIES)
    patch.setattr(
      EmuVideo, "parts", lambda self: parts(self) | {"video": changed(parts(self)["video"])}
    )
    assert command.train_part(experiment, out / "video")
    split = Split(experiment.system, "video")
    chosen = set(flat(split.trained(split.shapes)["spatial"]))
  return out / "video", chosen


def test_leaves_of_a_tree_train_and_the_others_are_bit_for_bit_what_they_were(runs, queries):
  run, chosen = queries
  assert chosen
  assert all("/q/" in f"/{path}" for path in chosen)
  before, after = (
    flat(load_trees(folder, ["spatial"])["spatial"]) for folder in (runs / "image", run)
  )
  assert set(before) == set(after)
  for path, leaf in after.items():
    if path in chosen:
      assert np.any(leaf != before[path]), path
    else:
      np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_a_tree_that_trains_in_part_has_no_other_slot_and_is_not_stored_again(queries):
  run, chosen = queries
  state = stored_metadata(run / "checkpoints" / "2" / "state")
  assert set(flatten_dict(state["params"]["spatial"], sep="/")) == chosen
  assert not (run / "frozen").exists()
  assert "spatial" in origins(run)


def copied(runs, tmp_path, *names):
  for name in names:
    shutil.copytree(runs / name, tmp_path / name)
  return tmp_path


def test_runs_that_are_moved_together_still_hold_their_trees(runs, tmp_path):
  moved = copied(runs, tmp_path, "autoencoder", "image", "video")
  for name, tree in load_trees(moved / "video").items():
    jax.tree.map(np.testing.assert_array_equal, tree, load_trees(runs / "video", [name])[name])


def test_a_tree_that_is_missing_where_a_run_points_is_one_line(runs, tmp_path):
  moved = copied(runs, tmp_path, "video")
  with pytest.raises(InputError, match=r"its tree 'spatial' lies in .*image/.*, which is missing"):
    load_trees(moved / "video", ["spatial"])
  load_trees(moved / "video", ["temporal"])  # its own


def test_another_tree_where_a_run_points_is_told_by_its_content(runs, tmp_path):
  moved = copied(runs, tmp_path, "autoencoder", "image", "video")
  found = origins(moved / "video")
  other = {"spatial": dataclasses.replace(found["spatial"], digest="0" * 16)}
  write_origins(moved / "video", found | other)
  with pytest.raises(InputError, match=r"holds another one by now \(its digest is not 0000"):
    load_trees(moved / "video", ["spatial"])
  write_origins(moved / "video", {"spatial": Origin("../image", "checkpoints/9/ema", "")})
  with pytest.raises(InputError, match="which is missing"):
    load_trees(moved / "video", ["spatial"])


def test_a_run_that_goes_on_keeps_the_checkpoint_that_others_point_to(base, runs, tmp_path):
  """`loop.keep` is the newest three; the autoencoder's second step is what later runs read."""
  moved = copied(runs, tmp_path, "autoencoder", "image")
  experiment = load_stages(str(tiny_recipe.config(base)))[0]
  longer = dataclasses.replace(experiment.loop, num_steps=6, save_every=1, keep=1, sample_every=0)
  with tiny_recipe.one_device():
    command.train_part(dataclasses.replace(experiment, loop=longer), moved / "autoencoder")
  steps = {
    int(p.name) for p in (moved / "autoencoder" / "checkpoints").iterdir() if p.name.isdigit()
  }
  assert steps == {2, 6}
  load_trees(moved / "image", ["autoencoder"])


def test_a_config_of_before_a_field_existed_is_not_another_config(runs):
  """A field that is absent has its default; a field that says something else is something else."""
  config = json.loads((runs / "video" / "config.json").read_text())
  older = json.loads(json.dumps(config))
  del older["loop"]["sample_fps"], older["system"]["offset_noise"], older["mesh"]
  assert todays_form(older, "run") == todays_form(config, "run")
  older["optim"]["peak_lr"] = 0.5
  assert todays_form(older, "run") != todays_form(config, "run")
  with pytest.raises(InputError, match="newer version"):
    todays_form(config | {"version": 99}, "run")
