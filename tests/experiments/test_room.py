"""Shapes that begin where clips do never leave; others leave as far as geometry says."""

import dataclasses

import numpy as np

from emu_jax.data import shapes
from experiments.room import anywhere, beyond, centres

SECONDS = 7 / 4  # of 8 frames at 4 a second


def test_clips_leave_their_motion_room():
  scenes = [shapes.scene("videos", "test", i, 0) for i in range(32)]
  pictures = np.stack([shapes.draw(scene, 64)[:1] for scene in scenes])
  read = centres(pictures, scenes)
  # Edges that cross a pixel are read to a tenth of it.
  np.testing.assert_allclose(read, [scene.start for scene in scenes], atol=0.5 / 64)
  assert np.all(beyond(read, scenes, SECONDS) < 0.5 / 64)


def test_a_shape_that_begins_in_the_wrong_place_leaves_by_its_way():
  scene = shapes.Scene("red", "circle", "small", "plain", "black", "left", "quickly", (0.0, 0.5))
  near, way = shapes.SIZES["small"] / 2, shapes.SPEEDS["quickly"] * SECONDS
  starts = np.array([[near, 0.5], [near + way, 0.5], [0.5, 0.0]])
  scenes = [scene, scene, dataclasses.replace(scene, direction="down", speed="slowly")]
  # The last has half a side before it, and where it begins is not its way's doing.
  np.testing.assert_allclose(beyond(starts, scenes, SECONDS), [way, 0, 0], atol=1e-9)


def test_anywhere_is_on_the_canvas():
  rng = np.random.default_rng(0)
  scene = shapes.scene("videos", "test", 0, 0)
  near = shapes.SIZES[scene.size] / 2
  found = np.array([anywhere(scene, rng) for _ in range(50)])
  assert np.all((found >= near) & (found <= 1 - near))
