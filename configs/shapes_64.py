"""The whole of Emu Video, small: captioned moving shapes of 64 pixels, 8 frames, then 37.

  emu-train prepare shapes --out data/shapes_64 --size 64
  emu-train run --config configs/shapes_64.py
  emu-jax evaluate --checkpoint runs/shapes_64

The image stage reads pictures of looks that no clip shows; the video stages only clips.

Not yet trained whole: what its autoencoder and the first steps of its other stages gave is in
docs/results/README.md. `configs/shapes_32.py` is the one that is measured.
"""

from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import T5Config
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
    size=64,
    autoencoder=AutoencoderConfig(
      channels=(32, 64),
      num_res_blocks=1,
      z_channels=4,
      norm_groups=8,
      mid_attention=False,
      norm_out=False,
      patch=2,
    ),
    text=(
      T5Config(
        vocab_size=512,
        width=96,
        max_length=24,
        num_layers=1,
        num_heads=4,
        head_dim=24,
        mlp_width=192,
      ),
    ),
    unet=UNetConfig(
      in_channels=4,
      out_channels=4,
      channels=(48, 96, 192),
      num_res_blocks=(1, 1, 1),
      transformer_depth=(0, 1, 1),
      num_heads=0,
      head_dim=48,
      context_dims=(96,),
      linear_projection=True,
      norm_groups=8,
    ),
    schedule=V,
  ),
  temporal=TemporalConfig(num_layers=1, attends_text=True),
  schedule=V,
  guidance=Guidance(picture=3.0, image=1.5, text=3.0),
  num_frames=8,
  fps=4.0,
)

OBJECTIVE = AutoencoderObjective(adversarial_weight=0.0, kl_weight=1e-2)

PICTURES = ("data/shapes_64/images", "data/shapes_64/videos")
CLIPS = ("data/shapes_64/videos",)


def optim(peak_lr: float) -> OptimConfig:
  """Short runs on small models: a high rate that falls to zero, short averages."""
  return OptimConfig(
    peak_lr=peak_lr,
    warmup_steps=100,
    decay="cosine",
    weight_decay=0.0,
    betas=(0.9, 0.99),
    ema_decay=0.99,
  )


def loop(num_steps: int, every: int) -> LoopConfig:
  return LoopConfig(
    num_steps=num_steps,
    log_every=20,
    save_every=every,
    keep=1,
    validate_every=every,
    sample_every=every,
  )


STAGES = (
  Experiment(
    stage="autoencoder",
    model=MODEL,
    objective=OBJECTIVE,
    data=DataConfig(sources=PICTURES, batch_size=4),
    optim=optim(3e-3),
    loop=loop(4000, 2000),
  ),
  Experiment(
    stage="image",
    model=MODEL,
    train_text=True,
    data=DataConfig(
      sources=PICTURES,
      weights=(0.5, 0.5),
      batch_size=8,
      first_frames=True,  # so that the text features tell directions, and motion fits in
      drop_both=0.0,
    ),
    optim=optim(1e-3),
    loop=loop(10_000, 2000),
  ),
  Experiment(
    stage="video",
    model=MODEL,
    data=DataConfig(sources=CLIPS, batch_size=4),
    optim=optim(1e-3),
    loop=loop(4000, 2000),
  ),
  Experiment(
    stage="interpolation",
    model=MODEL,
    data=DataConfig(sources=CLIPS, batch_size=2),
    optim=optim(5e-4),
    loop=loop(400, 400),
  ),
)
