"""How programs are compiled: what is kept for a second process, and what TPUs' compiler is told."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

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


def quiet_libtpu() -> None:
  """Tells libtpu on a machine without TPUs what it would otherwise complain of not finding.

  Where it is installed, as for plans, JAX starts it whatever a command is for. Nothing is changed
  where JAX_PLATFORMS names TPUs, or their devices are there.
  """
  requested = "tpu" in os.environ.get("JAX_PLATFORMS", "")
  present = any(pathlib.Path("/dev").glob("accel*")) or any(
    pathlib.Path("/dev").glob("vfio/[0-9]*")
  )
  if not requested and not present:
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


class Jit:
  """`jax.jit`, with what TPUs' compiler is told where the mesh of `jax.set_mesh` is one of TPUs.

  Ours: options are `jax.jit`'s once and for all, and which devices a function is for is only known
  when it is called.
  """

  def __init__(self, function: Callable, **options: Any):
    functools.update_wrapper(self, function)
    self._plain = jax.jit(function, **options)
    self._tpu = jax.jit(function, compiler_options=TPU_OPTIONS, **options)

  @property
  def here(self) -> Callable:
    """The function of `jax.jit` for the mesh that is set."""
    try:
      mesh = jax.sharding.get_mesh()
    except ValueError:  # inside another trace, whose program has the options
      return self._plain
    of_tpus = not mesh.empty and mesh.devices.flat[0].platform == "tpu"
    return self._tpu if of_tpus else self._plain

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.here(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
    return self.here.lower(*args, **kwargs)
