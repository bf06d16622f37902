"""Clips of any shape: buckets of aspect ratios in one run, another size without packing anew."""

import dataclasses
import json

import numpy as np
import pytest

import emu_jax
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.train import command, loop
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.planning.programs import batch_shapes
from tests import tiny_recipe
from tests.data.video_files import write_numbered
from tests.tiny import MODEL

SHAPES = ((16, 16), (8, 24), (24, 8))
# Without an adversary, which needs 24 pixels a side.
IMAGE = dataclasses.replace(MODEL.image, objective=AutoencoderObjective(adversarial_weight=0.0))
SYSTEM = dataclasses.replace(MODEL, image=IMAGE)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
  """Clips of three aspect ratios, each packed at the bucket nearest to its own."""
  folder = tmp_path_factory.mktemp("shapes")
  clips = folder / "clips"
  clips.mkdir()
  rows = []
  for height, width in SHAPES:
    for i in range(4):
      name = f"{height}x{width}_{i}.mp4"
      write_numbered(clips / name, 12, height=4 * height, width=4 * width)
      rows.append({"file_name": name, "text": f"clip {i}"})
  (clips / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  words = ["--size", "16", "--buckets", *(f"{h}x{w}" for h, w in SHAPES)]
  words += ["--out", str(folder / "packed"), "--validation-fraction", "0", "--workers", "1"]
  command.main(["prepare", str(clips), *words])
  return folder / "packed"


def experiment(system, part, data, **fields):
  return Experiment(
    system,
    part,
    data=DataConfig(sources=(str(data),), batch_size=2),
    optim=OptimConfig(peak_lr=1e-3, warmup_steps=1),
    loop=LoopConfig(num_steps=9, log_every=1, **fields),
  )


def test_three_aspect_ratios_train_in_one_run_and_each_compiles_once(packed, tmp_path, monkeypatch):
  steps, shapes = [], set()
  jitted = loop.jitted_step

  def watched(*args):
    steps.append(jitted(*args))

    def step(state, frozen, batch, key):
      shapes.add(batch["frames"].shape)
      return steps[0](state, frozen, batch, key)

    return step

  monkeypatch.setattr(loop, "jitted_step", watched)
  with tiny_recipe.one_device():
    assert command.train_part(experiment(SYSTEM, "autoencoder", packed), tmp_path / "run")
  assert shapes == {(2, 1, *shape, 3) for shape in SHAPES}
  assert steps[0].func.here._cache_size() == len(SHAPES)


def test_records_serve_a_smaller_size_too(packed, tmp_path):
  """Pretraining at half the size reads the same records: all buckets at half their sides."""
  image = dataclasses.replace(IMAGE, size=(8, 8))
  small = dataclasses.replace(MODEL, image=image)
  seen = set()

  def keep(trees, batch, key, step, part):
    seen.add(batch["frames"].shape)
    return part.loss(trees, batch, key, step)

  parts = EmuVideo.parts
  with pytest.MonkeyPatch.context() as patch, tiny_recipe.one_device():

    def watched(self):
      found = parts(self)
      part = found["autoencoder"]
      loss = lambda *args: keep(*args, part)
      return found | {"autoencoder": dataclasses.replace(part, loss=loss)}

    patch.setattr(EmuVideo, "parts", watched)
    assert command.train_part(experiment(small, "autoencoder", packed), tmp_path / "run")
  assert seen == {(2, 1, h // 2, w // 2, 3) for h, w in SHAPES}


def test_a_model_trains_and_samples_at_a_shape_that_is_not_square(tmp_path):
  """All parts of it at 8x24; what it draws has that shape, and so has its plan."""
  clips = tmp_path / "clips"
  clips.mkdir()
  for i in range(4):
    write_numbered(clips / f"{i}.mp4", 20, height=32, width=96)
  rows = [json.dumps({"file_name": f"{i}.mp4", "text": f"clip {i}"}) for i in range(4)]
  (clips / "metadata.jsonl").write_text("\n".join(rows))
  words = ["--out", str(tmp_path / "packed"), "--validation-fraction", "0", "--workers", "1"]
  command.main(["prepare", str(clips), "--size", "8", "24", *words])
  image = dataclasses.replace(IMAGE, size=(8, 24), train_text=True)
  system, before = dataclasses.replace(MODEL, image=image), ""
  for part in ("autoencoder", "image", "video"):
    one = experiment(system, part, tmp_path / "packed")
    short = dataclasses.replace(one.loop, num_steps=1)
    one = dataclasses.replace(one, loop=short, init_from=before)
    with tiny_recipe.one_device():
      assert command.train_part(one, tmp_path / part)
    assert batch_shapes(one)["frames"].shape[2:4] == (8, 24)
    before = str(tmp_path / part)
  frames = emu_jax.load(before).sample("a clip", steps=2).frames
  assert frames.shape == (1, 8, 8, 24, 3)
  assert np.ptp(frames) > 0
