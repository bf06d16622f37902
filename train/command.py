"""The command `emu-train`: what one does to make a model."""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from emu_jax import command_line
from emu_jax.compilation import enable_cache
from emu_jax.config import override, refused, to_dict
from emu_jax.data.folder import Report, prepare_folder
from emu_jax.data.pipeline import Source, batches, open_source, usable
from emu_jax.data.shapes import prepare_shapes
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer
from emu_jax.errors import InputError
from emu_jax.loading import check_tokenizer, check_trees
from emu_jax.public import check_same, is_public, load_image_model
from emu_jax.run import latest_step, load_ema
from emu_jax.typing import Params
from train.checkpoint import check_config, claim
from train.config import Experiment, load_stages
from train.loop import train
from train.planning import command as planning
from train.stages import build, check_inherited, initial_trees
from train.tokenizers import stage_tokenizers, tell_of_cuts

STATISTICS_EXAMPLES = 512  # from which the spread of latents is measured
WITHOUT_VALIDATION = "prepare more clips, or set --loop.validate_every 0 --loop.sample_every 0"
# What may differ in a stage that is complete: it says how the model was made, not what it is.
ALL_BUT_MODEL = (
  *(field.name for field in dataclasses.fields(Experiment) if field.name != "model"),
  "model.guidance",
)
SHOWN = 10  # skipped clips that are printed one by one


@dataclasses.dataclass(frozen=True)
class Run:
  """Trains the stages of a config file, each from the one before it; continues what was begun.

  Every field of the config's experiments is an option too, and is set in every stage that trains:
  `--data.sources data/clips --loop.num_steps 2000`.
  """

  config: pathlib.Path
  """Python file that defines STAGES, such as those of configs/."""
  fields: bool = False
  """List the options that the config's fields are, with their values, and stop."""
  stage: tuple[str, ...] = ()
  """Train only these stages; the runs of the stages before must be there."""
  out: pathlib.Path | None = None
  """Folder of the runs, one a stage; None: runs/ and the config's name."""


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Packs a folder of captioned clips, or the built-in moving shapes, for training."""

  source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|shapes")]
  """Folder with metadata.jsonl or metadata.csv (file_name, text), or the word `shapes`."""
  out: pathlib.Path
  """New folder for the records; the same command again changes nothing in it."""
  size: int = 64
  """Pixels a side of the stored frames: central square, antialiased resize."""
  fps: float = 0.0
  """Stored frames a second, at most; 0: the files' own. Shapes have 16."""
  max_seconds: float = 10.0
  """Longest record in seconds; longer clips are cut into several of equal length."""
  validation_fraction: float = 0.05
  """Share of the files kept for validation, chosen by their names."""
  workers: int = 2
  """Decoding processes, 1 or more."""
  overwrite: bool = False
  """Replace what other arguments packed there."""
  num_images: int = 20_000
  """Training pictures (shapes only); validation and test get a tenth as many each."""
  num_clips: int = 10_000
  """Training clips of 2.5 s (shapes only); validation and test get a tenth as many each."""
  seed: int = 0
  """Of what is drawn, 0 or more (shapes only)."""


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-train`."""
  enable_cache()
  commands = (
    Annotated[Run, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Prepare, tyro.conf.subcommand("prepare", prefix_name=False)]
    | Annotated[planning.Plan, tyro.conf.subcommand("plan", prefix_name=False)]
  )
  with command_line.errors("emu-train"):
    parsed, words = tyro.cli(commands, prog="emu-train", args=arguments, return_unknown_args=True)
    if isinstance(parsed, Run):
      run(parsed, words)
    elif isinstance(parsed, planning.Plan):
      planning.main(parsed, words)
    elif words:
      raise InputError(f"prepare: {words[0]} is not an option; see `emu-train prepare --help`")
    else:
      prepare(parsed)


def prepare(arguments: Prepare) -> None:
  """Packs clips; prints what was packed and what was left out, and why."""
  a, bar = arguments, sys.stderr.isatty()
  for name in ("fps", "max_seconds", "validation_fraction"):
    if not math.isfinite(getattr(a, name)):
      raise InputError(f"prepare: {name}={getattr(a, name)} is not a number; give one")
  for name, least in (("seed", 0), ("workers", 1)):
    if getattr(a, name) < least:
      raise InputError(f"prepare: {name}={getattr(a, name)} is below {least}; raise it")
  if a.source == "shapes":
    report = prepare_shapes(
      a.out, size=a.size, num_images=a.num_images, num_clips=a.num_clips, seed=a.seed,
      overwrite=a.overwrite, progress=bar,
    )  # fmt: skip
    for kind, counts in report["num_records"].items():
      print(f"{a.out / kind}: {splits(counts)} of {a.size}x{a.size} pixels")
    print(finished(report["seconds"], report["existing"]))
    return
  report = prepare_folder(
    a.source, a.out, size=a.size, fps=a.fps, max_seconds=a.max_seconds,
    validation_fraction=a.validation_fraction, workers=a.workers, overwrite=a.overwrite,
    progress=bar,
  )  # fmt: skip
  summarise(report, a.size)


def summarise(report: Report, size: int) -> None:
  """Prints what became of a folder."""
  packed = report.num_clips - len(report.skipped)
  print(
    f"{report.out}: {packed} of {report.num_clips} clips packed as {splits(report.num_records)} of "
    f"{size}x{size} pixels"
  )
  for skipped in report.skipped[:SHOWN]:
    print(f"  skipped {skipped.file_name}: {skipped.reason}")
  if len(report.skipped) > SHOWN:
    print(f"  and {len(report.skipped) - SHOWN} more; {report.out}/report.json names them all")
  print(finished(report.seconds, report.existing))


def splits(counts: dict[str, int]) -> str:
  """`120 train, 6 validation records`."""
  return f"{', '.join(f'{count} {split}' for split, count in counts.items())} records"


def finished(seconds: float, existing: bool) -> str:
  """How long it took, or that it was not done again."""
  return f"was there already (made in {seconds:.1f} s)" if existing else f"done in {seconds:.1f} s"


def run(arguments: Run, words: list[str]) -> None:
  """Trains the chosen stages in order; one that is complete is not touched."""
  stages = load_stages(str(arguments.config))
  if arguments.fields:
    list_fields(override(stages[-1], words))
  folders = arguments.out or pathlib.Path("runs") / arguments.config.stem
  pending = []
  for experiment, folder in plan(arguments, stages, folders, words):
    done = latest_step(folder) or 0
    if done >= experiment.loop.num_steps:
      check_config(folder, json.dumps(to_dict(experiment)), exempt=ALL_BUT_MODEL)
      print(f"{folder}: complete at step {done}, not trained again")
    else:
      check_data(experiment)  # of every stage, before the first one trains
      pending.append((experiment, folder))
  for experiment, folder in pending:
    if not train_stage(experiment, folder):
      return  # it was asked to stop, and so was the recipe


def list_fields(experiment: Experiment) -> None:
  """Prints the options that an experiment's fields are, and ends the process."""
  marks = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
  tyro.cli(Experiment, prog="emu-train run", default=experiment, args=["--help"], config=marks)


def plan(
  arguments: Run, stages: Sequence[Experiment], folders: pathlib.Path, words: list[str]
) -> list[tuple[Experiment, pathlib.Path]]:
  """The chosen stages as they will train, each with the folder of its run."""
  names = [experiment.stage for experiment in stages]
  for name in arguments.stage:
    if name not in names:
      raise InputError(
        f"--stage {name}: {arguments.config} has no such stage; choose of {', '.join(names)}"
      )
  planned, before = [], ""
  for experiment in stages:
    folder, chained = folders / experiment.stage, not experiment.init_from
    if not arguments.stage or experiment.stage in arguments.stage:
      experiment = dataclasses.replace(experiment, init_from=experiment.init_from or before)
      changed = override(experiment, words)
      if planned and chained:  # --init_from is for the first of the chosen stages
        changed = dataclasses.replace(changed, init_from=before)
      planned.append((changed, folder))
    before = str(folder)
  ready = {str(folder) for _, folder in planned}
  for experiment, _ in planned:
    source = experiment.init_from
    if source and source not in ready and latest_step(source) is None and not is_public(source):
      raise InputError(
        f"stage {experiment.stage!r} begins with {source}, which holds neither a checkpoint nor a "
        "pipeline of diffusers; train that stage first, or name another folder with --init_from"
      )
  return planned


def check_data(experiment: Experiment) -> None:
  """Raises InputError for data that a stage cannot train on, and for numbers that do not fit it."""
  if not experiment.data.sources:
    raise InputError(
      "--data.sources: no clips given; pack some with `emu-train prepare` and name the folder"
    )
  encoders = experiment.model.image.text
  if experiment.tokenizers and len(experiment.tokenizers) != len(encoders):
    raise InputError(
      f"--tokenizers: {len(experiment.tokenizers)} given for {len(encoders)} text encoders; give "
      "one each"
    )
  for path, encoder in zip(experiment.tokenizers, encoders, strict=False):
    check_tokenizer(load_tokenizer(path, encoder.max_length), encoder, path)
  with refused(f"stage {experiment.stage!r}"):
    spec, loop = experiment.clips, experiment.loop
  needed = ("train", "validation") if loop.validate_every or loop.sample_every else ("train",)
  each = experiment.data.batch_size // jax.process_count()
  if each < 1 or experiment.data.batch_size % jax.device_count():
    raise InputError(
      f"--data.batch_size {experiment.data.batch_size}: does not split over {jax.device_count()} "
      f"device(s); choose {jax.device_count()} or a multiple of it"
    )
  for split in needed:
    try:
      sources = opened(experiment, split)
    except InputError as error:
      if split == "train":
        raise
      raise InputError(f"{error}; {WITHOUT_VALIDATION}") from error
    try:
      counts = [len(usable(source, spec)) for source in sources]
    except InputError as error:  # the recipe's other stages may well fit
      raise InputError(f"stage {experiment.stage!r}: {error}") from error
    # A pass over the validation data has no repetition to fill a batch with.
    if split == "validation" and sum(counts) // jax.process_count() < each:
      raise InputError(
        f"--data.batch_size {experiment.data.batch_size}: {list(experiment.data.sources)} have "
        f"{sum(counts)} usable validation records, fewer than a batch; lower it, or "
        f"{WITHOUT_VALIDATION}"
      )


def train_stage(experiment: Experiment, folder: pathlib.Path) -> bool:
  """Trains one stage in its folder; True once it has done all its steps."""
  inherited = inherit(experiment)
  check_inherited(experiment, inherited)
  check_trees(experiment.model, inherited, experiment.init_from)
  sources = opened(experiment, "train")
  config = json.dumps(to_dict(experiment))
  claim(folder, config)  # a run of another config is refused before anything is written to it
  tokenizers = stage_tokenizers(experiment, folder, sources)
  if jax.process_index() == 0:
    tell_of_cuts(tokenizers, sources)

  def validation() -> Iterator:
    options = data_options(experiment, tokenizers)
    return batches(opened(experiment, "validation"), **options, shuffle=False, repeat=False)

  training = batches(
    sources,
    **data_options(experiment, tokenizers),
    shuffle=True,
    drop_text=experiment.data.drop_text,
    drop_both=experiment.data.drop_both,
    weights=experiment.data.weights or None,
    workers=experiment.data.workers,
  )
  empty = tuple(zip(*(t([""], overflow="error") for t in tokenizers), strict=True)) or ((), ())
  with contextlib.closing(training):
    state = train(
      build(experiment, inherited, statistics_batch(experiment, inherited, training), empty),
      training,
      run_dir=folder,
      optim=experiment.optim,
      loop=experiment.loop,
      config=config,
      validation=validation,
      initial=initial_trees(experiment, inherited),
    )
  return int(state.step) >= experiment.loop.num_steps


def inherit(experiment: Experiment) -> Params:
  """The trees that a stage begins with: of the run before it, or of a public image model."""
  if not experiment.init_from:
    return {}
  if not is_public(experiment.init_from):
    return load_ema(experiment.init_from)[1]
  image = experiment.model.image
  # What stays frozen needs no more digits than it is computed with.
  half = None if image.unet.dtype == "float32" else image.unet.dtype
  model = load_image_model(experiment.init_from, dtype=half)
  check_same(image, model, experiment.init_from)
  return model.trees


def opened(experiment: Experiment, split: str) -> list[Source]:
  """A split of each source, checked against the model."""
  size = experiment.model.image.size
  sources = [open_source(path, split) for path in experiment.data.sources]
  for path, source in zip(experiment.data.sources, sources, strict=True):
    if source.size != size:
      raise InputError(
        f"--data.sources {path}: was prepared at {source.size} pixels, the model works at {size}; "
        f"prepare it with --size {size}"
      )
  return sources


def data_options(experiment: Experiment, tokenizers: tuple[Tokenizer, ...]) -> dict:
  """What training and validation data have in common."""
  return {
    "spec": experiment.clips,
    "tokenizers": tokenizers,
    "batch_size": experiment.data.batch_size // jax.process_count(),
    "seed": experiment.loop.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }


def statistics_batch(experiment: Experiment, inherited: dict, data: Iterator) -> dict:
  """Frames of the first batches, where latents are still to be measured; the data stays put."""
  if experiment.stage == "autoencoder" or "latents" in inherited:
    return {}
  position = data.get_state()
  count = max(1, STATISTICS_EXAMPLES // experiment.data.batch_size)
  frames = [batch["frames"] for batch in itertools.islice(data, count)]
  data.set_state(position)
  return {"frames": jnp.asarray(np.concatenate(frames)[:STATISTICS_EXAMPLES])}
