"""Configurations survive JSON; what is wrong in one is named with its place and its remedy."""

import abc
import ast
import dataclasses
import json
import pathlib
import re
from typing import Literal, Protocol

import pytest

import emu_jax
from emu_jax import config as config_module
from emu_jax.config import KIND, from_dict, kind, kind_of, override, refused, to_dict
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.process import Process, Sampling
from emu_jax.errors import InputError
from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.motion import MotionConfig
from emu_jax.models.temporal import Temporal, TemporalConfig
from emu_jax.models.unet import UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.systems import registry
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.first_stage import FirstStage, KlAutoencoder, Pixels
from emu_jax.systems.system import System
from emu_jax.train.config import load_stages
from tests.tiny import MODEL

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))


@dataclasses.dataclass(frozen=True)
class Optimiser:
  """What a trainer is set by, in little: every kind of field that a command line may name."""

  sources: tuple[str, ...] = ("a",)
  betas: tuple[float, float] = (0.9, 0.99)
  lr: float = 1e-3
  decay: Literal["constant", "cosine"] = "constant"
  num_steps: int = 3
  train: bool = False

  def __post_init__(self):
    if self.num_steps < 1:
      raise ValueError(f"Optimiser: num_steps={self.num_steps} is below 1")


@dataclasses.dataclass(frozen=True)
class Whole:
  """A system and how it is trained."""

  model: System
  optim: Optimiser = Optimiser()


WHOLE = Whole(MODEL)


def through_json(config, declared=None):
  """A config as a file gives it back."""
  return from_dict(json.loads(json.dumps(to_dict(config))), declared or type(config), "file")


def test_a_config_with_two_kinds_of_text_encoder_survives_json():
  assert through_json(MODEL) == through_json(MODEL, System) == MODEL


def changed(path, value):
  values = json.loads(json.dumps(to_dict(MODEL)))
  *parents, last = path.split(".")
  part = values
  for name in parents:
    part = part[int(name) if name.isdigit() else name]
  if value is None:
    del part[last]
  else:
    part[last] = value
  return values


@pytest.mark.parametrize(
  ("path", "value", "says"),
  [
    ("fps", "fast", "'fast' is not of type float (in fps)"),
    ("num_frames", 8.5, "8.5 is not of type int (in num_frames)"),
    ("image.unet.linear_projection", "no", "'no' is not of type bool"),
    ("image.sise", 16, "Emu has no field 'sise'; it has unet, text, first_stage"),
    ("image.unet", None, "field 'unet' is missing"),
    ("image.size", [20, 16], "size=20x16 pixels must be multiples of 8"),
    ("process.schedule.prediction", "epsilon", "prediction='epsilon' with zero_terminal_snr=True"),
    ("process.schedule.prediction", "noise", "noise not in literal"),
    ("image.text.0.architecture", "bert", "'bert'"),
    ("image", 3, "3 is no JSON object"),
    (KIND, "nothing", "kind 'nothing' is no EmuVideo"),
    (f"process.{KIND}", "nothing", "kind 'nothing' is no Process; choose one of discrete"),
    (f"process.{KIND}", ["discrete"], "kind ['discrete'] is no Process; choose one of discrete"),
    (f"process.{KIND}", "pixels", "kind 'pixels' is no Process; choose one of discrete"),
    (f"process.{KIND}", None, "a Process without '@kind', which names its class (in process)"),
    (f"image.first_stage.{KIND}", "emu", "kind 'emu' is no FirstStage; choose one of kl_autoenc"),
    ("temporal", {KIND: "emu"}, "kind 'emu' is no TemporalConfig; choose one of temporal"),
  ],
)
def test_json_of_another_config_is_refused_with_the_reason_and_the_place(path, value, says):
  with pytest.raises(InputError, match=r"^run/config\.json: .*; restore it") as caught:
    from_dict(changed(path, value), EmuVideo, "run/config.json")
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(values):
  with pytest.raises(InputError, match="is no configuration"):
    from_dict(values, EmuVideo, "run/config.json")


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({KIND: "nothing"}, "kind 'nothing' is no System"),
    ({KIND: "discrete"}, "kind 'discrete' is no System; choose one of"),
    ({KIND: ["emu"]}, "kind ['emu'] is no System"),
    ({}, "a System without '@kind'"),
  ],
)
def test_a_whole_of_no_known_kind_is_refused_in_one_line(values, says):
  with pytest.raises(InputError, match=r"^run/config\.json: ") as caught:
    from_dict(values, System, "run/config.json")
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


TEMPORALS = [VideoLdmConfig(kernel=5), TemporalConfig(), MotionConfig(), ModelScopeConfig()]


@pytest.mark.parametrize("temporal", [*TEMPORALS, Temporal(noise_level=True)], ids=kind_of)
def test_a_subclass_in_a_field_declared_as_its_base_survives_json_and_options(temporal):
  config = UNetConfig(temporal=temporal)
  assert through_json(config) == config
  assert type(through_json(config).temporal) is type(temporal)
  assert override(config, ["--remat", "true"]) == dataclasses.replace(config, remat=True)
  assert override(config, ["--temporal.noise_level", "true"]).temporal == dataclasses.replace(
    temporal, noise_level=True
  )


@dataclasses.dataclass(frozen=True)
class Untagged(Temporal):
  """A subclass that JSON cannot tell from its base."""

  extra: int = 3


@dataclasses.dataclass(frozen=True)
class Several:
  """Fields that hold more than one part."""

  parts: tuple[Temporal, ...] = ()
  one: Temporal | None = None
  either: Discrete | Flow = Discrete()


def test_a_subclass_that_has_no_kind_is_refused_where_json_would_lose_it():
  says = "holds a Untagged, which JSON would lose; give that class a kind"
  for config in (
    UNetConfig(temporal=Untagged()),
    Several(parts=(Temporal(), Untagged())),
    Several(one=Untagged()),
  ):
    with pytest.raises(TypeError, match=says):
      to_dict(config)
    with pytest.raises(TypeError, match=says):
      override(config, ["--x", "1"])


@pytest.mark.parametrize(
  "config",
  [
    Several(),
    Several((Temporal(), VideoLdmConfig(kernel=5), MotionConfig())),
    Several(one=VideoLdmConfig(kernel=5)),
    Several(either=Flow()),
  ],
)
def test_parts_of_tuples_optional_ones_and_unions_keep_their_class(config):
  assert through_json(config) == config


def test_a_union_takes_only_its_parts():
  values = to_dict(Several()) | {"either": to_dict(VideoLdmConfig())}
  with pytest.raises(InputError, match="kind 'video_ldm' is no Discrete"):
    from_dict(values, Several, "file")


@dataclasses.dataclass(frozen=True)
class OfProtocols:
  """Fields that only a kind says the class of."""

  process: Process
  stage: FirstStage
  system: System


@pytest.mark.parametrize("stage", [Pixels(), KlAutoencoder()])
@pytest.mark.parametrize("process", [Discrete(), Flow()])
def test_protocols_and_abstract_classes_keep_the_class(process, stage):
  config = OfProtocols(process, stage, MODEL)
  assert through_json(config) == config
  assert override(config, ["--system.fps", "2.5"]).system.fps == 2.5


class Sized(Protocol):
  """Something with a number that no class gives a default."""

  number: int

  @property
  def size(self) -> int: ...


@kind("test_sized")
@dataclasses.dataclass(frozen=True)
class SizedByField:
  """Keeps the protocol by a field without a default."""

  size: int


def test_a_field_without_a_default_keeps_a_protocols_promise():
  holder = dataclasses.make_dataclass("Holder", [("part", Sized)], frozen=True)
  assert through_json(holder(SizedByField(3))) == holder(SizedByField(3))


class Base(abc.ABC):
  """A base that is no dataclass itself."""

  @abc.abstractmethod
  def value(self) -> int: ...


def test_a_kind_has_one_class_and_a_subclass_does_not_inherit_it():
  assert (kind_of(MODEL), kind_of(Untagged())) == ("emu_video", None)
  other = dataclasses.make_dataclass("Other", [("x", int, 0)], bases=(SizedByField,), frozen=True)
  assert kind_of(SizedByField(3)) == "test_sized"
  assert other.config_kind == "test_sized"
  assert kind_of(other(3)) is None
  with pytest.raises(ValueError, match="kind 'test_sized' is SizedByField already; name Base else"):
    kind("test_sized")(Base)


def test_json_from_before_there_were_kinds_is_of_the_class_that_a_field_declares():
  values = to_dict(MODEL)
  del values["temporal"][KIND]
  assert from_dict(values, EmuVideo, "file") == MODEL
  del values[KIND], values["image"][KIND]
  assert from_dict(values, EmuVideo, "file") == MODEL


def test_every_kind_of_the_house_is_found_whether_or_not_its_module_was_imported():
  """A run may name a process, or temporal layers, that no system imports."""
  root = pathlib.Path(emu_jax.__file__).parent
  found = {}
  for path in root.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ClassDef):
        for mark in node.decorator_list:
          if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "kind":
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            found[mark.args[0].value] = f"{module}:{node.name}"
  systems = {name: value for name, value in found.items() if name in registry.BUILT_IN}
  assert systems == registry.BUILT_IN
  rest = {name: value.split(":")[0] for name, value in found.items() if name not in systems}
  assert rest == registry.KINDS


def test_a_kind_is_imported_when_json_names_it(monkeypatch):
  known = {name: cls for name, cls in config_module._KINDS.items() if name != "flow"}
  monkeypatch.setattr(config_module, "_KINDS", known)
  looked_up = []
  finder = lambda name: looked_up.append(name) or known.setdefault("flow", Flow)
  monkeypatch.setattr(config_module, "_FINDERS", [finder])
  assert from_dict(to_dict(Several(either=Flow())), Several, "file").either == Flow()
  assert looked_up == ["flow"]


def test_fields_are_set_by_name_with_their_own_types():
  words = ["--optim.sources", "a", "b", "--optim.lr", "3e-4", "--optim.train=true"]
  words += ["--optim.num-steps", "7", "--optim.betas", "0.5", "0.75", "--optim.decay", "cosine"]
  new = override(WHOLE, words)
  assert new.optim == Optimiser(("a", "b"), (0.5, 0.75), 3e-4, "cosine", 7, True)
  assert new.model == MODEL
  assert override(new, ["--optim.sources"]).optim.sources == ()
  assert override(new, ["--optim.train", "False"]).optim.train is False
  assert override(new, ["--optim.lr", "-1"]).optim.lr == -1
  assert override(new, ["--model.image.size", "16", "24"]).model.image.size == (16, 24)


def test_no_words_leave_the_config_as_it_is():
  assert override(WHOLE, []) is WHOLE


def test_checks_run_once_all_fields_are_set():
  both = ["--model.image.text.0.width", "16", "--model.image.unet.context_dims", "16", "12"]
  new = override(WHOLE, both)
  assert new.model.image.text[0].width == new.model.image.unet.context_dims[0] == 16
  with pytest.raises(InputError, match=r"^--model.image.text.0.width 16: .*context_dims=\(8, 12\)"):
    override(WHOLE, both[:2])


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("--optim.rate 1", "--optim.rate: Optimiser has no field 'rate'; it has sources, betas, lr"),
    ("--lr 1", "--lr: Whole has no field 'lr'; it has model, optim"),
    ("--optim.num_steps many", "--optim.num_steps: 'many' is not of type int"),
    ("--optim.num_steps 1.5", "'1.5' is not of type int"),
    ("--optim.num_steps 0", "--optim.num_steps 0: Optimiser: num_steps=0 is below 1"),
    ("--optim.num_steps", "0 values were given; it takes one"),
    ("--optim.num_steps 1 2", "2 values were given; it takes one"),
    ("--optim.betas 0.9", "1 values were given; it takes 2"),
    ("--optim.lr nan", "nan is not a finite number"),
    ("--optim.decay linear", "'linear' is unknown; choose one of constant, cosine"),
    ("--optim.train perhaps", "'perhaps' is unknown; choose one of true, false"),
    ("--optim 3", "is no single value; set its own fields"),
    ("--model.process 3", "is no single value; set its own fields"),
    ("--optim.num_steps.x 3", "3 has no field 'x'"),
    ("--model.image.text.2.width 3", "'2' is not a number below 2"),
    ("--model.image.unet.channels.0 3", "part 0 of a tuple is not set alone"),
    ("--model.@kind emu", "EmuVideo has no field '@kind'"),
    (
      "--model.process.schedule.prediction epsilon",
      "prediction='epsilon' with zero_terminal_snr=True",
    ),
    ("--model.image.size 20 16", "size=20x16 pixels must be multiples of 8"),
    ("sources", "'sources' belongs to no option"),
  ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(words, says):
  with pytest.raises(InputError, match=re.escape(says)):
    override(WHOLE, words.split())


def test_a_field_that_may_be_none_is_set_to_either():
  option = "--model.guidance.interpolation"
  assert override(WHOLE, [option, "1.5"]).model.guidance.interpolation == 1.5
  set_once = override(WHOLE, [option, "1.5"])
  assert override(set_once, [option, "none"]).model.guidance.interpolation is None
  with pytest.raises(InputError, match="'much' is not of type float"):
    override(WHOLE, [option, "much"])
  solver = "--model.image.preview.solver"
  assert override(WHOLE, [solver, "None"]).model.image.preview.solver is None
  assert override(WHOLE, [solver, "dpm++"]).model.image.preview.solver == "dpm++"
  with pytest.raises(InputError, match="'euler_a' is unknown; choose one of ddim"):
    override(WHOLE, [solver, "euler_a"])


def test_a_plain_value_error_becomes_one_that_says_where():
  with pytest.raises(InputError, match=r"^sampling: .*num_steps=0"), refused("sampling"):
    MODEL.process.check(Sampling(num_steps=0))
  with pytest.raises(InputError, match=r"^as it was$"), refused("sampling"):
    raise InputError("as it was")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_field_of_a_shipped_config_can_be_set(file):
  """Options are strings: each simple field of each part, written out, gives the config again."""
  for experiment in load_stages(str(file)):
    words = []
    for name, value in leaves(to_dict(experiment)):
      values = value if isinstance(value, list | tuple) else [value]
      words += [f"--{name}", *map(str, values)]
    assert override(experiment, words) == experiment


def leaves(values, prefix=""):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from leaves(value, f"{prefix}{name}.")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
      for i, part in enumerate(value):
        yield from leaves(part, f"{prefix}{name}.{i}.")
    elif value is not None and name != KIND:
      yield prefix + name, value
