"""Every benchmark and every experiment can at least be imported."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OPTIONAL = ("torch", "diffusers", "transformers")  # requirements-reference.txt
MODULES = sorted(
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
  for package in ("benchmarks", "experiments")
  for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports(name):
  try:
    importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name not in OPTIONAL:
      raise
    pytest.skip(f"{error.name} is not installed (requirements-reference.txt)")
