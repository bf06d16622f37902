"""The whole of Emu Video, small: captioned moving shapes, pictures of 64 pixels, 8 frames, then 37.

  emu-train prepare shapes --out data/shapes_32 --size 32 --num-clips 20000
  emu-train prepare shapes --out data/shapes_64 --size 64
  python -m experiments.lively --clips data/shapes_64/videos --out data/shapes_64/lively
  emu-train run --config configs/shapes_64.py
  emu-jax evaluate --checkpoint runs/shapes_64

The paper's stages: pictures; clips at half the resolution; at the full one; the clips that move
most; 8 -> 37 frames. The result is the model in the package (docs/results/README.md).
"""

import dataclasses

from configs.shapes_32 import MODEL as SMALL
from configs.shapes_32 import STAGES as SMALL_STAGES
from configs.shapes_32 import loop, optim
from emu_jax.diffusion.loss import Times
from emu_jax.models.text import T5Config

# Where there is most to learn (docs/results). Of a picture, in the middle. Of a clip, near pure
# noise: its first frame and caption say where everything will be, and that is decided there.
MIDDLE = Times(uniform=0.25, mean=-0.5, std=0.9, stratified=True)
HIGH = Times(uniform=0.05, mean=4.0, std=0.7, stratified=True)
BOTH = Times(uniform=0.25, mean=2.0, std=1.5, stratified=True)

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
# Pictures by a larger scale leave the motion more room; frames between others are nearest to what
# was there in one step, for which the last stage trains (docs/results).
GUIDANCE = dataclasses.replace(SMALL.guidance, picture=6.0)
MODEL = dataclasses.replace(SMALL, image=IMAGE, guidance=GUIDANCE, interpolation_steps=1)
AT_32 = dataclasses.replace(MODEL, image=dataclasses.replace(IMAGE, size=32))

AUTOENCODER, PICTURES, VIDEO, BETWEEN = SMALL_STAGES
IMAGES, CLIPS, LIVELY = (f"data/shapes_64/{name}" for name in ("images", "videos", "lively"))


def of(stage, sources, batch_size, loop, weights=None, **changes):
  """A stage of the small recipe with this one's data and length."""
  weights = stage.data.weights if weights is None else weights
  data = dataclasses.replace(stage.data, sources=sources, weights=weights, batch_size=batch_size)
  return dataclasses.replace(stage, **{"model": MODEL, "data": data, "loop": loop} | changes)


VIDEO_32 = of(
  VIDEO, ("data/shapes_32/videos",), 4, loop(5000, 1000), name="video_32", model=AT_32, times=HIGH
)
VIDEO_64 = of(VIDEO, (CLIPS,), 4, loop(4000, 1000), name="video_64", times=BOTH)
HIGH_MOTION = of(
  VIDEO, (LIVELY,), 4, loop(300, 300), name="high_motion", times=BOTH, optim=optim(2.5e-4)
)
# Where a shape stands must leave its motion room. That is decided near pure noise, and only there
# do the text and the picture learn directions: of the quickest clips first, then of ever more else,
# which teaches looks again. The video stages then go on, with the text's new features.
DIRECTIONS = of(
  PICTURES, (LIVELY,), 16, loop(600, 600), weights=(), name="image_directions", times=HIGH
)


def places(name, num_steps, peak_lr, weights, **times):
  """More of the picture stage on pictures, clips and the liveliest of them, so often."""
  return of(
    PICTURES, (IMAGES, CLIPS, LIVELY), 16, loop(num_steps, 500), weights, name=name,
    optim=optim(peak_lr), times=Times(stratified=True, **times),
  )  # fmt: skip


PLACES = (
  places("image_2", 1500, 7e-4, (0.3, 0.2, 0.5), uniform=0.4, mean=4.0, std=0.7),
  places("image_3", 2000, 5e-4, (0.2, 0.2, 0.6), uniform=0.4, mean=3.5, std=1.0),
  places("image_4", 1500, 4e-4, (0.25, 0.25, 0.5), uniform=0.5, mean=2.0, std=2.0),
  places("image_5", 1500, 4e-4, (0.15, 0.25, 0.6), uniform=0.5, mean=3.5, std=1.0),
)
AGAIN = (
  dataclasses.replace(VIDEO_32, name="video_32_again", loop=loop(2500, 500)),
  dataclasses.replace(VIDEO_64, name="video_64_again", loop=loop(1500, 500)),
  dataclasses.replace(HIGH_MOTION, name="high_motion_again"),
)
BETWEEN_32 = of(
  BETWEEN, VIDEO_32.data.sources, 2, loop(2000, 500), name="interpolation_32", model=AT_32,
  times=HIGH, optim=optim(1e-3),
)  # fmt: skip
BETWEEN_64 = of(BETWEEN, (CLIPS,), 2, loop(600, 300), name="interpolation", times=BOTH)
STAGES = (
  of(AUTOENCODER, (IMAGES, CLIPS), 4, loop(4000, 2000)),
  of(PICTURES, (IMAGES, CLIPS), 16, loop(12_000, 2000), times=MIDDLE),
  VIDEO_32,
  VIDEO_64,
  HIGH_MOTION,
  DIRECTIONS,
  *PLACES,
  *AGAIN,
  BETWEEN_32,
  BETWEEN_64,
  dataclasses.replace(BETWEEN_64, name="interpolation_again", times=HIGH, loop=loop(900, 300)),
)
