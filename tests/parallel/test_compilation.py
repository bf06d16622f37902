"""How programs are compiled."""

import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.parallel import compilation
from emu_jax.parallel.compilation import Jit, trim
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.planning import topologies

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-plan)"
)


@needs_libtpu
def test_libtpu_is_silent_where_there_are_no_tpus_and_nobody_asks_for_them():
  """It looks for them in every process that has it installed, and complains of finding none."""
  names = {"JAX_PLATFORMS", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"}
  script = (
    "from emu_jax.parallel.compilation import quiet_libtpu; quiet_libtpu(); import jax; "
    "print(jax.devices()[0].platform)"
  )
  ran = subprocess.run(
    [sys.executable, "-c", script],
    env={n: v for n, v in os.environ.items() if n not in names}
    | {"PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert ran.stdout.strip() == "tpu" or not ran.stderr


def product(x, kernel):
  return x @ kernel


def permutes(jit):
  """How often a product sends a piece of its kernel, 64 MiB in 4, to a neighbour."""
  mesh = make_mesh(topologies.devices(topologies.parse("v5e:2x2")), MeshConfig(fsdp=4))
  lies = lambda shape, *axes: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*axes))
  )
  with jax.set_mesh(mesh):
    lowered = jit(product).lower(lies((8192, 4096), "fsdp"), lies((4096, 8192), "fsdp", None))
  return len(re.findall(r"collective-permute(?:-start)?\(", lowered.compile().as_text()))


@needs_libtpu
def test_tpus_gather_a_kernel_whole():
  assert permutes(jax.jit) > 0
  assert permutes(Jit) == 0


def test_other_devices_are_told_nothing():
  """Their compilers refuse what they do not know."""
  x = jnp.ones((2, 2))
  with jax.set_mesh(make_mesh(config=MeshConfig(fsdp=4))):
    assert (Jit(product)(x, x) == 2).all()


def test_it_may_stand_inside_another_program():
  x = jnp.ones((2, 2))
  with jax.set_mesh(make_mesh(config=MeshConfig(fsdp=4))):
    assert (jax.jit(Jit(product))(x, x) == 2).all()
    assert jax.eval_shape(Jit(product), x, x).shape == (2, 2)


def test_a_cache_is_trimmed_to_what_was_used_last(tmp_path):
  for age, name in enumerate(["newest", "older", "oldest"]):
    (tmp_path / name).write_bytes(b"x" * 10)
    os.utime(tmp_path / name, (1000 - age, 1000 - age))
  trim(tmp_path, 30)
  assert len(list(tmp_path.iterdir())) == 3
  trim(tmp_path, 25)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "older"]
  trim(tmp_path / "nowhere", 0)


def test_a_cache_that_the_user_names_is_left_alone(tmp_path, monkeypatch):
  named = {name: getattr(jax.config, name) for name in (
    "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}  # fmt: skip
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
  monkeypatch.setattr(compilation, "trim", None)
  try:
    compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"
  finally:
    for name, value in named.items():
      jax.config.update(name, value)
