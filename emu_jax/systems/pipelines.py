"""Folders of diffusers' pipelines: which parts they have, and how these become trees of ours.

A part's config.json says what it is before any weights are read.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from emu_jax.config import refused
from emu_jax.diffusion.discrete import Discrete
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems import scheduler_files
from emu_jax.systems.system import Pipeline, System, Trees
from emu_jax.systems.text import TextConfig
from emu_jax.typing import Params
from emu_jax.weights.files import copy_texts, read_json, write_json
from emu_jax.weights.model import architecture_of, described, load, save

INDEX = "model_index.json"
# What is read of CLIP's states: the last one, normed; or the last but one, without the last norm
# (SDXL, arXiv:2307.01952, sec. 2.1).
LAST: Mapping[str, Any] = {}
LAST_BUT_ONE: Mapping[str, Any] = {"penultimate": True, "final_norm": False}


@dataclasses.dataclass(frozen=True)
class Family:
  """What a class of diffusers' pipelines says of a model beside its folders.

  Attributes:
    reads: of each text encoder what is read.
    guidance: its usual scale of the text.
    zero_empty: what its index means where it does not say `force_zeros_for_empty_prompt`.
    overruled: options of its scheduler that it sets itself, since old files lack them.
  """

  reads: tuple[Mapping[str, Any], ...] = (LAST,)
  guidance: float = 7.5
  zero_empty: bool = False
  overruled: Mapping[str, Any] = dataclasses.field(default_factory=dict)


XL = Family((LAST_BUT_ONE,) * 2, guidance=5.0, zero_empty=True)
TEXT_TO_IMAGE = {
  "StableDiffusionPipeline": Family(overruled={"steps_offset": 1, "clip_sample": False}),
  "StableDiffusionInpaintPipeline": Family(),
  "StableDiffusionUpscalePipeline": Family(guidance=9.0),
  "StableDiffusionXLPipeline": XL,
}


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the config files of a pipeline describe."""

  index: Mapping[str, Any]  # model_index.json
  family: Family
  unet: UNetConfig
  autoencoder: AutoencoderConfig
  texts: tuple[TextConfig, ...]


def class_name(folder: pathlib.Path) -> str | None:
  """The pipeline that a folder's index names; None where it has no index."""
  return read_json(folder / INDEX).get("_class_name") if (folder / INDEX).is_file() else None


def described_parts(folder: pathlib.Path, kinds: Mapping[str, Family]) -> Parts:
  """The configurations of a text-to-image pipeline's parts.

  Raises: InputError where the folder is of none of `kinds`, or a part cannot be described.
  """
  index = read_json(folder / INDEX)
  kind = index.get("_class_name")
  if kind not in kinds:
    raise InputError(
      f"{folder / INDEX}: _class_name={kind!r} is not read here; {', '.join(kinds)} are"
    )
  reads = kinds[kind].reads
  texts = tuple(
    dataclasses.replace(described(folder / name)[1], **read)
    for name, read in zip(text_folders(len(reads)), reads, strict=True)
  )
  unet, autoencoder = (described(folder / name)[1] for name in ("unet", "vae"))
  return Parts(index, kinds[kind], unet, autoencoder, texts)


def text_folders(number: int) -> tuple[str, ...]:
  """Names of the folders of text encoders."""
  return ("text_encoder", "text_encoder_2")[:number]


def read(
  folder: pathlib.Path,
  kinds: Mapping[str, Family],
  make: Callable[[pathlib.Path, Parts], System],
) -> Pipeline:
  """A text-to-image pipeline: trees "autoencoder", "latents", "text" and "spatial"."""
  parts = described_parts(folder, kinds)
  with refused(str(folder)):
    system = make(folder, parts)
  loaders = image_loaders(folder, parts)
  return Pipeline(
    system,
    functools.partial(load_by_name, loaders),
    tuple(loaders),
    tokenizer_folders(folder, parts),
  )


Loaders = Mapping[str, Callable[[Mapping[str, Any]], Params]]  # by tree: `load`'s options -> tree


def image_loaders(folder: pathlib.Path, parts: Parts) -> Loaders:
  """How each tree of a text-to-image pipeline is read."""
  names = text_folders(len(parts.texts))
  return {
    "autoencoder": lambda reading: load(folder / "vae", **reading).params,
    "latents": lambda reading: constant_statistics(parts.autoencoder),
    "text": lambda reading: {
      str(i): load(folder / name, **reading).params for i, name in enumerate(names)
    },
    "spatial": lambda reading: load(folder / "unet", **reading).params,
  }


def load_by_name(loaders: Loaders, names: Collection[str], reading: Mapping[str, Any]) -> Trees:
  """Some of the trees."""
  return {name: loaders[name](reading) for name in names}


def tokenizer_folders(folder: pathlib.Path, parts: Parts) -> tuple[pathlib.Path, ...]:
  """Where the tokenizers of a pipeline's text encoders are."""
  return tuple(folder / name for name in ("tokenizer", "tokenizer_2")[: len(parts.texts)])


def read_process(folder: pathlib.Path, parts: Parts) -> Discrete:
  """The noise of a text-to-image pipeline, and how it is sampled."""
  kind = (parts.index.get("scheduler") or (None,))[-1]
  return scheduler_files.read_discrete(folder / "scheduler", kind, parts.family.overruled)


def constant_statistics(config: AutoencoderConfig) -> Params:
  """The shift and scale of a public autoencoder's latents, one number for all channels."""
  every = (config.z_channels,)
  return {
    "shift": jnp.full(every, config.latent_shift, jnp.float32),
    "scale": jnp.full(every, config.latent_scale, jnp.float32),
  }


def picture_size(folder: pathlib.Path, autoencoder: AutoencoderConfig) -> tuple[int, int]:
  """Height and width of the pictures that a U-Net was trained on; 512 where it does not say."""
  sample_size = read_json(folder / "unet" / "config.json").get("sample_size") or 64
  sides = tuple(sample_size) if isinstance(sample_size, list) else (sample_size,) * 2
  return tuple(side * autoencoder.downsample for side in sides)


def with_statistics(config: AutoencoderConfig, latents: Params) -> AutoencoderConfig:
  """An autoencoder's configuration with the shift and scale that its latents were trained under.

  Raises: InputError where channels have numbers of their own, for which there is no public form.
  """
  shift, scale = (np.asarray(latents[name], np.float64) for name in ("shift", "scale"))
  if np.ptp(shift) or np.ptp(scale):
    raise InputError(
      "convert: latents have a shift and scale of their own in each channel, for which diffusers' "
      "AutoencoderKL has no place; keep the model as a run of emu-train"
    )
  return dataclasses.replace(config, latent_shift=float(shift[0]), latent_scale=float(scale[0]))


def write(
  system: Any,
  model: Any,
  target: pathlib.Path,
  say: Callable[[str], None],
  name: str = "",
) -> None:
  """A text-to-image model as the folders of diffusers' StableDiffusionPipeline, or one like it.

  Args:
    system: with `first_stage`, `unet`, `text`, `process` and `size`, as `emu.Emu`.
    model: with its `trees` and `tokenizer_folders`.
    name: class of the pipeline; "": Stable Diffusion's or, of networks that read sizes, XL's.
  Raises: InputError for noise that no scheduler of a table of steps describes.
  """
  model.require("autoencoder", "latents", "text", "spatial")
  xl = system.unet.num_micro > 0
  name = name or ("StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline")
  if not isinstance(system.process, Discrete):
    raise InputError(
      f"convert: the noise of a {type(system.process).__name__} process has no place in {name}; "
      "keep the model as a run of emu-train"
    )
  trees, config = model.trees, system.first_stage.config
  index = {"_class_name": name}
  if xl:
    index["force_zeros_for_empty_prompt"] = system.zero_empty
  parts = {"vae": (with_statistics(config, trees["latents"]), "autoencoder")}
  parts |= {"unet": (system.unet, "spatial")}
  side = lambda factor: [n // factor for n in system.size]
  square = lambda sides: sides[0] if sides[0] == sides[1] else sides
  sizes = {"vae": square(side(1)), "unet": square(side(config.downsample))}
  for folder, (part, tree) in parts.items():
    say(f"writing {folder}")
    save(target / folder, part, trees[tree], also={"sample_size": sizes[folder]})
    index[folder] = ["diffusers", architecture_of(part, trees[tree]).name]
  for i, encoder in enumerate(system.text):
    folder = "text_encoder" if i == 0 else f"text_encoder_{i + 1}"
    say(f"writing {folder}")
    save(target / folder, encoder, trees["text"][str(i)])
    index[folder] = ["transformers", architecture_of(encoder, trees["text"][str(i)]).name]
    words = folder.replace("text_encoder", "tokenizer")
    copy_texts(model.tokenizer_folders[i], target / words)
    index[words] = ["transformers", "PreTrainedTokenizerFast"]
  write_json(target / "scheduler" / scheduler_files.FILE, scheduler_files.written(system.process))
  index["scheduler"] = ["diffusers", "DDIMScheduler"]
  write_json(target / INDEX, index)
