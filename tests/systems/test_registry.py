"""Systems by name, those of other packages among them, and the versions of their configurations."""

import json
import sys

import pytest

from emu_jax.config import to_dict
from emu_jax.errors import InputError
from emu_jax.systems import registry
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.system import System
from tests.tiny import MODEL

PLUGIN = """
import dataclasses
from emu_jax.config import kind
from emu_jax.systems.system import Pipeline, System

@kind("test_toy")
@dataclasses.dataclass(frozen=True)
class Toy(System):
  size: int = 3
  pipelines = {"ToyPipeline": ("adapter",)}
  def trees(self): return {}
  def parts(self): return {}
  def tasks(self): return {}
  @classmethod
  def upgraded(cls, values, version):
    return values if version > 1 else {"system": values["system"] | {"size": values["toy"]}}
  @classmethod
  def read_pipeline(cls, folder, **options):
    return Pipeline(cls(len(options["adapter"])), lambda names, how: {}, ())

class Number(int):
  pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package that names six systems, installed as pip would leave it."""
  (tmp_path / "toy_package.py").write_text(PLUGIN)
  (tmp_path / "broken_package.py").write_text("raise RuntimeError('no accelerator\\nat all')")
  info = tmp_path / "toy-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
  (info / "entry_points.txt").write_text(
    f"[{registry.ENTRY_POINTS}]\n"
    "test_toy = toy_package:Toy\n"
    "emu = toy_package:Toy\n"
    "broken = broken_package:Toy\n"
    "missing = toy_package:Absent\n"
    "number = toy_package:Number\n"
    "another = toy_package:Toy\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  for name in ("toy_package", "broken_package"):
    sys.modules.pop(name, None)


def test_every_name_of_the_house_is_a_system_of_that_kind():
  assert set(registry.BUILT_IN) <= set(registry.names())
  for name in registry.BUILT_IN:
    cls = registry.system_class(name)
    assert issubclass(cls, System)
    assert cls.__dict__["config_kind"] == name


def test_an_unknown_name_is_refused_with_those_that_there_are():
  with pytest.raises(InputError, match=r"^system 'emu_vide' is unknown; choose one of animatediff"):
    registry.system_class("emu_vide")


def test_another_packages_system_goes_by_its_name_and_the_houses_keep_theirs(package):
  others = ["test_toy", "broken", "missing", "number", "another"]
  assert list(registry.names()) == [*registry.BUILT_IN, *others]
  assert registry.names()["emu"] == registry.BUILT_IN["emu"]
  toy = registry.from_config({"version": 2, "system": {"@kind": "test_toy", "size": 5}}, "run")
  assert (type(toy).__name__, toy.size) == ("Toy", 5)
  # Of its first version it knows what to do itself.
  old = {"version": 1, "system": {"@kind": "test_toy"}, "toy": 7}
  assert registry.from_config(old, "run").size == 7


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("broken", "'broken_package:Toy' does not import (RuntimeError: no accelerator)"),
    ("missing", "'toy_package:Absent' does not import (AttributeError"),
    ("number", "'toy_package:Number' is no System; name a class"),
    ("another", "'toy_package:Toy' is of kind 'test_toy'; give both the same name"),
  ],
)
def test_an_entry_point_that_is_no_system_is_refused_in_one_line(package, name, says):
  with pytest.raises(InputError) as caught:
    registry.system_class(name)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)
  with pytest.raises(InputError, match=r"^run: .*system '"):
    registry.from_config({"version": 2, "system": {"@kind": name}}, "run")


def test_pipelines_go_to_the_system_that_takes_their_options(package, tmp_path):
  folder = tmp_path / "pipeline"
  folder.mkdir()
  (folder / registry.INDEX).write_text(json.dumps({"_class_name": "ToyPipeline"}))
  assert registry.read_pipeline(folder, adapter="abc", motion_adapter=None).system.size == 3
  with pytest.raises(InputError, match=r"'ToyPipeline' is not read.*no accelerator") as caught:
    registry.read_pipeline(folder)
  assert "\n" not in str(caught.value)


def test_pipelines_of_no_system_are_refused_with_those_that_are_read(tmp_path):
  (tmp_path / registry.INDEX).write_text(json.dumps({"_class_name": "FluxPipeline"}))
  with pytest.raises(InputError, match=r"_class_name='FluxPipeline' is not read.*AnimateDiffPipel"):
    registry.read_pipeline(tmp_path)
  (tmp_path / registry.INDEX).write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
  with pytest.raises(InputError, match="'StableDiffusionPipeline' with control is not read here"):
    registry.read_pipeline(tmp_path, control="there")


def test_a_configuration_of_this_version_comes_back():
  values = {"version": registry.VERSION, "system": to_dict(MODEL)}
  assert registry.upgraded(values, "run") == values
  assert registry.from_config(values, "run") == MODEL


@pytest.mark.parametrize("version", [registry.VERSION + 1, "3"])
def test_a_newer_version_is_refused(version):
  with pytest.raises(InputError, match=r"^run/config\.json: .* newer version of emu_jax"):
    registry.from_config({"version": version, "system": to_dict(MODEL)}, "run/config.json")


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"version": 2}, "names no system"),
    ({"version": 2, "system": 3}, "names no system"),
    ({"version": 2, "system": {"@kind": ["emu"]}}, "names no system"),
    ({"version": 2, "system": {"@kind": "emu_vide"}}, "system 'emu_vide' is unknown"),
    ({"version": 2, "system": {"@kind": "emu_video"}}, "field 'image' is missing"),
  ],
)
def test_a_config_that_is_no_systems_is_refused_in_one_line(values, says):
  with pytest.raises(InputError, match=r"^run/config\.json: ") as caught:
    registry.from_config(values, "run/config.json")
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_what_has_no_version_is_emu_videos_even_with_no_kind():
  assert registry.UNVERSIONED in registry.BUILT_IN
  assert registry.system_class(registry.UNVERSIONED) is EmuVideo
