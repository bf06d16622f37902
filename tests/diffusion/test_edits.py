"""Edits of x_0: what they change they change exactly, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.conditioning import KnownFrames, keeping
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edits import dynamic_threshold, edited, static_threshold
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.log_snr import LogSnr
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule

ZERO = Discrete(Schedule(zero_terminal_snr=True, prediction="v"))
PROCESSES = {
  "epsilon": Discrete(),
  "v zero SNR": ZERO,
  "edm": Edm(),
  "log-SNR epsilon": LogSnr("epsilon"),
  "log-SNR v": LogSnr(),
  "flow": Flow(3.0),
}
EVERY = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
SHAPE = (2, 5, 3, 4, 2)
ULP = 2.0**-24


def network(x_t, level):
  return jnp.sin(3 * x_t)


def noise(seed=0, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


@EVERY
def test_an_edit_that_changes_nothing_changes_no_bit(process):
  sampling = Sampling(process.solvers[0], 5)
  run = lambda predict: process.sample(predict, noise(), None, sampling)
  found = run(edited(network, process, lambda x_0, level: x_0))
  np.testing.assert_array_equal(found, run(network))


@EVERY
def test_an_edit_decides_what_is_sampled(process):
  """The last x_0 is the sample: edited, it is what the edit made of it."""
  given = noise(1, (2, 2, 3, 4, 2))
  where = np.array([1, 3])
  seen = []

  def edit(x_0, level):
    seen.append((x_0.shape, level.shape))
    return x_0.at[:, where].set(given)

  for solver in process.solvers:
    sampling = Sampling(solver, 4)
    run = lambda predict, s=sampling: process.sample(predict, noise(), None, s)
    found, without = run(edited(network, process, edit)), run(network)
    # 8 roundings of numbers up to 5, divided by the last level's alpha, above a half, for epsilon.
    np.testing.assert_allclose(found[:, where], given, rtol=0, atol=8 * 5 * 2 * ULP)
    np.testing.assert_array_equal(found[:, ::2], without[:, ::2])
  assert set(seen) == {(SHAPE, (2,))}


@pytest.mark.parametrize("process", [Discrete(), ZERO], ids=["epsilon", "v zero SNR"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_keeping_known_frames_is_an_edit(process, solver):
  known, given = KnownFrames(5, (1, 3)), noise(1, (2, 2, 3, 4, 2))
  edit = lambda x_0, level: x_0.at[:, np.array(known.positions)].set(given)
  kept = keeping(network, process, known, given)
  run = lambda predict: process.sample(predict, noise(), None, Sampling(solver, 4))
  np.testing.assert_array_equal(run(edited(network, process, edit)), run(kept))


def test_an_edit_is_finite_where_alpha_is_0():
  level = jnp.array([999.0, 0.0])
  assert ZERO.alpha_sigma(level)[0][0] == 0
  found = edited(network, ZERO, lambda x_0, level: jnp.zeros_like(x_0))(noise(), level)
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found[0], 0)  # v = -x_0 there


# Thresholds.


def test_static_threshold_clips():
  x_0 = jnp.array([-3.0, -0.5, 0.2, 1.5]).reshape(1, 4, 1, 1, 1)
  np.testing.assert_allclose(static_threshold(x_0, jnp.zeros(1)).ravel(), [-1, -0.5, 0.2, 1])


def test_dynamic_threshold_brings_an_example_into_range_by_its_quantile():
  """Of 0, 0.03, ..., 3, the quantile 0.5 is 1.5; an example within range stays as it is."""
  large = np.linspace(0, 3, 101) * np.where(np.arange(101) % 2, -1, 1)
  x_0 = jnp.asarray(np.stack([large, large / 4]), jnp.float32).reshape(2, 1, 1, 101, 1)
  found = dynamic_threshold(0.5)(x_0, jnp.zeros(2))
  np.testing.assert_allclose(found[0].ravel(), np.clip(large, -1.5, 1.5) / 1.5, rtol=4 * ULP)
  np.testing.assert_array_equal(found[1], x_0[1])  # its quantile is 0.375: s = 1
  usual = dynamic_threshold()(x_0, jnp.zeros(2))[0].ravel()  # of 101 values, 0.995 is 2.985
  np.testing.assert_allclose(usual, np.clip(large, -2.985, 2.985) / 2.985, rtol=8 * ULP)


@EVERY
def test_thresholded_samples_are_in_range(process):
  """Of a network whose x_0 is four times too large, as strong guidance makes it."""
  point = 4 * jnp.tanh(noise(3))
  predict = lambda x_t, level: process.output(point, x_t, level)
  off = 16 * 5 * ULP / (4.5e-5 if process == LogSnr("epsilon") else 1)
  for edit in (static_threshold, dynamic_threshold(0.9)):
    sampling = Sampling(process.solvers[0], 3)
    found = process.sample(edited(predict, process, edit), noise(), None, sampling)
    assert abs(found).max() <= 1 + off
    np.testing.assert_allclose(found, edit(point, jnp.zeros(2)), rtol=0, atol=off)


def test_a_quantile_that_means_nothing_is_refused():
  for quantile in (0.0, 99.5):
    with pytest.raises(ValueError, match=f"quantile={quantile} is not within 0..1; 0.995"):
      dynamic_threshold(quantile)
