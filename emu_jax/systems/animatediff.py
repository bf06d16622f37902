"""AnimateDiff: an image model becomes a video model by motion modules trained apart from it.

The image model's weights are any fine-tune of the one that the motion modules were trained with;
nothing of it changes. Trees: the image model's, and "temporal".

Source: AnimateDiff, arXiv:2307.04725.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.conditioning import TextFeatures, image_branches, text_conditions
from emu_jax.config import kind, refused
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.guidance import led, rescale, text_guidance
from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.process import Process, Sampling
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.motion import MotionConfig
from emu_jax.models.net import network
from emu_jax.models.unet import UNetConfig
from emu_jax.systems import pipelines
from emu_jax.systems.emu import (
  Emu,
  batch_text,
  batch_without_text,
  check_reads,
  draw_step,
  encode_step,
  encoders,
  image_system,
  picture_scale,
)
from emu_jax.systems.first_stage import decode_step, latent_shape, pixels_or_posterior
from emu_jax.systems.requests import Prompted, guided_by, numbers, refuse_without_effect
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
from emu_jax.systems.text import TextConfig
from emu_jax.trees import merge, partition
from emu_jax.typing import Params, PerExample, Predict, Video
from emu_jax.weights.model import described, load

# What of a public video U-Net is the image model's and what the motion modules'.
TREES = (("temporal_*", "temporal"), ("*", "spatial"))
ANIMATED = {
  "AnimateDiffPipeline": pipelines.Family(),
  "AnimateDiffSDXLPipeline": pipelines.XL,
}


@kind("animatediff")
@dataclasses.dataclass(frozen=True)
class AnimateDiff(System):
  """An image model, its motion modules, and the noise that these were trained with."""

  image: Emu
  motion: MotionConfig = MotionConfig()
  # Linear, unlike the image model's: arXiv:2307.04725, sec. 5 (and its public scheduler).
  process: Process = Discrete(Schedule(kind="linear"))
  num_frames: int = 16  # of a clip
  fps: float = 8.0  # at which its clips are shown; its public pipelines' exports
  guidance: float = 7.5  # scale of the text; source: its public code
  offset_noise: float = 0.0  # share of noise that is alike in all pixels of a frame

  pipelines: ClassVar = dict.fromkeys(ANIMATED, ()) | dict.fromkeys(
    pipelines.TEXT_TO_IMAGE, ("motion_adapter",)
  )

  def __post_init__(self):
    if self.num_frames > self.motion.max_frames:
      raise ValueError(
        f"AnimateDiff: num_frames={self.num_frames} is above motion.max_frames="
        f"{self.motion.max_frames}, the positions that are stored"
      )
    with refused("AnimateDiff: image.preview"):
      self.process.check(self.image.preview)

  @property
  def networks(self) -> Mapping[str, Any]:
    """The image model's, and the motion modules."""
    return {**self.image.networks, "temporal": self.motion}

  @property
  def texts(self) -> tuple[TextConfig, ...]:
    """The image model's."""
    return self.image.text

  @property
  def unet(self) -> UNetConfig:
    """The video U-Net: the image model's layers and the motion modules."""
    return dataclasses.replace(self.image.unet, temporal=self.motion)

  def trees(self) -> Mapping[str, Tree]:
    """The image model's, and the motion modules."""
    temporal = Tree(functools.partial(init_motion, self), (("*", self.image.unet.dtype),))
    return {**self.image.trees(), "temporal": temporal}

  def parts(self) -> Mapping[str, Part]:
    """The image model's, and the motion modules on clips, the image model frozen."""
    image, frozen_text = self.image, dataclasses.replace(self.image, train_text=False)
    motion = Part(
      trains=(("temporal/*", 1.0), ("*", 0.0)),
      reads=(*image.first_stage.trees(), "text", "spatial", "temporal"),
      inputs=clip_inputs(ClipSpec(self.num_frames, self.fps), image.size, multiple=image.multiple),
      texts=image.text,
      loss=functools.partial(motion_loss, self),
      samples=functools.partial(motion_samples, self),
      measures=image.first_stage.measures(),
      encoders=encoders(frozen_text),
    )
    return {**image.parts(), "motion": motion}

  def tasks(self) -> Mapping[str, Task]:
    """Clips of prompts, all frames at once."""
    return {
      "sample": Task(
        SampleClip,
        steps=functools.partial(clip_steps, self),
        arrays=functools.partial(_clip_arrays, self),
        fps=lambda request, names: self.fps,
      )
    }

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Of its one task."""
    return {"sample": SampleClip}

  @classmethod
  def read_pipeline(cls, folder: pathlib.Path, **options: Any) -> Pipeline:
    """A folder of AnimateDiff's own, or an image model's with a motion adapter's.

    Where an adapter is given the betas are its own, since motion modules were trained with others
    than the image model; what the network predicts and all else of the noise is the image model's.

    Raises: InputError where the two do not fit each other, or where the adapter reads more than
      noisy latents (PIA).
    """
    adapter = options.get("motion_adapter")
    return _with_adapter(cls, folder, pathlib.Path(adapter)) if adapter else _whole(cls, folder)


def _whole(cls: type, folder: pathlib.Path) -> Pipeline:
  parts = pipelines.described_parts(folder, ANIMATED)
  system = _system(cls, folder, parts, parts.unet, folder)
  image = dict(pipelines.image_loaders(folder, parts))
  del image["spatial"]

  def loaded(names: Collection[str], reading: Mapping[str, Any]) -> dict[str, Params]:
    trees = pipelines.load_by_name(image, [n for n in names if n in image], reading)
    if {"spatial", "temporal"} & set(names):  # one file holds both
      both = partition(load(folder / "unet", **reading).params, TREES)
      trees |= {name: tree for name, tree in both.items() if name in names}
    return trees

  names = (*image, "spatial", "temporal")
  return Pipeline(system, loaded, names, pipelines.tokenizer_folders(folder, parts))


def _with_adapter(cls: type, folder: pathlib.Path, adapter: pathlib.Path) -> Pipeline:
  parts = pipelines.described_parts(folder, pipelines.TEXT_TO_IMAGE)
  theirs = described(adapter)[1]
  unet = animated(parts.unet, theirs)
  system = _system(cls, folder, parts, unet, adapter, adapted=True)
  loaders = dict(pipelines.image_loaders(folder, parts))
  loaders["temporal"] = lambda reading: {
    name: tree for name, tree in load(adapter, **reading).params.items() if name != "conv_in"
  }
  return Pipeline(
    system,
    functools.partial(pipelines.load_by_name, loaders),
    tuple(loaders),
    pipelines.tokenizer_folders(folder, parts),
  )


def _system(
  cls: type,
  folder: pathlib.Path,
  parts: pipelines.Parts,
  unet: UNetConfig,
  where: pathlib.Path,
  adapted: bool = False,
) -> "AnimateDiff":
  if not isinstance(unet.temporal, MotionConfig):
    raise InputError(f"{where}: holds no motion modules; give AnimateDiff's")
  if unet.concat_channels:
    raise InputError(
      f"{where}: its U-Net reads {unet.concat_channels} channels of a given picture (PIA), which "
      "no command gives it; choose an adapter of AnimateDiff"
    )
  with refused(str(where)):
    image = image_system(Emu, folder, dataclasses.replace(parts, unet=unet.image()))
    return cls(
      image=image,
      motion=unet.temporal,
      process=adapted_process(image.process) if adapted else image.process,
      guidance=image.guidance,
      num_frames=min(16, unet.temporal.max_frames),
    )


def adapted_process(image: Discrete) -> Discrete:
  """The image model's noise, with the betas that motion modules were trained with."""
  linear = Schedule(kind="linear")
  betas = {name: getattr(linear, name) for name in ("kind", "beta_start", "beta_end")}
  return dataclasses.replace(image, schedule=dataclasses.replace(image.schedule, **betas))


def animated(ours: UNetConfig, theirs: UNetConfig) -> UNetConfig:
  """The video U-Net of an image U-Net and a motion adapter.

  An adapter that reads more than the latents (PIA, arXiv:2312.13964) brings the kernel of what it
  reads beside them; of its first convolution the rest stays the image model's.

  Raises: InputError where the two have other widths, blocks or norms.
  """
  for name in ("channels", "num_res_blocks", "norm_groups"):
    if getattr(ours, name) != getattr(theirs, name):
      raise InputError(
        f"animated: the image model has {name}={getattr(ours, name)}, the motion adapter "
        f"{getattr(theirs, name)}; choose an adapter of this image model's family"
      )
  return dataclasses.replace(
    ours,
    temporal=theirs.temporal,
    concat_channels=ours.concat_channels + theirs.concat_channels,
  )


def init_motion(config: AnimateDiff, key: jax.Array) -> Params:
  """Motion modules under which the video model is its image model, frame by frame."""
  shape, net = config.image.latent_shape(1, 2), config.unet
  params = net.module().init(key, jnp.zeros(shape), jnp.zeros(1), net.blank(shape))["params"]
  return partition(params, TREES)["temporal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleClip(Prompted):
  """Generates a video (or, with 1 frame, a picture) from a prompt."""

  picture_guidance: float | None = None
  """how strongly a single picture follows the prompt; None: the model's own"""
  text_guidance: float | None = None
  """how strongly a clip follows the prompt, 1 = no guidance; None: the model's own"""
  frames: int | None = None
  """length, up to the positions that are stored; None: the model's own, that of its training"""


def clip_steps(
  config: AnimateDiff, request: SampleClip, names: Collection[str]
) -> tuple[Step, ...]:
  """Text -> clip, or of one frame text -> picture by the image model."""
  frames = config.num_frames if request.frames is None else request.frames
  if not 1 <= frames <= config.motion.max_frames:
    raise InputError(
      f"sample: frames={frames} cannot be had; this model gives 1 to {config.motion.max_frames}, "
      f"best the {config.num_frames} that it was trained on"
    )
  check_reads(config.image, 0)
  stage = config.image.first_stage
  only = ("text_guidance",) if frames == 1 else ("picture_guidance",)
  refuse_without_effect(request, only, f"on {frames} frame{'s' if frames > 1 else ''}")
  if frames == 1:
    config.image.process.check(request.sampling)
    draw = draw_step(config.image, request)
    return encode_step(config.image), draw, decode_step(stage, request.decode_chunk)
  config.process.check(request.sampling)
  reads = (*stage.trees(), "spatial", "temporal")
  sampling = guided_by(request.sampling, clip_scale(config, request))
  static = (dataclasses.replace(config, num_frames=frames), sampling)
  return (
    encode_step(config.image),
    Step(f"text -> {frames} frames", clip_program, static, reads),
    decode_step(stage, request.decode_chunk),
  )


def clip_scale(config: AnimateDiff, request: SampleClip) -> float:
  """Of a clip's guidance: the request's, or the model's own."""
  return config.guidance if request.text_guidance is None else request.text_guidance


def _clip_arrays(config: AnimateDiff, request: SampleClip) -> Arrays:
  return numbers(
    picture_guidance=picture_scale(config.image, request),
    text_guidance=clip_scale(config, request),
    rescale=request.rescale,
  )


def clip_program(trees: Params, arrays: Arrays, static: tuple[AnimateDiff, Sampling]) -> Arrays:
  """One program: features of prompts to latents of clips."""
  config, sampling = static
  text, empty = arrays["text"], arrays["empty"]
  keys, scale = example_keys(arrays), arrays["text_guidance"]
  latents = sample_clip(
    config, trees, text, empty, keys, scale, arrays["rescale"], sampling=sampling
  )
  return {"latents": latents}


def motion_loss(
  config: AnimateDiff, trees: Params, batch: Mapping[str, Any], key: jax.Array, step: Array
) -> tuple[PerExample, dict[str, Any]]:
  """Loss of the motion modules on clips. Source: arXiv:2307.04725, eq. 4."""
  image = config.image.at_size_of(batch)
  key_encode, key_diffuse = jax.random.split(key)
  latents = image.first_stage.encode(trees, pixels_or_posterior(batch), key_encode)
  conditions = text_conditions(batch_text(image, trees, batch))
  net = network(config.unet, merge(trees["spatial"], trees["temporal"]))
  losses = config.process.loss(
    lambda x_t, t: net(x_t, t, conditions),
    jax.lax.stop_gradient(latents),
    key_diffuse,
    offset_noise=config.offset_noise,
  )
  return losses, {}


def motion_samples(
  config: AnimateDiff,
  trees: Params,
  batch: Mapping[str, Any],
  empty: Mapping[str, Any],
  key: jax.Array,
) -> dict[str, Video]:
  """Clips of a batch's captions, at the size of its frames."""
  config = dataclasses.replace(config, image=config.image.at_size_of(batch))
  text = batch_text(config.image, trees, batch)
  none = batch_without_text(config.image, trees, empty, len(text.texts[0]))
  latents = sample_clip(
    config, trees, text, none, key, config.guidance, sampling=config.image.preview
  )
  return {"motion": config.image.first_stage.decode(trees, latents)}


def denoiser(
  config: AnimateDiff,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  text_scale: float | Float[Array, ""],
  rescaled: float | Float[Array, ""] = 0.0,
  *,
  sampling: Sampling = Sampling(),
) -> Predict:
  """The video U-Net led by prompts: a function of x_t and t."""
  net = network(config.unet, merge(trees["spatial"], trees["temporal"]))
  combine = rescale(text_guidance(text_scale), rescaled)
  return led(net, image_branches(text, empty), combine, config.process, sampling)


def sample_clip(
  config: AnimateDiff,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  text_scale: float | Float[Array, ""],
  rescaled: float | Float[Array, ""] = 0.0,
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, T, H, W, C] of clips of prompts, by text guidance.

  Source: AnimateDiff, arXiv:2307.04725, sec. 4.3; its public code samples with scale 7.5 (8.0 for
    some), DDIM, 25 steps, "leading" times with offset 1.

  Args:
    empty: features of what guidance leads away from: the empty prompt, or a negative one.
    key: one, or one an example.
  """
  key_noise, key_steps = split(key, 2)
  batch, size = text.texts[0].shape[0], config.image.size
  shape = latent_shape(config.image.first_stage, batch, config.num_frames, size)
  predict = denoiser(config, trees, text, empty, text_scale, rescaled, sampling=sampling)
  return config.process.sample(predict, normal(key_noise, shape), key_steps, sampling)
