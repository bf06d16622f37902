"""How programs are compiled: what is kept for a second process, and what TPUs' compiler is told."""

import os
import pathlib

import jax
from jax.sharding import Mesh

# Without it the compiler gathers a kernel that lies in pieces by a ring: a product or convolution
# with each neighbour's piece, 16 small ones that leave most of a matrix unit idle. The number is
# the size in MiB from which on it may; no kernel is as large.
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


def enable_cache() -> pathlib.Path:
  """Turns the cache on, in JAX_COMPILATION_CACHE_DIR or ~/.cache/emu_jax/xla; returns it."""
  default = pathlib.Path.home() / ".cache" / "emu_jax" / "xla"
  folder = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # A command is a few large programs and many small ones: all kept, a second one compiles nothing.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  return folder


def compiler_options(mesh: Mesh) -> dict[str, int]:
  """Of `jax.jit`, for programs of the devices of a mesh."""
  return TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else {}
