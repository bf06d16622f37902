"""Every public architecture that can be read and written, by the name of its class."""

from emu_jax.weights import (
  autoencoder,
  controlnet,
  dit,
  i2vgen,
  modelscope,
  motion,
  prior,
  spatio_temporal,
  text,
  unet,
  vision,
)
from emu_jax.weights.architecture import Architecture

_ALL: tuple[Architecture, ...] = (
  unet.ARCHITECTURE,
  autoencoder.ARCHITECTURE,
  autoencoder.TEMPORAL_DECODER,
  text.CLIP_TEXT,
  text.CLIP_TEXT_PROJECTED,
  text.T5_ENCODER,
  text.T5_WHOLE,
  vision.ARCHITECTURE,
  spatio_temporal.ARCHITECTURE,
  modelscope.ARCHITECTURE,
  i2vgen.ARCHITECTURE,
  motion.ARCHITECTURE,
  motion.ADAPTER,
  controlnet.ARCHITECTURE,
  dit.ARCHITECTURE,
  prior.ARCHITECTURE,
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
