"""Every public architecture that can be read and written, by the name of its class."""

from emu_jax.weights import autoencoder, unet
from emu_jax.weights.architecture import Architecture

_ALL: tuple[Architecture, ...] = (
  unet.ARCHITECTURE,
  autoencoder.ARCHITECTURE,
  autoencoder.TEMPORAL_DECODER,
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
