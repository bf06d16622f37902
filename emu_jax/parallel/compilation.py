"""How programs are compiled: what is kept for a second process, and what TPUs' compiler is told."""

import contextlib
import functools
import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any

import jax

# Without it the compiler gathers a kernel that lies in pieces by a ring: a product or convolution
# with each neighbour's piece, 16 small ones that leave most of a matrix unit idle. The number is
# the size in MiB from which on it may; no kernel is as large.
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}

CACHE_BYTES = 4 * 2**30


def enable_cache() -> None:
  """Turns the cache on, in JAX_COMPILATION_CACHE_DIR or in ~/.cache/emu_jax/xla, which is trimmed.

  A folder, or an address such as gs://bucket/cache, that the user names is left to the user.
  """
  named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  default = pathlib.Path.home() / ".cache" / "emu_jax" / "xla"
  if not named:
    trim(default, CACHE_BYTES)
  jax.config.update("jax_compilation_cache_dir", named or str(default))
  # A command is a few large programs and many small ones: all kept, a second one compiles nothing.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def trim(folder: pathlib.Path, max_bytes: int) -> None:
  """Deletes the files of a folder that were not used for longest, until the others fit.

  Ours: JAX's own limit refuses a cache that was begun without it, or whose writer was killed.
  """
  found = []
  for file in folder.glob("*"):
    with contextlib.suppress(OSError):  # another process may delete it, too
      status = file.stat()
      if stat.S_ISREG(status.st_mode):
        found.append((max(status.st_atime, status.st_mtime), status.st_size, file))
  excess = sum(size for _, size, _ in found) - max_bytes
  for _, size, file in sorted(found):
    if excess <= 0:
      break
    with contextlib.suppress(OSError):
      file.unlink()
    excess -= size


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
