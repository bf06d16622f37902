"""What the documentation says: its commands are those that there are, its tables the code's."""

import dataclasses
import importlib.util
import pathlib
import re
import shlex

import pytest

from emu_jax.train.config import load_stages
from tests.test_deploy import commanded

DOCS = pathlib.Path(__file__).parents[1] / "docs"
CONFIGS = sorted(path.stem for path in (DOCS.parent / "configs").glob("[!_]*.py"))
# Words that stand for a user's own.
NAMES = {"CONFIG": "emu_video_sd15_256", "toy_config.py": "shapes_32"}


def lines():
  """Page and words of every command of emu-train in a block of shell; `\\` joins lines."""
  for path in sorted(DOCS.glob("*.md")):
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True) if line.startswith("emu-train ") else []
      if words:
        yield path.stem, [NAMES.get(word, word) for word in words]


@pytest.mark.parametrize(("page", "words"), list(lines()), ids=lambda value: str(value)[:60])
def test_a_command_of_the_documentation_has_a_config_and_options_that_there_are(
  page, words, monkeypatch
):
  assert commanded(words[1:], monkeypatch)


def reference():
  path = DOCS / "config_reference.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.on_page_markdown((DOCS / "configs.md").read_text())


def parts(value):
  """All dataclasses within a config, itself too."""
  if isinstance(value, tuple):
    for one in value:
      yield from parts(one)
  elif dataclasses.is_dataclass(value):
    yield type(value)
    for field in dataclasses.fields(value):
      yield from parts(getattr(value, field.name))


def test_the_config_reference_has_every_field_of_every_shipped_config():
  page = reference()
  sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
  for cls in {cls for name in CONFIGS for cls in parts(load_stages(name))}:
    rows = re.findall(r"^\| `(\w+)` \|", sections[cls.__name__], re.MULTILINE)
    assert rows == [field.name for field in dataclasses.fields(cls)]
  assert "| `batch_size` | int | `64` | examples a step, over all devices and processes |" in page


def test_every_shipped_config_is_described():
  named = re.findall(r"^\| `(\w+)` \| ", (DOCS / "configs.md").read_text(), re.MULTILINE)
  assert sorted(named) == CONFIGS
