"""The whole of training in little: data, a config of all five stages, and their runs, made once."""

import contextlib
import functools

import jax
import pytest

from emu_jax.parallel.mesh import make_mesh
from emu_jax.train import command

# Shapes hold 40 frames at 16 fps: enough for 37 of interpolation (4 x 4 fps), and 32 of extension.
CONFIG = """
import dataclasses

from emu_jax.diffusion.process import Sampling
from emu_jax.models.discriminator import PatchDiscriminatorConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from tests.tiny import MODEL
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

DISCRIMINATOR = PatchDiscriminatorConfig(width=8, num_layers=1, norm_groups=4)
IMAGE = dataclasses.replace(
  MODEL.image,
  objective=AutoencoderObjective(adversarial_start=1, discriminator=DISCRIMINATOR),
  train_text=True,
  preview=Sampling(num_steps=2),
)
MODEL = dataclasses.replace(MODEL, image=IMAGE)
COMMON = dict(
  data=DataConfig(sources=({clips!r},), batch_size=4),
  optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, ema_decay=0.5),
  loop=LoopConfig(
    num_steps=2, log_every=1, validate_every=2, validate_batches=1, sample_every=2, num_samples=1
  ),
)
STAGES = (
  Experiment(MODEL, "autoencoder", **COMMON),
  Experiment(MODEL, "image", **COMMON),
  Experiment(MODEL, "video", **COMMON),
  Experiment(MODEL, "interpolation", **COMMON),
  Experiment(dataclasses.replace(MODEL, fps=16.0), "extension", **COMMON),
)
"""


@functools.cache
def shapes(base):
  """Packed shapes, `images` and `videos`, below a folder that lasts for the session."""
  out = base / "tiny_recipe" / "shapes"
  sizes = ["--size", "16", "--num-images", "8", "--num-clips", "40"]
  command.main(["prepare", "shapes", "--out", str(out), *sizes])
  return out


@functools.cache
def config(base):
  """A config file of five stages, two steps each."""
  clips = shapes(base) / "videos"
  file = base / "tiny_recipe" / "tiny.py"
  file.write_text(CONFIG.format(clips=str(clips)))
  return file


@functools.cache
def trained(base):
  """The runs of the five stages, by the command that users give."""
  runs = base / "tiny_recipe" / "runs"
  with one_device():
    command.main(["run", "--config", str(config(base)), "--out", str(runs)])
  return runs


@contextlib.contextmanager
def one_device():
  """Training on one of the eight devices: what is small compiles and saves faster there."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(command, "make_mesh", lambda config: make_mesh(jax.devices()[:1], config))
    patch.setattr(jax, "device_count", lambda: 1)
    yield


def refusal(main, words, capsys):
  """The one line with which a command refuses bad input; fails where there is more, or less."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as ended:
    main([str(word) for word in words])
  out, line = capsys.readouterr()
  assert ended.value.code == 2, line
  assert line.count("\n") == 1, line
  return line
