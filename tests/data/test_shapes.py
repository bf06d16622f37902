"""The drawn set: what a caption says is what is drawn, and what is held out stays out."""

import itertools
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from emu_jax.data import shapes
from emu_jax.data.batches import open_source
from emu_jax.errors import InputError

GRAMMAR = re.compile(
  r"a (?P<size>small|large) (?P<colour>\w+) (?P<texture>striped )?(?P<shape>\w+)"
  r"(?: moving (?P<direction>\w+) (?P<speed>slowly|quickly))? on a (?P<background>\w+) background"
)


def scenes(kind, split, n=200, seed=0):
  return [shapes.scene(kind, split, i, seed) for i in range(n)]


def coverage(scene, size):
  """Share of each pixel that the shape covers, read from the colours of a plain shape."""
  ground = np.array(shapes.BACKGROUNDS[scene.background], float)
  axis = np.array(shapes.COLOURS[scene.colour]) - ground
  return (shapes.draw(scene, size) - ground) @ axis / (axis @ axis)


def plain(n=24):
  return [scene for scene in scenes("videos", "image_only", 4 * n) if scene.texture == "plain"][:n]


def test_colours_cannot_be_taken_for_one_another():
  colours = np.array(list(shapes.COLOURS.values()), float)
  drawn = np.concatenate([colours, colours * shapes.STRIPE_SHADE])
  grounds = np.array(list(shapes.BACKGROUNDS.values()), float)
  far = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
  assert far(drawn, grounds).min() > 50
  assert (far(colours, colours) + 999 * np.eye(8)).min() > 80


@pytest.mark.parametrize(
  ("kind", "split"), list(itertools.product(["images", "videos"], shapes.SPLITS))
)
def test_a_caption_tells_the_truth(kind, split):
  for scene in scenes(kind, split):
    words = GRAMMAR.fullmatch(shapes.caption(scene)).groupdict()
    truth = shapes.truth(scene, 32)
    words["texture"] = "striped" if words["texture"] else "plain"
    assert {name: truth[name] for name in words} == words
    assert (words["direction"] is None) == (kind == "images")
    assert len(truth["centroid"]) == (1 if kind == "images" else shapes.NUM_FRAMES)


@pytest.mark.parametrize("size", [32, 64])
def test_the_centroid_is_where_the_pixels_say(size):
  grid = np.arange(size)
  for scene in plain():
    weight = coverage(scene, size)
    total = weight.sum((1, 2))
    x, y = (weight.sum(1) * grid).sum(1) / total, (weight.sum(2) * grid).sum(1) / total
    # Both edges of a shape snap to samples a quarter of a pixel apart: at most an eighth off, and
    # rounding to 8 bits adds less than a hundredth.
    np.testing.assert_allclose(
      np.stack([x, y], 1), shapes.truth(scene, size)["centroid"], atol=0.125 + 0.01
    )


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_on_a_canvas_of_another_aspect_shapes_keep_theirs(size):
  """A shape and its steps are as in a square of the shorter side, and it stays on the canvas."""
  for scene in plain():
    weight = coverage(scene, size)
    square = coverage(scene, 32)
    assert weight.shape[1:] == size
    # Edges snap to samples: an eighth of a pixel along the outline, in both.
    width = shapes.SIZES[scene.size] * 32
    np.testing.assert_allclose(weight.sum((1, 2)), square.sum((1, 2)), atol=5 * width / 8)
    radius, canvas = width / 2, np.array(size[::-1])
    places = shapes.centres(scene, size) + 0.5
    assert (places >= radius).all()
    assert (places <= canvas - radius).all()
    steps = np.diff(shapes.centroids(scene, size), axis=0)
    np.testing.assert_allclose(steps, np.diff(shapes.centroids(scene, 32), axis=0), atol=1e-9)


@pytest.mark.parametrize("size", [32, 64])
def test_a_shape_has_its_own_area_in_every_frame(size):
  share = {"circle": np.pi / 4, "square": 1.0, "triangle": 1 / 2, "cross": 5 / 9}
  edge = {"circle": np.pi, "square": 4.0, "triangle": 1 + 5**0.5, "cross": 4.0}
  for scene in plain():
    width = shapes.SIZES[scene.size] * size
    # Edges snap by at most an eighth of a pixel; a shape that left the canvas would lose far more.
    np.testing.assert_allclose(
      coverage(scene, size).sum((1, 2)),
      share[scene.shape] * width**2,
      atol=edge[scene.shape] * width / 8,
    )


@pytest.mark.parametrize("size", [32, 64])
def test_motion_is_straight_at_the_stated_speed(size):
  for scene in scenes("videos", "train"):
    steps = np.diff(shapes.centroids(scene, size), axis=0)
    step = np.array(shapes.DIRECTIONS[scene.direction]) * shapes.SPEEDS[scene.speed]
    np.testing.assert_allclose(steps, np.tile(step * size / shapes.FPS, (39, 1)), atol=1e-9)


def test_starts_fill_the_canvas():
  still = scenes("images", "train", 2000)
  small = np.array([scene.start for scene in still if scene.size == "small"])
  near = shapes.SIZES["small"] / 2 + shapes.MARGIN
  # Uniform: of about 1000 draws the extremes lie within 1 % of the range's ends with probability
  # above 1 - 4 exp(-10).
  assert small.min() >= near
  assert small.max() <= 1 - near
  np.testing.assert_allclose(small.min(0), near, atol=0.01 * (1 - 2 * near))
  np.testing.assert_allclose(small.max(0), 1 - near, atol=0.01 * (1 - 2 * near))


def test_stripes_show_both_shades():
  for scene in scenes("images", "train"):
    seen = {tuple(pixel) for pixel in shapes.draw(scene, 32).reshape(-1, 3)}
    colour = shapes.COLOURS[scene.colour]
    shaded = tuple(round(shapes.STRIPE_SHADE * c) for c in colour)
    assert shapes.BACKGROUNDS[scene.background] in seen
    if scene.shape == "cross" and scene.size == "small":
      continue  # its bars are narrower than three pixels: no pixel is wholly covered
    assert colour in seen
    near = min(np.abs(np.subtract(pixel, shaded)).max() for pixel in seen)
    assert (near <= 1) == (scene.texture == "striped")


def test_motions_are_held_out_and_nothing_else():
  kept = {(s.colour, s.shape, s.direction) for s in scenes("videos", "test", 600)}
  for split in ("train", "validation"):
    trained = scenes("videos", split, 1500)
    seen = {(s.colour, s.shape, s.direction) for s in trained}
    assert not seen & kept
    assert len(seen) == 36
    assert len(kept) == 12
    for names in (("colour", "shape"), ("colour", "direction"), ("shape", "direction")):
      pairs = {tuple(getattr(s, name) for name in names) for s in trained}
      test = {tuple(getattr(s, name) for name in names) for s in scenes("videos", "test", 600)}
      assert test <= pairs  # only the threefold combination is new
    for name, words in (("background", 4), ("speed", 2), ("size", 2)):
      assert len({getattr(s, name) for s in trained}) == words


def test_the_image_set_is_strictly_wider():
  look = lambda s: (s.colour, s.shape, s.texture)
  images, videos = ({look(s) for s in scenes(k, "train", 2000)} for k in ("images", "videos"))
  assert len(images) == 8 * 4 * 2
  assert len(videos) == 4 * 3
  assert videos < images
  assert {look(s) for s in scenes("videos", "image_only", 2000)} == images - videos


def test_a_scene_is_a_function_of_seed_and_index():
  assert scenes("videos", "train") == scenes("videos", "train")
  assert scenes("videos", "train") != scenes("videos", "train", seed=1)
  assert len({s.start for s in scenes("videos", "train")}) == 200
  assert not {s.start for s in scenes("videos", "train")} & {
    s.start for s in scenes("videos", "validation")
  }


def test_prompts():
  for split in shapes.PROMPT_SPLITS:
    made = list(shapes.prompts(split, 50, 3))
    assert made == list(shapes.prompts(split, 50, 3))
    assert len(made) == 50
    for text, words in made:
      assert words["direction"] in text
      assert words["colour"] in text
      known = split != "image_only"
      held_out = shapes.held_out(words["colour"], words["shape"], words["direction"])
      assert not known or held_out == (split == "test")
  assert all("moving" not in text for text, _ in shapes.prompts("train", 20, 0, moving=False))
  with pytest.raises(InputError, match="split=tests is unknown"):
    next(shapes.prompts("tests", 1, 0))


@pytest.mark.parametrize("size", [32, 64])
def test_prepared_records_are_the_drawn_scenes(tmp_path, size):
  out = tmp_path / "shapes"
  made = {"size": size, "num_images": 20, "num_clips": 10, "seed": 4, "progress": False}
  report = shapes.prepare_shapes(out, **made)
  assert report["num_records"] == {
    "images": {"train": 20, "validation": 2, "test": 2},
    "videos": {"train": 10, "validation": 1, "test": 1},
  }
  for kind, split, count in (("images", "train", 20), ("videos", "test", 1)):
    source = open_source(out / kind, split)
    assert len(source.records) == count
    assert source.size == (size, size)
    for i in range(count):
      scene, record = shapes.scene(kind, split, i, 4), source.records[i]
      np.testing.assert_array_equal(record["frames"], shapes.draw(scene, size))
      assert record["caption"].decode() == shapes.caption(scene)
      assert json.loads(record["truth"]) == shapes.truth(scene, size)
      assert record["fps"] == (0 if kind == "images" else 16)
      speed = shapes.SPEEDS[scene.speed] * 100 if scene.speed else 0
      assert source.numbers["motion"][i] == np.float32(speed)
  assert shapes.prepare_shapes(out, **made)["existing"]
  with pytest.raises(InputError, match="seed=4 there, 5 asked"):
    shapes.prepare_shapes(out, **(made | {"seed": 5}))


def test_tfds_builds_it_in_its_own_way(tmp_path):
  builder = tfds.builder("moving_shapes/images", data_dir=str(tmp_path), num_records=3, size=16)
  builder.download_and_prepare()
  assert len(builder.as_data_source("train")) == 3


def test_sizes_that_show_nothing_are_refused(tmp_path):
  with pytest.raises(InputError, match="size=8"):
    shapes.prepare_shapes(tmp_path / "out", size=8)
  assert not (tmp_path / "out").exists()
