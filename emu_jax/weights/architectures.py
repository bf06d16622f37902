"""Every public architecture that can be read and written, by the name of its class."""

from emu_jax.weights import motion, unet
from emu_jax.weights.architecture import Architecture

_ALL: tuple[Architecture, ...] = (unet.ARCHITECTURE, motion.ARCHITECTURE, motion.ADAPTER)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
