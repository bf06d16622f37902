"""Emu Video: text -> image -> video -> more frames, with one frozen image model inside.

A model's temporal trees ("temporal", "interpolation", "extension") are trained one after another;
each, merged with "spatial", is one video U-Net. They differ in the frames that they are given
(`KnownFrames`) and in nothing else.

Source: Emu Video, arXiv:2311.10709.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from emu_jax.conditioning import (
  KnownFrames,
  TextFeatures,
  concat_known,
  every_fourth,
  first_frame,
  keeping,
  known_branches,
  past_frames,
  text_conditions,
)
from emu_jax.config import kind, refused
from emu_jax.data import decode as decoding
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.data.user_files import load_clip
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.guidance import emu_video_guidance, led, rescale
from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.process import Process, Sampling
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.net import network
from emu_jax.models.temporal import TemporalConfig
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
  picture_scale,
)
from emu_jax.systems.first_stage import Posterior, decode_step, pixels, pixels_or_posterior
from emu_jax.systems.old_emu_video import upgraded
from emu_jax.systems.requests import (
  Media,
  Prompt,
  Prompted,
  Text,
  frames_of_size,
  numbers,
  pictures,
  refuse_without_effect,
)
from emu_jax.systems.system import Arrays, Part, Step, System, Task, Tree, example_keys
from emu_jax.systems.text import TextConfig
from emu_jax.trees import merge, partition
from emu_jax.typing import Network, Params, PerExample, Video

# What a factorized model trains: all that crosses frames, and the kernel that reads known frames.
TRAINED = (("concat_in/*", "temporal"), ("*temporal_*", "temporal"), ("*", "spatial"))
TemporalTree = Literal["temporal", "interpolation", "extension"]
# Interpolation makes of each frame's time four.
FASTER = 4


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Scales to sample clips with. Source: Emu Video, arXiv:2311.10709, sec. 4."""

  image: float = 2.0  # w_i of text + image -> video, and of interpolation
  text: float = 7.5  # w_p of the same
  # Both scales of interpolation; None: those of the video, as the paper has it.
  interpolation: float | None = None

  @property
  def between(self) -> "Guidance":
    """The scales that interpolation takes, as `image` and `text`."""
    scale = self.interpolation
    return self if scale is None else dataclasses.replace(self, image=scale, text=scale)

  @property
  def scales(self) -> tuple[float, float] | None:
    """w_i and w_p for `sample_video`; None where they are 1, which is no guidance."""
    return None if self.image == self.text == 1 else (self.image, self.text)


@kind("emu_video")
@dataclasses.dataclass(frozen=True)
class EmuVideo(System):
  """An image model and what makes it a video model.

  The image model keeps the noise process that its weights were trained with; the video model has
  one of its own.
  """

  image: Emu
  temporal: TemporalConfig = TemporalConfig()
  # Noise of the video model.
  process: Process = Discrete(Schedule(zero_terminal_snr=True, prediction="v"))
  # Of the noise added to known frames (interpolation); the paper's levels are steps of this one.
  augmentation: Discrete = Discrete()
  guidance: Guidance = Guidance()
  # Of the sampler in interpolation; None: as many as are asked for. Where keys leave little open
  # one step, which is the mean of all that fits, is nearest to what was there (ours: docs/results).
  interpolation_steps: int | None = None
  num_frames: int = 8  # of a clip before interpolation
  fps: float = 4.0  # of a clip before interpolation, which multiplies it by 4
  num_keys: int = 8  # key frames of one interpolation
  num_past: int = 16  # frames that an extension continues, and as many new ones
  offset_noise: float = 0.0  # of the video parts' noise
  # The image part takes first frames of clips instead of any: what p(clip | text) = p(first frame |
  # text) p(clip | first frame, text) asks for. Ours; the paper's pictures are of no clip.
  first_frames: bool = False
  # The part "video" trains the image model's layers too, which Emu Video freezes (to compare).
  train_spatial: bool = False

  def __post_init__(self):
    with refused("EmuVideo: image.preview"):
      self.process.check(self.image.preview)

  @property
  def networks(self) -> Mapping[str, Any]:
    """The image model's."""
    return self.image.networks

  @property
  def texts(self) -> tuple[TextConfig, ...]:
    """The image model's."""
    return self.image.text

  @property
  def unet(self) -> UNetConfig:
    """The video U-Net: the image model's layers, the temporal ones, z + 1 more input channels."""
    channels = self.image.first_stage.channels + 1
    return dataclasses.replace(self.image.unet, temporal=self.temporal, concat_channels=channels)

  def known(self, name: TemporalTree) -> KnownFrames:
    """The frames that the model of a temporal tree is given, in training."""
    return {
      "temporal": first_frame(self.num_frames),
      "interpolation": every_fourth(self.num_keys),
      "extension": past_frames(self.num_past, self.num_past),
    }[name]

  def trees(self) -> Mapping[str, Tree]:
    """The image model's, and three trees of temporal layers."""
    temporal = Tree(functools.partial(init_temporal, self), (("*", self.image.unet.dtype),))
    names = ("temporal", "interpolation", "extension")
    return {**self.image.trees(), **dict.fromkeys(names, temporal)}

  def parts(self) -> Mapping[str, Part]:
    """The image model's, then clips, more frames between them, more frames behind them."""
    parts = dict(self.image.parts())
    begins = self.num_frames if self.first_frames else 1
    pictures = clip_inputs(
      ClipSpec(1, self.fps, begins), self.image.size, multiple=self.image.multiple
    )
    parts["image"] = dataclasses.replace(parts["image"], inputs=pictures)
    return parts | {
      "video": self._part("video", "temporal", self.fps),
      "interpolation": self._part("interpolation", "interpolation", FASTER * self.fps),
      "extension": self._part("extension", "extension", self.fps),
    }

  def _part(self, name: str, tree: TemporalTree, fps: float) -> Part:
    spatial = 1.0 if self.train_spatial and name == "video" else 0.0
    frozen_text = dataclasses.replace(self.image, train_text=False)
    return Part(
      trains=((f"{tree}/*", 1.0), ("spatial/*", spatial), ("*", 0.0)),
      reads=(*self.image.first_stage.trees(), "text", "spatial", tree),
      begins={} if tree == "temporal" else {tree: "temporal"},
      inputs=clip_inputs(
        ClipSpec(self.known(tree).num_frames, fps), self.image.size, multiple=self.image.multiple
      ),
      texts=self.image.text,
      loss=functools.partial(video_loss, self, tree),
      samples=functools.partial(video_samples, self, tree, name),
      measures=self.image.first_stage.measures(),
      encoders=encoders(frozen_text),
    )

  def tasks(self) -> Mapping[str, Task]:
    """Clips of prompts, frames between given ones, frames behind given ones."""
    tasks = {
      "sample": (sample_steps, _sample_arrays, _sample_fps),
      "interpolate": (interpolate_steps, _interpolate_arrays, _faster),
      "extend": (extend_steps, _extend_arrays, lambda config, request, names: config.fps),
    }
    files = {"interpolate": "interpolated", "extend": "extended"}
    return {
      name: Task(
        self.requests()[name],
        *(functools.partial(function, self) for function in functions),
        file=files.get(name, name),
      )
      for name, functions in tasks.items()
    }

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Of its three tasks."""
    return {"sample": Sample, "interpolate": Interpolate, "extend": Extend}

  @classmethod
  def upgraded(cls, values: dict[str, Any], version: int) -> dict[str, Any]:
    """Before version 2 every configuration was one of this system."""
    return upgraded(values) if version < 2 else values

  def write_pipeline(self, model: Any, folder: pathlib.Path, say: Callable[[str], None]) -> None:
    """Its image model as Stable Diffusion's parts."""
    pipelines.write(self.image, model, folder, say)
    if "temporal" in model.trees:
      say("leaving out the temporal layers: they have no public form")


def published_unet(**changes: Any) -> UNetConfig:
  """Emu Video's network of 4.3 B, with changes of its fields.

  Source: arXiv:2311.10709, app. table 1.
  """
  published = UNetConfig(
    in_channels=8,
    out_channels=8,
    concat_channels=9,
    channels=(384, 768, 1536, 1536),
    num_res_blocks=(3, 4, 4, 4),
    transformer_depth=(2, 2, 2, 0),
    mid_depth=2,
    num_heads=0,
    head_dim=64,
    context_dims=(768, 2048),
    layer_contexts=(0, 1),
    linear_projection=True,
    temporal=TemporalConfig(),
  )
  return dataclasses.replace(published, **changes)


def init_temporal(config: EmuVideo, key: jax.Array) -> Params:
  """A temporal tree under which the video model is its image model, frame by frame."""
  shape, net = config.image.latent_shape(1, 2), config.unet
  params = net.module().init(key, jnp.zeros(shape), jnp.zeros(1), net.blank(shape))["params"]
  return partition(params, TRAINED)["temporal"]


def vectors(config: EmuVideo, noise_level: Float[Array, "B"]) -> dict[str, Array]:
  """The vector conditions: the time index of the known frames' noise, where the network asks."""
  return {"noise_level": noise_level} if config.temporal.noise_level else {}


def video_network(config: EmuVideo, trees: Params, name: TemporalTree = "temporal") -> Network:
  """The video U-Net with the temporal tree `name`: a function of x_t, t and conditions."""
  return network(config.unet, merge(trees["spatial"], trees[name]))


def augmented(
  config: EmuVideo, known: KnownFrames, latents: Video, level: Float[Array, "B"], key: jax.Array
) -> Video:
  """Known frames with the noise of a level, for models that were trained with it.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 (interpolation).
  """
  if not known.max_noise:
    return latents
  return config.augmentation.noised(latents, level, key)


def video_loss(
  config: EmuVideo,
  name: TemporalTree,
  trees: Params,
  batch: Mapping[str, Any],
  key: jax.Array,
  step: Array,
) -> tuple[PerExample, dict[str, Any]]:
  """Loss of the temporal tree `name` on a batch of clips, or of what was encoded of them ahead.

  Source: Emu Video, arXiv:2311.10709, sec. 3.1 and 3.2.
  """
  frames = pixels_or_posterior(batch)
  text = batch_text(config.image.at_size_of(batch), trees, batch)
  dropped = batch["image_dropped"]
  return clip_loss(config, config.known(name), name, trees, frames, text, dropped, key), {}


def clip_loss(
  config: EmuVideo,
  known: KnownFrames,
  name: TemporalTree,
  trees: Params,
  frames: Video | Posterior,
  text: TextFeatures,
  dropped: Array,
  key: jax.Array,
) -> PerExample:
  """`video_loss` of frames and features.

  Args:
    frames: pixels in [-1, 1] of `known.num_frames` frames, or what was encoded of them ahead.
    dropped: bool [B], True where the known frames are withheld, mask and latents both.
  """
  if frames.shape[1] != known.num_frames:
    raise ValueError(
      f"video_loss: clips have {frames.shape[1]} frames, the mask is for {known.num_frames}"
    )
  key_encode, key_level, key_noise, key_diffuse = jax.random.split(key, 4)
  latents = jax.lax.stop_gradient(config.image.first_stage.encode(trees, frames, key_encode))
  level = jax.random.randint(key_level, frames.shape[:1], 0, known.max_noise + 1).astype(
    jnp.float32
  )
  given = latents[:, jnp.asarray(known.positions)]
  concat = concat_known(known, augmented(config, known, given, level, key_noise), dropped)
  conditions = text_conditions(text, concat, vectors(config, level))
  net = video_network(config, trees, name)
  return config.process.loss(
    lambda x_t, t: net(x_t, t, conditions),
    latents,
    key_diffuse,
    offset_noise=config.offset_noise,
  )


def video_samples(
  config: EmuVideo,
  name: TemporalTree,
  title: str,
  trees: Params,
  batch: Mapping[str, Any],
  empty: Mapping[str, Any],
  key: jax.Array,
) -> dict[str, Video]:
  """The real clip beside the model's, which is given the real clip's known frames.

  Of a clip encoded ahead its reconstruction stands there.
  """
  image, known = config.image.at_size_of(batch), config.known(name)
  clip, text = pixels_or_posterior(batch), batch_text(image, trees, batch)
  none = batch_without_text(image, trees, empty, clip.shape[0])
  frames = jax.tree.map(lambda a: a[:, jnp.asarray(known.positions)], clip)
  given = image.first_stage.encode(trees, frames)
  guidance = config.guidance.between if name == "interpolation" else config.guidance
  latents = sample_video(
    config, known, name, trees, given, text, none, key, guidance.scales, sampling=image.preview
  )
  decoded = image.first_stage.decode(trees, latents)
  real = clip
  if isinstance(clip, Posterior):
    real = image.first_stage.decode(trees, image.first_stage.encode(trees, clip))
  return {title: jnp.concatenate([real, decoded], axis=3)}


def sample_video(
  config: EmuVideo,
  known: KnownFrames,
  name: TemporalTree,
  trees: Params,
  given: Float[Array, "B K H W C"],
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  scales: tuple[float | Float[Array, ""], float | Float[Array, ""]] | None,
  rescaled: float | Float[Array, ""] = 0.0,
  *,
  sampling: Sampling,
  noise_level: int | None = None,
  keep: bool = False,
) -> Video:
  """Normalised latents [B, T, H, W, C] of clips with the latents `given` at the known frames.

  With `name` "temporal" and the first frame: text + image -> video. With "interpolation" and every
  fourth frame: 8 -> 37 frames. With "extension" and the past 16: 16 more, by another prompt.

  Source: Emu Video, arXiv:2311.10709, eq. 1 and sec. 3.2, with scales 2.0 and 7.5.

  Args:
    key: one, or one an example.
    scales: w_i and w_p; None: both are 1, for which X(I, p) alone is computed, a third of the work.
    rescaled: share of arXiv:2305.08891, sec. 3.4.
    noise_level: time index of the noise added to `given` where the model was trained with noise;
      the paper samples with 100. None: that, or 0 with `keep`, which says that they are right.
    keep: whether the known frames come out as they are `given`; else the model draws them anew.
  """
  key_noise, key_augment, key_steps = split(key, 3)
  B = given.shape[0]
  if noise_level is None:
    noise_level = 0 if keep else 100
  level = jnp.full(B, float(min(noise_level, known.max_noise)))
  concat = concat_known(known, augmented(config, known, given, level, key_augment))
  net = video_network(config, trees, name)
  branches = known_branches(text, empty, concat, vectors(config, level))
  combine = rescale(emu_video_guidance(*(scales or (1.0, 1.0))), rescaled)
  sampling = dataclasses.replace(sampling, guided=sampling.guided and scales is not None)
  predict = led(net, branches, combine, config.process, sampling)
  if keep:
    predict = keeping(predict, config.process, known, given)
  noise = normal(key_noise, (B, known.num_frames, *given.shape[2:]))
  return config.process.sample(predict, noise, key_steps, sampling)


# What is kept of the first and of the second 37 frames.
SEAMS = {
  "gapless": (slice(4, -1), slice(4, None)),
  "published": (slice(None, -5), slice(4, None)),
}


def join_interpolated(
  first: Float[Array, "B 37 H W C"],
  second: Float[Array, "B 37 H W C"],
  rule: Literal["gapless", "published"] = "gapless",
) -> Float[Array, "B 65 H W C"]:
  """One clip of 65 frames from two of 37, interpolated from keys 0..7 and 8..15 of 16.

  With key k at tick 4 k the first covers ticks -4..32 and the second 28..64. "gapless" keeps ticks
  0..31 and 32..64, all keys among them; "published" drops the last 5 frames of the first and the
  first 4 of the second, which are ticks -4..27 and 32..64: as many frames, with a jump of 5 ticks
  at the seam and without key 7.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 ("published"); "gapless" is ours.
  """
  of_first, of_second = SEAMS[rule]
  return jnp.concatenate([first[:, of_first], second[:, of_second]], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided(Prompted):
  """A request for frames that follow given frames and a prompt."""

  image_guidance: float | None = None
  """how closely a video follows the frames it is given, 1 = no guidance; None: the model's own"""
  text_guidance: float | None = None
  """how strongly it follows the prompt, 1 = no guidance; None: the model's own"""

  def guidance(self, usual: Guidance) -> Guidance:
    """The model's scales, with those that were given in their place."""
    given = {"image": self.image_guidance, "text": self.text_guidance}
    given = {name: scale for name, scale in given.items() if scale is not None}
    if given:  # what is asked for goes before the model's own
      given["interpolation"] = None
    return dataclasses.replace(usual, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Between(Guided):
  """A request for frames between others and around them."""

  seam: Literal["gapless", "published"] = "gapless"
  """how two interpolated parts are joined: without a gap, or as the paper did"""
  interpolation_steps: int | None = None
  """steps that add frames; None: the model's own, else those of the rest"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Between):
  """Generates a video (or, with 1 frame, a picture) from a prompt."""

  image: Media | None = None
  """picture to begin with, its central part; without it the model draws one from the prompt"""
  picture_guidance: float | None = None
  """how strongly a picture drawn follows the prompt; None: the model's own"""
  frames: int | None = None
  """length: 1, the model's own, or interpolated from it at four times its rate; None: the model's
  own, 1 of an image model"""
  keep_keys: bool = False
  """leave the frames that others are added to as they were drawn; else they are drawn once more
  with the others, as in the paper, since a frame drawn by other steps stands out"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolate(Between):
  """Raises the frame rate of a clip fourfold: 8 of its frames become 37, or 16 become 65."""

  clip: Annotated[Media, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
  """video file; its first frames at the model's rate are the key frames"""
  prompt: Text = ""
  """what it shows"""
  frames: int | None = None
  """key frames to take; None: those of one interpolation"""
  keep_keys: bool = True
  """leave the frames that others are added to as they are; the paper draws them anew"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extend(Guided):
  """Continues a clip: its last frames, and a new prompt, lead to as many frames more."""

  clip: Annotated[Media, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
  """video file, long enough, at the model's rate; its last frames are continued"""
  prompt: Prompt
  """what happens next"""


def lengths(config: EmuVideo) -> dict[int, tuple[int, int]]:
  """Frames that can be had -> frames of the clip before, and parts that are interpolated of it.

  A clip may be as long as in training, or of as many frames as an interpolation takes, or twice
  that. Of k keys an interpolation makes 4 k + 5 frames, and two of them, joined, 8 k + 1.
  """
  k = config.num_keys
  clips = {n for n in (config.num_frames, k, 2 * k) if n <= config.num_frames}
  found = {1: (1, 0)} | {n: (n, 0) for n in sorted(clips)}
  if k in clips:
    found[FASTER * k + 5] = (k, 1)
  if 2 * k in clips:
    found[2 * FASTER * k + 1] = (2 * k, 2)
  return found


def requested_frames(config: EmuVideo, request: Sample, names: Collection[str]) -> int:
  """Frames of a request; where it says none those of a training clip, 1 of an image model."""
  usual = config.num_frames if "temporal" in names else 1
  return usual if request.frames is None else request.frames


def _sample_fps(config: EmuVideo, request: Sample, names: Collection[str]) -> float:
  frames = requested_frames(config, request, names)
  return config.fps * (FASTER if lengths(config).get(frames, (0, 0))[1] else 1)


def _faster(config: EmuVideo, request: Between, names: Collection[str]) -> float:
  return FASTER * config.fps


@dataclasses.dataclass(frozen=True)
class Clip:
  """What the program of a temporal tree depends on.

  Attributes:
    known: the frames that it is given.
    guided: whether any scale differs from 1.
    keep: whether the given frames come out as they are.
    key: which of the keys that an example's key is split into, and into how many; None: itself.
  """

  config: EmuVideo
  name: TemporalTree
  known: KnownFrames
  sampling: Sampling
  guided: bool
  keep: bool = False
  key: tuple[int, int] | None = None


def sample_steps(config: EmuVideo, request: Sample, names: Collection[str]) -> tuple[Step, ...]:
  """Text -> picture (or the given one) -> video -> more frames.

  Raises: InputError for a length that the model cannot give, ValueError for a sampler that does not
    fit its schedules.
  """
  frames = requested_frames(config, request, names)
  possible = lengths(config)
  if frames not in possible:
    raise InputError(
      f"sample: frames={frames} cannot be had of a model trained on {config.num_frames}; choose "
      f"one of {', '.join(map(str, possible))}"
    )
  clip_frames, parts = possible[frames]
  check_effects(request, frames, parts)
  stage = config.image.first_stage
  if request.image is None:
    check_reads(config.image, 0)
    config.image.process.check(request.sampling)
    begins = draw_step(config.image, request)
  else:
    begins = Step("pixels -> latents", encode_picture, config, tuple(stage.trees()))
  steps = [encode_step(config.image), begins]
  if frames > 1:
    config.process.check(request.sampling)
    guided = request.guidance(config.guidance).scales is not None
    static = Clip(
      config, "temporal", first_frame(clip_frames), request.sampling, guided, key=(1, 3)
    )
    steps.append(_clip_step(f"image + text -> {clip_frames} frames", static, clip_program))
  steps += between_steps(config, request, parts, request.keep_keys, of_key=(2, 3))
  return (*steps, decode_step(stage, request.decode_chunk))


def check_effects(request: Sample, frames: int, parts: int) -> None:
  """Raises ValueError for what a request sets and what it asks for does not read."""
  if request.image is not None:
    if frames == 1:
      raise ValueError(
        "image with 1 frame would come back as it is, whatever the prompt; ask for a clip, or "
        "change a picture with a model that has the task edit"
      )
    refuse_without_effect(request, ("picture_guidance",), "where a picture is given")
  if frames == 1:
    refuse_without_effect(request, ("image_guidance", "text_guidance"), "on a single picture")
  if not parts:
    refuse_without_effect(
      request, ("keep_keys", "interpolation_steps"), f"on {frames} frames, none of them between"
    )
  if parts < 2:
    refuse_without_effect(request, ("seam",), f"on {frames} frames, which have none")


def between_steps(
  config: EmuVideo, request: Between, parts: int, keep: bool, of_key: tuple[int, int] | None
) -> list[Step]:
  """Frames between the keys "latents", `num_keys` of them at a time, joined.

  Keys are kept where they are pictures of something. Those that the model drew go through the same
  network, steps and decoder as the frames between them: frames of one clip that were made in two
  ways differ in colour, and the clip pulses at every fourth. Source: Emu Video, arXiv:2311.10709,
  sec. 3.2, for keys that are drawn anew; that pictures are kept is ours.
  """
  if not parts:
    return []
  given = (request.interpolation_steps, config.interpolation_steps, request.steps)
  steps = next(number for number in given if number is not None)
  if steps < 1:
    raise InputError(f"interpolation: interpolation_steps={steps}; give 1 or more")
  sampling = dataclasses.replace(request.sampling, num_steps=steps)
  config.process.check(sampling)
  guided = request.guidance(config.guidance).between.scales is not None
  static = Clip(
    config, "interpolation", every_fourth(config.num_keys), sampling, guided,
    keep=keep, key=of_key,
  )  # fmt: skip
  made = [
    _clip_step(
      f"{config.num_keys} -> {static.known.num_frames} frames, part {i + 1} of {parts}",
      BetweenPart(static, i, parts),
      between_program,
    )
    for i in range(parts)
  ]
  return [*made, Step("joining the parts", join_program, (parts, request.seam))]


@dataclasses.dataclass(frozen=True)
class BetweenPart:
  """One of several interpolations."""

  clip: Clip
  index: int
  parts: int


def _clip_step(says: str, static: Clip | BetweenPart, program: Callable) -> Step:
  clip = static.clip if isinstance(static, BetweenPart) else static
  trees = clip.config.image.first_stage.trees()
  return Step(says, program, static, (*trees, "spatial", clip.name))


def encode_picture(trees: Params, arrays: Arrays, static: EmuVideo) -> Arrays:
  """One program: a given picture or clip to latents."""
  return {"latents": static.image.first_stage.encode(trees, pixels(arrays["given"]))}


def clip_program(trees: Params, arrays: Arrays, static: Clip) -> Arrays:
  """One program: "latents" of the known frames to those of the whole clip."""
  return {"latents": _clip_latents(trees, arrays, static, arrays["latents"], _key(arrays, static))}


def between_program(trees: Params, arrays: Arrays, static: BetweenPart) -> Arrays:
  """One program: one part's keys of "latents" to "part_<index>"."""
  clip, n = static.clip, static.clip.config.num_keys
  keys = split(_key(arrays, clip), static.parts)
  given = arrays["latents"][:, n * static.index : n * (static.index + 1)]
  made = _clip_latents(trees, arrays, clip, given, keys[static.index], "between")
  return {f"part_{static.index}": made}


def join_program(trees: Params, arrays: Arrays, static: tuple[int, str]) -> Arrays:
  """One program: parts to one clip."""
  parts, seam = static
  if parts == 1:
    return {"latents": arrays["part_0"]}
  return {"latents": join_interpolated(arrays["part_0"], arrays["part_1"], seam)}


def _key(arrays: Arrays, static: Clip) -> jax.Array:
  keys = example_keys(arrays)
  return keys if static.key is None else split(keys, static.key[1])[static.key[0]]


def _clip_latents(
  trees: Params,
  arrays: Arrays,
  static: Clip,
  given: Float[Array, "B K H W C"],
  key: jax.Array,
  scales: str = "video",
) -> Video:
  return sample_video(
    static.config,
    static.known,
    static.name,
    trees,
    given,
    arrays["text"],
    arrays["empty"],
    key,
    arrays[f"{scales}_scales"] if static.guided else None,
    arrays["rescale"],
    sampling=static.sampling,
    keep=static.keep,
  )


def interpolate_steps(
  config: EmuVideo, request: Interpolate, names: Collection[str]
) -> tuple[Step, ...]:
  """Frames between the frames of a given clip, which stay as they are with `keep_keys`."""
  stage, parts = config.image.first_stage, _parts(config, request)
  last = decode_step(stage, request.decode_chunk)
  steps = [
    encode_step(config.image),
    Step("pixels -> latents", encode_picture, config, tuple(stage.trees())),
    *between_steps(config, request, parts, request.keep_keys, of_key=None),
    last,
  ]
  if request.keep_keys:
    where = keys_at(config.num_keys, parts, request.seam)
    steps.append(Step("keys as given", keep_program, tuple(where.tolist())))
  return tuple(steps)


def _parts(config: EmuVideo, request: Interpolate) -> int:
  n = config.num_keys
  given = request.clip
  frames = n if request.frames is None else request.frames
  if not isinstance(given, str | pathlib.Path):
    frames = frames_of_size(given, config.image.size, "interpolate").shape[1]
  if frames not in (n, 2 * n):
    raise InputError(
      f"interpolate: {frames} key frames; give {n} of them, or {2 * n}, which the model takes"
    )
  return frames // n


def keep_program(trees: Params, arrays: Arrays, static: tuple[int, ...]) -> Arrays:
  """One program: given frames in the places of the keys; what the decoder makes of them is less."""
  keys = np.asarray(static)
  where = np.flatnonzero(keys >= 0)
  return {"frames": arrays["frames"].at[:, where].set(arrays["given"][:, keys[where]])}


def keys_at(num_keys: int, parts: int, seam: str) -> np.ndarray:
  """Which key each frame is, [4 k + 5] of one part or [8 k + 1] of two; -1 between keys.

  The published seam leaves the last key of the first part out (`join_interpolated`).
  """
  known = every_fourth(num_keys)
  each = np.full((parts, known.num_frames), -1)
  each[:, list(known.positions)] = np.arange(num_keys * parts).reshape(parts, num_keys)
  if parts == 1:
    return each[0]
  return np.concatenate([part[kept] for part, kept in zip(each, SEAMS[seam], strict=True)])


def extend_steps(config: EmuVideo, request: Extend, names: Collection[str]) -> tuple[Step, ...]:
  """The clip with more frames that follow another prompt and its last frames.

  Source: Emu Video, arXiv:2311.10709, sec. 4.3; the wiring is ours (`past_frames`).
  """
  config.process.check(request.sampling)
  stage, known = config.image.first_stage, config.known("extension")
  guided = request.guidance(config.guidance).scales is not None
  static = Clip(config, "extension", known, request.sampling, guided)
  says = f"{config.num_past} -> {known.num_frames} frames"
  return (
    encode_step(config.image),
    Step("pixels -> latents", encode_past, config, tuple(stage.trees())),
    _clip_step(says, static, clip_program),
    Step("new frames", drop_past, config.num_past),
    decode_step(stage, request.decode_chunk),
    Step("clip and new frames", append_program),
  )


def encode_past(trees: Params, arrays: Arrays, static: EmuVideo) -> Arrays:
  """One program: the last frames of a given clip to latents."""
  past = pixels(arrays["given"][:, -static.num_past :])
  return {"latents": static.image.first_stage.encode(trees, past)}


def drop_past(trees: Params, arrays: Arrays, static: int) -> Arrays:
  """One program: what follows the given frames."""
  return {"latents": arrays["latents"][:, static:]}


def append_program(trees: Params, arrays: Arrays, static: None) -> Arrays:
  """One program: the given clip, then the new frames."""
  return {"frames": jnp.concatenate([arrays["given"], arrays["frames"]], axis=1)}


def _scales(config: EmuVideo, request: Guided) -> Arrays:
  guidance = request.guidance(config.guidance)
  pair = lambda g: (jnp.float32(g.image), jnp.float32(g.text))
  return {"video_scales": pair(guidance), "between_scales": pair(guidance.between)}


def _sample_arrays(config: EmuVideo, request: Sample) -> Arrays:
  scale = picture_scale(config.image, request)
  arrays = _scales(config, request) | numbers(picture_guidance=scale, rescale=request.rescale)
  if request.image is not None:
    arrays["given"] = pictures(request.image, config.image.size, "sample")
  return arrays


def _interpolate_arrays(config: EmuVideo, request: Interpolate) -> Arrays:
  given, size = request.clip, config.image.size
  if isinstance(given, str | pathlib.Path):
    frames = config.num_keys * _parts(config, request)
    given = load_clip(given, ClipSpec(frames, config.fps), size)[None]
  given = frames_of_size(given, size, "interpolate")
  return _scales(config, request) | numbers(rescale=request.rescale) | {"given": given}


def _extend_arrays(config: EmuVideo, request: Extend) -> Arrays:
  given, size, least = request.clip, config.image.size, config.num_past
  if isinstance(given, str | pathlib.Path):
    given = _whole_clip(pathlib.Path(given), least, config.fps, size)[None]
  given = frames_of_size(given, size, "extend")
  if given.shape[1] < least:
    raise InputError(
      f"extend: the clip has {given.shape[1]} frames, the model continues from the last {least}; "
      "give a longer one"
    )
  return _scales(config, request) | numbers(rescale=request.rescale) | {"given": given}


def _whole_clip(clip: pathlib.Path, least: int, fps: float, size: tuple[int, int]) -> np.ndarray:
  """All frames of a file at a rate; InputError for less than `least`."""
  num_frames = least
  if not decoding.is_picture(clip):
    line = decoding.timeline(clip)
    num_frames = max(least, decoding.fitting_frames(line, min(fps, line.fps)))
  return load_clip(clip, ClipSpec(num_frames, fps), size)
