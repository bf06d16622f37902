"""Text to video on captioned game characters: 64 pixels, 8 frames at 8 a second.

From a folder of clips with metadata.jsonl (`file_name`, `text`):

  emu-train prepare path/to/sprites --out data/sprites --size 64
  emu-train run --config configs/sprites_64.py --data.sources data/sprites
  emu-jax sample "a brown character with pink bob hair ..." --checkpoint runs/sprites_64
"""

import dataclasses

from configs.shapes_32 import MODEL as SHAPES
from configs.shapes_32 import OBJECTIVE, loop, optim
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from train.config import DataConfig, Experiment

MODEL = dataclasses.replace(
  SHAPES,
  image=dataclasses.replace(
    SHAPES.image,
    size=64,
    autoencoder=dataclasses.replace(
      SHAPES.image.autoencoder,
      channels=(64, 128),
      num_res_blocks=1,
      z_channels=32,
      patch=4,  # 8x8 latents
    ),
    text=(
      ClipTextConfig(
        vocab_size=512, width=96, max_length=64, num_layers=3, num_heads=4, mlp_width=384
      ),
    ),
    unet=UNetConfig(
      in_channels=32,
      out_channels=32,
      channels=(96, 160),
      num_res_blocks=(1, 1),
      transformer_depth=(1, 1),
      num_heads=0,
      head_dim=32,
      context_dims=(96,),
      linear_projection=True,
      norm_groups=16,
    ),
  ),
  temporal=TemporalConfig(num_layers=1),  # a pose shows its action: no text needed here
  fps=8.0,
)

STAGES = (
  Experiment(
    stage="autoencoder",
    model=MODEL,
    objective=OBJECTIVE,
    data=DataConfig(batch_size=4),
    optim=optim(3e-3),
    loop=loop(5000, 1250),
  ),
  Experiment(
    stage="image",
    model=MODEL,
    train_text=True,
    data=DataConfig(batch_size=16, drop_text=0.1, drop_both=0.0),
    optim=optim(1e-3),
    loop=loop(3000, 750),
  ),
  Experiment(
    stage="video",
    model=MODEL,
    data=DataConfig(batch_size=4),
    optim=optim(1e-3),
    loop=loop(1600, 400),
  ),
)
