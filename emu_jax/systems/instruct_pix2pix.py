"""InstructPix2Pix: a picture is changed as an instruction says.

An image model that reads the latents of the picture beside the noisy ones.

Source: InstructPix2Pix, arXiv:2211.09800.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float

from emu_jax.conditioning import TextFeatures, known_branches, text_conditions
from emu_jax.config import kind
from emu_jax.data.inputs import ClipSpec, Frames, Inputs
from emu_jax.diffusion.guidance import emu_video_guidance, led, rescale
from emu_jax.diffusion.noise import normal, split
from emu_jax.diffusion.process import Sampling
from emu_jax.models.net import network
from emu_jax.systems import pipelines
from emu_jax.systems.emu import (
  Emu,
  batch_text,
  batch_without_text,
  encode_step,
  image_system,
)
from emu_jax.systems.first_stage import decode_step, pixels, unnormalised
from emu_jax.systems.requests import Media, Prompt, Prompted, guided_by, numbers, pictures
from emu_jax.systems.system import Part, Pipeline, Step, System, Task, Tree, example_keys
from emu_jax.systems.text import TextConfig
from emu_jax.typing import Params, PerExample, Video

PIPELINE = "StableDiffusionInstructPix2PixPipeline"


@kind("instruct_pix2pix")
@dataclasses.dataclass(frozen=True)
class InstructPix2Pix(System):
  """An image model whose U-Net has the first stage's channels twice.

  Source: arXiv:2211.09800, sec. 3.2: scales 1.5 and 7.5.
  """

  image: Emu
  image_guidance: float = 1.5  # scale of the picture that is edited
  text_guidance: float = 7.5  # scale of the instruction

  pipelines: ClassVar = {PIPELINE: ()}

  def __post_init__(self):
    channels, beside = self.image.first_stage.channels, self.image.unet.concat_channels
    if beside != channels:
      raise ValueError(
        f"InstructPix2Pix: unet.concat_channels={beside}, a picture's latents have {channels}; "
        "give a network that reads them beside the noisy ones"
      )

  @property
  def networks(self) -> Mapping[str, Any]:
    """The image model's."""
    return self.image.networks

  @property
  def texts(self) -> tuple[TextConfig, ...]:
    """The image model's."""
    return self.image.text

  def trees(self) -> Mapping[str, Tree]:
    """The image model's."""
    return self.image.trees()

  def parts(self) -> Mapping[str, Part]:
    """The image model's autoencoder, and the network on pairs "source" and "frames"."""
    parts = dict(self.image.parts())
    picture = ClipSpec(1, 1.0)
    size, multiple = self.image.size, self.image.multiple
    frames = {name: Frames(picture, size, name, multiple) for name in ("frames", "source")}
    parts["edit"] = dataclasses.replace(
      parts.pop("image"),
      inputs=Inputs(frames),
      loss=functools.partial(edit_loss, self),
      samples=functools.partial(edit_samples, self),
      encoders={},
    )
    return parts

  def tasks(self) -> Mapping[str, Task]:
    """A picture changed."""
    return {
      "edit": Task(
        Edit,
        steps=functools.partial(edit_steps, self),
        arrays=functools.partial(_edit_arrays, self),
        fps=lambda request, names: 1.0,
        suffix=".png",
        file="edited",
      )
    }

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Of its one task."""
    return {"edit": Edit}

  @classmethod
  def read_pipeline(cls, folder: pathlib.Path, **options: Any) -> Pipeline:
    """The public folder of InstructPix2Pix."""
    make = lambda folder, parts: cls(image_system(Emu, folder, parts))
    return pipelines.read(folder, {PIPELINE: pipelines.Family()}, make)

  def write_pipeline(self, model: Any, folder: pathlib.Path, say: Callable[[str], None]) -> None:
    """The public form: that of the image model, under its own name."""
    pipelines.write(self.image, model, folder, say, PIPELINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(Prompted):
  """Changes a picture as an instruction says, by InstructPix2Pix or another model of its kind."""

  picture: Annotated[Media, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
  """file; its central part is taken, at the model's size"""
  prompt: Annotated[Prompt, tyro.conf.arg(metavar="INSTRUCTION")]
  """what to change, such as: make it winter"""
  image_guidance: float | None = None
  """how closely the result follows the picture, 1 = no guidance; None: the model's own"""
  text_guidance: float | None = None
  """how strongly it follows the instruction, 1 = no guidance; None: the model's own"""


def edit_steps(config: InstructPix2Pix, request: Edit, names: Collection[str]) -> tuple[Step, ...]:
  """Picture and instruction to latents to pixels."""
  config.image.process.check(request.sampling)
  reads = (*config.image.first_stage.trees(), "spatial")
  sampling = guided_by(request.sampling, *edit_scales(config, request))
  return (
    encode_step(config.image),
    Step("picture + instruction -> picture", edit, (config, sampling), reads),
    decode_step(config.image.first_stage, request.decode_chunk),
  )


def edit_scales(config: InstructPix2Pix, request: Edit) -> tuple[float, float]:
  """Of the picture and of the instruction: the request's, or the model's own."""
  given = (request.image_guidance, request.text_guidance)
  usual = (config.image_guidance, config.text_guidance)
  image, text = (u if g is None else g for g, u in zip(given, usual, strict=True))
  return image, text


def _edit_arrays(config: InstructPix2Pix, request: Edit) -> dict[str, Any]:
  image, text = edit_scales(config, request)
  return numbers(image_guidance=image, text_guidance=text, rescale=request.rescale) | {
    "picture": pictures(request.picture, config.image.size, "edit")
  }


def edit(
  trees: Params, arrays: Mapping[str, Any], static: tuple[InstructPix2Pix, Sampling]
) -> dict[str, Any]:
  """One program: pictures and features of instructions to latents."""
  config, sampling = static
  text, empty = arrays["text"], arrays["empty"]
  latents = config.image.first_stage.encode(trees, pixels(arrays["picture"]))
  scales = arrays["image_guidance"], arrays["text_guidance"]
  keys, source = example_keys(arrays), unnormalised(trees, latents)
  return {
    "latents": sample_edit(
      config.image, trees, source, text, empty, keys, *scales, arrays["rescale"], sampling=sampling
    )
  }


def sample_edit(
  config: Emu,
  trees: Params,
  source: Video,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  image_scale: float | Float[Array, ""],
  text_scale: float | Float[Array, ""],
  rescaled: float | Float[Array, ""] = 0.0,
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, 1, H, W, C] of pictures changed as an instruction says.

  Source: arXiv:2211.09800, sec. 3.2 and eq. 3.

  Args:
    source: latents of the pictures as the autoencoder gives them (the mean, not normalised).
    key: one, or one an example.
  """
  key_noise, key_steps = split(key, 2)
  noise = normal(key_noise, config.latent_shape(text.texts[0].shape[0]))
  combine = rescale(emu_video_guidance(image_scale, text_scale), rescaled)
  net = network(config.unet, trees["spatial"])
  predict = led(net, known_branches(text, empty, source), combine, config.process, sampling)
  return config.process.sample(predict, noise, key_steps, sampling)


def edit_loss(
  config: InstructPix2Pix, trees: Params, batch: Mapping[str, Any], key: jax.Array, step: Array
) -> tuple[PerExample, dict[str, Any]]:
  """Loss on pairs: the network is told "source" and the instruction, and draws "frames".

  Source: arXiv:2211.09800, sec. 3.2. Differs: the source is dropped where the batch says so and
    never alone with another rate; its shares are the data's.
  """
  image = config.image.at_size_of(batch)
  key_encode, key_diffuse = jax.random.split(key)
  latents = image.first_stage.encode(trees, pixels(batch["frames"]), key_encode)
  source = unnormalised(trees, image.first_stage.encode(trees, pixels(batch["source"])))
  dropped = batch["image_dropped"].reshape(-1, 1, 1, 1, 1)
  conditions = text_conditions(
    batch_text(image, trees, batch), jnp.where(dropped, 0.0, jax.lax.stop_gradient(source))
  )
  net = network(image.unet, trees["spatial"])
  losses = image.process.loss(
    lambda x_t, t: net(x_t, t, conditions),
    jax.lax.stop_gradient(latents),
    key_diffuse,
    offset_noise=image.offset_noise,
  )
  return losses, {}


def edit_samples(
  config: InstructPix2Pix,
  trees: Params,
  batch: Mapping[str, Any],
  empty: Mapping[str, Any],
  key: jax.Array,
) -> dict[str, Video]:
  """Source, target and what the model makes of the source, side by side."""
  image = config.image.at_size_of(batch)
  text = batch_text(image, trees, batch)
  none = batch_without_text(image, trees, empty, len(text.texts[0]))
  source, target = pixels(batch["source"]), pixels(batch["frames"])
  latents = unnormalised(trees, image.first_stage.encode(trees, source))
  scales = config.image_guidance, config.text_guidance
  made = sample_edit(image, trees, latents, text, none, key, *scales, sampling=image.preview)
  return {"edit": jnp.concatenate([source, target, image.first_stage.decode(trees, made)], axis=3)}
