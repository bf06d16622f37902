"""Records of several sizes: every part of every system trains and draws at each of them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from emu_jax.systems.system import tree_shapes
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.planning.programs import batch_shapes, empty_shapes
from tests.systems.test_contract import SYSTEMS
from tests.systems.test_svd import SYSTEM as STABLE_VIDEO

BUCKETED = SYSTEMS | {"svd": STABLE_VIDEO}


def distinct_parts():
  """A part for each loss that there is: systems share some, and parts differ in their noise."""
  found = {}
  for name, system in BUCKETED.items():
    for part, definition in system.parts().items():
      loss = definition.loss
      function = loss.func if isinstance(loss, functools.partial) else loss
      found.setdefault((function.__module__, function.__qualname__), (name, part))
  return found.values()


def batch_of_size(experiment, size):
  """Shapes of a batch whose frames are of a bucket."""
  batch = batch_shapes(experiment)
  for name in experiment.definition.inputs.frames:
    B, T, *_ = batch[name].shape
    batch[name] = jax.ShapeDtypeStruct((B, T, *size, 3), batch[name].dtype)
  return batch


@pytest.mark.parametrize(("name", "part"), distinct_parts())
def test_a_part_trains_and_draws_at_the_size_of_its_batch(name, part):
  """Odd multiples of what the part says that it takes, and not the size of its configuration."""
  experiment = Experiment(BUCKETED[name], part, DataConfig(batch_size=2))
  part, key, step = experiment.definition, jax.random.key(0), jnp.int32(0)
  trees = {tree: tree_shapes(experiment.system, tree) for tree in part.reads}
  least = 24  # pixels, of which the discriminator makes a patch
  height, width = (
    next(n for n in range(odd * of, 100, 2 * of) if n >= least)
    for odd, of in zip((3, 5), part.inputs.first.multiple, strict=True)
  )
  batch = batch_of_size(experiment, (height, width))
  losses, _ = jax.eval_shape(part.loss, trees, batch, key, step)
  assert losses.shape == (2,)
  drawn = jax.eval_shape(part.samples, trees, batch, empty_shapes(experiment), key)
  for video in drawn.values():
    B, _, H, W, _ = video.shape
    assert (B, H, W % width) == (2, height, 0)
