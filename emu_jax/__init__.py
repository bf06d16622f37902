"""Latent video diffusion in JAX and Flax.

  import emu_jax
  model = emu_jax.load()  # or a run, a release, a public pipeline
  clips = model.sample("a large red circle moving left", seed=1)

`load` and `Model` are imported when they are first asked for: processes that decode clips need
neither JAX nor Flax.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    from emu_jax import model

    return getattr(model, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
