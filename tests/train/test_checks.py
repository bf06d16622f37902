"""What is checked before a part trains, and what a part begins with; nothing here trains."""

import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.run import Origin
from emu_jax.checkpoints.stored import Stored
from emu_jax.config import kind
from emu_jax.configs import sprites_64
from emu_jax.data.batches import Source
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.errors import InputError
from emu_jax.parallel import placement
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.systems.system import Measure, Part, System, Tree, tree_shapes
from emu_jax.train import clips as train_clips
from emu_jax.train import command, inherit
from emu_jax.train.checkpoint import save_frozen
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig, initial_frozen
from emu_jax.train.parts import Split, build
from emu_jax.train.state import initial_state
from tests.data.video_files import write_numbered
from tests.tiny import MODEL


@kind("checked_by_tests")
@dataclasses.dataclass(frozen=True)
class Halves(System):
  """One tree, of which a half trains."""

  def trees(self):
    draw = lambda key: {"kernel": jax.random.normal(key, (8, 4))}
    both = lambda key: {name: draw(jax.random.fold_in(key, i)) for i, name in enumerate("ab")}
    return {
      "net": Tree(both, (("*", "bfloat16"),)),
      "other": Tree(draw),
      "scale": Tree(lambda key: {"scale": jnp.ones(3)}),
    }

  def parts(self):
    one = lambda trees, batch: batch["x"].mean()
    measure = Measure(one, np.mean, reads=("other",), num_examples=6)
    part = Part(
      trains=(("net/a/*", 1.0), ("*", 0.0)),
      reads=("net", "other", "scale"),
      inputs=clip_inputs(ClipSpec(1, 1.0), (8, 8)),
      loss=lambda trees, batch, key, step: (jnp.zeros(1), {}),
      measures={"scale": measure},
    )
    return {"half": part}

  def tasks(self):
    return {}


HALF = Experiment(Halves(), "half", DataConfig(batch_size=2))
INHERITED = {name: tree_shapes(HALF.system, name) for name in ("other", "scale")}


# Records.


def buckets(*counts):
  """Records of (height, width, number of them), none of which is read."""
  sizes = [(height, width) for height, width, count in counts for _ in range(count)]
  lengths, rates = np.ones(len(sizes), np.int32), np.zeros(len(sizes), np.float32)
  return Source("buckets", (16, 16), [], lengths, rates, np.array(sizes, np.int32))


@pytest.fixture
def validated(monkeypatch):
  """The size of validation's batches for such sources, of 4 examples at most, and what is said."""

  def check(*sources, devices=1, capsys):
    for module in (command, train_clips):
      monkeypatch.setattr(module, "opened", lambda experiment, split: list(sources))
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    data, loop = DataConfig(sources=("here",), batch_size=4), LoopConfig(validate_every=1)
    experiment = Experiment(MODEL, "autoencoder", data, loop=loop)
    command.check_data(experiment)
    return train_clips.validation_of(experiment, devices).batch_size, capsys.readouterr().err

  return check


def test_few_records_of_validation_are_batches_of_their_own_size(validated, capsys):
  size, line = validated(buckets((16, 16, 3)), capsys=capsys)
  assert size == 3
  assert "batches of 3 examples" in line
  assert line.count("\n") == 1
  # Batches take records of any source, and split over the devices.
  assert validated(buckets((16, 16, 2)), buckets((16, 16, 2)), capsys=capsys) == (4, "")
  assert validated(buckets((16, 16, 3)), devices=2, capsys=capsys)[0] == 2


def test_too_few_records_of_validation_train_without_it_and_a_line_says_so(validated, capsys):
  size, line = validated(buckets((16, 16, 1), (16, 32, 1)), devices=2, capsys=capsys)
  assert size == 0
  assert "1 usable validation record(s) of one size fill no batch of 2; it trains without" in line
  assert line.count("\n") == 1


def test_sizes_that_fill_no_batch_of_validation_are_named(validated, capsys):
  size, line = validated(buckets((16, 16, 4), (16, 32, 3)), buckets((32, 16, 1)), capsys=capsys)
  assert size == 4
  assert "fills no batch of 4: 3 of 16x32, 1 of 32x16" in line


def test_a_small_folder_trains_every_stage_of_a_shipped_config_as_it_is(
  tmp_path, monkeypatch, capsys
):
  clips = tmp_path / "clips"
  clips.mkdir()
  for i in range(43):
    write_numbered(clips / f"{i}.mp4", 8)
    (clips / f"{i}.txt").write_text("a clip")
  words = ["--out", str(tmp_path / "packed"), "--size", "64", "--workers", "1"]
  command.main(["prepare", str(clips), *words])
  assert "43 of 43 clips packed" in capsys.readouterr().out
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  for stage in sprites_64.STAGES:
    data = dataclasses.replace(stage.data, sources=(str(tmp_path / "packed"),))
    command.check_data(dataclasses.replace(stage, data=data))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3  # one a stage: what validation is
  assert all("validation" in line for line in lines)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_records_are_encoded_for_the_first_stage_of_clips_or_the_last(num_frames, monkeypatch):
  def planned(arguments, *others):
    raise InputError(f"stages {arguments.stage}")

  @dataclasses.dataclass(frozen=True)
  class Clips(Halves):
    def parts(self):
      part = super().parts()["half"]
      clips = clip_inputs(ClipSpec(num_frames, 1.0), (8, 8))
      return {"half": part, "clips": dataclasses.replace(part, inputs=clips), "last": part}

  stages = [Experiment(Clips(), part) for part in ("half", "clips", "last")]
  monkeypatch.setattr(command, "load_stages", lambda path: stages)
  monkeypatch.setattr(command, "planned", planned)
  arguments = command.Encode(*map(pathlib.Path, ("clips", "config.py", "out")))
  with pytest.raises(InputError, match="'clips'" if num_frames > 1 else "'last'"):
    command.encode_source(arguments, [])


# What a run begins with.


def source(folder, dtype, load=None):
  """A model that holds all of a system's trees in a precision."""
  trees = {name: jax.tree.map(lambda a: np.ones(a.shape, dtype), tree_shapes(HALF.system, name))
           for name in ("net", "other", "scale")}  # fmt: skip
  load = load or (lambda names, reading: {name: trees[name] for name in names})
  return Stored(HALF.system, tuple(trees), load, (), str(folder))


def test_what_begins_to_train_from_rounded_numbers_is_told_in_a_line(tmp_path, monkeypatch, capsys):
  """What does not train may lie in any precision."""
  experiment = dataclasses.replace(HALF, init_from="runs/before")
  for dtype, lines in (("float32", 0), (jnp.bfloat16, 1), ("float16", 1)):
    monkeypatch.setattr(inherit, "source_of", lambda experiment, d=dtype: source("runs/before", d))
    assert inherit.begin(experiment, tmp_path / "run", None).fresh
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines
    for line in printed:
      assert f"tree 'net' begins to train from {jnp.dtype(dtype)} numbers of runs/before" in line
      assert "--init_from" in line


def test_a_checkpoint_is_pinned_before_it_is_read(tmp_path, monkeypatch):
  """The run that wrote it may be alive, and delete it for a newer one."""
  run = tmp_path / "before"
  run.mkdir()

  def load(names, reading):
    assert (run / "pinned" / "7").is_file()
    return source(run, "float32").load(names, reading)

  found = dataclasses.replace(source(run, "float32", load), run=run, step=7)
  monkeypatch.setattr(inherit, "source_of", lambda experiment: found)
  origin = lambda run, name, tree, step: Origin(str(run), f"checkpoints/{step}/ema", "")
  monkeypatch.setattr(inherit, "origin_of", origin)
  begun = inherit.begin(HALF, tmp_path / "run", None)
  assert begun.inherited.origins["other"].item == "checkpoints/7/ema"
  (tmp_path / "run").mkdir()
  with pytest.raises(InputError, match=r"before/checkpoints/7/ema, which is missing.*again"):
    save_frozen(tmp_path / "run", {}, begun.inherited)
  assert not list((tmp_path / "run").iterdir())


def test_what_a_run_began_with_is_not_read_again(tmp_path, monkeypatch):
  """Where it continues: what it began with may be large, changed or gone."""
  monkeypatch.setattr(inherit, "latest_step", lambda folder: 3)
  monkeypatch.setattr(inherit, "tree_names", lambda folder: ("net", "other"))
  monkeypatch.setattr(inherit, "source_of", refused)
  begun = inherit.begin(dataclasses.replace(HALF, init_from="gone"), tmp_path, None)
  assert set(begun.trees) == {"net", "other"}
  assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(begun.trees))


# The folder of a run.


def refused(*arguments):
  raise InputError("refused")


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(command, "_train", refused)
  with pytest.raises(InputError, match="refused"):
    command.train_part(Experiment(MODEL, "image"), tmp_path / "runs" / "image")
  assert not (tmp_path / "runs").exists()


def test_a_run_that_has_a_checkpoint_is_kept_whatever_ends_it(tmp_path, monkeypatch):
  """Its metrics may begin later than its checkpoints."""

  def train(experiment, folder, config, exempt, stop):
    (folder / "checkpoints" / "1").mkdir(parents=True)
    raise InputError("the disk is full")

  monkeypatch.setattr(command, "_train", train)
  with pytest.raises(InputError, match="disk is full"):
    command.train_part(Experiment(MODEL, "image"), tmp_path / "image")
  assert (tmp_path / "image" / "checkpoints" / "1").is_dir()


def test_a_second_start_leaves_the_folder_of_the_first(tmp_path, monkeypatch):
  """The first one made it after the second one had seen none."""

  @contextlib.contextmanager
  def alone_in(folder):
    folder.mkdir()
    raise InputError("another process trains in it")
    yield

  monkeypatch.setattr(command, "alone_in", alone_in)
  with pytest.raises(InputError, match="another process"):
    command.train_part(Experiment(MODEL, "image"), tmp_path / "image")
  assert (tmp_path / "image").is_dir()


def test_a_system_that_could_not_be_read_back_does_not_train(tmp_path):
  """Its kind has no entry point: a run of it could be neither continued nor loaded."""
  with pytest.raises(InputError, match=r"'checked_by_tests' is unknown.*entry point") as error:
    command.train_part(HALF, tmp_path / "half")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "half").exists()


# What a tree begins with of which a part trains.


def test_frozen_leaves_that_begin_from_nothing_are_shapes_until_a_run_makes_them():
  """So that a plan makes none."""
  net = build(HALF, INHERITED, {}).frozen["net"]
  assert net == {"b": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)}}


def test_frozen_leaves_begin_with_the_seed_of_the_run_and_in_pieces(monkeypatch):
  """Both halves of a tree are of one draw, and no device holds more than its share."""
  monkeypatch.setattr(placement, "SMALL", 1)
  arrays = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), INHERITED)
  mesh, stage = make_mesh(config=MeshConfig(fsdp=4)), build(HALF, arrays, {})
  split = Split(HALF.system, HALF.part)
  found = {}
  for seed in (0, 1):
    key = jax.random.key(seed)
    state = initial_state(stage, HALF.optim, key, mesh)
    made = initial_frozen(stage, key, mesh)["net"]
    (leaf,) = jax.tree.leaves(made)
    whole = split.whole("net", jax.random.key(seed))
    np.testing.assert_array_equal(made["b"]["kernel"], whole["b"]["kernel"].astype("bfloat16"))
    np.testing.assert_array_equal(state.params["net"]["a"]["kernel"], whole["a"]["kernel"])
    assert leaf.addressable_shards[0].data.size == leaf.size // 4
    found[seed] = np.asarray(leaf)
  assert np.any(found[0] != found[1])


class Numbers:
  """Batches of their own numbers."""

  def __init__(self, events):
    self.position, self.events = 0, events

  def __iter__(self):
    return self

  def __next__(self):
    self.events.append("drawn")
    self.position += 1
    return {"x": np.full((2, 1), self.position, np.float32)}

  def get_state(self):
    return self.position

  def set_state(self, position):
    self.position = position


def test_a_tree_is_measured_batch_by_batch_with_the_trees_that_it_needs(monkeypatch):
  """Of large clips no more than one batch fits."""
  events, mesh = [], make_mesh(jax.devices()[:1])
  placed = lambda batch, mesh: events.append("measured") or batch
  monkeypatch.setattr(inherit, "global_batch", placed)
  monkeypatch.setattr(inherit, "place", lambda trees, mesh: events.append(set(trees)) or trees)
  trees = {name: {"kernel": np.ones(2)} for name in ("net", "other")}
  data = Numbers(events)
  assert inherit.measured(HALF, trees, data, mesh) == {"scale": 2.0}
  assert events == [{"other"}, *["drawn", "measured"] * 3]
  assert data.position == 0
