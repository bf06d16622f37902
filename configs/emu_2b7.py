"""Emu at the size that Emu Video builds on: an autoencoder and a text-to-image model of 2.7 B.

From packed pictures and two public text encoders, CLIP ViT-L and Flan-T5-XL:

  hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --include "text_encoder/*" \\
    "tokenizer/*" --local-dir models/sd15
  hf download google/flan-t5-xl --include "*.json" "*.safetensors" --local-dir models/flan-t5-xl
  emu-train prepare my_pictures --out data/pictures_256 --size 256
  emu-train prepare my_pictures --out data/pictures_512 --size 512
  emu-train prepare my_chosen_pictures --out data/chosen --size 512
  emu-train run --config emu_2b7
  emu-jax sample "a prompt" --checkpoint runs/emu_2b7

Published: the network (arXiv:2311.10709, app. table 1 and 2), the text encoders, growing
resolution, offset noise of 0.02 at the end of pretraining, and quality-tuning with batches of 64,
offset noise of 0.1 and at most 15 000 steps (arXiv:2309.15807, sec. 3). Emu itself has 16 channels
of latents and T5-XXL. Not published: batches and steps of pretraining, which are
SDXL's here (arXiv:2307.01952, sec. 2.5), its rate and the number of steps at its end, the rate of
quality-tuning and all of the autoencoder's values (ours).

Not trained: no accelerator was at hand. Meshes and micro-batches follow the plans in docs/plans.md.
"""

import dataclasses

from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.temporal import Temporal
from emu_jax.models.text import clip_vit_l, t5_xl
from emu_jax.parallel.mesh import MeshConfig
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import published_unet
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

IMAGE = Emu(
  size=(512, 512),
  first_stage=KlAutoencoder(AutoencoderConfig(z_channels=8, remat=True, dtype="bfloat16")),
  text=(
    dataclasses.replace(clip_vit_l(), dtype="bfloat16"),
    dataclasses.replace(t5_xl(), dtype="bfloat16"),
  ),
  unet=published_unet(
    temporal=Temporal(), concat_channels=0, remat=True, remat_keeps="products", dtype="bfloat16"
  ),
)
AT_256 = dataclasses.replace(IMAGE, size=(256, 256))
# 64 devices hold the state of 2.7 B parameters (16 bytes each) with room to spare.
MESH = MeshConfig(fsdp=64)


def loop(num_steps: int) -> LoopConfig:
  """So many steps, with the intervals of long runs."""
  return LoopConfig(
    num_steps=num_steps, log_every=50, save_every=1000, validate_every=1000, sample_every=5000
  )


STAGES = (
  Experiment(
    system=AT_256,
    part="autoencoder",
    data=DataConfig(sources=("data/pictures_256",), batch_size=256, drop_both=0.0),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0),
    loop=loop(100_000),
  ),
  Experiment(
    name="image_256",
    system=AT_256,
    part="image",
    init_trees=("text/0=models/sd15/text_encoder", "text/1=models/flan-t5-xl"),
    data=DataConfig(
      sources=("data/pictures_256",),
      batch_size=2048,
      drop_both=0.0,
      tokenizers=("models/sd15/tokenizer", "models/flan-t5-xl"),
    ),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.01),
    loop=loop(600_000),
    mesh=MESH,
  ),
  Experiment(
    name="image_512",
    system=IMAGE,
    part="image",
    data=DataConfig(sources=("data/pictures_512",), batch_size=2048, drop_both=0.0),
    # 4 pictures a device, of 256.
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.01, accumulate=2),
    loop=loop(200_000),
    mesh=MESH,
  ),
  Experiment(
    name="image_offset",
    system=dataclasses.replace(IMAGE, offset_noise=0.02),
    part="image",
    data=DataConfig(sources=("data/pictures_512",), batch_size=2048, drop_both=0.0),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.01, accumulate=2),
    loop=loop(20_000),
    mesh=MESH,
  ),
  Experiment(
    name="quality",
    system=dataclasses.replace(IMAGE, offset_noise=0.1),
    part="image",
    data=DataConfig(sources=("data/chosen",), batch_size=64, drop_both=0.0),
    optim=OptimConfig(peak_lr=2.5e-5, warmup_steps=1000, weight_decay=0.01),
    loop=loop(15_000),
    mesh=MESH,
  ),
)
