"""Stable Video Diffusion: a picture becomes a clip.

The U-Net receives the picture twice: as the one vector of an image encoder in the place of a text,
and as the latents of the slightly noised picture, the same for every frame, beside x_t. Three
numbers tell it how fast and how much things move, and how much noise the picture has.

The parts train the same two trees one after another. They differ in the noise that they train on,
in what they read (pictures or clips) and in the data and size that a recipe gives them.

Source: Stable Video Diffusion, arXiv:2311.15127, sec. 3.1, 4.3 and app. D.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import tyro
from einops import repeat
from jaxtyping import Array, Bool, Float

from emu_jax.config import kind, refused
from emu_jax.data.inputs import ClipSpec, Inputs, clip_inputs
from emu_jax.data.motion import MOTION
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.guidance import frame_guidance, led
from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import per_example
from emu_jax.errors import InputError
from emu_jax.models.net import network
from emu_jax.models.unet import UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVision, ClipVisionConfig, squeezed_pixels
from emu_jax.systems import pipelines, scheduler_files
from emu_jax.systems.autoencoder import (
  AutoencoderObjective,
  autoencoder_part,
  discriminator_tree,
)
from emu_jax.systems.first_stage import (
  FRAMES_AT_A_TIME,
  KlAutoencoder,
  decode_step,
  frame_size,
  latent_shape,
  pixel_multiple,
  pixels,
)
from emu_jax.systems.requests import Media, Seeded, guided_by, numbers, pictures
from emu_jax.systems.system import (
  Arrays,
  Part,
  Pipeline,
  Step,
  System,
  Task,
  Tree,
  example_keys,
)
from emu_jax.typing import Conditions, Params, PerExample, Video
from emu_jax.weights.model import described, load

PIPELINE = "StableVideoDiffusionPipeline"
MICRO = 3  # micro-conditions: frames a second less one, motion bucket, the picture's noise
MAX_BUCKET = 255.0
# Mean and deviation of the log of the noise's standard deviation that training adds to a picture.
# Source: arXiv:2311.15127, app. D.3.
AUGMENTATION = (-3.0, 0.5)
LogNormal = tuple[float, float]  # mean and standard deviation of log sigma

# What makes a video model of the U-Net's image model: layers over frames, and what reads the
# picture's latents and the micro-conditions.
OVER_FRAMES = ("unet/*temporal_*", "unet/concat_in/*", "unet/micro/*")


@kind("svd")
@dataclasses.dataclass(frozen=True)
class StableVideo(System):
  """An image-to-video model: networks, noise of each part, sizes and what is said of motion.

  Defaults: the public image-to-video model of 25 frames.
  """

  unet: UNetConfig
  first_stage: KlAutoencoder = KlAutoencoder()
  vision: ClipVisionConfig = ClipVisionConfig()
  process: Edm = Edm()  # its log_mean and log_std are replaced by those of a part
  size: tuple[int, int] = (576, 1024)  # height and width, pixels
  num_frames: int = 25  # of a clip
  # Of sampling, as the public model: arXiv:2311.15127, sec. 4.3, and its published code.
  fps: float = 7.0
  motion: float = 127.0  # bucket, 0 to 255
  augmentation: float = 0.02  # standard deviation of the picture's noise, of pixels in [-1, 1]
  first_guidance: float = 1.0  # scale of the first frame; it grows evenly to the last one's
  last_guidance: float = 3.0  # scale of the last frame; they grow along a line
  # Of training. Log-normal noise of each part: app. D.1 (pictures) and D.3 (image to video).
  image_noise: LogNormal = (-1.2, 1.0)
  video_noise: LogNormal = (0.7, 1.6)  # mean and spread of log sigma, video pretraining
  high_resolution_noise: LogNormal = (1.0, 1.6)  # the same at high resolution
  high_quality_noise: LogNormal = (1.0, 1.6)  # the same for fine-tuning
  rates: tuple[float, ...] = (7.0,)  # frames/s of training clips; of several one is drawn
  motion_scale: float = 1.0  # bucket = "motion" of a record times this, at most 255
  # Of the clips' parts: the whole U-Net (the paper's), or its layers over frames and what reads
  # conditions (as Video LDM, arXiv:2304.08818).
  train: Literal["all", "temporal"] = "all"
  train_vision: bool = False  # the image encoder trains along, where it begins from nothing
  objective: AutoencoderObjective = AutoencoderObjective()
  offset_noise: float = 0.0  # share of noise that is alike in all pixels of a frame
  preview: Sampling = Sampling("euler", 25)  # of samples that are drawn while training

  pipelines: ClassVar = {PIPELINE: ()}

  def __post_init__(self):
    z, unet = self.first_stage.channels, self.unet
    if {unet.in_channels, unet.out_channels, unet.concat_channels} != {z}:
      raise ValueError(
        f"StableVideo: unet.in_channels={unet.in_channels}, unet.out_channels={unet.out_channels} "
        f"and unet.concat_channels={unet.concat_channels} must all be the first stage's "
        f"channels={z}"
      )
    if unet.context_dims != (self.vision.projection_dim,):
      raise ValueError(
        f"StableVideo: unet.context_dims={unet.context_dims} must be vision.projection_dim="
        f"{self.vision.projection_dim} alone"
      )
    if unet.num_micro != MICRO:
      raise ValueError(
        f"StableVideo: unet.num_micro={unet.num_micro} must be {MICRO}: rate, motion and noise"
      )
    height, width = self.multiple
    if self.size[0] % height or self.size[1] % width:
      raise ValueError(
        f"StableVideo: size={self.size[0]}x{self.size[1]} pixels must be multiples of "
        f"{height}x{width}: the first stage's factor {self.first_stage.downsample} times the "
        "U-Net's"
      )
    if self.num_frames < 1 or not self.rates or min(self.fps, *self.rates) < 1:
      raise ValueError(
        f"StableVideo: num_frames={self.num_frames}, fps={self.fps} and every one of rates="
        f"{self.rates} must be at least 1; the network receives the rate less one"
      )
    if not 0 <= self.motion <= MAX_BUCKET or self.augmentation < 0 or self.motion_scale <= 0:
      raise ValueError(
        f"StableVideo: motion={self.motion} must be 0 to {MAX_BUCKET:g}, augmentation="
        f"{self.augmentation} at least 0 and motion_scale={self.motion_scale} above 0"
      )
    if self.train not in ("all", "temporal"):
      raise ValueError(f"StableVideo: train={self.train!r} is neither 'all' nor 'temporal'")
    for name in ("image_noise", "video_noise", "high_resolution_noise", "high_quality_noise"):
      if getattr(self, name)[1] <= 0:
        raise ValueError(
          f"StableVideo: {name}={getattr(self, name)} is mean and deviation of log sigma; the "
          "deviation must be above 0"
        )
    self.process.check(self.preview)

  @property
  def multiple(self) -> tuple[int, int]:
    """Of what height and width in pixels must be multiples."""
    return pixel_multiple(self.first_stage, self.unet)

  def at_size_of(self, batch: Mapping[str, Any]) -> "StableVideo":
    """The model at the size of a batch's frames."""
    return dataclasses.replace(self, size=frame_size(self.first_stage, batch))

  def latent_shape(self, batch: int, num_frames: int) -> tuple[int, int, int, int, int]:
    """B T h w C of the latents of frames of its own size."""
    return latent_shape(self.first_stage, batch, num_frames, self.size)

  @property
  def networks(self) -> Mapping[str, Any]:
    """Its networks, and what the U-Net says at a level of noise."""
    says = {name: getattr(self.process, name) for name in ("prediction", "data_std")}
    nets = {"autoencoder": self.first_stage.config, "vision": self.vision, "unet": self.unet}
    return nets | {"process": says}

  def trees(self) -> Mapping[str, Tree]:
    """The first stage's, "vision" (the image encoder) and "unet"."""
    return {
      "discriminator": discriminator_tree(self.objective.discriminator),
      **self.first_stage.trees(),
      "vision": Tree(functools.partial(init_vision, self), (("*", self.vision.dtype),)),
      "unet": Tree(functools.partial(init_unet, self), (("*", self.unet.dtype),)),
    }

  def parts(self) -> Mapping[str, Part]:
    """The autoencoder, the image model, clips, and two kinds of fine-tuning on clips.

    Source: arXiv:2311.15127, sec. 3.1: images, pretraining on many clips at low resolution, tuning
      on few of high quality at high resolution; all layers train (sec. 4.1).
    """
    autoencoder = autoencoder_part(self.first_stage.config, self.objective, self.size)
    frozen = tuple((glob, 0.0) for glob in OVER_FRAMES)
    image = self._part(
      (*frozen, ("unet/*", 1.0), *self._vision_rate),
      clip_inputs(ClipSpec(1, 1.0), self.size, multiple=self.multiple),
      functools.partial(image_loss, self),
      functools.partial(image_samples, self),
    )
    over_frames = tuple((glob, 1.0) for glob in OVER_FRAMES)
    rates = {
      "all": (*over_frames, ("unet/*", 1.0), *self._vision_rate),
      "temporal": (*over_frames, ("*", 0.0)),
    }[self.train]
    noises = {
      "video": self.video_noise,
      "high_resolution": self.high_resolution_noise,
      "high_quality": self.high_quality_noise,
    }
    clip = ClipSpec(self.num_frames, self.rates)
    clips = {
      name: self._part(
        rates,
        clip_inputs(clip, self.size, multiple=self.multiple, numbers=(MOTION,)),
        functools.partial(clip_loss, self, noise),
        functools.partial(clip_samples, self, name),
      )
      for name, noise in noises.items()
    }
    return {"autoencoder": autoencoder, "image": image, **clips}

  @property
  def _vision_rate(self) -> tuple[tuple[str, float], ...]:
    return (("vision/*", 1.0 if self.train_vision else 0.0), ("*", 0.0))

  def _part(
    self, trains: tuple[tuple[str, float], ...], inputs: Inputs, loss: Callable, samples: Callable
  ) -> Part:
    return Part(
      trains=trains,
      reads=(*self.first_stage.trees(), "vision", "unet"),
      inputs=inputs,
      loss=loss,
      samples=samples,
      measures=self.first_stage.measures(),
    )

  def tasks(self) -> Mapping[str, Task]:
    """A picture set in motion."""
    return {
      "animate": Task(
        Animate,
        steps=functools.partial(animate_steps, self),
        arrays=functools.partial(_animate_arrays, self),
        fps=lambda request, names: self.fps if request.fps is None else request.fps,
        file="animated",
      )
    }

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Of its one task."""
    return {"animate": Animate}

  @classmethod
  def read_pipeline(cls, folder: pathlib.Path, **options: Any) -> Pipeline:
    """The public folder of Stable Video Diffusion, of 14 or 25 frames."""
    names = {"unet": "unet", "autoencoder": "vae", "vision": "image_encoder"}
    unet, autoencoder, vision = (described(folder / name)[1] for name in names.values())
    process = scheduler_files.read_edm(folder / "scheduler")
    if not isinstance(unet, UNetConfig) or not isinstance(unet.temporal, VideoLdmConfig):
      raise InputError(f"{folder / 'unet'}: is no U-Net of Stable Video Diffusion; give its own")
    with refused(str(folder)):
      system = cls(
        unet=unet,
        first_stage=KlAutoencoder(autoencoder),
        vision=vision,
        process=process,
        num_frames=unet.temporal.num_frames,
      )
    loaders = {
      tree: lambda reading, name=name: load(folder / name, **reading).params
      for tree, name in names.items()
    }
    loaders["latents"] = lambda reading: pipelines.constant_statistics(autoencoder)
    return Pipeline(system, functools.partial(pipelines.load_by_name, loaders), tuple(loaders))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animate(Seeded):
  """Turns a picture into a clip by Stable Video Diffusion."""

  picture: Annotated[Media, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
  """file; its middle is cut to the clip's shape"""
  frames: int | None = None
  """length; None: that of the model's training clips"""
  height: int | None = None
  """in pixels, a multiple of 64 for the public models; None: that of the model's training clips"""
  width: int | None = None
  """in pixels, likewise"""
  fps: float | None = None
  """frames a second of the file, which the model hears of, 1 or more; None: the model's own"""
  motion: float | None = None
  """how much moves, 0 to 255; None: the model's own"""
  noise: float | None = None
  """standard deviation of what is added to the picture, of pixels in [-1, 1]; more lets the clip
  leave it; None: the model's own"""
  first_guidance: float | None = None
  """scale of the first frame, 1 = no guidance; it grows evenly to the last one's; None: the model's
  own"""
  last_guidance: float | None = None
  """scale of the last frame; None: the model's own"""
  steps: int = 25
  """network evaluations, 1 or more; "heun" takes two for each"""
  solver: Literal["euler", "heun"] = "euler"
  """of Euler, or Heun's, which needs fewer steps"""
  decode_chunk: int = FRAMES_AT_A_TIME
  """frames decoded at a time; fewer need less memory"""

  def __post_init__(self):
    super().__post_init__()
    if self.fps is not None and self.fps < 1:
      raise InputError(f"fps={self.fps:g} is below 1 frame a second; give 1 or more")
    if self.motion is not None and not 0 <= self.motion <= MAX_BUCKET:
      raise InputError(f"motion={self.motion:g} is not from 0 to {MAX_BUCKET:g}")
    if self.noise is not None and self.noise < 0:
      raise InputError(f"noise={self.noise:g} is negative; 0 = none")
    frames = 1 if self.frames is None else self.frames
    if min(frames, self.steps, self.decode_chunk) < 1:
      raise InputError(
        f"{frames} frames, {self.steps} steps and chunks of {self.decode_chunk} must all "
        "be at least 1"
      )

  @property
  def sampling(self) -> Sampling:
    """How the sampling run is discretised."""
    return Sampling(self.solver, self.steps)


def requested_size(config: StableVideo, request: Animate) -> tuple[int, int]:
  """Height and width of a request's clip.

  Raises: InputError for a size that the networks cannot halve as often as they do.
  """
  requested = (request.height, request.width)
  height, width = (o if a is None else a for a, o in zip(requested, config.size, strict=True))
  of_height, of_width = config.multiple
  if min(height, width) < 1 or height % of_height or width % of_width:
    raise InputError(
      f"animate: {height}x{width} pixels; height and width must be multiples of "
      f"{of_height}x{of_width}, such as {config.size[0]}x{config.size[1]}"
    )
  return height, width


def animate_steps(
  config: StableVideo, request: Animate, names: Collection[str]
) -> tuple[Step, ...]:
  """Picture to latents to pixels."""
  size = requested_size(config, request)
  frames = config.num_frames if request.frames is None else request.frames
  sampling = guided_by(request.sampling, *guidance_scales(config, request))
  config.process.check(sampling)
  config, stage = dataclasses.replace(config, size=size, num_frames=frames), config.first_stage
  reads = (*stage.trees(), "vision", "unet")
  return (
    Step(f"picture -> {frames} frames", animate, (config, sampling), reads),
    decode_step(stage, request.decode_chunk),
  )


def guidance_scales(config: StableVideo, request: Animate) -> tuple[float, float]:
  """Of the first and of the last frame: the request's, or the model's own."""
  first, last = request.first_guidance, request.last_guidance
  return (
    config.first_guidance if first is None else first,
    config.last_guidance if last is None else last,
  )


def _animate_arrays(config: StableVideo, request: Animate) -> Arrays:
  usual = {
    "fps": config.fps,
    "motion": config.motion,
    "noise": config.augmentation,
  }
  first, last = guidance_scales(config, request)
  requested = {name: getattr(request, name) for name in usual}
  picture = pictures(request.picture, requested_size(config, request), "animate")
  values = {name: usual[name] if value is None else value for name, value in requested.items()}
  return numbers(**values, first_guidance=first, last_guidance=last) | {"picture": picture}


def animate(trees: Params, arrays: Arrays, static: tuple[StableVideo, Sampling]) -> Arrays:
  """One program: "picture" to "latents" of a clip."""
  config, sampling = static
  key_picture, key_noise = split(example_keys(arrays), 2)
  given = pixels(arrays["picture"])
  each = [jnp.full(given.shape[0], arrays[name]) for name in ("fps", "motion", "noise")]
  picture = encode_picture(config, trees, given, *each, key_picture)
  noise = normal(key_noise, config.latent_shape(given.shape[0], config.num_frames))
  scales = arrays["first_guidance"], arrays["last_guidance"]
  return {"latents": sample_latents(config, trees, picture, noise, *scales, sampling=sampling)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picture:
  """A batch of pictures as the network receives them; see `Conditions` for the annotations."""

  embedding: Any  # [B, L, D] of the image encoder; Stable Video Diffusion has L = 1
  latents: Any  # [B, 1, h, w, C] of the noised picture, as the autoencoder gives them: not scaled
  micro: Any  # [B, 3], of `micro_conditions`

  def conditions(self, num_frames: int, dropped: Bool[Array, "B"] | None = None) -> Conditions:
    """For clips of so many frames; where `dropped`, embedding and latents are both zero."""
    latents = repeat(self.latents, "B 1 ... -> B T ...", T=num_frames)
    embedding, latents = (withheld(a, dropped) for a in (self.embedding, latents))
    return Conditions((embedding,), concat=latents, vectors={"micro": self.micro})


def withheld(x: Float[Array, "B *D"], dropped: Bool[Array, "B"] | None) -> Float[Array, "B *D"]:
  """Zeros where `dropped`."""
  return x if dropped is None else jnp.where(dropped.reshape((-1,) + (1,) * (x.ndim - 1)), 0.0, x)


def micro_conditions(fps: PerExample, motion: PerExample, noise: PerExample) -> Float[Array, "B 3"]:
  """Frames a second *less one*, motion bucket, standard deviation of the picture's noise.

  Source: Stable Video Diffusion, as released: fps 7, bucket 127 of 0..255, noise 0.02.
  """
  return jnp.stack([fps - 1, motion, noise], axis=-1).astype(jnp.float32)


def motion_bucket(config: StableVideo, motion: PerExample) -> PerExample:
  """The bucket, 0 to 255, of a record's "motion", in percent of the shorter side a second.

  Source: ours. That of the public model is of optical flow, by a rule that is not published.
  """
  return jnp.clip(motion * config.motion_scale, 0.0, MAX_BUCKET)


def noised_picture(
  picture: Float[Array, "B 1 H W 3"], strength: PerExample, key: jax.Array
) -> Float[Array, "B 1 H W 3"]:
  """A picture in [-1, 1] with noise of standard deviation `strength`: what is to be encoded.

  Args:
    key: one, or one an example.
  """
  return picture + per_example(strength, picture) * normal(key, picture.shape)


def training_strength(key: jax.Array, batch: int) -> PerExample:
  """Standard deviations of the picture's noise. Source: arXiv:2311.15127, app. D.3."""
  mean, std = AUGMENTATION
  return jnp.exp(mean + std * jax.random.normal(key, (batch,)))


def embedding_of(
  config: StableVideo, trees: Params, picture: Float[Array, "B 1 H W 3"]
) -> Float[Array, "B 1 D"]:
  """The image encoder's one vector of each picture in [-1, 1]."""
  small = squeezed_pixels(picture[:, 0], config.vision.image_size)
  return ClipVision(config.vision).apply({"params": trees["vision"]}, small)[:, None]


def encode_picture(
  config: StableVideo,
  trees: Params,
  picture: Float[Array, "B 1 H W 3"],
  fps: PerExample,
  motion: PerExample,
  noise: PerExample,
  key: jax.Array,
) -> Picture:
  """What the U-Net receives of pictures in [-1, 1].

  The image encoder sees the clean picture, the autoencoder the noised one, of which the mean is
  taken; neither by the latents' statistics (arXiv:2311.15127, app. D.3, and its published code).

  Args:
    motion: bucket, 0 to 255.
    noise: standard deviation of the noise.
    key: one, or one an example.
  """
  posterior = config.first_stage.posterior(trees, noised_picture(picture, noise, key))
  latents = jax.lax.stop_gradient(posterior.mean.astype(jnp.float32))
  embedding = embedding_of(config, trees, picture)
  return Picture(embedding, latents, micro_conditions(fps, motion, noise))


def process_of(config: StableVideo, noise: LogNormal) -> Edm:
  """The process with the training noise of a part."""
  mean, std = noise
  return dataclasses.replace(config.process, log_mean=mean, log_std=std)


def image_unet(config: StableVideo) -> UNetConfig:
  """The U-Net of single pictures: no layers over frames, no picture beside x_t.

  Its tree is a part of "unet"; what else is there neither acts nor gets a gradient.
  """
  return config.unet.image()


def image_loss(
  config: StableVideo, trees: Params, batch: Mapping[str, Any], key: jax.Array, step: Array
) -> tuple[PerExample, dict[str, Any]]:
  """Loss of the image model on single pictures, given each one's embedding.

  Source: arXiv:2311.15127, app. D.1 (noise).
  Differs: the paper's image model reads text; with the picture's own vector in its place, as in the
    image-to-video model, an image encoder can be trained along from nothing.
  """
  key_encode, key_diffuse = jax.random.split(key)
  picture = pixels(batch["frames"])
  latents = jax.lax.stop_gradient(config.first_stage.encode(trees, picture, key_encode))
  conditions = image_conditions(config, trees, picture, batch["image_dropped"])
  net = network(image_unet(config), trees["unet"])
  losses = process_of(config, config.image_noise).loss(
    lambda x_t, t: net(x_t, t, conditions),
    latents,
    key_diffuse,
    offset_noise=config.offset_noise,
  )
  return losses, {}


def image_conditions(
  config: StableVideo,
  trees: Params,
  picture: Float[Array, "B 1 H W 3"],
  dropped: Bool[Array, "B"] | None = None,
) -> Conditions:
  """What the image model receives: a picture's vector, and zeros for rate, motion and noise."""
  embedding = withheld(embedding_of(config, trees, picture), dropped)
  return Conditions((embedding,), vectors={"micro": jnp.zeros((picture.shape[0], MICRO))})


def clip_loss(
  config: StableVideo,
  noise: LogNormal,
  trees: Params,
  batch: Mapping[str, Any],
  key: jax.Array,
  step: Array,
) -> tuple[PerExample, dict[str, Any]]:
  """Loss of the image-to-video model on clips, given the first frame of each.

  Source: arXiv:2311.15127, sec. 4.3 and app. D.3.

  Args:
    noise: mean and deviation of log sigma.
    batch: with "frames", "fps", "motion" and "image_dropped": where it is True, the picture's
      vector and latents are both withheld.
  """
  key_encode, key_strength, key_picture, key_diffuse = jax.random.split(key, 4)
  clip = pixels(batch["frames"])
  strength = training_strength(key_strength, clip.shape[0])
  picture = clip_picture(config, trees, batch, strength, key_picture)
  latents = jax.lax.stop_gradient(config.first_stage.encode(trees, clip, key_encode))
  conditions = picture.conditions(clip.shape[1], batch["image_dropped"])
  net = network(config.unet, trees["unet"])
  losses = process_of(config, noise).loss(
    lambda x_t, t: net(x_t, t, conditions),
    latents,
    key_diffuse,
    offset_noise=config.offset_noise,
  )
  return losses, {}


def clip_picture(
  config: StableVideo,
  trees: Params,
  batch: Mapping[str, Any],
  strength: PerExample,
  key: jax.Array,
) -> Picture:
  """The first frame of each clip of a batch, with the clip's rate and motion.

  Raises: InputError where the batch has no "motion".
  """
  if MOTION not in batch:
    raise InputError(
      f"StableVideo: the batch has no number {MOTION!r}; pack records that have one, such as those "
      "of `emu-train prepare shapes`"
    )
  first, motion = pixels(batch["frames"][:, :1]), motion_bucket(config, batch[MOTION])
  return encode_picture(config, trees, first, batch["fps"], motion, strength, key)


def image_samples(
  config: StableVideo,
  trees: Params,
  batch: Mapping[str, Any],
  empty: Mapping[str, Any],
  key: jax.Array,
) -> dict[str, Video]:
  """Pictures beside others that the model makes of their vectors."""
  del empty  # it reads no text
  config, picture = config.at_size_of(batch), pixels(batch["frames"])
  net = network(image_unet(config), trees["unet"])
  conditions = image_conditions(config, trees, picture)
  noise = normal(key, config.latent_shape(picture.shape[0], 1))
  made = config.process.sample(lambda x_t, t: net(x_t, t, conditions), noise, None, config.preview)
  return {"image": jnp.concatenate([picture, config.first_stage.decode(trees, made)], axis=3)}


def clip_samples(
  config: StableVideo,
  name: str,
  trees: Params,
  batch: Mapping[str, Any],
  empty: Mapping[str, Any],
  key: jax.Array,
) -> dict[str, Video]:
  """The real clip beside the model's, given the first frame, the rate and the motion."""
  del empty
  key_picture, key_noise = split(key, 2)
  config, clip = config.at_size_of(batch), pixels(batch["frames"])
  B, T = clip.shape[:2]
  strength = jnp.full(B, config.augmentation)
  picture = clip_picture(config, trees, batch, strength, key_picture)
  noise = normal(key_noise, config.latent_shape(B, T))
  scales = config.first_guidance, config.last_guidance
  made = sample_latents(config, trees, picture, noise, *scales, sampling=config.preview)
  return {name: jnp.concatenate([clip, config.first_stage.decode(trees, made)], axis=3)}


def sample_latents(
  config: StableVideo,
  trees: Params,
  picture: Picture,
  noise: Video,
  first_scale: float | Float[Array, ""],
  last_scale: float | Float[Array, ""],
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents of clips from unit noise; guidance grows from the first frame to the last.

  Source: Stable Video Diffusion, as released: scales 1.0 to 3.0, 25 steps of Euler.
  """
  B, T = noise.shape[:2]
  branches = picture.conditions(T, jnp.ones(B, bool)), picture.conditions(T)
  net = network(config.unet, trees["unet"])
  combine = frame_guidance(first_scale, last_scale)
  predict = led(net, branches, combine, config.process, sampling)
  return config.process.sample(predict, noise, None, sampling)


def init_vision(config: StableVideo, key: jax.Array) -> Params:
  """The image encoder's tree."""
  side = config.vision.image_size
  return ClipVision(config.vision).init(key, jnp.zeros((1, side, side, 3)))["params"]


def init_unet(config: StableVideo, key: jax.Array) -> Params:
  """The U-Net's tree, under which the video model is its image model, frame by frame."""
  shape, net = config.latent_shape(1, 2), config.unet
  return net.module().init(key, jnp.zeros(shape), jnp.zeros(1), net.blank(shape))["params"]
