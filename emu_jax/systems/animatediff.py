"""AnimateDiff: an image model becomes a video model by motion modules trained apart from it.

The image model's weights are any fine-tune of the one that the motion modules were trained with;
nothing of it changes. Trees: the image model's, and "temporal".

Source: AnimateDiff, arXiv:2307.04725.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.conditioning import TextFeatures, image_branches
from emu_jax.diffusion.guidance import guided, rescale, text_guidance
from emu_jax.diffusion.schedule import Schedule
from emu_jax.errors import InputError
from emu_jax.models.motion import MotionConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.systems.emu import EmuConfig
from emu_jax.systems.emu_video import Guidance
from emu_jax.systems.latent import Sampling, bound
from emu_jax.trees import merge
from emu_jax.typing import Params, Predict, Video
from emu_jax.weights import Loaded


@dataclasses.dataclass(frozen=True)
class AnimateDiffConfig:
  """An image model, its motion modules, and the schedule that these were trained with."""

  image: EmuConfig
  motion: MotionConfig = MotionConfig()
  # Linear, unlike the image model's: arXiv:2307.04725, sec. 5 (and its public scheduler).
  schedule: Schedule = Schedule(kind="linear")
  num_frames: int = 16
  fps: float = 8.0  # at which its clips are shown; its public pipelines' exports
  guidance: Guidance = Guidance()  # of which the text's scale is used, 7.5

  def __post_init__(self):
    if self.num_frames > self.motion.max_frames:
      raise ValueError(
        f"AnimateDiffConfig: num_frames={self.num_frames} is above motion.max_frames="
        f"{self.motion.max_frames}, the positions that are stored"
      )

  @property
  def unet(self) -> UNetConfig:
    """The video U-Net: the image model's layers and the motion modules."""
    return dataclasses.replace(self.image.unet, temporal=self.motion)


def animated(image: Loaded, adapter: Loaded) -> Loaded:
  """The video U-Net of an image U-Net and a motion adapter.

  An adapter that reads more than the latents (PIA, arXiv:2312.13964) brings the kernel of what it
  reads beside them; of its first convolution the rest stays the image model's.

  Raises: InputError where the two have other widths, blocks or norms.
  """
  ours, theirs = image.module.config, adapter.module.config
  for name in ("channels", "num_res_blocks", "norm_groups"):
    if getattr(ours, name) != getattr(theirs, name):
      raise InputError(
        f"animated: the image model has {name}={getattr(ours, name)}, the motion adapter "
        f"{getattr(theirs, name)}; choose an adapter of this image model's family"
      )
  motion = {name: tree for name, tree in adapter.params.items() if name != "conv_in"}
  config = dataclasses.replace(
    ours,
    temporal=theirs.temporal,
    concat_channels=ours.concat_channels + theirs.concat_channels,
  )
  return Loaded(UNet(config), merge(image.params, motion))


def denoiser(
  config: AnimateDiffConfig,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  text_scale: float | Float[Array, ""],
  rescaled: float = 0.0,
) -> Predict:
  """The video U-Net led by prompts: a function of x_t and t."""
  net = bound(UNet(config.unet), merge(trees["spatial"], trees["temporal"]))
  combine = rescale(text_guidance(text_scale), rescaled)
  return guided(net, image_branches(text, empty), combine)


def sample_clip(
  config: AnimateDiffConfig,
  trees: Params,
  text: TextFeatures,
  empty: TextFeatures,
  key: jax.Array,
  text_scale: float | Float[Array, ""],
  *,
  sampling: Sampling,
) -> Video:
  """Normalised latents [B, T, H, W, C] of clips of prompts, by text guidance.

  Source: AnimateDiff, arXiv:2307.04725, sec. 4.3; its public code samples with scale 7.5 (8.0 for
    some), DDIM, 25 steps, "leading" times with offset 1.

  Args:
    empty: features of what guidance leads away from: the empty prompt, or a negative one.
  """
  key_noise, key_steps = jax.random.split(key)
  shape = config.image.latent_shape(text.texts[0].shape[0], config.num_frames)
  noise = jax.random.normal(key_noise, shape, jnp.float32)
  predict = denoiser(config, trees, text, empty, text_scale, sampling.rescale)
  return sampling.run(predict, config.schedule, noise, key_steps)
