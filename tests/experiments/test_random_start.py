"""Temporal layers that do not begin as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from experiments.random_start import redrawn


def test_a_convolutions_whole_kernel_is_drawn_and_the_identity_left_out(key):
  features = 64
  zeros = {
    "conv_in": {"temporal_x": {"conv": {"kernel": jnp.zeros((3, features, features))}}},
    "concat_in": {"kernel": jnp.zeros((3, 3, 5, features))},
    "temporal_y": {
      "proj_in": {"kernel": jnp.ones((features, features)), "bias": jnp.zeros(features)},
      "proj_out": {"kernel": jnp.zeros((features, features)), "bias": jnp.zeros(features)},
    },
  }
  found = flatten_dict(redrawn(zeros, key), sep="/")
  given = flatten_dict(zeros, sep="/")
  changed = {name for name in given if not np.array_equal(found[name], given[name])}
  assert changed == {"conv_in/temporal_x/conv/kernel", "temporal_y/proj_out/kernel"}
  # What is stored is the difference from the identity: with it, a kernel of LeCun's spread.
  kernel = found["conv_in/temporal_x/conv/kernel"].at[1].add(jnp.eye(features))
  np.testing.assert_allclose(kernel.std(), (3 * features) ** -0.5, rtol=0.05)
  assert abs(float(jnp.trace(kernel[1])) / features) < 0.05
  other = redrawn(zeros, jax.random.key(1))
  assert not np.array_equal(
    other["temporal_y"]["proj_out"]["kernel"], found["temporal_y/proj_out/kernel"]
  )
