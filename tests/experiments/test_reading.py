"""Distances of clips and of pictures from real ones of other prompts."""

import dataclasses

import numpy as np
import pytest

from experiments.reading import distance
from experiments.recipe import recipe
from experiments.sampling import other_clips, real_clips, recipe_prompts


@pytest.mark.parametrize(("frames", "name"), [(8, "FVD-o"), (1, "FID-o")])
def test_distance_is_none_from_the_same_and_grows_with_noise(frames, name):
  """Of real ones of other prompts, none of which is among those asked for."""
  wanted = recipe_prompts(
    dataclasses.replace(recipe("tiny"), num_prompts=4), "validation", 0, frames=frames
  )
  clips = real_clips(wanted, 32, 4.0, frames)
  others = other_clips(wanted, 32, 4.0, frames)
  assert others.shape == (16, frames, 32, 32, 3)
  assert not any((one == other).all() for one in clips for other in others)
  noise = np.random.default_rng(0).integers(0, 256, clips.shape, np.uint8)
  far = [distance(group, others)[name].item() for group in (others, clips, noise)]
  assert far[0] < 1e-6 < far[1] < far[2]
