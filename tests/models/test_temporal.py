"""Laws of the layers that cross frames."""

import jax
import numpy as np
import pytest

from emu_jax.models.temporal import TemporalConfig, TemporalTransformer


@pytest.mark.parametrize("joint", [False, True])
def test_a_joint_site_alone_sees_what_moved_between_pixels(key, joint):
  net = TemporalTransformer(2, 8, 1, norm_groups=4, joint=joint)
  x = jax.random.normal(key, (1, 3, 2, 4, 16))
  # Two pixels of the first frame change places, which no norm of whole frames can see.
  swapped = x.at[0, 0, 0, 0].set(x[0, 0, 1, 3]).at[0, 0, 1, 3].set(x[0, 0, 0, 0])
  params = jax.jit(net.init)(jax.random.key(1), x, (None,), (None,))["params"]
  params["proj_out"]["kernel"] = jax.random.normal(jax.random.key(2), (16, 16))
  apply = jax.jit(lambda x: net.apply({"params": params}, x, (None,), (None,)))
  elsewhere = np.abs(apply(x) - apply(swapped))[0, 2, 0, 1:]  # last frame, pixels that stayed
  assert elsewhere.max() > 1e-2 if joint else elsewhere.max() < 1e-5


def test_a_joint_site_knows_rows_from_columns_and_frames(key):
  net = TemporalTransformer(2, 8, 1, norm_groups=4, joint=True)
  positions = np.asarray(net.positions(5, 4, 4, 16))
  apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
  assert apart[~np.eye(len(apart), dtype=bool)].min() > 0.3


def test_a_number_of_pixels_is_none_or_some():
  with pytest.raises(ValueError, match="joint_pixels=-1"):
    TemporalConfig(joint_pixels=-1)
