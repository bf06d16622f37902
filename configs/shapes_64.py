"""The whole of Emu Video, small: captioned moving shapes of 64 pixels, 8 frames, then 37.

  emu-train prepare shapes --out data/shapes_64 --size 64
  emu-train run --config configs/shapes_64.py
  emu-jax evaluate --checkpoint runs/shapes_64

The recipe of `configs/shapes_32.py` at twice the side. Its image stage is trained (the model in the
package, docs/results/README.md); its video and interpolation stages are not yet.
"""

import dataclasses

from configs.shapes_32 import MODEL as SMALL
from configs.shapes_32 import STAGES as SMALL_STAGES
from configs.shapes_32 import loop
from emu_jax.diffusion.loss import Times
from emu_jax.models.text import T5Config

# Where there is most to learn (docs/results): of a picture, in the middle; of a clip whose first
# frame and caption are known, near pure noise too, for they say where everything will be.
TIMES = {
  "autoencoder": Times(),
  "image": Times(uniform=0.25, mean=-0.5, std=0.9, stratified=True),
  "video": Times(uniform=0.25, mean=0.8, std=1.0, stratified=True),
  "interpolation": Times(uniform=0.25, mean=-0.5, std=0.9, stratified=True),
}

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
  unet=dataclasses.replace(SMALL.image.unet, transformer_depth=(1, 1, 1)),
)
MODEL = dataclasses.replace(SMALL, image=IMAGE)
DATA = {
  "data/shapes/images": "data/shapes_64/images",
  "data/shapes/videos": "data/shapes_64/videos",
}
BATCHES = {"autoencoder": 4, "image": 16, "video": 4, "interpolation": 2}
LOOPS = {
  "autoencoder": loop(4000, 2000),
  "image": loop(12_000, 2000),
  "video": loop(4000, 2000),
  "interpolation": loop(400, 400),
}
STAGES = tuple(
  dataclasses.replace(
    stage,
    model=MODEL,
    data=dataclasses.replace(
      stage.data,
      sources=tuple(DATA[s] for s in stage.data.sources),
      batch_size=BATCHES[stage.stage],
    ),
    times=TIMES[stage.stage],
    loop=LOOPS[stage.stage],
  )
  for stage in SMALL_STAGES
)
