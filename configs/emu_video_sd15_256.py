"""Emu Video on Stable Diffusion 1.5, frozen: 256 pixels, 8 frames at 8 a second, then 37.

From a folder of captioned clips, and Stable Diffusion's own folder (safetensors in float32):

  emu-train prepare my_clips --out data/clips --size 256
  emu-train run --config emu_video_sd15_256 --init-from stable-diffusion-v1-5
  emu-jax sample "a prompt" --checkpoint runs/emu_video_sd15_256 --frames 37

Values are those of Emu Video's first stage (arXiv:2311.10709, app. table 3): epsilon without zero
terminal SNR at 256 pixels. Not trained here: no accelerator and no weights were at hand.
"""

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

# The defaults of each are Stable Diffusion 1's.
MODEL = EmuVideo(
  image=Emu(
    size=(256, 256),
    first_stage=KlAutoencoder(AutoencoderConfig(latent_scale=0.18215, dtype="bfloat16")),
    text=(ClipTextConfig(dtype="bfloat16"),),
    unet=UNetConfig(dtype="bfloat16", remat=True),
  ),
  process=Discrete(Schedule()),
  num_frames=8,
  fps=8.0,
)
STAGES = (
  Experiment(
    system=MODEL,
    part="video",
    init_from="stable-diffusion-v1-5",
    data=DataConfig(sources=("data/clips",), batch_size=512),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0),
    loop=LoopConfig(
      num_steps=70_000, log_every=50, save_every=1000, validate_every=1000, sample_every=5000
    ),
  ),
  Experiment(
    system=MODEL,
    part="interpolation",
    data=DataConfig(sources=("data/clips",), batch_size=384),
    optim=OptimConfig(peak_lr=1.5e-4, warmup_steps=1500, weight_decay=0.0),
    loop=LoopConfig(  # its number of steps is not published
      num_steps=15_000, log_every=50, save_every=1000, validate_every=1000, sample_every=5000
    ),
  ),
)
