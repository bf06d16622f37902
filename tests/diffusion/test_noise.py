"""Noise of one key for the batch and of one key an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.noise import fold_in, normal, split

SHAPE = (3, 2, 4, 5, 2)
JITTED = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])


def keys(num=SHAPE[0], seed=7):
  return jax.random.split(jax.random.key(seed), num)


def data(key):
  return np.asarray(jax.random.key_data(key))


@JITTED
def test_one_key_is_what_jax_does(run):
  found = run(lambda k: normal(k, SHAPE))(jax.random.key(0))
  np.testing.assert_array_equal(
    found, jax.jit(jax.random.normal, static_argnums=1)(jax.random.key(0), SHAPE)
  )
  assert found.dtype == jnp.float32
  wanted = jax.random.split(jax.random.key(1), 4)
  np.testing.assert_array_equal(data(run(lambda k: split(k, 4))(jax.random.key(1))), data(wanted))
  wanted = jax.random.fold_in(jax.random.key(1), 5)
  np.testing.assert_array_equal(data(run(lambda k: fold_in(k, 5))(jax.random.key(1))), data(wanted))


@JITTED
def test_a_batch_of_one_with_one_key_is_that_key_alone(run):
  """Also of keys that were split and folded on the way."""

  def draws(key, shape):
    first, second, third = split(key, 3)
    return normal(first, shape), normal(fold_in(second, 9), shape), normal(third, shape)

  shape = (1, *SHAPE[1:])
  alone = run(lambda k: draws(k, shape))(jax.random.key(3))
  as_batch = run(lambda k: draws(k, shape))(jax.random.key(3)[None])
  for a, b in zip(alone, as_batch, strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(alone[0], alone[2])


@JITTED
def test_an_example_depends_on_its_key_alone(run):
  draw = run(lambda k: normal(fold_in(split(k, 2)[1], 4), (k.shape[0], *SHAPE[1:])))
  whole = np.asarray(draw(keys()))
  for order in ([0], [2], [1, 0], [2, 1, 0]):
    np.testing.assert_array_equal(draw(keys()[np.array(order)]), whole[order])
  assert not np.array_equal(whole[0], whole[1])


def test_new_keys_stand_along_the_first_axis_and_all_differ():
  assert split(jax.random.key(0), 4).shape == (4,)
  found = split(keys(), 4)
  assert found.shape == (4, 3)
  assert len(np.unique(data(found).reshape(12, -1), axis=0)) == 12
  for i in range(3):
    np.testing.assert_array_equal(data(found)[:, i], data(jax.random.split(keys()[i], 4)))


def test_keys_of_an_array_of_examples_are_unit_normal():
  noise = np.asarray(normal(keys(64), (64, 4, 8, 8, 2)), np.float64)
  n = noise.size  # standard errors of mean and variance, four of each
  assert abs(noise.mean()) < 4 / n**0.5
  assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
  # Examples are independent: a correlation of 512 values has standard error 1 / sqrt(512), and of
  # 2016 pairs the largest lies below 4.5 of them but for 1.4 % of seeds; this seed is fixed.
  correlation = np.corrcoef(noise.reshape(64, -1)) - np.eye(64)
  assert abs(correlation).max() < 4.5 / 512**0.5


def test_a_key_may_not_be_used_twice():
  """Reuse is seen in either form: the suite makes it an error."""
  for key in (jax.random.key(0), keys()):
    normal(key, SHAPE)
    with pytest.raises(jax.errors.KeyReuseError):
      normal(key, SHAPE)


def test_keys_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"normal: 2 keys for a batch of 3 examples; give one key"):
    normal(keys(2), SHAPE)
  with pytest.raises(ValueError, match=r"split: keys have shape \(2, 3\)"):
    split(split(keys(), 2), 2)
  with pytest.raises(ValueError, match=r"normal: key has dtype uint32; make keys with"):
    normal(jnp.zeros(2, jnp.uint32), (2, 3))
