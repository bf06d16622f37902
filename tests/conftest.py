"""What holds for every test: 8 pretend devices, no silent broadcasting, annotations enforced."""

import gc
import os
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook
from xdist.scheduler import LoadFileScheduling

# The compiler's effort goes where programs run often; a test's run once or twice.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # pieces cost more to put together than they save
  ]
)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # [B] * [B T H W C] is an error
jax.config.update("jax_debug_key_reuse", True)  # a key drawn from twice is an error
jax.config.update("jax_default_matmul_precision", "highest")  # tolerances are float32's own
jax.config.update(
  "jax_compilation_cache_dir",
  os.environ.get("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache/emu_jax/xla")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

install_import_hook(["emu_jax"], "beartype.beartype")  # annotations are checked, here only

# Tracing makes millions of small objects that live on, and at Python's own pace the collector
# looks through all of them again and again: a seventh of a test's time.
gc.set_threshold(50_000, 20, 1000)


# A worker runs whole files, since a file's tests share what they set up; these share it too.
RECIPE = "the runs of the tiny recipe"
TOGETHER = dict.fromkeys(
  (
    "tests/train/test_command.py",
    "tests/train/test_rules.py",
    "tests/train/test_parts.py",
  ),
  RECIPE,
)


# Files that take minutes come first: one that began last would leave the other worker idle.
LONG = (
  *TOGETHER,
  "tests/train/test_encode.py",
  "tests/cli/test_public.py",
  "tests/cli/test_task.py",
  "tests/train/test_svd_trains.py",
  "tests/train/test_mesh.py",
  "tests/models/test_unet.py",
  "tests/experiments/test_studies.py",
  "tests/weights/test_modelscope.py",
  "tests/train/planning/test_plan_command.py",
  "tests/weights/test_full_width.py",
  "tests/train/test_processes.py",
  "tests/test_install.py",
)


def pytest_collection_modifyitems(items):
  ranks = {file: rank for rank, file in enumerate(LONG)}
  items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(LONG)))


class ByFile(LoadFileScheduling):
  """Files to workers, those that share something to the same one."""

  def _split_scope(self, nodeid: str) -> str:
    file = super()._split_scope(nodeid)
    return TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  config.option.loadscopereorder = False
  return ByFile(config, log)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
  """Compiled programs of one file serve no other, and those of the suite would take gigabytes."""
  yield
  jax.clear_caches()
