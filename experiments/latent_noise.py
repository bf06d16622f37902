"""How much of a picture is left when its latents are wrong by a little?

  python -m experiments.latent_noise --run runs/shapes_32/autoencoder --data data/shapes/images

A denoiser never lands exactly; what its errors do to the picture is the autoencoder's doing. Noise
of a given share of each channel's spread is added to the latents of held-out pictures.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from emu_jax.checkpoints.stored import stored
from emu_jax.data.batches import batches, open_source
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.systems.first_stage import KlAutoencoder, pixels
from emu_jax.typing import Params, PerExample, Video

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # of a channel's standard deviation


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Prints the mean PSNR of decoded pictures for each level of noise."""

  run: pathlib.Path = pathlib.Path("runs/shapes_32/autoencoder")  # of an autoencoder's stage
  data: pathlib.Path = pathlib.Path("data/shapes/images")  # packed clips
  num: int = 128  # pictures, of the validation split
  seed: int = 0


def main() -> None:
  """Measures and prints one line a level."""
  arguments = tyro.cli(Arguments, prog="python -m experiments.latent_noise")
  found = stored(arguments.run)
  stage, trees = found.system.image.first_stage, found.load(["autoencoder"], {})
  source = open_source(arguments.data, "validation")
  inputs = clip_inputs(ClipSpec(1, 1.0), source.size)
  batch = next(batches(source, inputs, batch_size=arguments.num, seed=arguments.seed))
  frames = {"frames": jnp.asarray(batch["frames"])}
  spread = stage.measures()["latents"]  # of these pictures' latents, each channel's becomes 1
  trees |= {"latents": spread.all([jax.device_get(jax.jit(spread.one)(trees, frames))])}
  measure = jax.jit(functools.partial(psnr, stage))
  for level in LEVELS:
    key = jax.random.key(arguments.seed)
    decibels = measure(trees, pixels(frames["frames"]), key, level)
    print(f"noise {level:4.2f}  {np.mean(decibels):5.2f} dB")


def psnr(
  stage: KlAutoencoder, trees: Params, frames: Video, key: jax.Array, level: float
) -> PerExample:
  """Of each picture, in dB, after noise of `level` spreads in its latents."""
  latents = stage.encode(trees, frames)  # unit spread in every channel
  noisy = latents + level * jax.random.normal(key, latents.shape)
  error = jnp.square(stage.decode(trees, noisy) - frames).mean(axis=(1, 2, 3, 4))
  return -10 * jnp.log10(error / 4)


if __name__ == "__main__":
  main()
