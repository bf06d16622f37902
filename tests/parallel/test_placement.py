"""Laws of the mesh and of where arrays lie on it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from emu_jax.errors import InputError
from emu_jax.models.discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from emu_jax.parallel import placement
from emu_jax.parallel.activations import AXES, exchange, pin, shares, video_spec
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import place, tree_shardings
from emu_jax.weights.architectures import ARCHITECTURES

WIDE = AbstractMesh((2, 16, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def names(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def networks():
  """Shapes of every network that is read, written or trained, at its default configuration."""
  for name, architecture in ARCHITECTURES.items():
    yield name, architecture.shapes(architecture.config_type())
  pixels = jnp.zeros((1, 1, 64, 64, 3))
  init = PatchDiscriminator(PatchDiscriminatorConfig()).init
  yield "PatchDiscriminator", jax.eval_shape(init, jax.random.key(0), pixels)["params"]
  yield "trees", jax.eval_shape(lambda trees: trees, tiny.trees())


@pytest.fixture(scope="module")
def shipped():
  return dict(networks())


def test_every_parameter_has_a_rule_and_every_rule_a_parameter(shipped):
  paths = [path for tree in shipped.values() for path, _ in names(tree)]
  used = {placement.matching_rule(path) for path in paths}
  # Leaves of states, of other configurations than the defaults, and of adapters.
  others = ("step", "opt_state/0/count", "layer_0/positions", "temporal_mid/factor", "x/mix")
  used |= {placement.matching_rule(path) for path in others}
  assert used == set(range(len(placement.RULES)))


def test_an_unknown_parameter_is_refused():
  with pytest.raises(ValueError, match="no rule covers mid/whatever"):
    tree_shardings({"mid": {"whatever": jnp.zeros(3)}}, WIDE)


def test_large_parameters_are_split_evenly(shipped):
  for tree in shipped.values():
    for (path, leaf), (_, placed) in zip(
      names(tree), names(tree_shardings(tree, WIDE)), strict=True
    ):
      part = placed.shard_shape(leaf.shape)  # raises where it is not even
      if path.endswith("kernel") and leaf.size >= 2**20:
        assert math.prod(part) * 16 == leaf.size, (path, leaf.shape, placed.spec)
      if leaf.ndim == 1:
        assert part == leaf.shape, path


def test_the_largest_divisible_axis_is_split():
  spec = lambda *shape: placement.leaf_spec("conv/kernel", shape, 16)
  assert spec(3, 3, 320, 640) == PartitionSpec(None, None, None, "fsdp")
  assert spec(3, 3, 640, 320) == PartitionSpec(None, None, "fsdp", None)
  assert spec(3, 3, 640, 640) == PartitionSpec(None, None, "fsdp", None)
  assert spec(3, 3, 328, 320) == PartitionSpec(None, None, None, "fsdp")
  assert spec(3, 3, 320, 9) == PartitionSpec(None, None, "fsdp", None)
  assert spec(3, 3, 9, 20_001) == spec(16, 16) == PartitionSpec()


@pytest.mark.parametrize(
  ("config", "shape"),
  [
    (MeshConfig(), (8, 1, 1)),
    (MeshConfig(frames=2), (4, 1, 2)),
    (MeshConfig(data=2, fsdp=0, frames=2), (2, 2, 2)),
    (MeshConfig(data=1, fsdp=8), (1, 8, 1)),
  ],
)
def test_a_mesh_has_the_shape_asked_for(config, shape):
  assert tuple(make_mesh(None, config).shape.values()) == shape


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"fsdp": 3}, "takes 3 devices.* there are 8"),
    ({"data": 2, "fsdp": 2}, "takes 4 devices.* there are 8"),
    ({"fsdp": 0}, "leaves two axes open"),
    ({"data": -1}, "data=-1"),
  ],
)
def test_an_impossible_mesh_is_one_clear_line(fields, words):
  with pytest.raises(InputError, match=words) as refused:
    make_mesh(None, MeshConfig(**fields))
  assert "\n" not in str(refused.value)


def test_no_device_holds_a_whole_large_parameter():
  tree = {"kernel": np.arange(256.0 * 512).reshape(256, 512), "bias": np.arange(512.0)}
  placed = place(tree, make_mesh(None, MeshConfig(data=2, fsdp=4)))
  assert {s.data.shape for s in placed["kernel"].addressable_shards} == {(256, 128)}
  assert {s.data.shape for s in placed["bias"].addressable_shards} == {(512,)}
  np.testing.assert_array_equal(placed["kernel"], tree["kernel"])


@pytest.mark.parametrize("to", ["space", "frames"])
@pytest.mark.parametrize("shape", [(2, 4, 8, 3, 5), (2, 4, 3, 8, 5)])  # rows, or else columns
def test_the_exchange_is_its_jit_form(to, shape):
  """Written with all_to_all, and as two constraints that leave the way to the partitioner."""
  mesh = make_mesh(None, MeshConfig(data=2, frames=4))
  origin = {"space": "frames", "frames": "space"}[to]
  x = jax.random.normal(jax.random.key(0), shape)
  weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(x, NamedSharding(mesh, video_spec(mesh, shape, origin)))
    results = [
      jax.jit(jax.value_and_grad(lambda x, f=f: (f(x) * weights).sum()))(placed)[1]
      for f in (lambda x: exchange(x, to), lambda x: pin(pin(x, origin), to))
    ]
    swapped = jax.jit(lambda x: exchange(x, to))
    program = swapped.lower(placed).compile().as_text()
    moved = swapped(placed)
  np.testing.assert_array_equal(moved, x)
  np.testing.assert_array_equal(*results)
  target = NamedSharding(mesh, video_spec(mesh, shape, to))
  assert moved.sharding.is_equivalent_to(target, len(shape))
  assert "all-to-all" in program
  assert "all-gather" not in program


def test_without_a_mesh_nothing_is_pinned():
  x = jnp.ones((2, 4, 8, 3, 5))
  assert pin(x) is x
  assert exchange(x, "space") is x


def test_a_stage_that_does_not_split_is_one_clear_line(tiny_experiment):
  for mesh, words in (
    (MeshConfig(data=4, frames=3), "--mesh.frames 3: does not divide the 8 frame"),
    (MeshConfig(fsdp=3), r"--data.batch_size 4: does not split over the 12 device\(s\)"),
  ):
    with pytest.raises(InputError, match=words):
      dataclasses.replace(tiny_experiment, mesh=mesh).check_mesh(12)


@pytest.fixture
def tiny_experiment():
  from emu_jax.train.config import DataConfig, Experiment

  return Experiment(tiny.MODEL, "video", data=DataConfig(batch_size=4))


def test_a_batch_that_one_axis_alone_divides_is_cut_along_it():
  mesh = make_mesh(jax.devices()[:4], MeshConfig(fsdp=2))
  with jax.set_mesh(mesh):
    assert [shares((B, 4, 8, 8, 3)) for B in (1, 2, 4)] == [(1, 1), (2, 1), (4, 1)]
