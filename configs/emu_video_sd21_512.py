"""Emu Video on Stable Diffusion 2.1 (base), frozen: 512 pixels, 8 frames at 4 a second, then 37.

From a folder of captioned clips, and the pipeline's own folder (safetensors in float32):

  emu-train prepare my_clips --out data/clips --size 512
  emu-train run --config configs/emu_video_sd21_512.py --init-from stable-diffusion-2-1-base
  emu-jax sample "a prompt" --checkpoint runs/emu_video_sd21_512 --frames 37

Values are those of Emu Video's second stage (arXiv:2311.10709, app. table 3): v-prediction with
zero terminal SNR, the image model's own epsilon schedule for its pictures. Not trained here: no
accelerator and no weights were at hand.
"""

import dataclasses

from configs.emu_video_sd15_256 import IMAGE
from configs.emu_video_sd15_256 import STAGES as AT_256
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.text import clip_vit_h
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu_video import EmuVideoConfig
from train.config import Experiment

MODEL = EmuVideoConfig(
  image=dataclasses.replace(
    IMAGE,
    size=512,
    text=(dataclasses.replace(clip_vit_h(), dtype="bfloat16"),),
    unet=UNetConfig(
      num_heads=0,
      head_dim=64,
      context_dims=(1024,),
      linear_projection=True,
      dtype="bfloat16",
      remat=True,
    ),
  ),
  schedule=Schedule(zero_terminal_snr=True, prediction="v"),
  num_frames=8,
  fps=4.0,
)


def at_512(stage: Experiment) -> Experiment:
  """A stage of the 256-pixel recipe with this model, for the 15 000 steps of the paper's second."""
  return dataclasses.replace(
    stage,
    model=MODEL,
    init_from=stage.init_from and "stable-diffusion-2-1-base",
    loop=dataclasses.replace(stage.loop, num_steps=15_000),
  )


STAGES = tuple(map(at_512, AT_256))
