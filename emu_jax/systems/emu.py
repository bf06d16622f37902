"""Emu: an adversarially trained autoencoder and a text-to-image diffusion model in its latents.

Source: Emu, arXiv:2309.15807. With other values of the same configuration it is Stable Diffusion.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.conditioning import TextFeatures, image_branches, text_conditions
from emu_jax.config import kind, refused, to_dict
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.guidance import led, rescale, text_guidance
from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.process import Process, Sampling
from emu_jax.errors import InputError
from emu_jax.models.net import network
from emu_jax.models.unet import UNetConfig
from emu_jax.systems import pipelines
from emu_jax.systems.autoencoder import (
  AutoencoderObjective,
  autoencoder_part,
  discriminator_tree,
)
from emu_jax.systems.first_stage import (
  FirstStage,
  KlAutoencoder,
  decode_step,
  flat,
  frame_size,
  latent_shape,
  pixel_multiple,
  pixels_or_posterior,
)
from emu_jax.systems.requests import Prompted, guided_by, numbers
from emu_jax.systems.system import (
  Encoder,
  Part,
  Pipeline,
  Step,
  System,
  Task,
  Tree,
  example_keys,
)
from emu_jax.systems.text import (
  TextConfig,
  encode_text,
  pooled_dim,
  repeated,
  stored_features,
  text_tree,
)
from emu_jax.typing import Params, PerExample, Video

SIZES = 6  # SDXL's micro-conditions: original size, crop corner and target size, height and width


@kind("emu")
@dataclasses.dataclass(frozen=True)
class Emu(System):
  """A text-to-image model: its networks, its noise, the size of its pictures, how it trains."""

  unet: UNetConfig
  text: tuple[TextConfig, ...]  # encoders whose features the network attends to
  first_stage: FirstStage = KlAutoencoder()  # between pixels and what diffuses
  process: Process = Discrete()  # scaled-linear with epsilon: Stable Diffusion's and Emu's
  size: tuple[int, int] = (512, 512)  # height and width, pixels
  zero_empty: bool = False  # guidance leads away from zeros, not from the empty prompt: SDXL
  guidance: float = 7.5  # scale of the text; source: Emu Video, arXiv:2311.10709, sec. 4
  # Training of the autoencoder, and of the image model.
  objective: AutoencoderObjective = AutoencoderObjective()
  train_text: bool = False  # the text encoders train along with the image model
  offset_noise: float = 0.0  # Emu: 0.02 late in pretraining, 0.1 in quality-tuning
  preview: Sampling = Sampling(num_steps=25)  # of samples that are drawn while training

  pipelines: ClassVar = dict.fromkeys(pipelines.TEXT_TO_IMAGE, ())

  def __post_init__(self):
    z, widths = self.first_stage.channels, tuple(t.width for t in self.text)
    if (self.unet.in_channels, self.unet.out_channels) != (z, z):
      raise ValueError(
        f"Emu: unet.in_channels={self.unet.in_channels} and unet.out_channels="
        f"{self.unet.out_channels} must both be the first stage's channels={z}"
      )
    if self.unet.context_dims not in (widths, (sum(widths),)):
      raise ValueError(
        f"Emu: unet.context_dims={self.unet.context_dims} must be the widths {widths} of the "
        "text encoders, or their sum"
      )
    if self.unet.num_micro not in (0, SIZES):
      raise ValueError(
        f"Emu: unet.num_micro={self.unet.num_micro} must be 0, or {SIZES} for SDXL's sizes"
      )
    if self.unet.pooled_dim and self.unet.pooled_dim != pooled_dim(self.text[-1]):
      raise ValueError(
        f"Emu: unet.pooled_dim={self.unet.pooled_dim} must be projection_dim="
        f"{pooled_dim(self.text[-1])} of the last text encoder"
      )
    height, width = self.multiple
    if self.size[0] % height or self.size[1] % width:
      raise ValueError(
        f"Emu: size={self.size[0]}x{self.size[1]} pixels must be multiples of {height}x{width}: "
        f"the first stage's factor {self.first_stage.downsample} times the U-Net's"
      )
    with refused("Emu: preview"):
      self.process.check(self.preview)

  @property
  def networks(self) -> Mapping[str, Any]:
    """Its networks, and the noise that the U-Net was trained with."""
    stage = self.first_stage
    found = {"autoencoder": stage.config} if isinstance(stage, KlAutoencoder) else {}
    found |= {f"text/{i}": encoder for i, encoder in enumerate(self.text)}
    schedule = getattr(self.process, "schedule", self.process)
    guided = {"zero_empty": self.zero_empty}
    return found | {"spatial": self.unet, "schedule": schedule, "guidance": guided}

  @property
  def texts(self) -> tuple[TextConfig, ...]:
    """Its text encoders."""
    return self.text

  @property
  def multiple(self) -> tuple[int, int]:
    """Of what height and width in pixels must be multiples."""
    return pixel_multiple(self.first_stage, self.unet)

  def at_size_of(self, batch: Mapping[str, Any]) -> "Emu":
    """The model at the size of a batch's frames: that of its latents, and what SDXL reads of it."""
    return dataclasses.replace(self, size=frame_size(self.first_stage, batch))

  def latent_shape(self, batch: int, num_frames: int = 1) -> tuple[int, int, int, int, int]:
    """B T h w C of the latents of frames of its own size."""
    return latent_shape(self.first_stage, batch, num_frames, self.size)

  def trees(self) -> Mapping[str, Tree]:
    """The first stage's, "text" and "spatial", the image U-Net."""
    critic = {}
    if isinstance(self.first_stage, KlAutoencoder):
      critic = {"discriminator": discriminator_tree(self.objective.discriminator)}
    spatial = Tree(functools.partial(init_spatial, self), (("*", self.unet.dtype),))
    return {**critic, **self.first_stage.trees(), "text": text_tree(self.text), "spatial": spatial}

  def parts(self) -> Mapping[str, Part]:
    """The autoencoder, and the image model on its latents."""
    parts = {}
    if isinstance(self.first_stage, KlAutoencoder):
      config = self.first_stage.config
      parts["autoencoder"] = autoencoder_part(config, self.objective, self.size)
    text_rate = 1.0 if self.train_text else 0.0
    parts["image"] = Part(
      trains=(("spatial/*", 1.0), ("text/*", text_rate), ("*", 0.0)),
      reads=(*self.first_stage.trees(), "text", "spatial"),
      inputs=clip_inputs(ClipSpec(1, 1.0), self.size, multiple=self.multiple),
      texts=self.text,
      loss=functools.partial(image_loss, self),
      samples=functools.partial(image_samples, self),
      measures=self.first_stage.measures(),
      encoders=encoders(self),
    )
    return parts

  def tasks(self) -> Mapping[str, Task]:
    """Pictures of prompts."""
    return {
      "sample": Task(
        DrawPicture,
        steps=functools.partial(picture_steps, self),
        arrays=functools.partial(_picture_arrays, self),
        fps=lambda request, names: 1.0,
        suffix=".png",
      )
    }

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Of its one task."""
    return {"sample": DrawPicture}

  @classmethod
  def read_pipeline(cls, folder: pathlib.Path, **options: Any) -> Pipeline:
    """Stable Diffusion's folders: 1, 2, XL, inpainting, upscaler."""
    return pipelines.read(folder, pipelines.TEXT_TO_IMAGE, functools.partial(image_system, cls))

  def write_pipeline(self, model: Any, folder: pathlib.Path, say: Callable[[str], None]) -> None:
    """A folder that diffusers' StableDiffusionPipeline reads."""
    pipelines.write(self, model, folder, say)


def image_system(cls: type, folder: pathlib.Path, parts: pipelines.Parts) -> Emu:
  """An image model of what the folders of a pipeline's parts describe."""
  zero_empty = parts.index.get("force_zeros_for_empty_prompt", parts.family.zero_empty)
  return cls(
    first_stage=KlAutoencoder(parts.autoencoder),
    text=parts.texts,
    unet=parts.unet,
    process=pipelines.read_process(folder, parts),
    size=pipelines.picture_size(folder, parts.autoencoder),
    zero_empty=bool(zero_empty),
    guidance=parts.family.guidance,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawPicture(Prompted):
  """Generates a picture from a prompt."""

  picture_guidance: float | None = None
  """how strongly the picture follows the prompt, 1 = no guidance; None: the model's own"""
  frames: int | None = None
  """length: 1, since this model draws pictures"""


def check_reads(config: Emu, channels: int) -> None:
  """Raises InputError where the image model does not read so many channels beside x_t."""
  unet = config.unet
  if unet.concat_channels == channels and not unet.num_classes:
    return
  given = f"{unet.concat_channels} channels of a given picture" + (
    " and its noise level" if unet.num_classes else ""
  )
  raise InputError(
    f"sample: the image model reads {given}; give one that reads prompts alone, or change a "
    "picture with emu-jax edit"
  )


def picture_steps(config: Emu, request: DrawPicture, names: Collection[str]) -> tuple[Step, ...]:
  """Text to latents to pixels."""
  if request.frames not in (None, 1):
    raise InputError(
      f"sample: frames={request.frames} cannot be had; this model draws pictures of 1 frame"
    )
  check_reads(config, 0)
  config.process.check(request.sampling)
  return (
    encode_step(config),
    draw_step(config, request),
    decode_step(config.first_stage, request.decode_chunk),
  )


def encode_step(config: Emu) -> Step:
  """Leaves "text" and "empty" (`encode_prompts`), which all programs behind it read."""
  return Step("prompts -> features", encode_prompts, config, ("text",))


def encode_prompts(trees: Params, arrays: Mapping[str, Any], static: Emu) -> dict[str, Any]:
  """One program: features of the prompts, and of what guidance leads away from."""
  text, negative = (text_features(static, trees, *arrays[n]) for n in ("prompt", "negative"))
  return {"text": text, "empty": without_text(static, negative, arrays["blank"])}


def draw_step(config: Emu, request: Any) -> Step:
  """Leaves "latents" of a picture of each prompt; the request has `picture_guidance`.

  `encode_step` goes before it.
  """
  sampling = guided_by(request.sampling, picture_scale(config, request))
  reads = (*config.first_stage.trees(), "spatial")
  return Step("text -> image", draw, (config, sampling), reads)


def picture_scale(config: Emu, request: Any) -> float:
  """Of a picture's guidance: the request's `picture_guidance`, or the model's own."""
  return config.guidance if request.picture_guidance is None else request.picture_guidance


def _picture_arrays(config: Emu, request: DrawPicture) -> dict[str, Array]:
  return numbers(picture_guidance=picture_scale(config, request), rescale=request.rescale)


def draw(trees: Params, arrays: Mapping[str, Any], static: tuple[Emu, Sampling]) -> dict[str, Any]:
  """One program: features of prompts to latents of pictures."""
  config, sampling = static
  key, *_ = split(example_keys(arrays), 3)
  scale, rescaled = arrays["picture_guidance"], arrays["rescale"]
  text, empty = arrays["text"], arrays["empty"]
  latents = sample_image(config, trees, text, empty, key, scale, rescaled, sampling=sampling)
  return {"latents": latents}


def text_features(
  config: Emu,
  trees: Params,
  tokens: tuple[Int[Array, "B _"], ...],
  masks: tuple[Bool[Array, "B _"], ...],
) -> TextFeatures:
  """What the image model reads of a batch of prompts.

  SDXL (arXiv:2307.01952, sec. 2.1, 2.2) reads its two encoders' features side by side, the pooled
  output of the second, and sizes: here those of a whole picture of the model's own size.
  """
  text = encode_text(config.text, trees, tokens, masks, pooled=config.unet.pooled_dim > 0)
  texts, seen, vectors = text.texts, text.masks, dict(text.vectors)
  if config.unet.context_dims != tuple(t.width for t in config.text):
    texts, seen = (jnp.concatenate(texts, axis=-1),), (None,)
  if config.unet.num_micro:
    sizes = (*config.size, 0, 0, *config.size)  # of the original, corner of the crop, of the target
    vectors["micro"] = jnp.tile(jnp.array(sizes, jnp.float32), (len(tokens[0]), 1))
  return TextFeatures(texts, seen, vectors)


def batch_text(config: Emu, trees: Params, batch: Mapping[str, Any]) -> TextFeatures:
  """What the network reads of a batch's captions, be they tokens or features."""
  if "text" in batch:
    return stored_features(batch["text"])
  return text_features(config, trees, batch["tokens"], batch["masks"])


def batch_without_text(
  config: Emu, trees: Params, empty: Mapping[str, Any], n: int
) -> TextFeatures:
  """What guidance leads away from in samples that are drawn while training, n times."""
  return without_text(config, batch_text(config, trees, repeated(empty, n)), True)


def encoders(config: Emu) -> Mapping[str, Encoder]:
  """What of a batch may be encoded ahead: frames, and captions unless their encoders train."""
  if config.train_text:
    return config.first_stage.encoders()
  fields = {"text": to_dict(config.text)}
  read = {name: getattr(config.unet, name) for name in ("context_dims", "pooled_dim", "num_micro")}
  if config.unet.num_micro:
    read["size"] = config.size  # of which the micro-conditions tell
  captions = Encoder(
    ("text",),
    lambda trees, words: text_features(config, trees, *words),
    flat(fields, "captions") | flat(read, "unet"),
  )
  return {**config.first_stage.encoders(), "captions": captions}


def without_text(
  config: Emu, negative: TextFeatures, blank: bool | Bool[Array, "B"]
) -> TextFeatures:
  """What guidance leads away from: a negative prompt, or where it is `blank` no text at all.

  That is the empty prompt's features, or zeros in a model with `zero_empty`.
  """
  if not config.zero_empty:
    return negative
  keep = jnp.where(blank, 0.0, 1.0)
  kept = lambda a: a * keep.reshape(keep.shape + (1,) * (a.ndim - keep.ndim))
  vectors = {
    name: kept(value) if name == "pooled" else value for name, value in negative.vectors.items()
  }
  return TextFeatures(tuple(map(kept, negative.texts)), negative.masks, vectors)


def init_spatial(config: Emu, key: jax.Array) -> Params:
  """The image U-Net's tree."""
  shape = config.latent_shape(1)
  net = config.unet
  return net.module().init(key, jnp.zeros(shape), jnp.zeros(1), net.blank(shape))["params"]


def image_loss(
  config: Emu, trees: Params, batch: Mapping[str, Any], key: jax.Array, step: Array
) -> tuple[PerExample, dict[str, Any]]:
  """Text-to-image loss on "frames", T = 1, or on what was encoded of them ahead.

  Source: arXiv:2112.10752, eq. 3.
  """
  config = config.at_size_of(batch)
  key_encode, key_diffuse = jax.random.split(key)
  latents = config.first_stage.encode(trees, pixels_or_posterior(batch), key_encode)
  conditions = text_conditions(batch_text(config, trees, batch))
  net = network(config.unet, trees["spatial"])
  losses = config.process.loss(
    lambda x_t, t: net(x_t, t, conditions),
    jax.lax.stop_gradient(latents),
    key_diffuse,
    offset_noise=config.offset_noise,
  )
  return losses, {}


def image_samples(
  config: Emu, trees: Params, batch: Mapping[str, Any], empty: Mapping[str, Any], key: jax.Array
) -> dict[str, Video]:
  """Pictures of a batch's captions, at the size of its frames."""
  config = config.at_size_of(batch)
  text = batch_text(config, trees, batch)
  none = batch_without_text(config, trees, empty, len(text.texts[0]))
  latents = sample_image(config, trees, text, none, key, config.guidance, sampling=config.preview)
  return {"image": config.first_stage.decode(trees, latents)}


def sample_image(
  config: Emu,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  text_scale: float | Float[Array, ""],
  rescaled: float | Float[Array, ""] = 0.0,
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, 1, H, W, C] of pictures of prompts, by text guidance.

  Source: Emu Video, arXiv:2311.10709, sec. 4, with scale 7.5 for pictures.

  Args:
    empty: features of what guidance leads away from: the empty prompt, or a negative one.
    key: one, or one an example.
    rescaled: share of arXiv:2305.08891, sec. 3.4.
  """
  key_noise, key_steps = split(key, 2)
  noise = normal(key_noise, config.latent_shape(text.texts[0].shape[0]))
  net = network(config.unet, trees["spatial"])
  combine = rescale(text_guidance(text_scale), rescaled)
  predict = led(net, image_branches(text, empty), combine, config.process, sampling)
  return config.process.sample(predict, noise, key_steps, sampling)
