"""Stable Video Diffusion: 14 and then 25 frames of 576 x 1024 pixels from a picture, 1.5 B.

From the public weights and folders of clips:

  hf download stabilityai/stable-video-diffusion-img2vid --include "*.json" "unet/*.safetensors" \\
    "vae/*.safetensors" "image_encoder/*.safetensors" --local-dir models/svd
  emu-train prepare my_clips --out data/clips_256 --size 256 384 --motion
  emu-train prepare my_clips --out data/clips_320 --size 320 576 --motion
  emu-train prepare my_clips --out data/clips_576 --size 576 1024 --motion
  emu-train prepare my_chosen_clips --out data/chosen --size 576 1024 --motion
  emu-train run --config svd_576x1024
  emu-jax animate picture.png --checkpoint runs/svd_576x1024

Published (arXiv:2311.15127, app. D): the networks; 14 frames at 256 x 384 for 150 000 steps of 1536
clips at a rate of 1e-4, at 320 x 576 for 100 000 steps of 768, at 576 x 1024 for 50 000 steps at
3e-5 with an average of 0.9999; the noise of image to video, (0.7, 1.6), and at high resolution,
(1.0, 1.6). There the first two are of text to video, and an image model's weights begin; this
recipe goes on from the public image-to-video weights. Not published: frame rates, what of its
optical flow makes a motion bucket, the share of pictures withheld, and the number of steps, the
batch and the rate of tuning on 25 frames (all ours).

Not trained: no accelerator was at hand. Meshes and micro-batches follow the plans in docs/plans.md;
of v5e the last stage leaves too little free to be sure of it.
"""

import dataclasses

from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.models.vision import ClipVisionConfig
from emu_jax.parallel.mesh import MeshConfig
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.systems.svd import StableVideo
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

UNET = UNetConfig(
  concat_channels=4,
  channels=(320, 640, 1280, 1280),
  num_res_blocks=(2, 2, 2, 2),
  transformer_depth=(1, 1, 1, 0),
  num_heads=0,
  head_dim=64,
  context_dims=(1024,),
  linear_projection=True,
  res_epsilon=1e-6,
  num_micro=3,
  micro_dim=256,
  temporal=VideoLdmConfig(num_frames=14),
  remat=True,
  dtype="bfloat16",
)
# Sizes, guidance and noise are the defaults.
SYSTEM = StableVideo(
  unet=UNET,
  first_stage=KlAutoencoder(
    AutoencoderConfig(
      post_quant_conv=False,
      temporal_decoder=True,
      latent_scale=0.18215,
      remat=True,
      dtype="bfloat16",
    )
  ),
  vision=ClipVisionConfig(dtype="bfloat16"),
  num_frames=14,
  rates=(6.0, 8.0, 12.0),
)
# 64 devices hold the state of 1.5 B parameters, 24 GB and an average of 6 GB, with room to spare;
# the rest of a slice of 256 divides the batch.
MESH = MeshConfig(fsdp=64)


def at(height: int, width: int) -> StableVideo:
  """The system at another size of clips."""
  return dataclasses.replace(SYSTEM, size=(height, width))


def data(source: str, batch_size: int) -> DataConfig:
  """A tenth of the pictures is withheld, for guidance; there are no captions to drop."""
  return DataConfig(
    sources=(source,), batch_size=batch_size, drop_text=0.0, drop_both=0.0, drop_image=0.1
  )


def loop(num_steps: int) -> LoopConfig:
  return LoopConfig(
    num_steps=num_steps, log_every=50, save_every=1000, validate_every=1000, sample_every=5000
  )


VIDEO_256 = Experiment(
  name="video_256",
  system=at(256, 384),
  part="video",
  init_from="models/svd",
  data=data("data/clips_256", 1536),
  optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.01, accumulate=6),
  loop=loop(150_000),
  mesh=MESH,
)
VIDEO_320 = dataclasses.replace(
  VIDEO_256,
  name="video_320",
  system=at(320, 576),
  init_from="",  # from the stage before, as all from here on
  data=data("data/clips_320", 768),
  optim=dataclasses.replace(VIDEO_256.optim, accumulate=3),
  loop=loop(100_000),
)
HIGH_RESOLUTION = dataclasses.replace(
  VIDEO_320,
  name="high_resolution",
  system=SYSTEM,
  part="high_resolution",
  data=data("data/clips_576", 768),
  optim=dataclasses.replace(VIDEO_320.optim, peak_lr=3e-5, ema_decay=0.9999),
  loop=loop(50_000),
)
LONGER = dataclasses.replace(
  SYSTEM,
  unet=dataclasses.replace(UNET, temporal=VideoLdmConfig(num_frames=25)),
  num_frames=25,
)
STAGES = (
  VIDEO_256,
  VIDEO_320,
  HIGH_RESOLUTION,
  dataclasses.replace(
    HIGH_RESOLUTION,
    name="high_quality",
    system=LONGER,
    part="high_quality",
    data=data("data/chosen", 256),
    optim=dataclasses.replace(HIGH_RESOLUTION.optim, accumulate=1),
    loop=loop(10_000),
  ),
)
