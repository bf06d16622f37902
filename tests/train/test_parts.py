"""Each stage of Emu Video trains what it should, and leaves everything else as it was, bit for bit.

The runs are those of two steps a stage that `tests.tiny_recipe` makes by the command itself.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import emu_jax
from emu_jax.checkpoints.run import load_ema, origins, stored_metadata
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.loss import Times
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.systems.first_stage import pixels
from emu_jax.train.config import load_stages
from emu_jax.train.inherit import measured
from emu_jax.train.parts import build, check_inherited, initial_trees
from emu_jax.train.planning.programs import Training, empty_shapes
from emu_jax.train.state import abstract_state, initial_state, leaf_names
from tests import tiny_recipe

STAGES = ("autoencoder", "image", "video", "interpolation", "extension")
TRAINED = {
  "autoencoder": {"autoencoder", "discriminator"},
  "image": {"spatial", "text"},
  "video": {"temporal"},
  "interpolation": {"interpolation"},
  "extension": {"extension"},
}
TREE = {"video": "temporal", "interpolation": "interpolation", "extension": "extension"}
# What each stage finds and leaves as it is; the discriminator is of no use after its own stage.
FOUND = {
  "autoencoder": set(),
  "image": {"autoencoder", "latents"},
  "video": {"autoencoder", "latents", "text", "spatial"},
  "interpolation": {"autoencoder", "latents", "text", "spatial", "temporal"},
  "extension": {"autoencoder", "latents", "text", "spatial", "temporal", "interpolation"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tiny_recipe.trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def saved(runs):
  """The trees of a stage's run, read once."""
  return functools.cache(lambda stage: load_ema(runs / stage)[1])


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
  stages = load_stages(str(tiny_recipe.config(tmp_path_factory.getbasetemp())))
  return {experiment.part: experiment for experiment in stages}


def assert_identical(a, b):
  assert leaf_names(a) == leaf_names(b)
  for name, x, y in zip(leaf_names(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def stored(runs, stage, part):
  """Names of the arrays in a part of a run's checkpoint."""
  return leaf_names(stored_metadata(runs / stage / "checkpoints" / "2" / part))


def random_frames(seed=0, num=64):
  """Frames whose channels differ in mean and spread, as real ones' do."""
  noise = np.random.default_rng(seed).normal(size=(num, 1, 4, 4, 3)).repeat(4, 2).repeat(4, 3)
  values = 128 + np.array([30, 0, -60]) + np.array([20, 40, 10]) * noise
  return {"frames": jax.numpy.asarray(np.clip(values, 0, 255).astype(np.uint8))}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_has_what_it_trained_and_what_it_found(saved, stage):
  assert set(saved(stage)) - {"discriminator"} == (FOUND[stage] | TRAINED[stage]) - {
    "discriminator"
  }


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stores_nothing_that_an_earlier_one_holds(runs, stage):
  """Latents are measured by the first run that needs them; all else lies where it was trained."""
  frozen = runs / stage / "frozen"
  stored = set(stored_metadata(frozen)) if frozen.is_dir() else set()
  assert stored == ({"latents"} if stage == "image" else set())
  elsewhere = origins(runs / stage)
  assert set(elsewhere) == FOUND[stage] - stored
  for name, origin in elsewhere.items():
    maker = "image" if name == "latents" else next(s for s in STAGES if name in TRAINED[s])
    assert (runs / stage / origin.run).resolve() == (runs / maker).resolve()


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_optimiser_and_average_hold_what_trains_and_nothing_else(runs, stage):
  """A frozen array has no slot in the state, so that no update could reach it."""
  names = stored(runs, stage, "state")
  params = [name.removeprefix("params/") for name in names if name.startswith("params/")]
  assert {name.split("/")[0] for name in params} == TRAINED[stage]
  for moment in ("/mu/", "/nu/"):
    assert sorted(n.split(moment)[1] for n in names if moment in n) == sorted(params)
  # Beside these there are only the step and the optimiser's counters.
  counters = [
    n for n in names if not n.startswith("params/") and "/mu/" not in n and "/nu/" not in n
  ]
  assert all(name == "step" or name.endswith("/count") for name in counters)
  assert sorted(stored(runs, stage, "ema")) == sorted(params)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_frozen_trees_are_bit_identical_to_those_of_the_stage_before(saved, stage):
  before, after = saved(STAGES[STAGES.index(stage) - 1]), saved(stage)
  for name in FOUND[stage] & set(before):
    assert_identical(after[name], before[name])
  assert FOUND[stage] - set(before) == ({"latents"} if stage == "image" else set())


def test_the_image_model_draws_the_same_bytes_after_all_video_training(runs):
  drawn = [
    emu_jax.load(runs / stage).sample("a square", frames=1, steps=2).frames
    for stage in ("image", "extension")
  ]
  np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_every_network_that_trains(runs, stage):
  """Adam's first moment is a sum of gradients; two steps are enough to see past zero layers."""
  moments = state_of(runs, stage)["opt_state"]
  names = ["text/0", "text/1", "spatial"] if stage == "image" else sorted(TRAINED[stage])
  for name in names:
    reached = [bool(np.any(v != 0)) for n, v in moments.items() if f"/mu/{name}/" in n]
    assert len(reached) > 5
    assert np.mean(reached) > 0.8, name


def state_of(runs, stage):
  """A run's last state with its parts flat: {"opt_state": {"0/mu/…": array}, …}."""
  folder = runs / stage / "checkpoints" / "2" / "state"
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(folder)
  return {
    name: dict(zip(leaf_names(part), map(np.asarray, jax.tree.leaves(part)), strict=True))
    for name, part in state.items()
  }


def with_image(experiment, **fields):
  """The experiment with other fields of its image model."""
  system = experiment.system
  image = dataclasses.replace(system.image, **fields)
  return dataclasses.replace(experiment, system=dataclasses.replace(system, image=image))


def test_text_encoders_rest_without_train_text(saved, experiments):
  without = with_image(experiments["image"], train_text=False)
  stage = build(without, saved("video"), empty_shapes(without))
  assert_identical(stage.frozen["text"], saved("video")["text"])
  assert set(jax.eval_shape(stage.init, jax.random.key(0))) == {"spatial"}


def begin_state(experiment, inherited):
  stage = build(experiment, inherited, empty_shapes(experiment))
  mesh = make_mesh(jax.devices()[:1])
  initial = initial_trees(experiment, inherited)
  return initial_state(stage, experiment.optim, jax.random.key(0), mesh, initial)


@pytest.mark.parametrize("stage", ["interpolation", "extension"])
def test_the_other_temporal_trees_begin_exactly_at_that_of_the_video_model(
  saved, experiments, stage
):
  inherited = saved("video")
  begun = begin_state(experiments[stage], inherited)
  assert_identical(begun.params[TREE[stage]], inherited["temporal"])
  assert_identical(begun.ema[TREE[stage]], inherited["temporal"])


def test_a_stage_begins_at_its_own_tree_where_the_run_before_had_trained_it(saved, experiments):
  inherited = saved("extension")
  for stage in ("interpolation", "extension"):
    assert_identical(initial_trees(experiments[stage], inherited)[stage], inherited[stage])
  for stage in ("autoencoder", "image", "video"):
    trees = initial_trees(experiments[stage], inherited)
    assert set(trees) == TRAINED[stage] - {"discriminator"}
    for name, tree in trees.items():
      assert_identical(tree, inherited[name])


class Batches:
  """Batches of frames, one after another, with a position."""

  def __init__(self, batches):
    self.batches, self.position = batches, 0

  def __iter__(self):
    return self

  def __next__(self):
    self.position += 1
    return self.batches[self.position - 1]

  def get_state(self):
    return self.position

  def set_state(self, position):
    self.position = position


def test_latents_have_mean_0_and_variance_1_in_each_channel(saved, experiments):
  """z = (mean + std eps - shift) scale: the means' variance and the mean posterior variance add.

  They are measured in batches, here of 4 of 64 frames, and the data is where it was.
  """
  experiment, frames = experiments["image"], np.asarray(random_frames()["frames"])
  data = Batches([{"frames": frames[i : i + 4]} for i in range(0, 64, 4)] * 8)
  trees = {name: saved("autoencoder")[name] for name in ("autoencoder",)}
  found = measured(experiment, trees, data, make_mesh(jax.devices()[:1]))
  assert data.position == 0
  encode = lambda key: first_stage.encode(trees | found, pixels(jnp.asarray(frames)), key)
  first_stage = experiment.system.image.first_stage
  means = jax.jit(encode)(None)
  draws = np.stack([jax.jit(encode)(jax.random.key(i)) for i in range(16)])
  n = means[..., 0].size
  np.testing.assert_allclose(means.mean((0, 1, 2, 3)), 0, atol=1e-4)
  # 16 draws of n values each: 5 standard errors of a variance of 1 are 5 sqrt(2 / 16 n), and the
  # mean of the noise adds little to that of the means, which is 0.
  tolerance = 5 * np.sqrt(2 / (16 * n))
  np.testing.assert_allclose(draws.var((0, 1, 2, 3, 4)), 1, atol=tolerance)


def test_latents_are_measured_once_and_then_handed_on(saved, experiments):
  inherited = saved("image")
  assert measured(experiments["video"], inherited, Batches([]), make_mesh(jax.devices()[:1])) == {}
  stage = build(experiments["video"], inherited, empty_shapes(experiments["video"]))
  assert_identical(stage.frozen["latents"], inherited["latents"])


NEEDS = {
  "image": ("autoencoder", "text"),
  "video": ("autoencoder", "text", "spatial"),
  "interpolation": ("autoencoder", "text", "spatial", "temporal"),
  "extension": ("autoencoder", "text", "spatial", "temporal"),
}
BUILT_ON = [(stage, name) for stage, names in NEEDS.items() for name in names]


@pytest.mark.parametrize(("stage", "missing"), BUILT_ON)
def test_a_stage_is_refused_without_what_it_builds_on(experiments, stage, missing):
  experiment = with_image(experiments[stage], train_text=False)
  experiment = dataclasses.replace(experiment, init_from="runs/before")
  trees = ("autoencoder", "text", "spatial", "temporal")
  check_inherited(experiment, trees)
  rest = tuple(name for name in trees if name != missing)
  message = rf"part '{stage}' needs the trees \['{missing}'\], .*'runs/before' does not hold"
  with pytest.raises(InputError, match=message):
    check_inherited(experiment, rest)


def test_a_text_encoder_that_trains_need_not_be_inherited(experiments):
  check_inherited(experiments["image"], ("autoencoder",))


def test_no_stage_has_a_leaf_that_both_trains_and_rests(saved, experiments):
  trees = saved("extension")
  mesh = make_mesh(jax.devices()[:1])
  for name, experiment in experiments.items():
    stage = build(experiment, trees, empty_shapes(experiment))
    state = abstract_state(stage, experiment.optim, jax.random.key(0), mesh)
    assert set(state.params) == TRAINED[name]
    assert not set(leaf_names(stage.frozen)) & set(leaf_names(state.params))


def test_what_no_step_reads_is_not_among_its_arguments(saved, experiments):
  """It would lie on every device: the interpolation's tree while the video's trains."""
  trees = saved("extension")
  stage = build(experiments["video"], trees, empty_shapes(experiments["video"]))
  assert set(stage.frozen) == {"autoencoder", "latents", "text", "spatial"}


def test_frozen_trees_lie_in_the_dtype_of_their_network(saved, experiments):
  """From a run as from public weights; what trains begins from float32, whatever it computes in."""
  unet = dataclasses.replace(experiments["video"].system.image.unet, dtype="bfloat16")
  text = tuple(
    dataclasses.replace(encoder, dtype=dtype)
    for encoder, dtype in zip(
      experiments["video"].system.image.text, ("bfloat16", "float32"), strict=True
    )
  )
  experiment = with_image(experiments["video"], unet=unet, text=text)
  stage = build(experiment, saved("image"), empty_shapes(experiment))
  dtypes = lambda tree: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
  assert dtypes(stage.frozen["spatial"]) == {"bfloat16"}
  assert dtypes(stage.frozen["text"]["0"]) == {"bfloat16"}
  assert dtypes(stage.frozen["text"]["1"]) == dtypes(stage.frozen["autoencoder"]) == {"float32"}
  assert dtypes(jax.eval_shape(stage.init, jax.random.key(0))) == {"float32"}
  image = with_image(experiments["image"], unet=unet)
  for tree in initial_trees(image, saved("image")).values():
    assert dtypes(tree) == {"float32"}


@pytest.mark.parametrize("name", ["image", "video", "interpolation"])
def test_a_plan_has_the_frozen_bytes_of_the_run(saved, experiments, name):
  """Every leaf of the same shape and dtype, bfloat16 among them: what fits in one fits in both."""
  image = experiments[name].system.image
  unet = dataclasses.replace(image.unet, dtype="bfloat16")
  experiment = with_image(experiments[name], unet=unet, train_text=False)
  run = build(experiment, saved("extension"), empty_shapes(experiment)).frozen
  plan = Training(experiment, make_mesh(jax.devices()[:1])).stage.frozen
  kinds = lambda tree: {
    name: (leaf.shape, str(leaf.dtype))
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
  }
  assert kinds(plan) == kinds(run)
  assert "bfloat16" in {dtype for _, dtype in kinds(run).values()} or name == "image"


@pytest.mark.parametrize("name", ["image", "video", "interpolation"])
def test_a_stage_trains_on_the_noise_that_it_asks_for(saved, experiments, name, monkeypatch):
  called, times = [], Times(uniform=0.5)

  def loss(self, predict, x_0, key, **options):
    called.append((self.times, options))
    return jnp.zeros(x_0.shape[0])

  monkeypatch.setattr(Discrete, "loss", loss)
  system = experiments[name].system
  image = system.image
  if name == "image":
    process = dataclasses.replace(image.process, times=times)
    image = dataclasses.replace(image, process=process, offset_noise=0.25)
    system = dataclasses.replace(system, image=image)
  else:
    process = dataclasses.replace(system.process, times=times)
    system = dataclasses.replace(system, process=process, offset_noise=0.25)
  part = system.parts()[name]
  frames = jnp.zeros((1, part.inputs.first.clip.num_frames, 16, 16, 3), jnp.uint8)
  empty = jax.tree.map(jnp.asarray, empty_shapes(experiments[name]))
  batch = {"frames": frames, "image_dropped": jnp.zeros(1, bool), **empty}
  trees = saved("extension")
  part.loss(trees, batch, jax.random.key(0), jnp.int32(0))
  assert called == [(times, {"offset_noise": 0.25})]


def test_spatial_layers_that_train_begin_as_the_image_models_own(saved, experiments):
  experiment = experiments["video"]
  system = dataclasses.replace(experiment.system, train_spatial=True)
  experiment = dataclasses.replace(experiment, system=system)
  inherited = saved("image")
  stage = build(experiment, inherited, empty_shapes(experiment))
  mesh = make_mesh(jax.devices()[:1])
  assert set(abstract_state(stage, experiment.optim, jax.random.key(0), mesh).params) == {
    "temporal", "spatial"
  }  # fmt: skip
  assert "spatial" not in stage.frozen
  given = initial_trees(experiment, inherited)
  assert_identical(given["spatial"], inherited["spatial"])


@pytest.mark.parametrize("stage", STAGES)
def test_samples_are_left_to_look_at(runs, stage):
  name = "reconstruction" if stage == "autoencoder" else stage
  suffix = "mp4" if stage in TREE else "png"
  assert [f.name for f in (runs / stage / "samples").iterdir()] == [f"00000002_{name}.{suffix}"]
