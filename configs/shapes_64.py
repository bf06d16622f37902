"""The whole of Emu Video, small: captioned moving shapes, pictures of 64 pixels, 8 frames, then 37.

  emu-train prepare shapes --out data/shapes_32 --size 32 --num-clips 20000
  emu-train prepare shapes --out data/shapes_64 --size 64
  python -m experiments.lively --clips data/shapes_64/videos --out data/shapes_64/lively
  emu-train run --config shapes_64
  emu-jax evaluate --checkpoint runs/shapes_64

The paper's stages: pictures; clips at half the resolution; at the full one; the clips that move
most; 8 -> 37 frames. The result is the model in the package (docs/results/README.md).
"""

import dataclasses

from emu_jax.configs.shapes_32 import loop, optim
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.loss import Times
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import T5Config
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo, Guidance
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.train.config import DataConfig, Experiment

V = Schedule(zero_terminal_snr=True, prediction="v")
# Where there is most to learn (docs/results). Of a picture, in the middle. Of a clip, near pure
# noise: its first frame and caption say where everything will be, and that is decided there.
MIDDLE = Times(uniform=0.25, mean=-0.5, std=0.9, stratified=True)
HIGH = Times(uniform=0.05, mean=4.0, std=0.7, stratified=True)
BOTH = Times(uniform=0.25, mean=2.0, std=1.5, stratified=True)

MODEL = EmuVideo(
  image=Emu(
    size=(64, 64),
    first_stage=KlAutoencoder(
      AutoencoderConfig(
        channels=(32, 64),  # two levels: latents of 16x16, as of 32 pixels with one
        num_res_blocks=1,
        z_channels=4,
        norm_groups=8,
        mid_attention=False,
        norm_out=False,
        patch=2,
      )
    ),
    # Padding is masked, so that attention spends nothing on it.
    text=(
      T5Config(
        vocab_size=512, width=96, max_length=24, num_layers=1, num_heads=4, head_dim=24,
        mlp_width=192,
      ),
    ),
    unet=UNetConfig(
      in_channels=4,
      out_channels=4,
      channels=(32, 64, 128),
      num_res_blocks=(1, 1, 1),
      transformer_depth=(1, 1, 1),
      num_heads=0,
      head_dim=32,
      context_dims=(96,),
      linear_projection=True,
      norm_groups=8,
    ),
    process=Discrete(V, MIDDLE),
    guidance=6.0,  # pictures by a larger scale leave the motion more room
    objective=AutoencoderObjective(adversarial_weight=0.0, kl_weight=1e-2),  # as shapes_32.py
    train_text=True,
  ),
  temporal=TemporalConfig(num_layers=1, attends_text=True),
  process=Discrete(V, BOTH),
  guidance=Guidance(image=1.5, text=3.0, interpolation=1.0),
  # Frames between others are nearest to what was there in one step, for which the last stage trains
  # (docs/results).
  interpolation_steps=1,
  num_frames=8,
  fps=4.0,
  first_frames=True,
)  # fmt: skip
AT_32 = dataclasses.replace(
  MODEL, image=dataclasses.replace(MODEL.image, size=(32, 32)), process=Discrete(V, HIGH)
)


def at_times(times: Times) -> EmuVideo:
  """The model, its image part trained at other times."""
  return dataclasses.replace(
    MODEL, image=dataclasses.replace(MODEL.image, process=Discrete(V, times))
  )


CLIPS_32 = "data/shapes_32/videos"
IMAGES, CLIPS, LIVELY = (f"data/shapes_64/{name}" for name in ("images", "videos", "lively"))

STAGES = (
  Experiment(
    system=MODEL,
    part="autoencoder",
    data=DataConfig(sources=(IMAGES, CLIPS), batch_size=4),
    optim=optim(3e-3),
    loop=loop(4000, 2000),
  ),
  Experiment(
    system=MODEL,
    part="image",
    data=DataConfig(sources=(IMAGES, CLIPS), weights=(0.5, 0.5), batch_size=16, drop_both=0.0),
    optim=optim(1e-3),
    loop=loop(12_000, 2000),
  ),
  Experiment(
    name="video_32",
    system=AT_32,
    part="video",
    data=DataConfig(sources=(CLIPS_32,), batch_size=4),
    optim=optim(1e-3),
    loop=loop(5000, 1000),
  ),
  Experiment(
    name="video_64",
    system=MODEL,
    part="video",
    data=DataConfig(sources=(CLIPS,), batch_size=4),
    optim=optim(1e-3),
    loop=loop(4000, 1000),
  ),
  Experiment(
    name="high_motion",
    system=MODEL,
    part="video",
    data=DataConfig(sources=(LIVELY,), batch_size=4),
    optim=optim(2.5e-4),
    loop=loop(300, 300),
  ),
  # Where a shape stands must leave its motion room. That is decided near pure noise, and only there
  # do the text and the picture learn directions: of the quickest clips first, then of ever more
  # else, which teaches looks again. The video stages then go on, with the text's new features.
  Experiment(
    name="image_directions",
    system=at_times(HIGH),
    part="image",
    data=DataConfig(sources=(LIVELY,), batch_size=16, drop_both=0.0),
    optim=optim(1e-3),
    loop=loop(600, 600),
  ),
  Experiment(
    name="image_2",
    system=at_times(Times(uniform=0.4, mean=4.0, std=0.7, stratified=True)),
    part="image",
    data=DataConfig(
      sources=(IMAGES, CLIPS, LIVELY), weights=(0.3, 0.2, 0.5), batch_size=16, drop_both=0.0
    ),
    optim=optim(7e-4),
    loop=loop(1500, 500),
  ),
  Experiment(
    name="image_3",
    system=at_times(Times(uniform=0.4, mean=3.5, std=1.0, stratified=True)),
    part="image",
    data=DataConfig(
      sources=(IMAGES, CLIPS, LIVELY), weights=(0.2, 0.2, 0.6), batch_size=16, drop_both=0.0
    ),
    optim=optim(5e-4),
    loop=loop(2000, 500),
  ),
  Experiment(
    name="image_4",
    system=at_times(Times(uniform=0.5, mean=2.0, std=2.0, stratified=True)),
    part="image",
    data=DataConfig(
      sources=(IMAGES, CLIPS, LIVELY), weights=(0.25, 0.25, 0.5), batch_size=16, drop_both=0.0
    ),
    optim=optim(4e-4),
    loop=loop(1500, 500),
  ),
  Experiment(
    name="image_5",
    system=at_times(Times(uniform=0.5, mean=3.5, std=1.0, stratified=True)),
    part="image",
    data=DataConfig(
      sources=(IMAGES, CLIPS, LIVELY), weights=(0.15, 0.25, 0.6), batch_size=16, drop_both=0.0
    ),
    optim=optim(4e-4),
    loop=loop(1500, 500),
  ),
  Experiment(
    name="video_32_again",
    system=AT_32,
    part="video",
    data=DataConfig(sources=(CLIPS_32,), batch_size=4),
    optim=optim(1e-3),
    loop=loop(2500, 500),
  ),
  Experiment(
    name="video_64_again",
    system=MODEL,
    part="video",
    data=DataConfig(sources=(CLIPS,), batch_size=4),
    optim=optim(1e-3),
    loop=loop(1500, 500),
  ),
  Experiment(
    name="high_motion_again",
    system=MODEL,
    part="video",
    data=DataConfig(sources=(LIVELY,), batch_size=4),
    optim=optim(2.5e-4),
    loop=loop(300, 300),
  ),
  Experiment(
    name="interpolation_32",
    system=AT_32,
    part="interpolation",
    data=DataConfig(sources=(CLIPS_32,), batch_size=2),
    optim=optim(1e-3),
    loop=loop(2000, 500),
  ),
  Experiment(
    name="interpolation",
    system=MODEL,
    part="interpolation",
    data=DataConfig(sources=(CLIPS,), batch_size=2),
    optim=optim(5e-4),
    loop=loop(600, 300),
  ),
  Experiment(
    name="interpolation_again",
    system=dataclasses.replace(MODEL, process=Discrete(V, HIGH)),
    part="interpolation",
    data=DataConfig(sources=(CLIPS,), batch_size=2),
    optim=optim(5e-4),
    loop=loop(900, 300),
  ),
)
