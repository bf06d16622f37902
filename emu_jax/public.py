"""Folders of diffusers pipelines as models of ours: configuration, trees and tokenizers.

A Stable Diffusion folder is an image model (`EmuConfig`): what its parts hold becomes the trees
that a training run would have left, so that whatever begins with a run of emu-train also begins
with such a folder.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.config import refused, to_dict
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.motion import MotionConfig
from emu_jax.models.unet import UNet
from emu_jax.systems.animatediff import AnimateDiffConfig, animated
from emu_jax.systems.emu import EmuConfig
from emu_jax.systems.latent import TextConfig
from emu_jax.trees import partition
from emu_jax.typing import Params
from emu_jax.weights.files import read_json
from emu_jax.weights.model import Loaded, Precision, described, load
from emu_jax.weights.options import Options

INDEX = "model_index.json"
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}
# Of the pipelines whose parts make an image model: text encoders, and what they read of CLIP's.
TEXTS = {
  # The last layer's state, normed.
  "StableDiffusionPipeline": ({},),
  "StableDiffusionInpaintPipeline": ({},),
  "StableDiffusionInstructPix2PixPipeline": ({},),
  "StableDiffusionUpscalePipeline": ({},),
  # The last state but one, without the last norm (arXiv:2307.01952, sec. 2.1).
  "StableDiffusionXLPipeline": ({"penultimate": True, "final_norm": False},) * 2,
}
# The same with motion modules in the U-Net.
ANIMATED = {
  "AnimateDiffPipeline": TEXTS["StableDiffusionPipeline"],
  "AnimateDiffSDXLPipeline": TEXTS["StableDiffusionXLPipeline"],
}


@dataclasses.dataclass(frozen=True)
class PublicModel:
  """A model in memory, and where the tokenizers of its text encoders are."""

  config: EmuConfig | AnimateDiffConfig
  trees: Params
  tokenizers: tuple[pathlib.Path, ...]


def is_public(folder: str | pathlib.Path) -> bool:
  """Whether a folder is a pipeline of diffusers, or a converted one."""
  return (pathlib.Path(folder) / INDEX).is_file()


def is_animation(folder: str | pathlib.Path) -> bool:
  """Whether a public folder is AnimateDiff's, image model and motion modules in one."""
  return read_json(pathlib.Path(folder) / INDEX).get("_class_name") in ANIMATED


def load_image_model(
  folder: str | pathlib.Path,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
  host: bool = False,
) -> PublicModel:
  """The image model of a Stable Diffusion folder (1, 2, XL, InstructPix2Pix, inpainting, upscaler).

  Args:
    dtype, widen, mesh, host: as `emu_jax.weights.load` takes them.
  Raises: InputError where the folder is another pipeline, or a part of it cannot be read.
  """
  how = {"dtype": dtype, "widen": widen, "mesh": mesh, "host": host}
  return _assembled(pathlib.Path(folder), TEXTS, how)


def load_animation(
  folder: str | pathlib.Path,
  adapter: str | pathlib.Path | None = None,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
) -> PublicModel:
  """AnimateDiff: a folder of its own, or an image model's with a motion adapter's.

  Of the image model the schedule is not taken where an adapter is given, since motion modules were
  trained with another.

  Raises: InputError as `load_image_model`, where the two do not fit each other, or where the
    adapter reads more than noisy latents (PIA).
  """
  folder, how = pathlib.Path(folder), {"dtype": dtype, "widen": widen, "mesh": mesh}
  if adapter is None:
    model = _assembled(folder, ANIMATED, how)
    unet, params, schedule = model.config.unet, model.trees["spatial"], model.config.schedule
  else:
    model = _assembled(folder, TEXTS, how)
    image = Loaded(UNet(model.config.unet), model.trees["spatial"])
    video, schedule = animated(image, load(adapter, **how)), Schedule(kind="linear")
    unet, params = video.module.config, video.params
  if not isinstance(unet.temporal, MotionConfig):
    raise InputError(f"{adapter or folder}: holds no motion modules; give AnimateDiff's")
  if unet.concat_channels:
    raise InputError(
      f"{adapter or folder}: its U-Net reads {unet.concat_channels} channels of a given picture "
      "(PIA), which no command gives it; choose an adapter of AnimateDiff"
    )
  with refused(str(adapter or folder)):
    config = AnimateDiffConfig(
      image=dataclasses.replace(model.config, unet=unet.image()),
      motion=unet.temporal,
      schedule=schedule,
      num_frames=min(16, unet.temporal.max_frames),
    )
  trees = partition(params, (("temporal_*", "temporal"), ("*", "spatial")))
  return PublicModel(config, model.trees | trees, model.tokenizers)


def _assembled(folder: pathlib.Path, kinds: dict, how: dict) -> PublicModel:
  index = read_json(folder / INDEX)
  kind = index.get("_class_name")
  if kind not in kinds:
    raise InputError(
      f"{folder / INDEX}: _class_name={kind!r} is not read here; {', '.join(kinds)} are"
    )
  unet, spatial = load(folder / "unet", **how)
  vae, autoencoder = load(folder / "vae", **how)
  names = ["text_encoder", "text_encoder_2"][: len(kinds[kind])]
  texts = [load(folder / name, **how) for name in names]
  encoders = tuple(
    dataclasses.replace(text.module.config, **read)
    for text, read in zip(texts, kinds[kind], strict=True)
  )
  with refused(str(folder)):
    config = EmuConfig(
      autoencoder=vae.config,
      text=encoders,
      unet=unet.config,
      schedule=load_schedule(folder / "scheduler"),
      size=picture_size(folder, vae.config),
      zero_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
    )
  trees = {
    "autoencoder": autoencoder,
    "latents": latent_statistics(vae.config),
    "text": {str(i): text.params for i, text in enumerate(texts)},
    "spatial": spatial,
  }
  return PublicModel(config, trees, tokenizer_folders(folder, len(names)))


def tokenizer_folders(folder: pathlib.Path, number: int) -> tuple[pathlib.Path, ...]:
  """Where the tokenizers of a pipeline's text encoders are."""
  return tuple(folder / name for name in ("tokenizer", "tokenizer_2")[:number])


def check_same(config: EmuConfig, model: PublicModel, who: str) -> None:
  """Raises InputError, beginning with `who`, where a config describes another image model.

  Precision, rematerialisation and the size of pictures may differ: they change no weight.
  """
  free = ("dtype", "remat", "remat_keeps", "size")
  _check_equal(config, model.config, free, who, "model.image.")


def check_text(config: TextConfig, folder: str | pathlib.Path) -> None:
  """Raises InputError where a folder holds another text encoder than a config describes.

  Precision, and which of its states a system reads, are the config's own choice.
  """
  free = ("dtype", "max_length", "penultimate", "final_norm", "use_padding_mask", "end_id")
  _check_equal(config, described(folder)[1], free, str(folder), "model.image.text.")


def load_text(folder: str | pathlib.Path, config: TextConfig) -> Params:
  """The weights of the text encoder that a config describes, in its dtype, as numpy arrays.

  Raises: InputError for a folder that holds another one.
  """
  check_text(config, folder)
  half = None if config.dtype == "float32" else config.dtype  # frozen: as it is computed with
  return load(folder, dtype=half, host=True).params


def _check_equal(ours: Any, theirs: Any, free: tuple[str, ...], who: str, where: str) -> None:
  """Raises InputError that names the first field, but those of the names `free`, that differs."""
  ours, theirs = (
    {
      jax.tree_util.keystr(path, simple=True, separator="."): value
      for path, value in jax.tree_util.tree_leaves_with_path(
        to_dict(one), is_leaf=lambda value: value is None
      )
    }
    for one in (ours, theirs)
  )
  for name in sorted(ours.keys() | theirs.keys()):
    if ours.get(name) != theirs.get(name) and name.rpartition(".")[2] not in free:
      raise InputError(
        f"{who}: its {name} is {theirs.get(name)!r}, the config's {where}{name} is "
        f"{ours.get(name)!r}; use the config of this checkpoint, or change that field"
      )


def latent_statistics(config: AutoencoderConfig) -> Params:
  """The shift and scale of a public autoencoder's latents, one number for all channels."""
  every = (config.z_channels,)
  return {
    "shift": jnp.full(every, config.latent_shift, jnp.float32),
    "scale": jnp.full(every, config.latent_scale, jnp.float32),
  }


def load_edm(folder: pathlib.Path) -> Edm:
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


def picture_size(folder: pathlib.Path, autoencoder: AutoencoderConfig) -> int:
  """Pixels a side of the pictures that a U-Net was trained on; 512 where it does not say."""
  sample_size = read_json(folder / "unet" / "config.json").get("sample_size")
  if isinstance(sample_size, list):
    sample_size = min(sample_size)
  return (sample_size or 64) * autoencoder.downsample


def load_schedule(folder: pathlib.Path) -> Schedule:
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


def scheduler(schedule: Schedule) -> dict:
  """scheduler_config.json of a noise schedule; the inverse of `load_schedule`."""
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
