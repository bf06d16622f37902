"""Emu Video on Stable Diffusion 2.1 (base), frozen: 512 pixels, 8 frames at 4 a second, then 37.

From a folder of captioned clips, and the pipeline's own folder (safetensors in float32):

  emu-train prepare my_clips --out data/clips --size 512
  emu-train run --config emu_video_sd21_512 --init-from stable-diffusion-2-1-base
  emu-jax sample "a prompt" --checkpoint runs/emu_video_sd21_512 --frames 37

Values are those of Emu Video's second stage (arXiv:2311.10709, app. table 3): v-prediction with
zero terminal SNR, the image model's own epsilon schedule for its pictures. Not trained here: no
accelerator and no weights were at hand.
"""

import dataclasses

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.text import clip_vit_h
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

MODEL = EmuVideo(
  image=Emu(
    size=(512, 512),
    first_stage=KlAutoencoder(AutoencoderConfig(latent_scale=0.18215, dtype="bfloat16")),
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
  process=Discrete(Schedule(zero_terminal_snr=True, prediction="v")),
  num_frames=8,
  fps=4.0,
)
LOOP = LoopConfig(  # for the 15 000 steps of the paper's second stage
  num_steps=15_000, log_every=50, save_every=1000, validate_every=1000, sample_every=5000
)
STAGES = (
  Experiment(
    system=MODEL,
    part="video",
    init_from="stable-diffusion-2-1-base",
    data=DataConfig(sources=("data/clips",), batch_size=512),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0),
    loop=LOOP,
  ),
  Experiment(
    system=MODEL,
    part="interpolation",
    data=DataConfig(sources=("data/clips",), batch_size=384),
    optim=OptimConfig(peak_lr=1.5e-4, warmup_steps=1500, weight_decay=0.0),
    loop=LOOP,
  ),
)
