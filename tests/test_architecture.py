"""The shape of the code: imports point one way, and nothing heavy is needed at run time."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Floors of the house; a module imports from its own floor or below. The longest prefix decides.
FLOORS = {
  "emu_jax.typing": 1,
  "emu_jax.errors": 1,
  "emu_jax.parallel.activations": 1,
  "emu_jax.diffusion": 2,
  "emu_jax.models": 2,
  "emu_jax.trees": 2,
  "emu_jax.config": 2,
  "emu_jax.parallel.compilation": 2,
  "emu_jax.conditioning": 3,
  "emu_jax.data": 3,
  "emu_jax.parallel": 3,
  "emu_jax.weights": 3,
  "emu_jax.media": 3,
  "emu_jax.systems": 4,
  "emu_jax.model": 5,
  "emu_jax.evaluation": 6,
  "emu_jax.checkpoints": 5,
  "emu_jax.checkpoints.convert": 6,
  "emu_jax.cli": 7,
  "emu_jax.train": 8,
  "emu_jax.configs": 9,
}
MUST_NOT_IMPORT = {
  "emu_jax.diffusion": ("emu_jax.models", "flax", "optax"),
  "emu_jax.models": ("emu_jax.diffusion",),
  "emu_jax": ("train", "configs", "torch", "tensorflow", "transformers", "diffusers"),
}
# Folder -> what it is imported as. The last two are linked from the first; rglob follows no links.
PACKAGES = {"emu_jax": "emu_jax", "train": "emu_jax.train", "configs": "emu_jax.configs"}


def modules():
  for folder, package in PACKAGES.items():
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
      yield name.removesuffix(".__init__"), path


def imports(path):
  """Full names of what a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, package):
  return name == package or name.startswith(package + ".")


def floor(name):
  found = [package for package in FLOORS if within(name, package)]
  return FLOORS[max(found, key=len)] if found else None


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_point_down(name, path):
  if name in PACKAGES.values():
    return
  level = floor(name)
  assert level, f"{name} has no floor; give it one in FLOORS"
  for imported in imports(path):
    other = floor(imported)
    assert other is None or other <= level, f"{name} (floor {level}) imports {imported} ({other})"
    for package, forbidden in MUST_NOT_IMPORT.items():
      if within(name, package):
        assert not any(within(imported, f) for f in forbidden), f"{name} imports {imported}"


def test_the_commands_need_neither_tensorflow_nor_pytorch():
  """PyTorch cannot be imported here: tensorboardX would take it along where it is installed."""
  code = (
    "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'diffusers'])\n"
    "import emu_jax.cli, emu_jax.train.command\n"
    "sys.exit('tensorflow' in sys.modules)"
  )
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert found.returncode == 0, found.stderr
