"""What is seen of a run beside its losses changes nothing of it: best, profile, arithmetic, W&B."""

import json
import pathlib
import shutil
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import plain_loss, run, stage

from emu_jax.checkpoints.best import at_step, best_entry, read_best
from emu_jax.checkpoints.run import latest_step, load_trees
from emu_jax.checkpoints.stored import is_stored
from emu_jax.errors import InputError
from emu_jax.train.best import Best, check_best
from emu_jax.train.monitor import Look, MonitorConfig
from emu_jax.train.utilisation import Utilisation, peak_flops, step_flops
from emu_jax.train.wandb_run import check_installed, run_id, tracked


def lines(run_dir):
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_kept(run_dir):
  return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


def measured(values):
  """A look that measures these numbers, one a step."""
  return Look("one", 1, lambda step, ema, frozen, log: {"evaluation/one": values[step - 1]})


LOWEST = MonitorConfig(best="evaluation/one", evaluators=("shapes",), evaluate_every=1)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
  values, loop = [5.0, 3.0, 4.0, float("nan"), 6.0, 7.0], {"save_every": 1, "keep": 1}
  run(tmp_path, 6, monitor=LOWEST, looks=[measured(values)], loop=loop)
  assert best_entry(tmp_path) == {"step": 2, "value": 3.0}
  assert steps_kept(tmp_path) == [2, 6]
  # The run that continues knows it, and an other best one takes its place.
  values += [3.5, 2.5, 9.0]
  run(tmp_path, 9, monitor=LOWEST, looks=[measured(values)], loop=loop)
  assert best_entry(tmp_path) == {"step": 8, "value": 2.5}
  assert steps_kept(tmp_path) == [8, 9]
  assert [line["evaluation/one"] for line in lines(tmp_path) if "evaluation/one" in line][1] == 3.0


def test_a_best_step_between_saves_is_saved_and_kept_without_the_option_too(tmp_path):
  loop = {"save_every": 0, "keep": 1, "validate_every": 2}
  monitor = MonitorConfig(best="validation/loss")
  run(tmp_path, 4, loss=plain_loss, monitor=monitor, loop=loop)
  by_step = {x["step"]: x["validation/loss"] for x in lines(tmp_path) if "validation/loss" in x}
  best = min(by_step, key=by_step.get)
  assert best_entry(tmp_path) == {"step": best, "value": by_step[best]}
  assert latest_step(tmp_path) == 4
  run(tmp_path, 7, loss=plain_loss, loop=loop | {"save_every": 1})
  assert best in steps_kept(tmp_path)


def test_the_best_checkpoint_is_read_by_its_name(tmp_path):
  """As a model's folder, `RUN/best`: the weights of that step, not of the newest."""
  folder = tmp_path / "run"
  monitor = MonitorConfig(best="evaluation/one", evaluators=("shapes",), evaluate_every=1)
  run(folder, 4, monitor=monitor, looks=[measured([2.0, 1.0, 3.0, 4.0])])
  assert at_step(folder / "best") == (folder, 2)
  assert at_step(folder) == (folder, None)
  assert at_step(tmp_path / "best") == (tmp_path / "best", None)
  assert is_stored(folder / "best")
  assert load_trees(folder, step=2).keys() == load_trees(folder).keys()
  shutil.rmtree(folder / "checkpoints" / "2")
  with pytest.raises(InputError, match=r"the checkpoint that best\.json names is missing"):
    at_step(folder / "best")


def test_until_the_best_checkpoint_is_whole_the_one_before_counts(tmp_path):
  best = Best(tmp_path, LOWEST, 0)
  whole = tmp_path / "checkpoints" / "1"
  for part in ("_CHECKPOINT_METADATA", "state/_METADATA", "ema/_METADATA", "data/metadata"):
    (whole / part).parent.mkdir(parents=True, exist_ok=True)
    (whole / part).touch()
  assert best.improves(1, {"evaluation/one": 2.0})
  assert best.improves(2, {"evaluation/one": 1.0})
  assert not best.improves(3, {"evaluation/one": 1.0})
  assert not best.improves(4, {"validation/loss": 0.0})
  assert read_best(tmp_path)["best"]["step"] == 2
  assert best_entry(tmp_path) == {"step": 1, "value": 2.0}
  continued = Best(tmp_path, LOWEST, 1)  # the write of step 2 was lost
  assert continued.improves(2, {"evaluation/one": 1.5})
  highest = MonitorConfig(**vars(LOWEST) | {"best_is": "highest"})
  other = Best(tmp_path, highest, 1)  # what was best by another measure says nothing
  assert other.improves(2, {"evaluation/one": -1.0})
  assert other.improves(3, {"evaluation/one": 4.0})


def test_a_best_metric_that_an_evaluator_does_not_give_is_named(tmp_path, capsys):
  monitor = MonitorConfig(**vars(LOWEST) | {"best": "evaluation/two"})
  run(tmp_path, 1, monitor=monitor, looks=[measured([1.0])])
  line = "no checkpoint is the best: evaluation/two is none of evaluation/one"
  assert line in capsys.readouterr().err
  assert read_best(tmp_path) is None


@pytest.mark.parametrize("best", ["validation/loss", "evaluation/shapes/joint", "loss"])
def test_a_best_metric_that_is_never_measured_is_refused(best):
  with pytest.raises(InputError, match=f"{best}: is never measured"):
    check_best(MonitorConfig(best=best), 0)


def test_a_best_metric_that_validation_has_not_is_refused(tmp_path):
  with pytest.raises(InputError, match="choose of validation/loss, validation/worst_half"):
    run(tmp_path, 2, monitor=MonitorConfig(best="validation/fid"), loop={"validate_every": 1})


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"profile_steps": (1, 4)}, "profile_steps=1 4"),
    ({"profile_steps": (5, 4)}, "profile_steps=5 4"),
    ({"evaluate_every": 5}, "go together"),
    ({"evaluate_prompts": 0}, "evaluate_prompts=0"),
    ({"prompts_every": -1}, "prompts_every=-1"),
  ],
)
def test_numbers_that_make_no_sense_are_refused(fields, words):
  with pytest.raises(InputError, match=words):
    MonitorConfig(**fields)


def traces(run_dir):
  return list((run_dir / "tensorboard").rglob("*.xplane.pb"))


def test_a_trace_of_some_steps_changes_no_number(tmp_path):
  plain = run(tmp_path / "plain", 5)
  traced = run(tmp_path / "traced", 5, monitor=MonitorConfig(profile_steps=(3, 4)))
  chex.assert_trees_all_equal(plain, traced)
  assert not traces(tmp_path / "plain")
  assert len(traces(tmp_path / "traced")) == 1


def test_a_trace_that_lasts_to_the_end_of_the_run_is_written(tmp_path):
  run(tmp_path, 4, monitor=MonitorConfig(profile_steps=(4, 9)))
  assert len(traces(tmp_path)) == 1


def linear(trained, frozen, batch, key, step):
  """Of one product, which is computed once more in the backward pass."""
  product = jax.checkpoint(lambda w, x: jnp.sin(x @ w))
  return product(trained["w"], batch["x"]).sum(axis=1), {}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_operations_of_a_step_are_those_of_products_forward_and_backward(accumulate):
  """One product, and one for the gradient of its kernel: x needs none."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  trees = {"w": shape(4, 5)}, {}
  found = step_flops(linear, *trees, {"x": shape(6, 4)}, key, accumulate)
  assert found == 2 * (2 * 6 * 4 * 5)


def test_the_share_of_the_peak_is_operations_by_time_devices_and_peak():
  device = types.SimpleNamespace(device_kind="TPU v5 lite")
  meter = Utilisation(linear, 1, [device] * 4)
  key = jax.eval_shape(lambda: jax.random.key(0))
  small, large = {"x": shape(6, 4)}, {"x": shape(18, 4)}  # buckets of two sizes
  for batch in (small, large):
    meter.add(meter.flops({"w": shape(4, 5)}, {}, batch, key))
  found = meter.rates({"time/step_s": 0.5})
  rate = (480 + 1440) / 2 / 0.5 / 4
  np.testing.assert_allclose(found["time/model_tflops_per_device"], rate / 1e12)
  np.testing.assert_allclose(found["time/flops_utilisation"], rate / 197e12)
  assert meter.rates({"time/step_s": 0.5}) == {}  # no step since
  assert "4 x TPU v5 lite x 197 TFLOP/s (bfloat16, dense)" in meter.describe(480)


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("cpu", None),
    ("TPU v3", None),
  ],
)
def test_peaks_of_devices(kind, peak):
  assert peak_flops(kind) == peak


def test_rates_are_logged_without_a_share_where_the_peak_is_not_known(tmp_path, capsys):
  run(tmp_path, 3)
  assert "cpu is not known, so no utilisation is logged" in capsys.readouterr().err
  timed = [line for line in lines(tmp_path) if "time/step_s" in line]
  assert all(line["time/model_tflops_per_device"] > 0 for line in timed)
  assert not any("time/flops_utilisation" in line for line in timed)


class FakeWandb(types.ModuleType):
  """Records what is asked of Weights & Biases."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = types.SimpleNamespace(name="wandb")
    self.begun, self.logged, self.ended = [], [], []
    self.Image = lambda data, caption: ("image", data.shape, caption)
    self.Video = lambda data, caption, format: (format, data.read(6), caption)

  def init(self, **settings):
    self.begun.append(settings)
    finish = lambda exit_code: self.ended.append(exit_code)
    log = self.logged.append
    return types.SimpleNamespace(define_metric=lambda *a, **k: None, log=log, finish=finish)


@pytest.fixture
def wandb(monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  return fake


def test_wandb_gets_what_tensorboard_gets_under_one_number(tmp_path, wandb):
  folder, monitor = tmp_path / "video", MonitorConfig(wandb="clips")
  run(folder, 2, monitor=monitor, loop={"sample_every": 2, "validate_every": 2})
  run(folder, 4, monitor=monitor)
  assert [one["id"] for one in wandb.begun] == [run_id(folder)] * 2
  first = wandb.begun[0]
  assert (first["project"], first["resume"], first["dir"]) == ("clips", "allow", str(folder))
  assert first["config"]["loop"]["num_steps"] == 2
  assert wandb.ended == [0, 0]
  pictures = [one for one in wandb.logged if any(name.startswith("samples/") for name in one)]
  assert [one for one in wandb.logged if one not in pictures] == lines(folder)
  shown = {name: value for one in pictures for name, value in one.items()}
  assert shown.keys() == {"step", "samples/clips", "samples/a still"}
  assert shown["samples/clips"] == ("gif", b"GIF89a", None)
  assert shown["samples/a still"][::2] == ("image", None)
  other = tmp_path / "image"
  other.mkdir()
  assert run_id(other) != run_id(folder)


def test_wandb_is_told_that_a_run_failed(tmp_path, wandb):
  monitor = MonitorConfig(wandb="clips", best="validation/fid")
  with pytest.raises(InputError, match="no such metric"):
    run(tmp_path, 2, monitor=monitor, loop={"validate_every": 1})
  assert wandb.ended == [1]


def test_wandb_that_does_not_begin_is_refused_in_a_line(tmp_path, wandb, monkeypatch):
  def init(**settings):
    raise RuntimeError("api_key not configured\nmore")

  monkeypatch.setattr(wandb, "init", init)
  with pytest.raises(InputError, match=r"--monitor\.wandb clips: api_key not configured; log in"):
    tracked("clips", tmp_path, "{}").__enter__()


def test_wandb_that_is_not_installed_is_refused(monkeypatch):
  monkeypatch.setattr("emu_jax.train.wandb_run.importlib.util.find_spec", lambda name: None)
  check_installed("")
  with pytest.raises(
    InputError, match=r"--monitor\.wandb clips: the package wandb is not installed"
  ):
    check_installed("clips")


def test_wandb_is_not_imported_unless_asked_for(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
  run(tmp_path, 1, stage=stage())
  assert not (pathlib.Path(tmp_path) / "wandb_id").exists()
