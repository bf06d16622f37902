"""The model that the studies compare variants of, its stages and its data: here and nowhere else.

Another model is another `recipe`: a study asks only for what is in it.
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from emu_jax.checkpoints.release import write_release
from emu_jax.checkpoints.run import latest_step
from emu_jax.config import to_dict
from emu_jax.configs import shapes_64
from emu_jax.data import records
from emu_jax.data.shapes import MovingShapes
from emu_jax.diffusion.process import Sampling
from emu_jax.model import SHIPPED, load
from emu_jax.models.discriminator import PatchDiscriminatorConfig
from emu_jax.systems.emu import Emu
from emu_jax.systems.emu_video import EmuVideo
from emu_jax.systems.first_stage import KlAutoencoder
from emu_jax.systems.registry import VERSION
from emu_jax.systems.svd import StableVideo
from emu_jax.systems.system import System
from emu_jax.train import command
from emu_jax.train.config import Experiment
from emu_jax.train.loop import LoopConfig
from experiments.artefact import Artefact, digest
from experiments.study import Size

IMAGE_TREES = ("autoencoder", "latents", "text", "spatial")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A small Emu Video of the moving shapes.

  Attributes:
    stages: by name, without data, parents or seeds; what a study asks of a stage is a change of
      its fields.
    num_records: training clips, and as many pictures.
    num_prompts: clips that are sampled a cell, `batch_size` at a time.
    release: folder of a whole model whose parts the studies share; None: they train them.
  """

  model: EmuVideo
  stages: Mapping[str, Experiment]
  num_records: int
  num_prompts: int
  batch_size: int
  sampling: Sampling
  release: pathlib.Path | None = None

  def fewer(self, num_prompts: int) -> "Recipe":
    """The same with at most so many prompts a cell, for studies whose cells cost much to sample."""
    return dataclasses.replace(self, num_prompts=min(num_prompts, self.num_prompts))

  def clips(self, size: int | None = None) -> Artefact:
    return shapes_records("videos", size or side(self.model), self.num_records)

  def pictures(self) -> Artefact:
    return shapes_records("images", side(self.model), self.num_records)

  def autoencoder(self) -> Artefact:
    sources = self.pictures(), self.clips()
    return stage(self.stages["autoencoder"], sources)

  def image(self) -> Artefact:
    """The image model, one for all seeds: they share what they do not compare."""
    if self.release:
      return released(self.release, "image")
    sources = self.pictures(), self.clips()
    return stage(self.stages["image"], sources, self.autoencoder())

  def low(self, clips: Artefact | None = None, **changes) -> Artefact:
    """The video stage at half the resolution, one for all seeds, with changed fields."""
    experiment = dataclasses.replace(self.stages["video_32"], **changes)
    return stage(experiment, (clips or self.clips(side(experiment.system)),), self.image())

  def video(
    self,
    seed: int,
    *,
    change: Experiment | None = None,
    after: Artefact | None = None,
    clips: Artefact | None = None,
  ) -> Artefact:
    """The video model of a seed; by default that of the stage as it is, after `low`."""
    experiment = seeded(change or self.stages["video_64"], seed)
    clips = clips or self.clips(side(experiment.system))
    return stage(experiment, (clips,), after or self.low())

  def interpolation(self, seed: int, change: Experiment | None = None) -> Artefact:
    """8 -> 37 frames at half the resolution, where the same time trains on three times as many."""
    experiment = seeded(change or self.stages["interpolation_32"], seed)
    return stage(experiment, (self.clips(side(experiment.system)),), self.low())

  def whole(self) -> Artefact:
    """The model that every stage has trained, one for all seeds."""
    if self.release:
      return released(self.release, "whole")
    return self.video(0, change=self.stages["interpolation"])


def recipe(size: Size) -> Recipe:
  """The recipe that studies of a size use."""
  by_name = {experiment.run_name: experiment for experiment in shapes_64.STAGES}
  if size == "default":
    steps = {"video_32": 750, "video_64": 300, "interpolation_32": 400}
    stages = {name: short(by_name[name], num) for name, num in steps.items()}
    sampling = Sampling(solver="dpm++", num_steps=10)
    return Recipe(shapes_64.MODEL, stages, 3000, 32, 16, sampling, SHIPPED)
  stages = {
    name: dataclasses.replace(
      short(e, 2), data=dataclasses.replace(e.data, batch_size=2), system=tiny(e.system)
    )
    for name, e in by_name.items()
  }
  return Recipe(tiny(shapes_64.MODEL), stages, 20, 2, 2, Sampling(num_steps=2))


def side(model: EmuVideo) -> int:
  """Pixels a side of its pictures, which are square."""
  (height, _) = model.image.size
  return height


def resized(model: EmuVideo, pixels: int) -> EmuVideo:
  """The same networks on pictures of so many pixels a side."""
  return dataclasses.replace(model, image=dataclasses.replace(model.image, size=(pixels, pixels)))


def short(experiment: Experiment, num_steps: int, **loop) -> Experiment:
  """A stage of so many steps that neither validates nor samples unless asked."""
  new = {"num_steps": num_steps, "save_every": 500, "keep": 1, "log_every": 20, **loop}
  optim = dataclasses.replace(
    experiment.optim, warmup_steps=min(experiment.optim.warmup_steps, num_steps // 4)
  )
  return dataclasses.replace(experiment, optim=optim, loop=LoopConfig(**new))


def seeded(experiment: Experiment, seed: int) -> Experiment:
  return dataclasses.replace(experiment, loop=dataclasses.replace(experiment.loop, seed=seed))


def tiny(model: EmuVideo) -> EmuVideo:
  """The same parts at a quarter of the side, 16 pixels or 8, and a few channels."""
  text = tuple(
    dataclasses.replace(t, width=8, num_layers=1, num_heads=2, mlp_width=16)
    for t in model.image.text
  )
  fields = tiny_fields(model.image, context_dims=tuple(t.width for t in text))
  return dataclasses.replace(model, image=dataclasses.replace(model.image, text=text, **fields))


def tiny_svd(system: StableVideo) -> StableVideo:
  """Likewise."""
  small = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "projection_dim": 8}
  vision = dataclasses.replace(system.vision, **small)
  fields = tiny_fields(system, context_dims=(8,), micro_dim=8)
  return dataclasses.replace(system, vision=vision, **fields)


def tiny_fields(system: Emu | StableVideo, **of_unet: Any) -> dict[str, Any]:
  """Small first stage and U-Net for a quarter of the side."""
  autoencoder = dataclasses.replace(
    system.first_stage.config, channels=(8,), norm_groups=4, num_res_blocks=1
  )
  critic = PatchDiscriminatorConfig(width=8, num_layers=1, norm_groups=4)
  unet = dataclasses.replace(
    system.unet,
    channels=(8,),
    num_res_blocks=(1,),
    transformer_depth=(1,),
    mid_depth=0,
    head_dim=8,
    norm_groups=4,
    **of_unet,
  )
  return {
    "first_stage": KlAutoencoder(autoencoder),
    "unet": unet,
    "objective": dataclasses.replace(system.objective, discriminator=critic),
    "size": tuple(pixels // 4 for pixels in system.size),
  }


@functools.cache
def released(release: pathlib.Path, what: Literal["image", "whole"]) -> Artefact:
  """A trained model, or the text-to-image part of it whatever else was trained with it."""
  model = load(release)
  names = IMAGE_TREES if what == "image" else tuple(model.trees)
  trees = {name: model.trees[name] for name in names}
  checksums = jax.tree.map(lambda leaf: zlib.crc32(np.asarray(leaf).tobytes()), trees)
  config = release_config(model.system)

  def build(folder: pathlib.Path, parts: tuple[pathlib.Path, ...]) -> bool:
    if not folder.is_dir():
      with records.staged(folder) as partial:
        write_release(partial, config, trees, model.tokenizer_folders)
    return True

  return Artefact(f"released-{what}", digest([checksums, config]), (), build)


def release_config(system: System) -> dict[str, Any]:
  """config.json of a release."""
  return {"version": VERSION, "system": to_dict(system)}


def shapes_records(kind: str, size: int, num: int) -> Artefact:
  """Records of moving shapes, or of pictures of them; a tenth as many to validate with."""
  spec = {"kind": kind, "size": size, "num": num}
  options = {"config": kind, "size": size, "num_records": num, "seed": 0}
  return packed(kind, spec, (), lambda parts: functools.partial(MovingShapes, **options))


def packed(kind: str, spec, parts: tuple[Artefact, ...], builder) -> Artefact:
  """Records that a builder writes; `builder` makes it of the parts' folders."""

  def build(folder: pathlib.Path, folders: tuple[pathlib.Path, ...]) -> bool:
    if not folder.is_dir():
      with records.staged(folder) as partial:
        records.write(builder(folders), partial)
    return True

  return Artefact(kind, spec, parts, build)


def stage(
  experiment: Experiment, sources: tuple[Artefact, ...], after: Artefact | None = None
) -> Artefact:
  """A run of the trainer: what `emu-train run` leaves of one stage."""
  bare = dataclasses.replace(
    experiment,
    init_from="",
    data=dataclasses.replace(experiment.data, sources=(), weights=()),
  )
  weights = experiment.data.weights if len(experiment.data.weights) == len(sources) else ()

  def build(folder: pathlib.Path, parts: tuple[pathlib.Path, ...]) -> bool:
    if (latest_step(folder) or 0) >= experiment.loop.num_steps:
      return True
    data = dataclasses.replace(
      experiment.data, sources=tuple(map(str, parts[: len(sources)])), weights=weights
    )
    init_from = str(parts[-1]) if after else ""
    whole = dataclasses.replace(experiment, data=data, init_from=init_from)
    command.check_data(whole)
    return command.train_part(whole, folder)

  spec = {"experiment": to_dict(bare), "weights": weights}
  return Artefact(experiment.run_name, spec, sources + ((after,) if after else ()), build)
