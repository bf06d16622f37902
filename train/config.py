"""What an experiment is: a model, the stage of it that trains, data, optimiser and loop."""

import dataclasses
import importlib.util
import pathlib
from typing import Literal

from emu_jax.conditioning import KnownFrames, every_fourth, first_frame, past_frames
from emu_jax.data.batches import ClipSpec
from emu_jax.diffusion.loss import Times
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import MeshConfig
from emu_jax.systems.emu import AutoencoderObjective
from emu_jax.systems.emu_video import EmuVideoConfig
from emu_jax.systems.latent import Sampling
from train.loop import LoopConfig
from train.optimiser import OptimConfig

StageName = Literal["autoencoder", "image", "video", "interpolation", "extension"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Packed clips, as `emu-train prepare` leaves them, and how they become batches."""

  sources: tuple[str, ...] = ()  # folders; several are mixed
  weights: tuple[float, ...] = ()  # of the mixture; empty = by their numbers of records
  batch_size: int = 64  # examples a step, over all devices and processes
  # Of clips, the image stage takes first frames instead of any: what p(clip | text) = p(first frame
  # | text) p(clip | first frame, text) asks for. Ours; the paper's pictures are of no clip.
  first_frames: bool = False
  drop_text: float = 0.1  # share of examples with an empty caption
  drop_both: float = 0.1  # share with an empty caption and no known frames besides
  drop_image: float = 0.0  # share with a caption and no known frames: all of a direct model's
  workers: int = 0  # decoding processes; 0 = threads of this one

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
  """One stage of training."""

  stage: StageName
  model: EmuVideoConfig
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()
  objective: AutoencoderObjective = AutoencoderObjective()  # of the autoencoder's stage
  sampling: Sampling = Sampling(num_steps=25)  # of the samples drawn while training
  num_samples: int = 4  # of them, at most
  offset_noise: float = 0.0  # Emu: 0.02 late in pretraining, 0.1 in quality-tuning
  times: Times = Times()  # of the noise that the image and video stages train on
  train_text: bool = False  # "image": the text encoders begin at random and train along
  # "video": the image model's layers train along, which Emu Video freezes (to compare with it).
  train_spatial: bool = False
  # Folders of public text encoders, one an encoder, in place of those of `init_from`.
  text_encoders: tuple[str, ...] = ()
  # One an encoder; empty = of `text_encoders`, of `init_from`, or learned from the captions.
  tokenizers: tuple[str, ...] = ()
  # Folder of the run whose trees this one begins with, or of a Stable Diffusion pipeline.
  init_from: str = ""
  # Of its folder and for `--stage`, where a recipe has several of one stage; empty: the stage.
  name: str = ""

  def __post_init__(self):
    self.sampling.check(self.model.image.schedule)
    self.sampling.check(self.model.schedule)
    if self.train_spatial and self.stage != "video":
      raise InputError(
        f"Experiment: train_spatial=True with stage={self.stage!r}; only stage 'video' has it"
      )
    if self.data.batch_size % self.optim.accumulate:
      raise InputError(
        f"Experiment: data.batch_size={self.data.batch_size} must be a multiple of "
        f"optim.accumulate={self.optim.accumulate}"
      )

  @property
  def run_name(self) -> str:
    """What its run's folder is called."""
    return self.name or self.stage

  @property
  def known(self) -> KnownFrames | None:
    """The frames that a video stage is given; None for the stages of single pictures."""
    return {
      "video": first_frame(self.model.num_frames),
      "interpolation": every_fourth(),
      "extension": past_frames(),
    }.get(self.stage)

  @property
  def trains_text(self) -> bool:
    """Whether the text encoders change, so that what they say of a caption does too."""
    return self.stage == "image" and self.train_text

  @property
  def clips(self) -> ClipSpec:
    """What the stage trains on: single frames, clips, or clips at four times the rate."""
    if self.known is None:
      begins = self.model.num_frames if self.data.first_frames and self.stage == "image" else 1
      return ClipSpec(1, self.model.fps, begins)
    rate = 4 if self.stage == "interpolation" else 1
    return ClipSpec(self.known.num_frames, rate * self.model.fps)

  def check_mesh(self, num_devices: int) -> None:
    """Raises InputError, with both numbers, where the stage does not split over so many devices."""
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
    if self.clips.num_frames % frames:
      raise InputError(
        f"--mesh.frames {frames}: does not divide the {self.clips.num_frames} frame(s) of a clip of"
        f" stage {self.stage!r}; choose a divisor, or 1"
      )


def load_stages(path: str) -> tuple[Experiment, ...]:
  """The experiments of a config file, in the order in which they build on one another.

  Raises: InputError where the file is missing, fails, or has no `STAGES`.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise InputError(f"config {path}: there is no such file; see configs/ for those that ship")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if spec is None:
    raise InputError(f"config {path}: not a Python file; give one that ends in .py")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (ValueError, TypeError, NameError, SyntaxError, ImportError, AttributeError) as error:
    raise InputError(f"config {path}: {error}") from error
  stages = getattr(module, "STAGES", None)
  if not isinstance(stages, tuple) or not all(isinstance(s, Experiment) for s in stages):
    raise InputError(f"config {path}: defines no STAGES, a tuple of train.config.Experiment")
  names = [stage.run_name for stage in stages]
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice:
    raise InputError(
      f"config {path}: {names.count(twice)} of its STAGES would train in the folder {twice!r}; "
      "give each of them a name of its own"
    )
  return stages
