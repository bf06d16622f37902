"""Small networks in pixel space for clips of one uniform brightness, by the project's one trainer.

There is nothing to read: the loss draws brightness from the step's key. A clip is told its first
frame beside x_t, with a mask; a direct model is told zeros; a picture with a caption is told which
one. Patches of 2 x 2 pixels are channels, which turns the pixels about and leaves the diffusion as
it is.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from emu_jax.checkpoints.run import latest_step, load_ema
from emu_jax.conditioning import concat_known, first_frame
from emu_jax.config import to_dict
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import to_patches
from emu_jax.models.net import network
from emu_jax.models.temporal import Temporal, TemporalConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.parallel.compilation import Jit
from emu_jax.train.loop import LoopConfig, train
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.stage import Stage
from emu_jax.typing import Conditions, Video
from experiments.artefact import Artefact

PATCH = 2  # pixels on a side
CAPTIONS = {"black": (-1.0, -1.0), "white": (1.0, 1.0), "": (-1.0, 1.0)}  # and their brightness
UNTOLD = list(CAPTIONS).index("")


@dataclasses.dataclass(frozen=True)
class PixelModel:
  """What is trained."""

  schedule: Schedule
  size: int  # pixels on a side
  num_frames: int = 1
  told: bool = False  # the first frame, as a factorized model is
  captioned: bool = False  # a picture, by one of `CAPTIONS`
  channels: tuple[int, ...] = (16, 32, 32)

  @property
  def numbers(self) -> int:
    """Of a clip: what shares one brightness."""
    return self.num_frames * self.size**2 * 3

  @property
  def unet(self) -> UNetConfig:
    levels, pixels = len(self.channels), 3 * PATCH**2
    video = self.num_frames > 1
    told = pixels + 1 if video else len(CAPTIONS) if self.captioned else 0
    return UNetConfig(
      in_channels=pixels,
      out_channels=pixels,
      concat_channels=told,
      channels=self.channels,
      num_res_blocks=(1,) * levels,
      transformer_depth=(0,) * levels,
      mid_depth=0,
      num_heads=1,
      context_dims=(),
      layer_contexts=(),
      norm_groups=4,
      temporal=TemporalConfig(num_layers=1) if video else Temporal(),
    )

  @property
  def shape(self) -> tuple[int, ...]:
    """T H W C of x_t."""
    side = self.size // PATCH
    return self.num_frames, side, side, 3 * PATCH**2

  def init(self, key: jax.Array) -> dict:
    x, net = jnp.zeros((1, *self.shape)), self.unet
    return {"net": net.module().init(key, x, jnp.zeros(1), net.blank(x.shape))["params"]}

  def conditions(
    self, first: Video | None, batch: int, caption: Int[Array, " B"] | None = None
  ) -> Conditions:
    """What the network is told: the first frames of clips, zeros, captions, or nothing."""
    blank = self.unet.blank((batch, *self.shape))
    if self.captioned:
      said = jax.nn.one_hot(caption, len(CAPTIONS))[:, None, None, None]
      return dataclasses.replace(blank, concat=jnp.broadcast_to(said, blank.concat.shape))
    if first is None or not self.told:
      return blank
    return dataclasses.replace(blank, concat=concat_known(first_frame(self.num_frames), first))

  def loss(self, trained, frozen, batch, key, step):
    """Of uniform clips, their brightness drawn from (-1, 1) or as their caption has it."""
    key_brightness, key_loss = jax.random.split(key)
    B = batch["example"].shape[0]
    caption = batch["example"] % len(CAPTIONS) if self.captioned else jnp.full(B, UNTOLD)
    low, high = jnp.array(list(CAPTIONS.values()))[caption].T[..., None, None, None, None]
    brightness = jax.random.uniform(key_brightness, (B, 1, 1, 1, 1), minval=low, maxval=high)
    frames = jnp.broadcast_to(brightness, (B, self.num_frames, self.size, self.size, 3))
    x_0 = to_patches(frames, PATCH)
    net, given = network(self.unet, trained["net"]), self.conditions(x_0[:, :1], B, caption)
    return Discrete(self.schedule).loss(lambda x_t, t: net(x_t, t, given), x_0, key_loss), {}


@functools.partial(Jit, static_argnames=("model", "sampling", "num"))
def sample(
  net, key, first=None, caption=None, *, model: PixelModel, sampling: Sampling, num: int
) -> Video:
  """Clips [B, T, h, w, C] of a trained network, unclipped; `caption` [B] of a captioned model."""
  key_noise, key_steps = jax.random.split(key)
  noise = jax.random.normal(key_noise, (num, *model.shape))
  given, predict = model.conditions(first, num, caption), network(model.unet, net)
  of_x_t = lambda x_t, t: predict(x_t, t, given)
  return Discrete(model.schedule).sample(of_x_t, noise, key_steps, sampling)


class Numbers:
  """Batches that hold no more than the numbers of their examples; the position is a count."""

  def __init__(self, batch_size: int):
    self.batch_size, self.count = batch_size, 0

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    self.count += 1
    return {"example": np.arange(self.batch_size, dtype=np.int32)}

  def get_state(self) -> dict[str, int]:
    return {"count": self.count}

  def set_state(self, state: dict[str, int]) -> None:
    self.count = state["count"]


def run_of(model: PixelModel, num_steps: int, batch_size: int, seed: int) -> Artefact:
  """The run that trains a model."""
  optim = OptimConfig(
    peak_lr=2e-3, warmup_steps=50, decay="cosine", weight_decay=0.0, betas=(0.9, 0.99),
    ema_decay=0.99,
  )  # fmt: skip
  loop = LoopConfig(num_steps=num_steps, log_every=50, save_every=500, keep=1, seed=seed)
  spec = {
    "model": to_dict(model),
    "optim": to_dict(optim),
    "loop": to_dict(loop),
    "batch": batch_size,
  }

  def build(folder: pathlib.Path, parts: tuple[pathlib.Path, ...]) -> bool:
    if (latest_step(folder) or 0) >= num_steps:
      return True
    stage = Stage(init=model.init, frozen={}, loss=model.loss)
    state = train(
      stage, Numbers(batch_size), run_dir=folder, optim=optim, loop=loop, config=json.dumps(spec)
    )
    return int(state.step) >= num_steps

  return Artefact("pixels", spec, (), build)


def averaged(folder: pathlib.Path) -> dict:
  """The averaged weights of a run."""
  return jax.tree.map(jnp.asarray, load_ema(folder)[1]["net"])
