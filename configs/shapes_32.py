"""The whole of Emu Video, small: captioned moving shapes of 32 pixels, 8 frames, then 37.

The project's embedded default; needs no download:

  emu-train prepare shapes --out data/shapes --size 32
  emu-train run --config configs/shapes_32.py
  emu-jax evaluate --checkpoint runs/shapes_32

The image stage reads pictures of looks that no clip shows; the video stage only clips.
"""

from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.discriminator import PatchDiscriminatorConfig
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu import AutoencoderObjective, EmuConfig
from emu_jax.systems.emu_video import EmuVideoConfig, Guidance
from train.config import DataConfig, Experiment
from train.loop import LoopConfig
from train.optimiser import OptimConfig

# Trained from nothing, both models may have the better schedule from the start.
V = Schedule(zero_terminal_snr=True, prediction="v")

MODEL = EmuVideoConfig(
  image=EmuConfig(
    size=32,
    autoencoder=AutoencoderConfig(
      channels=(64,),
      num_res_blocks=2,
      z_channels=4,
      norm_groups=16,
      mid_attention=False,
      patch=4,  # 8x8 latents
    ),
    text=(
      ClipTextConfig(
        vocab_size=256, width=96, max_length=24, num_layers=2, num_heads=4, mlp_width=384
      ),
    ),
    unet=UNetConfig(
      in_channels=4,
      out_channels=4,
      channels=(64, 128),
      num_res_blocks=(2, 2),
      transformer_depth=(1, 1),
      num_heads=0,
      head_dim=32,
      context_dims=(96,),
      linear_projection=True,
      norm_groups=16,
    ),
    schedule=V,
  ),
  temporal=TemporalConfig(num_layers=1),
  schedule=V,
  # The papers' 7.5 and 2 are for diverse data; captions here leave little open (ours, by sight).
  guidance=Guidance(picture=3.0, image=1.5, text=3.0),
  num_frames=8,
  fps=4.0,
)

OPTIM = OptimConfig(
  peak_lr=2e-3, warmup_steps=100, decay="cosine", weight_decay=0.0, ema_decay=0.99
)
PICTURES = ("data/shapes/images", "data/shapes/videos")
CLIPS = ("data/shapes/videos",)

STAGES = (
  Experiment(
    stage="autoencoder",
    model=MODEL,
    objective=AutoencoderObjective(
      adversarial_weight=0.2,
      adversarial_start=500,
      discriminator=PatchDiscriminatorConfig(width=16, num_layers=2, norm_groups=8),
    ),
    data=DataConfig(sources=PICTURES, batch_size=64),
    optim=OPTIM,
    loop=LoopConfig(
      num_steps=800, log_every=20, save_every=200, keep=1, validate_every=200, sample_every=200
    ),
  ),
  Experiment(
    stage="image",
    model=MODEL,
    train_text=True,
    data=DataConfig(sources=PICTURES, batch_size=64, drop_text=0.1, drop_both=0.0),
    optim=OPTIM,
    loop=LoopConfig(
      num_steps=3000, log_every=20, save_every=500, keep=1, validate_every=500, sample_every=1000
    ),
  ),
  Experiment(
    stage="video",
    model=MODEL,
    data=DataConfig(sources=CLIPS, batch_size=16),
    optim=OPTIM,
    loop=LoopConfig(
      num_steps=1500, log_every=20, save_every=500, keep=1, validate_every=500, sample_every=500
    ),
  ),
  Experiment(
    stage="interpolation",
    model=MODEL,
    data=DataConfig(sources=CLIPS, batch_size=4),
    optim=OPTIM,
    loop=LoopConfig(
      num_steps=600, log_every=20, save_every=300, keep=1, validate_every=300, sample_every=300
    ),
  ),
)
