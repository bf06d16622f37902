"""Public folders in little, as diffusers would write them, with random weights."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np

from emu_jax import weights
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from emu_jax.models.motion import MotionConfig
from emu_jax.models.text import ClipTextConfig, text_encoder
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVision, ClipVisionConfig
from emu_jax.weights.architectures import ARCHITECTURES

PARTS = {
  "vae": (
    Autoencoder(
      AutoencoderConfig(
        channels=(8, 8, 8), num_res_blocks=1, z_channels=4, norm_groups=4, latent_scale=0.5
      )
    ),
    "AutoencoderKL",
  ),
  "text_encoder": (
    text_encoder(
      ClipTextConfig(
        vocab_size=300, width=8, max_length=24, num_layers=1, num_heads=2, mlp_width=16, end_id=1
      )
    ),
    "CLIPTextModel",
  ),
  "unet": (
    UNet(
      UNetConfig(
        channels=(8, 16),
        num_res_blocks=(1, 1),
        transformer_depth=(0, 1),
        num_heads=2,
        context_dims=(8,),
        norm_groups=4,
      )
    ),
    "UNet2DConditionModel",
  ),
}
SVD_PARTS = {
  "vae": (
    Autoencoder(
      AutoencoderConfig(
        channels=(32, 32), temporal_decoder=True, post_quant_conv=False, latent_scale=0.5
      )
    ),
    "AutoencoderKLTemporalDecoder",
  ),
  "image_encoder": (
    ClipVision(
      ClipVisionConfig(
        width=16, num_layers=1, num_heads=2, mlp_width=16, patch=112, projection_dim=8
      )
    ),
    "CLIPVisionModelWithProjection",
  ),
  "unet": (
    UNet(
      UNetConfig(
        channels=(64, 64),  # of 32 groups: in a group of one channel a norm forgets what is told
        num_res_blocks=(1, 1),
        transformer_depth=(0, 1),
        num_heads=2,
        context_dims=(8,),
        linear_projection=True,
        res_epsilon=1e-6,
        concat_channels=4,
        num_micro=3,
        micro_dim=8,
        temporal=VideoLdmConfig(num_frames=5),
      )
    ),
    "UNetSpatioTemporalConditionModel",
  ),
}


def drawn(net, kind: str, seed: int = 0):
  """Random parameters of a network of a public class."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0.0, 0.2, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, ARCHITECTURES[kind].shapes(net.config))


def written(folder: pathlib.Path, pipeline: str, parts: dict, schedule: dict) -> pathlib.Path:
  """A pipeline's folder: each part's weights, its scheduler and its index."""
  folder.mkdir(parents=True)
  index = {"_class_name": pipeline, "safety_checker": [None, None]}
  for name, (net, kind) in parts.items():
    weights.save(folder / name, net.config, drawn(net, kind), also={"sample_size": 4})
    library = "transformers" if name.startswith(("text_", "image_")) else "diffusers"
    index[name] = [library, kind]
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
  index["scheduler"] = ["diffusers", schedule["_class_name"]]
  if "text_encoder" in parts:
    train_tokenizer(["a red circle moving left"] * 4, folder / "tokenizer", 300)
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
  (folder / "model_index.json").write_text(json.dumps(index))
  return folder


# scheduler_config.json as it is published with Stable Diffusion 1.5, XL and Stable Video Diffusion.
SCHEDULE = {
  "_class_name": "PNDMScheduler",
  "_diffusers_version": "0.6.0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}
EULER = SCHEDULE | {
  "_class_name": "EulerDiscreteScheduler",
  "interpolation_type": "linear",
  "prediction_type": "epsilon",
  "sample_max_value": 1.0,
  "timestep_spacing": "leading",
  "use_karras_sigmas": False,
}
LEVELS = EULER | {
  "prediction_type": "v_prediction",
  "sigma_max": 700.0,
  "sigma_min": 0.002,
  "timestep_type": "continuous",
  "use_karras_sigmas": True,
}


def stable_diffusion(folder: pathlib.Path) -> pathlib.Path:
  """Pictures of 16 pixels from prompts."""
  return written(folder, "StableDiffusionPipeline", PARTS, SCHEDULE)


def stable_diffusion_xl(folder: pathlib.Path, **index) -> pathlib.Path:
  """Pictures of 16 pixels from two text encoders, of which the second has a pooled output."""
  first = PARTS["text_encoder"][0].config
  second = dataclasses.replace(first, width=16, projection_dim=6)
  unet = changed_unet(context_dims=(24,), num_micro=6, micro_dim=8, pooled_dim=6)
  parts = PARTS | {
    "text_encoder_2": (text_encoder(second), "CLIPTextModelWithProjection"),
    "unet": (unet, "UNet2DConditionModel"),
  }
  written(folder, "StableDiffusionXLPipeline", parts, EULER)
  shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
  listed = json.loads((folder / "model_index.json").read_text())
  words = {"tokenizer_2": ["transformers", "CLIPTokenizer"]}
  (folder / "model_index.json").write_text(json.dumps(listed | words | index))
  return folder


def instruct_pix2pix(folder: pathlib.Path) -> pathlib.Path:
  """The same U-Net, which reads a picture beside x_t."""
  return written(
    folder,
    "StableDiffusionInstructPix2PixPipeline",
    PARTS | {"unet": (changed_unet(concat_channels=4), "UNet2DConditionModel")},
    SCHEDULE,
  )


def inpainting(folder: pathlib.Path) -> pathlib.Path:
  """The same U-Net, which reads a mask and a masked picture beside x_t."""
  unet = {"unet": (changed_unet(concat_channels=5), "UNet2DConditionModel")}
  return written(folder, "StableDiffusionInpaintPipeline", PARTS | unet, SCHEDULE)


def animate_diff(folder: pathlib.Path) -> pathlib.Path:
  """The same U-Net with motion modules in it."""
  return written(
    folder,
    "AnimateDiffPipeline",
    PARTS | {"unet": (changed_unet(temporal=MOTION), "UNetMotionModel")},
    SCHEDULE | {"beta_schedule": "linear"},
  )


def motion_adapter(folder: pathlib.Path, **changes) -> pathlib.Path:
  """Motion modules alone."""
  net = changed_unet(temporal=MOTION, **changes)
  weights.save(folder, net.config, drawn(net, "MotionAdapter", 1))
  return folder


def stable_video(folder: pathlib.Path, **schedule) -> pathlib.Path:
  """Clips of 5 frames from a picture whose sides are multiples of 4 pixels."""
  return written(folder, "StableVideoDiffusionPipeline", SVD_PARTS, LEVELS | schedule)


MOTION = MotionConfig(num_heads=(2,), max_frames=16)


def changed_unet(**changes) -> UNet:
  """The image U-Net with other fields."""
  return UNet(dataclasses.replace(PARTS["unet"][0].config, **changes))
