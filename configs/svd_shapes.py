"""Stable Video Diffusion, small, from nothing: moving shapes of 32 pixels, a picture to 8 frames.

Needs no download:

  emu-train prepare shapes --out data/shapes --size 32
  emu-train run --config svd_shapes
  emu-jax animate picture.png --checkpoint runs/svd_shapes --fps 4 --motion 100

All of the published system with the autoencoder and the spatial layers of configs/shapes_64.py at
half its resolution: EDM, conditions for rate, motion and the picture's noise, an image encoder
(here trained along), guidance that grows over the frames, pretraining on clips and tuning on
others. The picture tells the look, "motion" the speed; the direction is left open. What a shorter
training of it has learned is measured in docs/results/stable_video.md.
"""

from emu_jax.diffusion.edm import Edm
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVisionConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.systems.svd import StableVideo
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

SYSTEM = StableVideo(
  unet=UNetConfig(
    in_channels=4,
    out_channels=4,
    concat_channels=4,
    channels=(32, 64, 128),
    num_res_blocks=(1, 1, 1),
    transformer_depth=(1, 1, 1),
    num_heads=0,
    head_dim=32,
    context_dims=(96,),
    linear_projection=True,
    norm_groups=8,
    num_micro=3,
    micro_dim=32,
    temporal=VideoLdmConfig(num_frames=8),
  ),
  first_stage=KlAutoencoder(
    AutoencoderConfig(
      channels=(32, 64),
      num_res_blocks=1,
      z_channels=4,
      norm_groups=8,
      mid_attention=False,
      norm_out=False,
      patch=2,  # 8x8 latents of 4 channels
    )
  ),
  vision=ClipVisionConfig(
    width=64,
    num_layers=2,
    num_heads=4,
    mlp_width=256,
    image_size=32,
    patch=8,
    projection_dim=96,
  ),
  train_vision=True,
  # Sampling begins where training has been: 200 is 2.2 deviations above the mean of `video_noise`.
  process=Edm(sigma_max=200.0),
  # Wider than the published (-1.2, 1.0), which are for an image model that knows all noise already.
  image_noise=(0.0, 1.5),
  # More than the published (0.7, 1.6): what moves where is decided near pure noise, and for frames
  # of so few pixels, each much like the next, that begins at sigma = 10 (shapes_64.py, HIGH).
  video_noise=(2.0, 1.5),
  size=(32, 32),
  num_frames=8,
  fps=4.0,
  rates=(4.0, 8.0),
  motion_scale=5.0,  # shapes move by 8 or 23 % of the picture a second: buckets 39 and 117
  motion=117.0,
  # No adversary; a divergence that leaves latents room for a denoiser's errors, as in shapes_64.
  objective=AutoencoderObjective(adversarial_weight=0.0, kl_weight=1e-2),
)

PICTURES = ("data/shapes/images", "data/shapes/videos")
CLIPS = ("data/shapes/videos",)


def data(sources: tuple[str, ...], batch_size: int) -> DataConfig:
  """A tenth of the pictures is withheld, for guidance; there are no captions to drop."""
  return DataConfig(
    sources=sources, batch_size=batch_size, drop_text=0.0, drop_both=0.0, drop_image=0.1
  )


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
    system=SYSTEM,
    part="autoencoder",
    data=data(PICTURES, 4),
    optim=optim(3e-3),
    loop=loop(4000, 2000),
  ),
  Experiment(
    system=SYSTEM,
    part="image",
    data=data(PICTURES, 8),
    optim=optim(1e-3),
    loop=loop(2500, 500),
  ),
  Experiment(
    system=SYSTEM,
    part="video",
    data=data(CLIPS, 4),
    optim=optim(1e-3),
    loop=loop(2000, 500),
  ),
  Experiment(
    system=SYSTEM,
    part="high_quality",
    data=data(CLIPS, 4),
    optim=optim(3e-4),
    loop=loop(400, 200),
  ),
)
