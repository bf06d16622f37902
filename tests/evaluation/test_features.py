"""One program, batches of one size: what comes out depends neither on batches nor on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.evaluation import frechet
from emu_jax.evaluation.features import Features, Stream, accumulated, distances
from emu_jax.parallel.mesh import MeshConfig, make_mesh

RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (37, 3, 8, 8, 3), np.uint8)
OTHERS = RNG.integers(60, 256, (30, 3, 8, 8, 3), np.uint8)
PARAMS = {"mix": RNG.normal(size=(3, 5)).astype(np.float32)}


def means(params, pixels):
  """Channels' means over all but the batch, mixed."""
  return pixels.mean(axis=tuple(range(1, pixels.ndim - 1))) @ params["mix"]


def network(of):
  return Features("means", of, 5, PARAMS, means)


def by_hand(clips, of):
  pixels = clips.reshape(-1, *clips.shape[2:]) if of == "frames" else clips
  values = pixels.astype(np.float64) / 127.5 - 1
  return values.mean(axis=tuple(range(1, values.ndim - 1))) @ PARAMS["mix"]


def rows(features, clips, batch_size, mesh=None):
  found = []
  stream = Stream(features, batch_size, lambda *part: found.append(part), mesh)
  for index, clip in enumerate(clips):
    stream.take(clip, index)
  stream.finish()
  return tuple(np.concatenate(part) for part in zip(*found, strict=True))


@pytest.mark.parametrize("of", ["frames", "clips"])
@pytest.mark.parametrize("batch_size", [1, 8, 37, 50])
def test_every_clip_gives_its_rows_in_order_and_filling_none(of, batch_size):
  values, members = rows(network(of), CLIPS, batch_size)
  np.testing.assert_allclose(values, by_hand(CLIPS, of), atol=1e-6)
  np.testing.assert_array_equal(members, np.arange(37).repeat(3 if of == "frames" else 1))


def test_all_batches_are_one_program():
  traces = []

  def counted(params, pixels):
    traces.append(pixels.shape)
    return means(params, pixels)

  features = Features("counted", "frames", 5, PARAMS, counted)
  rows(features, CLIPS, 16)
  rows(features, OTHERS, 16)
  assert traces == [(16, 8, 8, 3)]


@pytest.mark.parametrize("of", ["frames", "clips"])
def test_eight_devices_give_the_distances_of_one(of):
  mesh = make_mesh(jax.devices(), MeshConfig(data=4, fsdp=2))
  sets = {
    name: [accumulated(network(of), clips, size, where) for clips in (CLIPS, OTHERS)]
    for name, size, where in (("one", 11, None), ("eight", 10, mesh))
  }
  one, eight = (distances("d", *pair) for pair in sets.values())
  assert one.keys() == eight.keys()
  for name in one:
    # Features of float32, 6e-8 of 1; a distance is some 100 of their spreads.
    assert eight[name].value == pytest.approx(one[name].value, rel=1e-5)
    assert (eight[name].low, eight[name].high) == pytest.approx(
      (one[name].low, one[name].high), rel=1e-4
    )
    assert eight[name].n == one[name].n


def test_a_batch_is_split_over_the_devices():
  mesh = make_mesh(jax.devices(), MeshConfig(data=4, fsdp=2))
  seen = []

  def look(params, pixels):
    jax.debug.inspect_array_sharding(pixels, callback=seen.append)
    return means(params, pixels)

  rows(Features("looked at", "frames", 5, PARAMS, look), CLIPS[:4], 9, mesh)
  assert seen[0].shard_shape((16, 8, 8, 3)) == (2, 8, 8, 3)  # 9 filled up to a multiple of 8


def test_distances_of_a_set_to_itself_are_within_rounding_of_zero():
  pair = [accumulated(network("clips"), CLIPS, 8) for _ in range(2)]
  found = distances("d", *pair)
  assert found["d"].value == pytest.approx(0, abs=1e-10)
  # Without a sample's pairs with itself, of one set twice it is below 0.
  assert found["d, kernel distance x 1000"].value < 0


def test_features_that_are_no_numbers_are_refused():
  broken = Features("broken", "clips", 5, PARAMS, lambda p, x: means(p, x) / jnp.float32(0))
  with pytest.raises(ValueError, match="of 8 rows of features are not finite"):
    accumulated(broken, CLIPS, 8)
  assert frechet.GROUPS == 10
