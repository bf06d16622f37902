"""Every public architecture that can be read and written, by the name of its class."""

from emu_jax.weights import text, unet
from emu_jax.weights.architecture import Architecture

_ALL: tuple[Architecture, ...] = (
  unet.ARCHITECTURE,
  text.CLIP_TEXT,
  text.CLIP_TEXT_PROJECTED,
  text.T5_ENCODER,
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
