"""Text to video on captioned game characters: 64 pixels, 8 frames at 8 a second.

From a folder of clips with metadata.jsonl (`file_name`, `text`):

  emu-train prepare path/to/sprites --out data/sprites --size 64
  emu-train run --config configs/sprites_64.py --data.sources data/sprites
  emu-jax sample "a brown character with pink bob hair ..." --checkpoint runs/sprites_64
"""

import dataclasses

from configs.shapes_32 import MODEL as SHAPES
from configs.shapes_32 import loop, optim
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu import AutoencoderObjective
from emu_jax.systems.emu_video import Guidance
from train.config import DataConfig, Experiment

MODEL = dataclasses.replace(
  SHAPES,
  image=dataclasses.replace(
    SHAPES.image,
    size=64,
    autoencoder=dataclasses.replace(
      SHAPES.image.autoencoder,
      channels=(64,),
      num_res_blocks=2,
      z_channels=16,
      patch=4,  # 16x16 latents
    ),
    text=(
      ClipTextConfig(
        vocab_size=512, width=96, max_length=64, num_layers=3, num_heads=4, mlp_width=384
      ),
    ),
    unet=UNetConfig(
      in_channels=16,
      out_channels=16,
      channels=(64, 96, 160),
      num_res_blocks=(1, 1, 2),
      transformer_depth=(0, 1, 1),
      num_heads=0,
      head_dim=32,
      context_dims=(96,),
      linear_projection=True,
      norm_groups=16,
    ),
  ),
  guidance=Guidance(picture=3.0, image=1.5, text=3.0),
  fps=8.0,
)

STAGES = (
  Experiment(
    stage="autoencoder",
    model=MODEL,
    objective=AutoencoderObjective(adversarial_weight=0.0),
    data=DataConfig(batch_size=16),
    optim=optim(1.5e-3),
    loop=loop(2500, 500),
  ),
  Experiment(
    stage="image",
    model=MODEL,
    train_text=True,
    data=DataConfig(batch_size=16, drop_text=0.1, drop_both=0.0),
    optim=optim(1e-3),
    loop=loop(4000, 500),
  ),
  Experiment(
    stage="video",
    model=MODEL,
    data=DataConfig(batch_size=8),
    optim=optim(1e-3),
    loop=loop(1000, 250),
  ),
)
