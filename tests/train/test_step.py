"""Laws of one update."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import OPTIM, data, noisy_loss, plain_loss, stage

from emu_jax.errors import InputError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import global_batch, replicated
from emu_jax.train.state import initial_state, leaf_names
from emu_jax.train.step import jitted_step, train_step

STATIC = ("loss", "config", "num_steps")


def updates(
  num, loss=noisy_loss, optim=OPTIM, *, num_devices=8, batch_size=8, donate=False, initial=None,
  frozen=None,
):  # fmt: skip
  """The states after 0..num updates on the tiny data, and the last metrics and fault."""
  mesh, tiny = make_mesh(jax.devices()[:num_devices]), stage(loss)
  place = functools.partial(jax.device_put, device=replicated(mesh))
  state = initial_state(tiny, optim, jax.random.key(1), mesh, initial)
  if donate:
    step = jitted_step(loss, optim, 100, state)
  else:  # the states are wanted afterwards
    step = jax.jit(train_step, static_argnames=STATIC, out_shardings=replicated(mesh))
    step = functools.partial(step, loss=loss, config=optim, num_steps=100)
  batches, states, metrics, fault = data(batch_size), [state], None, None
  frozen, key = place(frozen or tiny.frozen), place(jax.random.key(2))
  for _ in range(num):
    state, metrics, fault = step(state, frozen, global_batch(next(batches), mesh), key)
    states.append(state)
  return states, metrics, fault


def test_eight_devices_are_one():
  # Gradients are means of 8 numbers of order 1, summed in another order: 8 roundings of 6e-8.
  # Adam's m / sqrt(v) keeps relative errors, so parameters that moved by at most 3 * 1e-2 differ
  # by 3e-2 * 1e-6 and the parameters of order 1 they were added to round at 6e-8 a step.
  (*_, many), seen_many, _ = updates(3)
  (*_, one), seen_one, _ = updates(3, num_devices=1)
  assert len(many.params["net"]["out"]["bias"].devices()) == 8
  chex.assert_trees_all_close(jax.device_get(many), jax.device_get(one), atol=1e-6, rtol=1e-5)
  chex.assert_trees_all_close(jax.device_get(seen_many), jax.device_get(seen_one), rtol=1e-5)


def test_four_micro_batches_are_the_batch():
  # As above: only the order of the sums differs.
  (*_, whole), seen_whole, _ = updates(3, plain_loss, batch_size=32)
  split = dataclasses.replace(OPTIM, accumulate=4)
  (*_, parts), seen_parts, _ = updates(3, plain_loss, split, batch_size=32)
  chex.assert_trees_all_close(whole, parts, atol=1e-6, rtol=1e-5)
  chex.assert_trees_all_close(seen_whole, seen_parts, rtol=1e-5)


def test_micro_batches_draw_different_noise():
  def loss(params, frozen, batch, key, step):
    losses, _ = plain_loss(params, frozen, batch, key, step)
    noise = jax.random.normal(key, ())
    return losses, {"noise": noise, "square": noise**2}

  _, metrics, _ = updates(1, loss, dataclasses.replace(OPTIM, accumulate=4), batch_size=32)
  assert metrics["square"] - metrics["noise"] ** 2 > 1e-3  # the variance over the micro-batches


def test_noise_is_a_function_of_the_key_and_the_step_alone():
  def loss(params, frozen, batch, key, step):
    losses, _ = plain_loss(params, frozen, batch, key, step)
    return losses, {"noise": jax.random.normal(key, ())}

  for step in range(2):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2), step), 0)
    _, metrics, _ = updates(step + 1, loss)
    np.testing.assert_allclose(metrics["noise"], jax.random.normal(key, ()), rtol=1e-6)


def test_batch_that_does_not_split_is_refused():
  with pytest.raises(ValueError, match="batch of 8 does not split into accumulate=3"):
    updates(1, optim=dataclasses.replace(OPTIM, accumulate=3))
  with pytest.raises(ValueError, match=r"shape \(6,\) does not split over the 8 devices"):
    updates(1, batch_size=6)


def test_what_is_frozen_has_no_slot():
  (state, *_), _, _ = updates(0)
  assert not [name for name in leaf_names(state) if "features" in name]
  # The step, twice the parameters, Adam's two moments and its count.
  assert len(leaf_names(state)) == 1 + 2 * 4 + 2 * 4 + 1


def test_average_of_a_constant_is_the_constant():
  states, _, _ = updates(4, optim=dataclasses.replace(OPTIM, peak_lr=0.0))
  chex.assert_trees_all_equal(states[0].params, states[-1].params)
  chex.assert_trees_all_equal(states[0].params, states[-1].ema)


def test_average_follows_its_recurrence():
  states, _, _ = updates(5)
  average = jax.tree.map(np.float64, jax.device_get(states[0].params))
  for i, state in enumerate(jax.device_get(states[1:])):
    d = min(0.9, (1 + i) / (10 + i))
    average = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, average, state.params)
  chex.assert_trees_all_close(jax.device_get(states[-1].ema), average, atol=1e-6)


def test_first_update_goes_down_by_adamw():
  # Adam's first direction is g / (|g| + eps); with |g| far above eps = 1e-8 that is its sign.
  (old, new), _, _ = jax.device_get(updates(1, plain_loss))
  batch = {"x": jnp.asarray(next(data())["x"])}
  grads = jax.grad(lambda p: plain_loss(p, stage().frozen, batch, None, 0)[0].mean())(old.params)
  decay = lambda p: 0.01 * p * (p.ndim > 1)
  want = jax.tree.map(lambda p, g: p - 1e-2 / 3 * (np.sign(g) + decay(p)), old.params, grads)
  chex.assert_trees_all_close(new.params, want, atol=1e-6)


def test_norms_are_those_of_the_trees():
  states, metrics, fault = updates(1, plain_loss)
  old, new = (jax.tree.leaves(jax.device_get(s.params)) for s in states)
  norm = lambda leaves: np.sqrt(sum(float(np.square(leaf).sum()) for leaf in leaves))
  np.testing.assert_allclose(metrics["param_norm"], norm(new), rtol=1e-6)
  moved = norm([n - o for n, o in zip(new, old, strict=True)])
  np.testing.assert_allclose(metrics["update_norm"], moved, rtol=1e-4)  # a difference of roundings
  np.testing.assert_allclose(metrics["lr"], 1e-2 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics["worst_half"], metrics["loss"] / 2, rtol=1e-6)
  batch = {"x": jnp.asarray(next(data())["x"])}
  mean = lambda p: plain_loss(p, stage().frozen, batch, None, 0)[0].mean()
  grads = jax.grad(mean)(jax.device_get(states[0].params))
  np.testing.assert_allclose(metrics["grad_norm"], norm(jax.tree.leaves(grads)), rtol=1e-5)
  assert int(fault) == -1


def spoiled_loss(params, frozen, batch, key, step):
  """In update 1, its gradient is NaN in the parameters that `frozen["spoilt"]` marks."""
  losses, metrics = plain_loss(params, frozen, batch, key, step)
  for leaf, spoilt in zip(jax.tree.leaves(params), frozen["spoilt"], strict=True):
    nothing = leaf - jax.lax.stop_gradient(leaf)
    root = jnp.sqrt(jnp.where(spoilt & (step == 1), jnp.abs(nothing), 1 + nothing))
    losses += root.mean()
  return losses, metrics


def spoil(index):
  return stage().frozen | {"spoilt": np.arange(4) >= index}


@pytest.mark.parametrize("index", range(4))
def test_fault_is_the_first_bad_parameter(index):
  assert int(updates(2, spoiled_loss, frozen=spoil(index))[2]) == index


def test_bad_loss_alone_is_a_fault():
  def loss(*args):
    losses, metrics = plain_loss(*args)
    return losses + jnp.inf, metrics

  assert int(updates(1, loss)[2]) == 4


def test_skipped_update_leaves_all_but_the_step():
  optim = dataclasses.replace(OPTIM, on_non_finite="skip")
  states, metrics, _ = updates(2, spoiled_loss, optim, frozen=spoil(2))
  assert int(states[2].step) == 2
  assert metrics["skipped"] == 1
  chex.assert_trees_all_equal(dataclasses.replace(states[1], step=states[2].step), states[2])
  (*_, later), metrics, _ = updates(3, spoiled_loss, optim, frozen=spoil(2))
  chex.assert_tree_all_finite(later)
  assert metrics["skipped"] == 0


def test_state_is_donated_and_one_trace_serves_every_step():
  chex.clear_trace_counter()
  states, _, _ = updates(3, chex.assert_max_traces(noisy_loss, n=1), donate=True)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[0]))


def test_given_trees_are_where_training_begins():
  given = jax.tree.map(np.asarray, stage().init(jax.random.key(9)))
  (state,), _, _ = updates(0, initial=given)
  chex.assert_trees_all_equal(state.params, given)
  chex.assert_trees_all_equal(state.ema, given)


def test_given_trees_of_another_model_are_refused():
  given = jax.tree.map(np.asarray, stage().init(jax.random.key(9)))
  given["net"]["first"]["scale"] = given["net"]["first"].pop("bias")
  given["net"]["out"]["bias"] = np.zeros(3, np.float32)
  with pytest.raises(InputError) as error:
    updates(0, initial=given)
  assert "- first/bias (8,) in the model" in str(error.value)
  assert "+ first/scale (8,) in it" in str(error.value)
  assert "! out/bias is (3,), the model's is (2,)" in str(error.value)
  with pytest.raises(
    InputError, match=r"'spatial' does not train in this stage, only \['net'\] do"
  ):
    updates(0, initial={"spatial": given})


@pytest.mark.parametrize(
  ("metrics", "words"),
  [({"grad_norm": 0.0}, "trainer's own"), ({"psnr": np.zeros(8)}, r"shape \(8,\)")],
)
def test_bad_metrics_are_refused(metrics, words):
  with pytest.raises(ValueError, match=words):
    updates(1, lambda *args: (plain_loss(*args)[0], metrics))
