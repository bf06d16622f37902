"""Laws of a whole run."""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
from rich.console import Console
from tensorboardX.event_file_writer import EventsWriter
from tiny_run import OPTIM, data, plain_loss, run, stage, validation

from emu_jax.checkpoints.run import latest_step, load_ema
from emu_jax.errors import InputError
from emu_jax.train.log import Readings, side_by_side
from emu_jax.train.loop import LoopConfig
from emu_jax.train.processes import FaultError, together
from emu_jax.train.progress import Clock, ProgressLine, describe
from emu_jax.train.stop import StopSignal
from emu_jax.train.watch import DataWatch, LossWatch


def lines(run_dir):
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def program(run_dir, num_steps):
  root = pathlib.Path(__file__).parents[2]
  return subprocess.Popen(
    [sys.executable, tiny_run.__file__, str(run_dir), str(num_steps)],
    env=os.environ | {"PYTHONPATH": str(root)},
    stderr=subprocess.PIPE,
    text=True,
  )


def test_sigterm_saves_and_the_command_continues(tmp_path):
  with program(tmp_path, 100_000) as process:
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or len(lines(tmp_path)) < 4:
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.stderr.read()
  assert process.returncode == 143, printed
  stopped = latest_step(tmp_path)
  assert stopped >= 4
  assert f"stopped at step {stopped}; the same command continues" in printed
  state = run(tmp_path, stopped + 2)
  assert int(state.step) == stopped + 2
  assert [line["step"] for line in lines(tmp_path)] == list(range(1, stopped + 3))


class Signalling:
  """Asks the run to stop in the middle of the third batch."""

  def __init__(self, number):
    self.number, self.count, self.batches = number, 0, data()
    self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

  def __iter__(self):
    return self

  def __next__(self):
    self.count += 1
    if self.count == 3:
      signal.raise_signal(self.number)
    return next(self.batches)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_its_step_and_continues_bit_for_bit(tmp_path, number):
  before = signal.getsignal(number)
  state = run(tmp_path / "a", 5, batches=Signalling(number))
  assert signal.getsignal(number) is before
  assert int(state.step) == latest_step(tmp_path / "a") == 3
  chex.assert_trees_all_equal(run(tmp_path / "a", 5), run(tmp_path / "b", 5))


def test_a_signal_during_the_last_save_waits_for_it(tmp_path, monkeypatch):
  close = ocp.CheckpointManager.close

  def closing(manager):
    signal.raise_signal(signal.SIGTERM)
    close(manager)

  monkeypatch.setattr(ocp.CheckpointManager, "close", closing)
  stop = StopSignal()
  assert int(run(tmp_path, 4, loop={"save_every": 0}, stop=stop).step) == 4
  assert latest_step(tmp_path) == 4
  assert stop.received


def test_what_was_due_at_the_stop_is_done_by_the_next_call(tmp_path):
  """Validation, samples, and the metrics of steps since the last line."""
  loop = {"validate_every": 3, "sample_every": 3, "log_every": 2}
  stopped, whole = tmp_path / "stopped", tmp_path / "whole"
  run(stopped, 3, batches=Signalling(signal.SIGTERM), loop=loop)
  assert not (stopped / "samples").exists()
  assert [line["step"] for line in lines(stopped)] == [2, 3]
  run(stopped, 3, loop=loop)  # all steps were done, and not all that belongs to them
  run(whole, 3, loop=loop)
  assert not (stopped / "due.json").exists()
  looks = [
    [line["validation/loss"] for line in lines(folder) if "validation/loss" in line]
    for folder in (stopped, whole)
  ]
  assert len(looks[0]) == 1
  assert looks[0] == looks[1]
  assert [p.name for p in sorted((stopped / "samples").iterdir())] == [
    p.name for p in sorted((whole / "samples").iterdir())
  ]
  run(stopped, 3, loop=loop)
  assert len(lines(stopped)) == 3


def test_a_signal_during_validation_saves_at_once(tmp_path):
  """And not only after the next step, with what is left to be done for the next call."""

  def signalled():
    for number, batch in enumerate(validation()):
      if number == 1:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  loop = {"validate_every": 2, "sample_every": 2, "save_every": 0, "log_every": 5}
  state = run(tmp_path, 9, loop=loop, validation=signalled)
  assert int(state.step) == latest_step(tmp_path) == 2
  assert [sorted(line)[0] for line in lines(tmp_path)] == ["step"]
  assert json.loads((tmp_path / "due.json").read_text())["work"] == ["validation", "samples"]
  run(tmp_path, 3, loop=loop)
  looked = [line["step"] for line in lines(tmp_path) if "validation/loss" in line]
  assert looked == [2]
  assert {path.name[:8] for path in (tmp_path / "samples").iterdir()} == {"00000002"}


@pytest.mark.parametrize(("call", "good"), [("write_event", 6), ("flush", 3), ("close", 0)])
def test_a_full_disk_in_the_log_ends_the_run_in_one_line(tmp_path, monkeypatch, call, good):
  """With its checkpoints in order; the run continues once there is room."""
  calls, before = itertools.count(), getattr(EventsWriter, call)

  def full(self, *arguments):
    if next(calls) >= good:
      raise OSError(28, "No space left on device")
    return before(self, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(EventsWriter, call, full)
    with pytest.raises(FaultError, match=r"log .* could not be written.*No space left.*from step"):
      run(tmp_path, 6)
  assert latest_step(tmp_path) >= 3
  assert int(run(tmp_path, 6).step) == 6


def test_a_fault_ends_a_command_at_once_with_code_1(capsys, monkeypatch):
  """Without waiting for the threads of libraries, as the interpreter's own end does."""

  def exit_(code):
    raise SystemExit(code)

  monkeypatch.setattr(os, "_exit", exit_)
  with pytest.raises(SystemExit) as ended, together("emu-train"):
    raise FaultError("runs/a: the log could not be written:\nthe disk is full")
  assert ended.value.code == 1
  line = "emu-train: error: runs/a: the log could not be written: the disk is full\n"
  assert capsys.readouterr().err == line


def test_the_second_signal_exits_at_once(monkeypatch):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  with StopSignal() as stop:
    assert not stop.requested()
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested()
    assert stop.exit_code == 143
    assert not codes
    signal.raise_signal(signal.SIGTERM)
  assert codes == [128 + signal.SIGTERM]


def spoilt_loss(params, frozen, batch, key, step):
  """The gradient of net/out/bias is NaN in the fifth update, the loss is finite."""
  losses, metrics = plain_loss(params, frozen, batch, key, step)
  bias = params["net"]["out"]["bias"]
  nothing = bias - jax.lax.stop_gradient(bias)
  return losses + jnp.sqrt(jnp.where(step == 4, jnp.abs(nothing), 1 + nothing)).sum(), metrics


def test_non_finite_gradient_names_step_and_parameter_and_is_not_saved(tmp_path):
  loop = {"save_every": 1}
  with pytest.raises(
    FloatingPointError, match=r"gradient of net/out/bias is not finite at step 5 \(loss \d\.\d+\)"
  ):
    run(tmp_path, 9, loss=spoilt_loss, loop=loop)
  assert latest_step(tmp_path) == 4
  chex.assert_tree_all_finite(load_ema(tmp_path)[1])


def test_skipped_step_is_counted_and_the_run_goes_on(tmp_path, capsys):
  optim = dataclasses.replace(OPTIM, on_non_finite="skip")
  state = run(tmp_path, 8, loss=spoilt_loss, optim=optim, loop={"log_every": 4})
  assert "step 5: the gradient of net/out/bias is not finite" in capsys.readouterr().err
  chex.assert_tree_all_finite(state)
  first, second = lines(tmp_path)
  assert (first["train/skipped"], second["train/skipped"]) == (0, 0.25)
  assert np.isfinite(list(second.values())).all()


def test_too_many_skipped_in_a_row_raise():
  readings = Readings({"w": np.zeros(1)}, "skip")
  metrics = {"loss": np.float32(np.nan), "skipped": np.float32(1)}
  for step in range(Readings.MAX_SKIPPED):
    readings.add(step, metrics, np.int32(0))
  with pytest.raises(FloatingPointError, match=r"gradient of w .* at step 99 and the 20 before it"):
    readings.add(99, metrics, np.int32(0))


def spiking_loss(params, frozen, batch, key, step):
  """Fifty times as large in the 30th update."""
  losses, metrics = plain_loss(params, frozen, batch, key, step)
  return losses * jnp.where(step == 29, 50.0, 1.0), metrics


def test_a_spike_of_the_loss_is_told_and_logged(tmp_path, capsys):
  still = dataclasses.replace(OPTIM, peak_lr=0.0)
  run(tmp_path, 40, loss=spiking_loss, optim=still, loop={"log_every": 10, "save_every": 0})
  messages = [line for line in capsys.readouterr().err.splitlines() if " is a spike" in line]
  assert len(messages) == 1
  assert "step 30: the loss " in messages[0]
  assert [line["train/loss_spikes"] for line in lines(tmp_path)] == [0, 0, 1, 0]
  highest = [line["train/loss_highest"] for line in lines(tmp_path)]
  assert highest[2] > 20 * max(highest[0], highest[1], highest[3])


def test_losses_that_only_vary_are_no_spikes():
  watch, rng = LossWatch(), np.random.default_rng(0)
  assert not any(
    watch.add(i, loss) for i, loss in enumerate(rng.lognormal(0, 0.5, 2000)) if loss < 3
  )
  constant = LossWatch()
  assert not any(constant.add(i, 1.0 + 0.1 * (i == 50)) for i in range(100))  # within the floor
  assert constant.add(100, 1.2)
  assert constant.add(101, 1.2)  # a spike is no part of what later steps are compared with
  assert not LossWatch().add(0, 1e9)  # nothing came before it


def test_waiting_for_data_is_told_when_it_begins():
  watch, messages = DataWatch(100), []
  for i, share in enumerate([0.5, 0.0, 0.9, 0.9, 0.15, 0.15, 0.9, 0.9, 0.0, 0.0, 0.9, 0.9]):
    line = watch.add(110 + 10 * i, {"time/step_s": 2.0, "time/data_wait": share})
    messages += [line] if line else []
  assert [line.split(":")[0] for line in messages] == ["step 120", "step 220"]
  assert "the last 20 steps waited for data 25% of their time; give data.workers" in messages[0]
  assert watch.add(230, {}) is None  # a lap without a step


def test_one_trace_serves_the_run(tmp_path):
  """And one that the operations of a step are counted of."""
  chex.clear_trace_counter()
  run(tmp_path, 6, loss=chex.assert_max_traces(lambda *args: plain_loss(*args), n=2))


def test_frozen_trees_are_untouched(tmp_path):
  frozen = {"features": {"kernel": jnp.eye(4) / 3}}
  before = np.array(frozen["features"]["kernel"])
  run(tmp_path, 4, stage=stage(frozen=frozen))
  np.testing.assert_array_equal(frozen["features"]["kernel"], before)
  np.testing.assert_array_equal(load_ema(tmp_path)[1]["features"]["kernel"], before)


def test_validation_is_the_mean_of_fixed_batches_with_the_averaged_weights(tmp_path):
  run(tmp_path, 6, loss=plain_loss, loop={"validate_every": 3})
  _, trees = load_ema(tmp_path)
  losses = [
    plain_loss(trees, trees, {"x": jnp.asarray(batch["x"])}, None, 6)[0].mean()
    for batch in validation()
  ]
  found = [line for line in lines(tmp_path) if "validation/loss" in line]
  assert [line["step"] for line in found] == [3, 6]
  np.testing.assert_allclose(found[1]["validation/loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(found[1]["validation/worst_half"], np.mean(losses) / 2, rtol=1e-5)
  assert found[0]["validation/loss"] != found[1]["validation/loss"]


def test_validation_draws_the_same_noise_every_time(tmp_path):
  still = dataclasses.replace(OPTIM, peak_lr=0.0)
  run(tmp_path, 6, optim=still, loop={"validate_every": 2})
  values = [line["validation/loss"] for line in lines(tmp_path) if "validation/loss" in line]
  assert len(values) == 3
  assert len(set(values)) == 1


def test_samples_are_filed_and_shown(tmp_path):
  run(tmp_path, 4, loop={"sample_every": 2})
  names = sorted(path.name for path in (tmp_path / "samples").iterdir())
  assert names == [f"0000000{n}_{name}" for n in (2, 4) for name in ("a_still.png", "clips.mp4")]
  events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
  assert events.count(b"GIF89a") == 2
  assert events.count(b"\x89PNG") == 2
  for name in (b"train/loss", b"train/loss_highest", b"train/loss_spikes"):
    tag = (
      b"\n" + bytes([len(name)]) + name
    )  # a tag's field, length first: no other name's beginning
    assert events.count(tag) == 4, name


def test_side_by_side_keeps_each_clip_whole():
  video = np.linspace(-1, 1, 3 * 2 * 4 * 5 * 3, dtype=np.float32).reshape(3, 2, 4, 5, 3)
  grid = side_by_side(video)
  assert grid.shape == (2, 8, 10, 3)
  pixels = np.round((video + 1) * 127.5).astype(np.uint8)
  for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
    part = grid[:, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
    np.testing.assert_array_equal(part, pixels[i])
  assert not grid[:, 4:, 5:].any()


def test_logged_values_are_means_since_the_last_line(tmp_path):
  run(tmp_path / "each", 4)
  run(tmp_path / "pairs", 4, loop={"log_every": 2})
  each = [line["train/loss"] for line in lines(tmp_path / "each")]
  pairs = [line["train/loss"] for line in lines(tmp_path / "pairs")]
  np.testing.assert_allclose(pairs, [np.mean(each[:2]), np.mean(each[2:])], rtol=1e-6)
  assert "time/step_s" in lines(tmp_path / "pairs")[1]
  expected = {"step"} | {
    f"train/{name}"
    for name in ("loss", "lr", "grad_norm", "param_norm", "update_norm", "worst_half")
  }
  assert expected < set(lines(tmp_path / "pairs")[1])


def test_data_that_ends_is_named(tmp_path):
  class Short(Signalling):
    def __next__(self):
      raise StopIteration

  with pytest.raises(InputError, match="the data ended after 0 steps; repeat it"):
    run(tmp_path, 3, batches=Short(signal.SIGTERM))


@pytest.mark.parametrize(
  ("loop", "fields", "words"),
  [
    ({"validate_every": 2}, {"validation": None}, "validate_every=2 needs validation data"),
    ({"sample_every": 2}, {"stage": stage(sample=None)}, "sample_every=2, but this stage has no"),
    ({"validate_every": 1}, {"validation": lambda: iter(())}, "validation data holds no batch"),
    ({"sample_every": 1}, {"validation": lambda: iter(())}, "validation data holds no batch"),
  ],
)
def test_what_a_run_lacks_is_named(tmp_path, loop, fields, words):
  with pytest.raises(InputError, match=words):
    run(tmp_path, 2, loop=loop, **fields)


def test_impossible_loops_are_refused():
  with pytest.raises(InputError, match="num_steps=0 is below 1"):
    LoopConfig(num_steps=0)
  with pytest.raises(InputError, match="save_every=-1 is negative; 0 = never"):
    LoopConfig(save_every=-1)


class FakeTime:
  now = 0.0

  def __call__(self):
    return self.now


def test_clock_leaves_out_what_is_aside_and_counts_waiting_only_when_idle():
  now = FakeTime()
  clock = Clock(now)
  for idle in (True, False):
    with clock.waiting(busy=lambda idle=idle: not idle):
      now.now += 1
    now.now += 4
    clock.step()
  with clock.paused():
    now.now += 100
  times = {"time/step_s": 5.0, "time/clips_per_s": 1.6, "time/data_wait": 0.1}
  assert clock.lap(8) == pytest.approx(times)
  assert clock.lap(8) == {}
  text = describe(5, 20, 0.25, times, 3661.2)
  assert text == (
    "step 5/20  loss 0.2500  5 s/step  1.6 clips/s  waiting for data 10%  ETA 1:01:01"
  )


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_moves_on_a_terminal_and_is_plain_elsewhere(terminal):
  written = io.StringIO()
  console = Console(file=written, force_terminal=terminal, width=100)
  with ProgressLine("image", 20, 0, console) as line:
    line.say("compiling [the] step")
    line.show(5, 0.25, {})
    line.show(6, 0.125, {})
  text = written.getvalue()
  assert "image: compiling [the] step" in text
  assert "image: step 6/20  loss 0.1250" in text
  assert ("\x1b[" in text) == terminal
  if not terminal:
    assert text.splitlines()[1:] == [
      "image: step 5/20  loss 0.2500",
      "image: step 6/20  loss 0.1250",
    ]
