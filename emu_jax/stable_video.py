"""Stable Video Diffusion in memory: from a picture's bytes to a clip's, one jitted program."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from emu_jax import public
from emu_jax.config import refused
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from emu_jax.models.vision import ClipVision, ClipVisionConfig, svd_pixels
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.mesh import on
from emu_jax.pipeline import Frames, Given, to_bytes
from emu_jax.systems.svd import (
  Picture,
  SvdConfig,
  SvdSampling,
  micro_conditions,
  noised_picture,
  sample_video,
)
from emu_jax.typing import Params
from emu_jax.weights.files import read_json
from emu_jax.weights.model import Precision, load

PIPELINE = "StableVideoDiffusionPipeline"
HEIGHT, WIDTH = 576, 1024  # of the public release's training clips


@dataclasses.dataclass(frozen=True)
class Motion:
  """What the network is told of motion, and how guidance grows. Defaults: its public release.

  Raises: InputError for numbers that have no meaning.
  """

  fps: float = 7.0  # frames a second
  bucket: float = 127.0  # 0 to 255: how much moves
  noise: float = 0.02  # standard deviation of what is added to the picture, of pixels in [-1, 1]
  first_guidance: float = 1.0  # of the first frame
  last_guidance: float = 3.0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not math.isfinite(value):
        raise InputError(f"motion: {name}={value} is not a number; give one")
    if self.fps < 1 or self.bucket < 0 or self.noise < 0:
      raise InputError(
        f"motion: fps={self.fps:g}, bucket={self.bucket:g} and noise={self.noise:g} must be at "
        "least 1, 0 and 0"
      )


@dataclasses.dataclass(frozen=True)
class Nets:
  """Configurations of the three networks; hashable, static under jit."""

  svd: SvdConfig
  autoencoder: AutoencoderConfig
  vision: ClipVisionConfig


@dataclasses.dataclass(frozen=True)
class StableVideo:
  """Stable Video Diffusion with its encoders; make one with `load_stable_video`."""

  nets: Nets
  trees: Params  # "unet", "autoencoder", "vision"
  num_frames: int  # of its training clips
  where: str
  mesh: Mesh | None = None  # None: one device

  def check_size(self, height: int, width: int) -> None:
    """Raises InputError for a picture that its networks cannot halve as often as they do."""
    factor = self.nets.autoencoder.downsample * self.nets.svd.unet.downsample
    if height < factor or width < factor or height % factor or width % factor:
      raise InputError(
        f"animate: {height}x{width} pixels; height and width must be multiples of {factor}, such "
        f"as {HEIGHT}x{WIDTH}"
      )

  def animate(
    self,
    pictures: Given,
    seed: int,
    motion: Motion = Motion(),
    sampling: SvdSampling = SvdSampling(),
    chunk: int = 8,
  ) -> Frames:
    """Clips [B, T, H, W, 3] that begin with pictures [B, 1, H, W, 3].

    Args:
      chunk: frames decoded at a time.
    Raises: InputError for a size or a length that the model cannot give.
    """
    self.check_size(*pictures.shape[2:4])
    if sampling.num_frames < 1 or sampling.num_steps < 1 or chunk < 1:
      raise InputError(
        f"animate: {sampling.num_frames} frames, {sampling.num_steps} steps and chunks of {chunk} "
        "must all be at least 1"
      )
    numbers = {k: jnp.float32(v) for k, v in dataclasses.asdict(motion).items()}
    inputs = self.trees, jnp.asarray(pictures), jax.random.key(seed), numbers
    with on(self.mesh):
      return np.asarray(_animate(*inputs, nets=self.nets, sampling=sampling, chunk=chunk))


@functools.partial(Jit, static_argnames=("nets", "sampling", "chunk"))
def _animate(trees, pictures, key, motion, *, nets: Nets, sampling: SvdSampling, chunk: int):
  key_picture, key_clip = jax.random.split(key)
  pixels = pictures.astype(jnp.float32) / 127.5 - 1
  each = {name: jnp.full(len(pictures), value) for name, value in motion.items()}
  picture = described(nets, trees, pixels, each, key_picture)
  scales = motion["first_guidance"], motion["last_guidance"]

  def decode(z):
    return Autoencoder(nets.autoencoder).apply({"params": trees["autoencoder"]}, z, method="decode")

  return to_bytes(
    sample_video(
      nets.svd, trees, picture, key_clip, *scales, decode=decode, sampling=sampling, chunk=chunk
    )
  )


def described(
  nets: Nets, trees: Params, pixels: Float[Array, "B 1 H W 3"], motion: dict, key: jax.Array
) -> Picture:
  """What the U-Net is told of pictures in [-1, 1].

  Args:
    motion: of each picture, [B]: "fps", "bucket" and "noise" of `Motion`.
  """
  small = svd_pixels(pixels[:, 0], nets.vision.image_size)
  embedding = ClipVision(nets.vision).apply({"params": trees["vision"]}, small)
  latents, _ = Autoencoder(nets.autoencoder).apply(
    {"params": trees["autoencoder"]}, noised_picture(pixels, motion["noise"], key), method="encode"
  )
  micro = micro_conditions(motion["fps"], motion["bucket"], motion["noise"])
  return Picture(embedding[:, None], latents, micro)


def load_stable_video(
  folder: str | pathlib.Path,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
) -> StableVideo:
  """Stable Video Diffusion of a diffusers folder.

  Args:
    dtype, widen, mesh: as `emu_jax.weights.load` takes them; the mesh is also sampled on.
  Raises: InputError where the folder is another pipeline, or a part of it cannot be read.
  """
  folder, how = pathlib.Path(folder), {"dtype": dtype, "widen": widen, "mesh": mesh}
  kind = read_json(folder / public.INDEX).get("_class_name")
  if kind != PIPELINE:
    raise InputError(
      f"{folder / public.INDEX}: _class_name={kind!r} cannot animate a picture; {PIPELINE} can"
    )
  parts = {"unet": "unet", "autoencoder": "vae", "vision": "image_encoder"}
  loaded = {name: load(folder / part, **how) for name, part in parts.items()}
  configs = {name: one.module.config for name, one in loaded.items()}
  with refused(str(folder)):
    config = SvdConfig(
      configs["unet"], public.load_edm(folder / "scheduler"), configs["autoencoder"].latent_scale
    )
  nets = Nets(config, configs["autoencoder"], configs["vision"])
  trees = {name: one.params for name, one in loaded.items()}
  num_frames = configs["unet"].temporal.num_frames
  return StableVideo(nets, trees, num_frames, str(folder), mesh)
