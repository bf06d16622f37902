"""Public checkpoints in and out, without PyTorch.

`unet, params = weights.load("stable-diffusion-v1-5/unet")` reads one model, and
`weights.save("exported/unet", unet.config, params)` writes it for PyTorch's libraries.
"""

from emu_jax.weights.model import Loaded, load, save

__all__ = ["Loaded", "load", "save"]
