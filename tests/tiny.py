"""The smallest Emu Video: every part of the real one, at a size that compiles in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.schedule import Schedule
from emu_jax.models.autoencoder import AutoencoderConfig
from emu_jax.models.temporal import TemporalConfig
from emu_jax.models.text import ClipTextConfig, T5Config
from emu_jax.models.unet import UNetConfig
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.first_stage import KlAutoencoder

MODEL = EmuVideo(
  image=Emu(
    size=(16, 16),
    first_stage=KlAutoencoder(
      AutoencoderConfig(
        channels=(8,), num_res_blocks=1, z_channels=4, norm_groups=4, mid_attention=False, patch=4
      )
    ),
    text=(
      ClipTextConfig(
        vocab_size=300, width=8, max_length=12, num_layers=1, num_heads=2, mlp_width=16
      ),
      T5Config(
        vocab_size=300, width=12, max_length=10, num_layers=1, num_heads=2, head_dim=4, mlp_width=16
      ),
    ),
    unet=UNetConfig(
      in_channels=4,
      out_channels=4,
      channels=(8, 16),
      num_res_blocks=(1, 1),
      transformer_depth=(0, 2),
      mid_depth=0,
      num_heads=0,
      head_dim=8,
      context_dims=(8, 12),
      layer_contexts=(0, 1),
      linear_projection=True,
      norm_groups=4,
    ),
  ),
  temporal=TemporalConfig(num_layers=1, noise_level=True),
  process=Discrete(Schedule(zero_terminal_snr=True, prediction="v")),
  num_frames=8,
  fps=4.0,
)


def trees(config=MODEL, seed=0):
  """All trees that sampling needs, at their initialisation; the temporal ones are drawn anew."""
  return dict(_trees(config, seed))


@functools.cache
def _trees(config, seed):
  keys = iter(jax.random.split(jax.random.key(seed), 4))
  table = config.trees()
  made = {
    name: jax.jit(table[name].init)(next(keys)) for name in ("autoencoder", "text", "spatial")
  }
  made["latents"] = {"shift": jnp.full(4, 0.1), "scale": jnp.full(4, 2.0)}
  temporal = jax.jit(table["temporal"].init)(next(keys))
  names = ("temporal", "interpolation", "extension")
  return made | {name: perturbed(temporal, seed + i) for i, name in enumerate(names)}


def perturbed(tree, seed):
  """The tree away from its initialisation, so that nothing in it is zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: leaf + jnp.asarray(0.05 * rng.standard_normal(leaf.shape), leaf.dtype), tree
  )
