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
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.system import Pipeline, System, Trees
from emu_jax.systems.text import TextConfig
from emu_jax.typing import Params
from emu_jax.weights.files import copy_texts, read_json, write_json
from emu_jax.weights.model import architecture_of, described, load, save
from emu_jax.weights.options import Options

INDEX = "model_index.json"
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}
# What is read of CLIP's states: the last one, normed; or the last but one, without the last norm
# (SDXL, arXiv:2307.01952, sec. 2.1).
LAST: Mapping[str, Any] = {}
LAST_BUT_ONE: Mapping[str, Any] = {"penultimate": True, "final_norm": False}
# Classes of pipelines, and of each text encoder what is read.
TEXT_TO_IMAGE = {
  "StableDiffusionPipeline": (LAST,),
  "StableDiffusionInpaintPipeline": (LAST,),
  "StableDiffusionUpscalePipeline": (LAST,),
  "StableDiffusionXLPipeline": (LAST_BUT_ONE,) * 2,
}


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the config files of a pipeline describe."""

  index: Mapping[str, Any]  # model_index.json
  unet: UNetConfig
  autoencoder: AutoencoderConfig
  texts: tuple[TextConfig, ...]


def class_name(folder: pathlib.Path) -> str | None:
  """The pipeline that a folder's index names; None where it has no index."""
  return read_json(folder / INDEX).get("_class_name") if (folder / INDEX).is_file() else None


def described_parts(folder: pathlib.Path, kinds: Mapping[str, tuple]) -> Parts:
  """The configurations of a text-to-image pipeline's parts.

  Raises: InputError where the folder is of none of `kinds`, or a part cannot be described.
  """
  index = read_json(folder / INDEX)
  kind = index.get("_class_name")
  if kind not in kinds:
    raise InputError(
      f"{folder / INDEX}: _class_name={kind!r} is not read here; {', '.join(kinds)} are"
    )
  reads = kinds[kind]
  texts = tuple(
    dataclasses.replace(described(folder / name)[1], **read)
    for name, read in zip(text_folders(len(reads)), reads, strict=True)
  )
  unet, autoencoder = (described(folder / name)[1] for name in ("unet", "vae"))
  return Parts(index, unet, autoencoder, texts)


def text_folders(number: int) -> tuple[str, ...]:
  """Names of the folders of text encoders."""
  return ("text_encoder", "text_encoder_2")[:number]


def read(
  folder: pathlib.Path,
  kinds: Mapping[str, tuple],
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


def read_edm(folder: pathlib.Path) -> Edm:
  """The noise levels of Stable Video Diffusion's scheduler.

  Raises: InputError for a scheduler of another kind of network, or of levels without bounds.
  """
  path = folder / "scheduler_config.json"
  o = Options(read_json(path), str(path))
  o.only("prediction_type", "v_prediction")
  o.only("timestep_type", "continuous")  # networks that are told log(sigma) / 4
  o.only("use_karras_sigmas", True)
  lowest, highest = o.get("sigma_min"), o.get("sigma_max")
  if not all(isinstance(sigma, int | float) for sigma in (lowest, highest)):
    raise o.refuse(f"sigma_min={lowest!r} and sigma_max={highest!r} must both be numbers")
  with refused(str(path)):
    return Edm(sigma_min=float(lowest), sigma_max=float(highest))


def read_schedule(folder: pathlib.Path) -> Schedule:
  """The noise schedule of a pipeline's scheduler, whatever its solver is."""
  path = folder / "scheduler_config.json"
  o = Options(read_json(path), str(path))
  kind, predicted = o.get("beta_schedule", "linear"), o.get("prediction_type", "epsilon")
  for name, value, known in (
    ("beta_schedule", kind, BETAS),
    ("prediction_type", predicted, PREDICTIONS),
  ):
    if value not in known:
      raise o.refuse(f"{name}={value!r} is not supported; {', '.join(known)} are")
  o.only("trained_betas", None)
  with refused(str(path)):
    return Schedule(
      kind=BETAS[kind],
      num_steps=o.get("num_train_timesteps", 1000),
      beta_start=o.get("beta_start", 1e-4),
      beta_end=o.get("beta_end", 0.02),
      zero_terminal_snr=o.get("rescale_betas_zero_snr", False) or False,
      prediction=PREDICTIONS[predicted],
    )


def written_schedule(schedule: Schedule) -> dict[str, Any]:
  """scheduler_config.json of a noise schedule; the inverse of `read_schedule`."""
  kinds = {ours: theirs for theirs, ours in BETAS.items()}
  predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  return {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": schedule.num_steps,
    "beta_schedule": kinds[schedule.kind],
    "beta_start": schedule.beta_start,
    "beta_end": schedule.beta_end,
    "prediction_type": predictions[schedule.prediction],
    "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,  # our samplers' last step ends at the clean picture
  }


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
  name: str = "StableDiffusionPipeline",
) -> None:
  """A text-to-image model as the folders of diffusers' StableDiffusionPipeline, or one like it.

  Args:
    system: with `first_stage`, `unet`, `text`, `process` and `size`, as `emu.Emu`.
    model: with its `trees` and `tokenizer_folders`.
    name: class of the pipeline.
  Raises: InputError for noise that no scheduler of a table of steps describes.
  """
  model.require("autoencoder", "latents", "text", "spatial")
  schedule = getattr(system.process, "schedule", None)
  if not isinstance(schedule, Schedule):
    raise InputError(
      f"convert: the noise of a {type(system.process).__name__} process has no place in {name}; "
      "keep the model as a run of emu-train"
    )
  trees, config = model.trees, system.first_stage.config
  index = {"_class_name": name}
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
  write_json(target / "scheduler" / "scheduler_config.json", written_schedule(schedule))
  index["scheduler"] = ["diffusers", "DDIMScheduler"]
  write_json(target / INDEX, index)
