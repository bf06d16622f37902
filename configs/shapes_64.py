"""The whole of Emu Video, small: captioned moving shapes of 64 pixels, 8 frames, then 37.

  emu-train prepare shapes --out data/shapes_64 --size 64
  emu-train run --config configs/shapes_64.py
  emu-jax evaluate --checkpoint runs/shapes_64

The recipe of `configs/shapes_32.py` at twice the side. Not yet trained whole: what its autoencoder
and the first steps of its other stages gave is in docs/results/README.md.
"""

import dataclasses

from configs.shapes_32 import MODEL as SMALL
from configs.shapes_32 import STAGES as SMALL_STAGES
from configs.shapes_32 import loop
from emu_jax.models.text import T5Config

IMAGE = dataclasses.replace(
  SMALL.image,
  size=64,
  autoencoder=dataclasses.replace(  # two levels: latents of 16x16, as of 32 pixels with one
    SMALL.image.autoencoder, channels=(32, 64), num_res_blocks=1
  ),
  # Padding is masked, so that attention spends nothing on it.
  text=(
    T5Config(
      vocab_size=512, width=96, max_length=24, num_layers=1, num_heads=4, head_dim=24, mlp_width=192
    ),
  ),
)
MODEL = dataclasses.replace(SMALL, image=IMAGE)
DATA = {
  "data/shapes/images": "data/shapes_64/images",
  "data/shapes/videos": "data/shapes_64/videos",
}
LOOPS = {
  "autoencoder": loop(4000, 2000),
  "image": loop(10_000, 2000),
  "video": loop(4000, 2000),
  "interpolation": loop(400, 400),
}
STAGES = tuple(
  dataclasses.replace(
    stage,
    model=MODEL,
    data=dataclasses.replace(stage.data, sources=tuple(DATA[s] for s in stage.data.sources)),
    loop=LOOPS[stage.stage],
  )
  for stage in SMALL_STAGES
)
