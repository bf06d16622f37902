"""Laws of a run's directory."""

import dataclasses
import fcntl
import json
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import OPTIM, config, data, init, noisy_loss, run, sample, stage

from emu_jax.checkpoints.run import items, latest_step, load_ema, load_trees
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.train.checkpoint import Checkpoints
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import learning_rate
from emu_jax.train.processes import FaultError
from emu_jax.train.stage import Stage

# TensorStore complains once more, some time later, of a damaged file that it could not read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Recorded:
  """Remembers the order of the examples, and breaks like a machine after some batches."""

  def __init__(self, breaks_after=None):
    self.batches, self.order, self.breaks_after = data(), [], breaks_after
    self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

  def __iter__(self):
    return self

  def __next__(self):
    if self.breaks_after == len(self.order):
      raise OSError("the machine is gone")
    batch = next(self.batches)
    self.order.append(batch["index"].tolist())
    return batch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of 7 steps that never stopped: its folder, last state and order of data."""
  folder, seen = tmp_path_factory.mktemp("runs") / "whole", Recorded()
  return folder, run(folder, 7, batches=seen), seen.order


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
  """A run on 8 devices that broke and continued: its folder, last state and order of data."""
  folder, before, after = tmp_path_factory.mktemp("runs"), Recorded(breaks_after=4), Recorded()
  with pytest.raises(FaultError, match=r"the machine is gone; see to it .* continues from step 3"):
    run(folder, 5, batches=before, mesh=make_mesh())
  assert latest_step(folder) == 3
  log = folder / "metrics.jsonl"
  assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
  log.write_text(log.read_text() + '{"step": 4}\n{"step": 5, "train/lo')  # lost, and cut short
  state = run(folder, 5, batches=after, mesh=make_mesh())
  return folder, state, before.order[:3] + after.order


def test_resumed_is_uninterrupted_bit_for_bit(broken, tmp_path):
  seen = Recorded()
  whole = run(tmp_path, 5, batches=seen, mesh=make_mesh(), loop={"save_every": 0})
  folder, state, order = broken
  assert len(state.params["net"]["out"]["bias"].devices()) == 8
  chex.assert_trees_all_equal(state, whole)
  assert order == seen.order
  assert len({tuple(batch) for batch in order}) == 5  # an order that says something
  lines, expected = (
    [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for path in (folder, tmp_path)
  )
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  assert [line["train/loss"] for line in lines] == [line["train/loss"] for line in expected]


def test_one_device_continues_what_eight_began(broken, tmp_path):
  folder = shutil.copytree(broken[0], tmp_path / "copy")
  state = run(folder, 6)
  assert int(state.step) == 6
  assert len(state.params["net"]["out"]["bias"].devices()) == 1


def test_load_ema_gives_frozen_and_averaged_trees(finished):
  folder, state, _ = finished
  found, trees = load_ema(folder)
  assert found == json.loads(config(LoopConfig(num_steps=7, log_every=1, save_every=3)))
  assert set(trees) == {"net", "features"}
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trees))
  chex.assert_trees_all_equal({"net": trees["net"]}, jax.device_get(state.ema))
  chex.assert_trees_all_equal(trees["features"], stage().frozen["features"])


def test_frozen_trees_keep_their_bits_and_dtype(tmp_path):
  frozen = {"features": {"kernel": jnp.full((4, 4), 1 / 3, jnp.bfloat16)}, "text": {"0": {}}}
  run(tmp_path, 2, stage=stage(frozen=frozen))
  _, trees = load_ema(tmp_path)
  assert trees["features"]["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(trees["features"]["kernel"], frozen["features"]["kernel"])


def test_stage_without_frozen_trees_loads_and_resumes(tmp_path):
  def loss(params, frozen, batch, key, step):
    return noisy_loss(params, {"features": {"kernel": jnp.eye(4)}}, batch, key, step)

  unfrozen = Stage(init=init, frozen={}, loss=loss)
  run(tmp_path, 2, stage=unfrozen)
  assert int(run(tmp_path, 3, stage=unfrozen).step) == 3
  assert set(load_ema(tmp_path)[1]) == {"net"}


def test_frozen_trees_come_from_the_run_not_from_the_caller(copy):
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), stage().frozen)
  assert int(run(copy, 8, stage=stage(frozen=shapes)).step) == 8


def test_initial_trees_yield_to_the_own_checkpoint(copy, finished, tmp_path):
  other = jax.tree.map(np.asarray, init(jax.random.key(5)))
  state = run(copy, 7, initial=other)
  chex.assert_trees_all_equal(state, finished[1])
  fresh = run(tmp_path / "new", 1, initial=other, optim=dataclasses.replace(OPTIM, peak_lr=0.0))
  chex.assert_trees_all_equal(jax.device_get(fresh.params), other)


def test_another_config_is_refused_by_its_first_field(finished):
  with pytest.raises(InputError, match=r"loop.seed is 0 there and 3 here"):
    run(finished[0], 7, loop={"seed": 3})


def test_another_optimiser_is_taken_and_noted_with_its_step(copy, capsys):
  """What the messages of a run advise on; to change nothing says nothing."""
  changed = dataclasses.replace(OPTIM, peak_lr=0.5, on_non_finite="skip", clip_norm=0.0)
  state = run(copy, 8, optim=changed)
  assert int(state.step) == 8
  printed = capsys.readouterr().err
  assert "optim.peak_lr is 0.5 from step 7 on, it was 0.01" in printed
  assert "the learning rate at step 7 is 0.5 and not 0.01, as planned before" in printed
  (note,) = map(json.loads, (copy / "changes.jsonl").read_text().splitlines())
  assert note["step"] == 7
  assert note["changed"]["optim.peak_lr"] == [0.01, 0.5]
  assert set(note["changed"]) == {
    "optim.peak_lr", "optim.on_non_finite", "optim.clip_norm", "loop.num_steps"
  }  # fmt: skip
  run(copy, 8, optim=changed)
  assert " from step " not in capsys.readouterr().err.replace("continuing from step", "")


def test_a_cosine_that_is_made_longer_says_what_becomes_of_the_rate(tmp_path, capsys):
  cosine = dataclasses.replace(OPTIM, decay="cosine")
  run(tmp_path, 4, optim=cosine)
  assert "learning rate at" not in capsys.readouterr().err
  run(tmp_path, 8, optim=cosine)
  rate = float(learning_rate(cosine, 8, 4))
  assert f"the learning rate at step 4 is {rate:.3g} and not 0, as" in capsys.readouterr().err


def test_what_a_network_computes_does_not_depend_on_remat_or_previews(copy):
  found = json.loads((copy / "config.json").read_text())
  system = {"image": {"unet": {"remat": False}, "preview": {"num_steps": 5}}}
  (copy / "config.json").write_text(json.dumps(found | {"system": system}))
  system = {"image": {"unet": {"remat": True}, "preview": {"num_steps": 9}}}
  run(copy, 7, config=json.dumps(found | {"system": system}))
  system = {"image": {"unet": {"width": True}, "preview": {"num_steps": 9}}}
  with pytest.raises(InputError, match=r"system.image.unet.remat is True there and 'absent' here|"
                                       r"system.image.unet.width is 'absent' there"):  # fmt: skip
    run(copy, 7, config=json.dumps(found | {"system": system}))


def test_added_and_missing_fields_are_other_configs(finished):
  found = json.loads((finished[0] / "config.json").read_text())
  with pytest.raises(InputError, match=r"model.width is 'absent' there and 8 here"):
    run(finished[0], 7, config=json.dumps(found | {"model": {"width": 8}}))
  del found["loop"]["seed"]
  with pytest.raises(InputError, match=r"loop.seed is 0 there and 'absent' here"):
    run(finished[0], 7, config=json.dumps(found))


def test_exempt_fields_may_change(copy):
  state = run(copy, 9, loop={"log_every": 2, "keep": 1})
  assert int(state.step) == 9
  assert json.loads((copy / "config.json").read_text())["loop"]["num_steps"] == 9
  assert [path.name for path in (copy / "checkpoints").iterdir()] == ["9"]
  # One that ends like an exempt field but lies elsewhere is none.
  found = json.loads((copy / "config.json").read_text())
  with pytest.raises(InputError, match=r"schedule.num_steps is 'absent' there and 10 here"):
    run(copy, 9, config=json.dumps(found | {"schedule": {"num_steps": 10}}))


@pytest.mark.parametrize("lost", ["state", "ema", "data", "_CHECKPOINT_METADATA"])
def test_half_written_checkpoint_is_ignored(copy, finished, lost):
  half = copy / "checkpoints" / "7" / lost
  shutil.rmtree(half) if half.is_dir() else half.unlink()
  shutil.copytree(copy / "checkpoints" / "6", copy / "checkpoints" / "8.orbax-checkpoint-tmp")
  assert latest_step(copy) == 6
  state = run(copy, 7)  # does step 7 again, and saves it under its name
  chex.assert_trees_all_equal(state, finished[1])
  assert latest_step(copy) == 7


def test_trees_of_a_step_are_read_of_that_one(copy):
  """Whatever the run has written meanwhile; one that it has deleted is named."""
  assert items(copy, 6)["net"] == ("checkpoints/6/ema",)
  before, newest = (load_trees(copy, ["net"], step)["net"] for step in (6, None))
  assert np.any(before["out"]["bias"] != newest["out"]["bias"])
  with pytest.raises(InputError, match="checkpoints/5/ema is missing by now"):
    load_trees(copy, ["net"], 5)


def test_folder_without_a_checkpoint_is_refused(tmp_path, copy):
  with pytest.raises(InputError, match="holds no checkpoint; give the folder of a run"):
    load_ema(tmp_path)
  with pytest.raises(InputError, match="holds no checkpoint"):
    load_ema(tmp_path / "nowhere")
  (copy / "config.json").unlink()
  with pytest.raises(InputError, match=r"holds no config.json"):
    load_ema(copy)
  with pytest.raises(InputError, match=r"holds checkpoints but no config.json"):
    run(copy, 7)


def cut(folder):
  """Leaves half of each file that holds arrays, as a disk does that lost what was not yet on it."""
  files = [file for file in folder.rglob("*") if file.is_file() and file.parent.name == "d"]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("lost", ["state", "ema", "data"])
def test_damaged_checkpoint_is_set_aside_for_the_one_before(copy, finished, lost, capsys):
  newest = copy / "checkpoints" / "7"
  if lost == "data":
    (newest / "data" / "metadata").write_text('{"posi')
  else:
    cut(newest / lost)
  (copy / "checkpoints" / "7.damaged").mkdir()  # of an earlier time
  state = run(copy, 7)
  printed = capsys.readouterr().err
  assert "checkpoints/7 is damaged and not used: " in printed
  assert "continuing from step 6" in printed
  chex.assert_trees_all_equal(state, finished[1])
  names = {path.name for path in (copy / "checkpoints").iterdir()}
  assert names == {"3", "6", "7", "7.damaged"}


@pytest.mark.parametrize(
  "error", [PermissionError(13, "Permission denied"), ValueError("UNAVAILABLE: try again")]
)
def test_what_is_no_damage_renames_nothing(copy, monkeypatch, error):
  def fails(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "restore", fails)
    with pytest.raises(OSError, match=r"Permission denied|UNAVAILABLE: try again; see to"):
      run(copy, 8)
  assert {path.name for path in (copy / "checkpoints").iterdir()} == {"3", "6", "7"}


def test_checkpoints_of_an_earlier_version_are_refused(copy):
  for step in ("3", "6", "7"):
    (copy / "checkpoints" / step / "data" / "metadata").write_text('{"positions": ["{}"]}')
  with pytest.raises(InputError, match="written by an earlier version"):
    run(copy, 8)


def test_where_no_checkpoint_can_be_read_none_is_touched(copy):
  for step in ("3", "6", "7"):
    cut(copy / "checkpoints" / step / "state")
  with pytest.raises(InputError, match="none of its checkpoints can be read: "):
    run(copy, 8)
  assert {path.name for path in (copy / "checkpoints").iterdir()} == {"3", "6", "7"}


def settle(folder):
  """Waits until the files of a folder have stayed the same for half a second."""
  before, now = None, sorted(folder.rglob("*"))
  while before != now:
    time.sleep(0.5)
    before, now = now, sorted(folder.rglob("*"))


def test_a_disk_that_is_full_ends_in_one_line_and_the_run_continues(copy, finished, monkeypatch):
  """The background write fails: the error comes with the next save, or at the end."""

  class Full:
    def result(self, timeout=None):
      raise OSError(28, "No space left on device")

  async def full(*args, **kwargs):
    return [Full()]

  shutil.rmtree(copy / "checkpoints" / "7")
  with monkeypatch.context() as patch:
    patch.setattr(ocp.JsonCheckpointHandler, "async_save", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space.*continues from step 6"):
      run(copy, 7)
  assert latest_step(copy) == 6
  settle(copy / "checkpoints")  # a process that failed ends; here its threads still write
  chex.assert_trees_all_equal(run(copy, 7), finished[1])


def test_damaged_checkpoint_is_named(copy):
  cut(copy / "checkpoints" / "7" / "ema")
  with pytest.raises(InputError, match="7/ema cannot be read"):
    load_ema(copy)


def test_unwritable_folder_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    run(tmp_path / "file" / "run", 1)


def test_a_second_run_is_refused_while_the_first_is_alive(copy):
  with (copy / "lock").open("w") as lock:  # as another process would hold it
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write("process 12 of another.host")
    lock.flush()
    message = "process 12 of another.host trains in it; wait for its end"
    with pytest.raises(InputError, match=message):
      run(copy, 10)
  assert int(run(copy, 10).step) == 10


def test_checkpoint_of_another_model_shows_both_sides(copy):
  def wider(key):
    params = init(key)
    return {"net": params["net"] | {"extra": {"bias": jnp.zeros(3)}}}

  with pytest.raises(InputError, match=r"- net/extra/bias \(3,\) in the model, not in it"):
    run(copy, 8, stage=stage(init=wider))


class BytesState:
  """An iterator whose position is bytes, as Grain's DataLoader's is."""

  position = 0

  def __iter__(self):
    return self

  def __next__(self):
    self.position += 1

  def get_state(self):
    return b"\x00\xff%d" % self.position

  def set_state(self, state):
    self.position = int(state.removeprefix(b"\x00\xff"))


def test_position_may_be_bytes(tmp_path, finished):
  state, iterator = finished[1], BytesState()
  iterator.position = 41
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(7, state, iterator)
  again = BytesState()
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    like = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    chex.assert_trees_all_equal(checkpoints.restore(like, again), state)
  assert again.position == 41


def test_a_tree_cannot_train_and_be_frozen(tmp_path):
  both = stage().frozen | {"net": {"out": {"bias": np.zeros(2)}}}
  with pytest.raises(ValueError, match=r"\['net/out/bias'\] are among the trainable"):
    run(tmp_path, 1, stage=stage(frozen=both, sample=sample))
