"""Averages of any length: their weights in closed form, and what snapshots make of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from emu_jax.checkpoints.averages import (
  Average,
  check_length,
  exponent,
  load_average,
  overlaps,
  shares,
)
from emu_jax.checkpoints.run import latest_step
from emu_jax.errors import InputError
from emu_jax.train.optimiser import OptimConfig, average_weight
from emu_jax.train.step import moved
from emu_jax.weights.arrays import load_numpy
from tests.train import tiny_run


def weights(average):
  """Of the parameters after steps 1, 2, …: what the recursion comes to, in closed form."""
  reached = (np.arange(average.step + 1) / average.step) ** (exponent(average.length) + 1)
  return np.diff(reached)


def test_powers_are_those_of_the_paper():
  assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
  assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("length", [0.03, 0.1, 0.25])
def test_a_length_is_the_spread_of_an_averages_weights_over_the_steps(length):
  step = 4000
  share, when = weights(Average(step, length)), (np.arange(step) + 0.5) / step
  mean = share @ when
  assert np.sqrt(share @ (when - mean) ** 2) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.05, 0.2])
def test_steps_taken_one_by_one_come_to_the_closed_form(length):
  values = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
  average = {"a": jnp.full(5, 1e6)}  # the initial weights have no share
  for step, value in enumerate(values):
    average = moved(average, {"a": jnp.asarray(value)}, average_weight(length, step))
  # Each of 300 steps rounds numbers below 4 once in float32.
  np.testing.assert_allclose(average["a"], weights(Average(300, length)) @ values, atol=300 * 5e-7)


def test_overlaps_are_the_integrals():
  several = [Average(70, 0.05), Average(100, 0.05), Average(100, 0.2), Average(40, 0.1)]

  def profile(one, s):
    power = exponent(one.length)
    return np.where(s <= one.step, (power + 1) / one.step * (s / one.step) ** power, 0.0)

  for a in several:
    for b in several:
      end = min(a.step, b.step)
      exact, _ = integrate.quad(lambda s, a=a, b=b: profile(a, s) * profile(b, s), 0, end)
      assert overlaps([a], [b])[0, 0] == pytest.approx(exact, rel=1e-8)


def test_a_snapshot_of_the_length_itself_is_all_that_is_taken():
  stored = [Average(step, length) for step in (50, 100) for length in (0.05, 0.1)]
  parts, error = shares(stored, Average(100, 0.1))
  np.testing.assert_allclose(parts, [0, 0, 0, 1], atol=1e-6)
  assert error < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.25])
def test_two_lengths_make_others_of_the_same_steps(length):
  stored = [Average(step, one) for step in range(125, 2001, 125) for one in (0.05, 0.1)]
  wanted = Average(2000, length)
  parts, error = shares(stored, wanted)
  made = sum(
    part * np.pad(weights(one), (0, 2000 - one.step))
    for part, one in zip(parts, stored, strict=True)
  )
  exact = weights(wanted)
  assert np.linalg.norm(made - exact) / np.linalg.norm(exact) == pytest.approx(error, abs=0.01)
  assert error < 0.1  # what `load_average` takes


OPTIM = OptimConfig(peak_lr=0.05, warmup_steps=0, ema_lengths=(0.05, 0.2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  loop = {"save_every": 1, "keep": 20, "average_every": 6}
  tiny_run.run(folder / "whole", 12, optim=OPTIM, loop=loop)
  return folder


def every_step(run):
  """Parameters after each step, of the run's checkpoints."""
  return [
    load_numpy(run / "checkpoints" / str(step) / "state", ["params"])["params"]
    for step in range(1, 13)
  ]


@pytest.mark.parametrize("length", OPTIM.ema_lengths)
def test_a_run_averages_what_its_steps_leave(trained, length):
  steps, share = every_step(trained / "whole"), weights(Average(12, length))
  expected = jax.tree.map(lambda *several: share @ np.stack([a.ravel() for a in several]), *steps)
  made = load_average(trained / "whole", length)
  for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a.ravel(), b, rtol=2e-5, atol=1e-6)


class Failing(tiny_run.Slow):
  """Batches that fail before the update after 7."""

  def __next__(self):
    if self.batches.get_state() == self.at_7:
      raise RuntimeError("the disk is gone")
    return next(self.batches)


def test_a_run_that_failed_and_continued_has_the_same_snapshots(trained):
  loop, run = {"save_every": 4, "average_every": 6}, trained / "failed"
  batches = tiny_run.data()
  for _ in range(7):
    next(batches)
  failing = Failing(tiny_run.data())
  failing.at_7 = batches.get_state()
  with pytest.raises(RuntimeError, match="the disk is gone"):
    tiny_run.run(run, 12, optim=OPTIM, loop=loop, batches=failing)
  assert latest_step(run) == 4
  (run / "averages" / "6" / "_METADATA").write_text("of a run that is not continued")
  tiny_run.run(run, 12, optim=OPTIM, loop=loop)
  for step in ("6", "12"):
    whole, again = (load_numpy(folder / "averages" / step) for folder in (trained / "whole", run))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_other_lengths_are_no_continuation(trained):
  other = dataclasses.replace(OPTIM, ema_lengths=(0.05,))
  with pytest.raises(InputError, match=r"another config: optim\.ema_lengths\.1 is 0\.2 there"):
    tiny_run.run(trained / "whole", 13, optim=other)


def test_a_length_that_cannot_be_had_is_refused(trained):
  for length in (0.0, 0.4):
    with pytest.raises(InputError, match=r"is not within 0\.\.0\.28"):
      check_length(length, "ema_length")
  with pytest.raises(InputError, match=r"4 snapshots leave \d+% of an average of"):
    load_average(trained / "whole", 0.01)
  with pytest.raises(InputError, match=r"has no averages/.*--optim.ema-lengths"):
    load_average(trained, 0.1)
