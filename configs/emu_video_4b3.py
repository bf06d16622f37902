"""Emu Video at its published size, 4.3 B: five stages on a frozen text-to-image model of 2.7 B.

From a folder of captioned clips, and the run that configs/emu_2b7.py leaves:

  emu-train prepare my_clips --out data/clips_256 --size 256
  emu-train prepare my_clips --out data/clips_512 --size 512
  emu-train prepare my_lively_clips --out data/lively_512 --size 512
  emu-train run --config emu_video_4b3 --init-from runs/emu_2b7/quality
  emu-jax sample "a prompt" --checkpoint runs/emu_video_4b3 --frames 37

Values are those of arXiv:2311.10709, app. tables 1 to 3: 256 pixels with epsilon; 512 pixels with v
and zero terminal SNR, 8 and then 16 frames at 4 a second; 1600 lively clips at a quarter of the
rate; 8 -> 37 frames. Not published: the steps of the last two stages, whether the lively clips have
8 or 16 frames, the weight of the average and how often conditions are dropped (DataConfig's).

Not trained: no accelerator was at hand. Meshes and micro-batches follow the plans in docs/plans.md.
"""

import dataclasses

from emu_jax.configs.emu_2b7 import IMAGE, loop
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.schedule import Schedule
from emu_jax.parallel.mesh import MeshConfig
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.optimiser import OptimConfig

AT_256 = EmuVideo(
  image=dataclasses.replace(IMAGE, size=(256, 256)),
  process=Discrete(Schedule()),  # epsilon, no zero terminal SNR
  num_frames=8,
  fps=8.0,
)
AT_512 = EmuVideo(
  # Four times the products of 256 pixels are more than most chips have room for.
  image=dataclasses.replace(IMAGE, unet=dataclasses.replace(IMAGE.unet, remat_keeps="nothing")),
  process=Discrete(Schedule(zero_terminal_snr=True, prediction="v")),
  num_frames=8,
  fps=4.0,
)
AT_512_16 = dataclasses.replace(AT_512, num_frames=16)

STAGES = (
  Experiment(
    name="video_256",
    system=AT_256,
    part="video",
    init_from="runs/emu_2b7/quality",
    data=DataConfig(sources=("data/clips_256",), batch_size=512),
    # On 256 devices one clip at a time, whose products take 5.6 GiB at 256 pixels.
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0, accumulate=2),
    loop=loop(70_000),
    mesh=MeshConfig(fsdp=16),
  ),
  Experiment(
    name="video_512",
    system=AT_512,
    part="video",
    data=DataConfig(sources=("data/clips_512",), batch_size=512),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0, accumulate=2),
    loop=loop(15_000),
    mesh=MeshConfig(fsdp=16),
  ),
  Experiment(
    name="video_512_16",
    system=AT_512_16,
    part="video",
    data=DataConfig(sources=("data/clips_512",), batch_size=512),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.0, accumulate=2),
    loop=loop(25_000),
    mesh=MeshConfig(fsdp=16),
  ),
  Experiment(
    name="high_motion",
    system=AT_512_16,
    part="video",
    data=DataConfig(sources=("data/lively_512",), batch_size=64),
    optim=OptimConfig(peak_lr=2.5e-5, warmup_steps=10_000, weight_decay=1e-4),
    loop=loop(15_000),
    mesh=MeshConfig(fsdp=16, frames=4),  # 64 clips on 256 devices
  ),
  Experiment(
    name="interpolation",
    system=AT_512,
    part="interpolation",
    data=DataConfig(sources=("data/clips_512",), batch_size=384),
    # On 128 devices, since 384 clips do not split over 256 and 37 frames over nothing.
    optim=OptimConfig(peak_lr=1.5e-4, warmup_steps=1500, weight_decay=0.0, accumulate=3),
    loop=loop(15_000),
    mesh=MeshConfig(fsdp=16),
  ),
)
