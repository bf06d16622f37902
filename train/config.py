"""What an experiment is: a system, the part of it that trains, data, optimiser and loop."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any

from emu_jax.config import from_dict, to_dict
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import MeshConfig
from emu_jax.systems.registry import VERSION, upgraded
from emu_jax.systems.system import Part, System
from emu_jax.train.loop import LoopConfig
from emu_jax.train.monitor import MonitorConfig
from emu_jax.train.optimiser import OptimConfig

# Beside this package, in a wheel as here.
SHIPPED_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Packed clips, as `emu-train prepare` leaves them, and how they become batches."""

  sources: tuple[str, ...] = ()  # folders; several are mixed
  weights: tuple[float, ...] = ()  # of the mixture; empty = by their numbers of records
  batch_size: int = 64  # examples a step, over all devices and processes
  drop_text: float = 0.1  # share of examples with an empty caption
  drop_both: float = 0.1  # share with an empty caption and no given picture or frames besides
  drop_image: float = 0.0  # share with a caption and no given frames: all of a direct model's
  workers: int = 0  # decoding processes; 0 = threads of this one
  # Folders of tokenizers, one a text encoder; empty = of `init_trees`, of `init_from`, or learned
  # from the captions.
  tokenizers: tuple[str, ...] = ()

  def __post_init__(self):
    if self.weights and len(self.weights) != len(self.sources):
      raise InputError(
        f"DataConfig: {len(self.weights)} weights for {len(self.sources)} sources; give one each"
      )
    shares = {name: getattr(self, name) for name in ("drop_text", "drop_both", "drop_image")}
    if min(shares.values()) < 0 or sum(shares.values()) > 1:
      given = ", ".join(f"{name}={share}" for name, share in shares.items())
      raise InputError(
        f"DataConfig: {given} are shares that must not be negative or exceed 1 together"
      )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One part of a system, and how it trains."""

  system: System  # what is trained: its config is the whole model
  part: str  # of the system's parts, the one that trains
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  loop: LoopConfig = LoopConfig()
  monitor: MonitorConfig = MonitorConfig()
  mesh: MeshConfig = MeshConfig()
  # Folder of the run whose trees this one begins with, of a release, or of a public pipeline.
  init_from: str = ""
  # "tree=folder" of a public network, in place of that of `init_from`: "text/0=models/clip".
  init_trees: tuple[str, ...] = ()
  # Of its folder and for `--stage`, where a recipe has several of one part; empty: the part.
  name: str = ""

  def __post_init__(self):
    if self.part not in self.system.parts():
      raise InputError(
        f"Experiment: part={self.part!r} is none of {type(self.system).__name__}'s; choose one of "
        f"{', '.join(self.system.parts())}"
      )
    if wrong := [text for text in self.init_trees if text.count("=") != 1]:
      raise InputError(f"Experiment: init_trees={wrong[0]!r} is not of the form tree=folder")
    if self.data.batch_size % self.optim.accumulate:
      raise InputError(
        f"Experiment: data.batch_size={self.data.batch_size} must be a multiple of "
        f"optim.accumulate={self.optim.accumulate}"
      )

  @property
  def run_name(self) -> str:
    """What its run's folder is called."""
    return self.name or self.part

  @functools.cached_property
  def definition(self) -> Part:
    """The part that trains."""
    return self.system.parts()[self.part]

  @property
  def num_frames(self) -> int:
    """Frames of a training clip."""
    return self.definition.inputs.first.clip.num_frames

  def check_mesh(self, num_devices: int) -> None:
    """Raises InputError, with both numbers, where the part does not split over so many devices."""
    data, fsdp, frames = self.mesh.shape(num_devices)
    if self.data.batch_size < 1 or self.data.batch_size % (data * fsdp):
      raise InputError(
        f"--data.batch_size {self.data.batch_size}: does not split over the {data * fsdp} device(s)"
        f" of data x fsdp = {data} x {fsdp}; choose {data * fsdp} or a multiple of it"
      )
    if self.optim.reduce != "compiler" and fsdp * frames > 1:
      raise InputError(
        f"--optim.reduce {self.optim.reduce}: needs a mesh of the axis data alone, not fsdp={fsdp}"
        f" and frames={frames}; set these to 1, or --optim.reduce compiler"
      )
    if self.num_frames % frames:
      raise InputError(
        f"--mesh.frames {frames}: does not divide the {self.num_frames} frame(s) of a clip of part"
        f" {self.part!r}; choose a divisor, or 1"
      )


def config_json(experiment: Experiment) -> str:
  """What config.json of its run says."""
  return json.dumps({"version": VERSION} | to_dict(experiment))


def todays_form(values: dict[str, Any], where: str) -> dict[str, Any]:
  """config.json of any version as this one would write it: new fields have their defaults.

  Raises: InputError, beginning with `where`, for a newer version.
  """
  values = upgraded(values, where)
  fields = {name: value for name, value in values.items() if name != "version"}
  return json.loads(config_json(from_dict(fields, Experiment, where)))


def check_comes_back(experiment: Experiment) -> None:
  """Raises InputError where config.json would not give the experiment again."""
  who = f"part {experiment.part!r} of {type(experiment.system).__name__}: config.json"
  values = json.loads(config_json(experiment))
  if todays_form(values, who) != values:
    raise InputError(f"{who} reads back as another configuration; see to the system's `upgraded`")


def load_stages(path: str) -> tuple[Experiment, ...]:
  """The experiments of a config file, in the order in which they build on one another.

  Args:
    path: the file, or the name of a config that ships: `shapes_64` for configs/shapes_64.py.

  Raises: InputError where the file is missing, fails, or has no `STAGES`.
  """
  file = pathlib.Path(path)
  shipped = {one.stem: one for one in sorted(SHIPPED_CONFIGS.glob("[!_]*.py"))}
  if not file.is_file():
    if path not in shipped:
      raise InputError(
        f"config {path}: there is no such file; give a path, or the name of one that ships: "
        f"{', '.join(shipped)}"
      )
    file = shipped[path]
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if spec is None:
    raise InputError(f"config {path}: not a Python file; give one that ends in .py")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:  # whatever somebody's file raises
    kind = "" if isinstance(error, InputError | ValueError) else f"{type(error).__name__}: "
    raise InputError(f"config {path}: {kind}{error}") from error
  stages = getattr(module, "STAGES", None)
  if not isinstance(stages, tuple) or not all(isinstance(s, Experiment) for s in stages):
    raise InputError(
      f"config {path}: defines no STAGES, a tuple of emu_jax.train.config.Experiment"
    )
  names = [stage.run_name for stage in stages]
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice:
    raise InputError(
      f"config {path}: {names.count(twice)} of its STAGES would train in the folder {twice!r}; "
      "give each of them a name of its own"
    )
  return stages
