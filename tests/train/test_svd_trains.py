"""Stable Video Diffusion from a folder of records to a clip, each part from the one before it."""

import dataclasses
import itertools

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import emu_jax
from emu_jax.checkpoints.run import load_trees
from emu_jax.diffusion.process import Sampling
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVisionConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.systems.svd import StableVideo
from emu_jax.train import command
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.parts import Split
from tests import tiny_recipe

SYSTEM = StableVideo(
  unet=UNetConfig(
    concat_channels=4, channels=(8,), num_res_blocks=(1,), transformer_depth=(1,), mid_depth=0,
    num_heads=2, context_dims=(6,), linear_projection=True, norm_groups=4, num_micro=3,
    micro_dim=4, temporal=VideoLdmConfig(num_frames=3),
  ),
  first_stage=KlAutoencoder(
    AutoencoderConfig(channels=(8,), num_res_blocks=1, norm_groups=4, mid_attention=False, patch=2)
  ),
  vision=ClipVisionConfig(
    width=8, num_layers=1, num_heads=2, mlp_width=8, image_size=8, patch=4, projection_dim=6
  ),
  size=(16, 16),
  num_frames=3,
  fps=4.0,
  rates=(4.0, 8.0),
  motion_scale=5.0,
  train_vision=True,
  objective=AutoencoderObjective(adversarial_weight=0.0),
  preview=Sampling("euler", 2),
)  # fmt: skip
# The last part trains layers over frames alone, as in Video LDM; "high_resolution" differs from
# "video" in its noise alone (tests/systems/test_svd.py).
SYSTEMS = {
  "autoencoder": SYSTEM,
  "image": SYSTEM,
  "video": SYSTEM,
  "high_quality": dataclasses.replace(SYSTEM, train="temporal"),
}
PARTS = tuple(SYSTEMS)
SAMPLED = ("image", "video")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return str(tiny_recipe.shapes(tmp_path_factory.getbasetemp()) / "videos")


@pytest.fixture(scope="module")
def runs(clips, tmp_path_factory):
  out, before = tmp_path_factory.mktemp("svd"), ""
  for part, system in SYSTEMS.items():
    experiment = Experiment(
      system,
      part,
      data=DataConfig(sources=(clips,), batch_size=2),
      optim=OptimConfig(peak_lr=1e-2, warmup_steps=1),
      loop=LoopConfig(
        num_steps=2, log_every=1, sample_every=2 if part in SAMPLED else 0, num_samples=1
      ),
      init_from=before,
    )
    with tiny_recipe.one_device():
      assert command.train_part(experiment, out / part)
    before = str(out / part)
  return out


def leaves(run):
  return {path: np.asarray(leaf) for path, leaf in flatten_dict(load_trees(run), sep="/").items()}


@pytest.mark.parametrize(("before", "part"), tuple(itertools.pairwise(PARTS)))
def test_a_part_changes_what_it_trains_and_hands_on_the_rest(runs, before, part):
  """Also the leaves of a tree that began in a part which does not train them."""
  old, new = leaves(runs / before), leaves(runs / part)
  split = Split(SYSTEMS[part], part)
  assert set(old) <= set(new)
  for path, leaf in old.items():
    changed = not np.array_equal(leaf, new[path])
    assert not changed or split.trains(path), path
  trained = [path for path in new if split.trains(path) and path in old]
  assert part == "image" or trained
  assert all(np.any(old[path] != new[path]) for path in trained if path.endswith("kernel"))


def test_what_was_trained_sets_a_picture_in_motion(runs):
  model = emu_jax.load(runs / PARTS[-1])
  picture = np.random.default_rng(0).integers(0, 255, (1, 1, 16, 16, 3), np.uint8)
  frames = model.animate(picture=picture, steps=2).frames
  assert frames.shape == (1, 3, 16, 16, 3)
  assert np.ptp(frames) > 0


def test_layers_over_frames_alone_may_train(runs):
  """What each frame passes by itself stays as it was."""
  old, new = leaves(runs / "video"), leaves(runs / "high_quality")
  changed = {path for path in old if not np.array_equal(old[path], new[path])}
  assert changed
  assert all("temporal" in p or "concat_in" in p or "/micro/" in p for p in changed)
