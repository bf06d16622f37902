"""The persistent compilation cache: a second process does not compile what a first one did."""

import os
import pathlib

import jax


def enable_cache() -> pathlib.Path:
  """Turns the cache on, in JAX_COMPILATION_CACHE_DIR or ~/.cache/emu_jax/xla; returns it."""
  default = pathlib.Path.home() / ".cache" / "emu_jax" / "xla"
  folder = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # A command is a few large programs and many small ones: all kept, a second one compiles nothing.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  return folder
