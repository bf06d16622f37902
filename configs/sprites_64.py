"""Text to video on captioned game characters: 64 pixels, 8 frames at 8 a second.

From a folder of clips with metadata.jsonl (`file_name`, `text`):

  emu-train prepare path/to/sprites --out data/sprites --size 64
  emu-train run --config sprites_64 --data.sources data/sprites
  emu-jax sample "a brown character with pink bob hair ..." --checkpoint runs/sprites_64
"""

from emu_jax.configs.shapes_32 import loop, optim
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import ClipTextConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo, Guidance
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.train.config import DataConfig, Experiment

MODEL = EmuVideo(
  image=Emu(
    size=(64, 64),
    first_stage=KlAutoencoder(
      AutoencoderConfig(
        channels=(64, 128),
        num_res_blocks=1,
        z_channels=32,
        norm_groups=8,
        mid_attention=False,
        norm_out=False,
        patch=4,  # 8x8 latents
      )
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
    process=Discrete(Schedule(zero_terminal_snr=True, prediction="v")),
    guidance=3.0,
    objective=AutoencoderObjective(adversarial_weight=0.0, kl_weight=1e-2),  # as shapes_32.py
    train_text=True,
  ),
  temporal=TemporalConfig(num_layers=1),  # a pose shows its action: no text needed here
  process=Discrete(Schedule(zero_terminal_snr=True, prediction="v")),
  guidance=Guidance(image=1.5, text=3.0, interpolation=1.0),
  num_frames=8,
  fps=8.0,
)

STAGES = (
  Experiment(
    system=MODEL,
    part="autoencoder",
    data=DataConfig(batch_size=4),
    optim=optim(3e-3),
    loop=loop(5000, 1250),
  ),
  Experiment(
    system=MODEL,
    part="image",
    data=DataConfig(batch_size=16, drop_text=0.1, drop_both=0.0),
    optim=optim(1e-3),
    loop=loop(3000, 750),
  ),
  Experiment(
    system=MODEL,
    part="video",
    data=DataConfig(batch_size=4),
    optim=optim(1e-3),
    loop=loop(1600, 400),
  ),
)
