"""The command `emu-train`: what one does to make a model."""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Annotated

import jax
import numpy as np
import tyro

from emu_jax import command_line
from emu_jax.compilation import enable_cache
from emu_jax.config import to_dict
from emu_jax.data.folder import prepare_folder
from emu_jax.data.pipeline import Source, batches, open_source
from emu_jax.data.shapes import prepare_shapes
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.run import latest_step, load_ema
from train.config import Experiment, load_stages
from train.loop import train
from train.stages import build, check_inherited, initial_trees

STATISTICS_EXAMPLES = 512  # from which the spread of latents is measured


@dataclasses.dataclass(frozen=True)
class Run:
  """Trains the stages of a config file, each from the one before it; continues what was begun.

  Every field of the config's experiments is an option too: `--data.sources data/clips`.
  """

  config: pathlib.Path  # a file of configs/
  fields: bool = False  # list those options and stop
  stage: tuple[str, ...] = ()  # train only these; the runs of the stages before must be there
  out: pathlib.Path | None = None  # folder of the runs, one a stage; default: runs/<config's name>


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Packs a folder of captioned clips, or the built-in moving shapes, for training."""

  source: Annotated[str, tyro.conf.Positional]
  """A folder with metadata.jsonl or metadata.csv (file_name, text), or the word `shapes`."""
  out: pathlib.Path  # new folder
  size: int = 64  # pixels on a side: centre crop, antialiased resize
  fps: float = 0.0  # stored frames a second; 0 = the files' own
  max_seconds: float = 10.0  # of a record; longer clips are cut into several
  validation_fraction: float = 0.05  # of the files, chosen by their names
  workers: int = 2  # decoding processes
  overwrite: bool = False  # replace what other arguments packed there
  num_images: int = 20_000  # shapes only
  num_clips: int = 10_000  # shapes only
  seed: int = 0  # shapes only


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-train`."""
  enable_cache()
  commands = (
    Annotated[Run, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Prepare, tyro.conf.subcommand("prepare", prefix_name=False)]
  )
  with command_line.errors("emu-train"):
    parsed, fields = tyro.cli(commands, prog="emu-train", args=arguments, return_unknown_args=True)
    if isinstance(parsed, Run):
      run(parsed, fields)
    elif fields:
      raise InputError(f"prepare: {fields[0]} is not an option; see `emu-train prepare --help`")
    else:
      prepare(parsed)


def prepare(arguments: Prepare) -> None:
  """Packs clips; prints what was packed and what was left out, and why."""
  a = arguments
  if a.source == "shapes":
    prepare_shapes(a.out, size=a.size, num_images=a.num_images, num_clips=a.num_clips, seed=a.seed)
    return
  report = prepare_folder(
    a.source, a.out, size=a.size, fps=a.fps, max_seconds=a.max_seconds,
    validation_fraction=a.validation_fraction, workers=a.workers, overwrite=a.overwrite,
  )  # fmt: skip
  print(report)


def run(arguments: Run, fields: list[str]) -> None:
  """Trains the chosen stages in order; one that is complete is not touched."""
  stages = load_stages(str(arguments.config))
  if arguments.fields:
    override(stages[-1], ["--help"])
  names = [experiment.stage for experiment in stages]
  for name in arguments.stage:
    if name not in names:
      raise InputError(f"--stage {name}: {arguments.config} has the stages {names}")
  root = arguments.out or pathlib.Path("runs") / arguments.config.stem
  before = ""
  for experiment in stages:
    folder = root / experiment.stage
    if not experiment.init_from and before:
      experiment = dataclasses.replace(experiment, init_from=before)
    before = str(folder)
    if arguments.stage and experiment.stage not in arguments.stage:
      continue
    experiment = override(experiment, fields)
    if (latest_step(folder) or 0) >= experiment.loop.num_steps:
      print(f"{folder}: complete at step {latest_step(folder)}")
    elif not train_stage(experiment, folder):
      return  # it was asked to stop, and so was the recipe


def override(experiment: Experiment, fields: list[str]) -> Experiment:
  """The experiment with `--field value` pairs applied; its checks run again."""
  try:
    return tyro.cli(
      Experiment,
      prog="emu-train run",
      default=experiment,
      args=fields,
      config=(tyro.conf.AvoidSubcommands,),
    )
  except ValueError as error:
    raise InputError(str(error)) from error


def train_stage(experiment: Experiment, folder: pathlib.Path) -> bool:
  """Trains one stage in its folder; True once it has done all its steps."""
  if not experiment.data.sources:
    raise InputError(
      "--data.sources: no clips given; pack some with `emu-train prepare` and name the folder"
    )
  inherited = {}
  if experiment.init_from:
    inherited = load_ema(experiment.init_from)[1]
  check_inherited(experiment, inherited)
  sources = opened(experiment, "train")
  tokenizers = stage_tokenizers(experiment, folder, sources)
  training = batches(
    sources,
    **data_options(experiment, tokenizers),
    shuffle=True,
    drop_text=experiment.data.drop_text,
    drop_both=experiment.data.drop_both,
    weights=experiment.data.weights or None,
    workers=experiment.data.workers,
  )

  def validation() -> Iterator:
    options = data_options(experiment, tokenizers)
    return batches(opened(experiment, "validation"), **options, shuffle=False, repeat=False)

  empty = tuple(zip(*(t([""], overflow="error") for t in tokenizers), strict=True)) or ((), ())
  stage = build(experiment, inherited, some_frames(experiment, training), empty)
  state = train(
    stage,
    training,
    run_dir=folder,
    optim=experiment.optim,
    loop=experiment.loop,
    config=json.dumps(to_dict(experiment)),
    validation=validation,
    initial=initial_trees(experiment, inherited),
  )
  return int(state.step) >= experiment.loop.num_steps


def opened(experiment: Experiment, split: str) -> list[Source]:
  """A split of each source, checked against the model."""
  sources, size = (
    [open_source(p, split) for p in experiment.data.sources],
    experiment.model.image.size,
  )
  for source in sources:
    if source.size != size:
      raise InputError(
        f"--data.sources: {source.name} was prepared at {source.size} pixels, the model works at "
        f"{size}; prepare it with --size {size}"
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


def captions(source: Source) -> Iterator[str]:
  """Every caption of a source."""
  for i in range(len(source.records)):
    yield source.records[i]["caption"].decode()


def some_frames(experiment: Experiment, data: Iterator) -> dict:
  """Frames of the first batches; the data is left where it was."""
  position = data.get_state()
  count = max(1, STATISTICS_EXAMPLES // experiment.data.batch_size)
  frames = [batch["frames"] for batch in itertools.islice(data, count)]
  data.set_state(position)
  return {"frames": np.concatenate(frames)[:STATISTICS_EXAMPLES]}


def stage_tokenizers(
  experiment: Experiment, folder: pathlib.Path, sources: Sequence[Source]
) -> tuple[Tokenizer, ...]:
  """The tokenizers of a run, kept in its folder: named ones, those before it, or learned ones."""
  if experiment.stage == "autoencoder":
    return ()
  kept, inherited = folder / "tokenizers", pathlib.Path(experiment.init_from) / "tokenizers"
  encoders = experiment.model.image.text
  if not kept.is_dir():
    part = kept.with_name("tokenizers.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for i, encoder in enumerate(encoders):
      if experiment.tokenizers:
        copy(pathlib.Path(experiment.tokenizers[i]), part / str(i))
      elif (inherited / str(i)).is_dir():
        copy(inherited / str(i), part / str(i))
      else:
        texts = itertools.chain.from_iterable(map(captions, sources))
        train_tokenizer(texts, part / str(i), encoder.vocab_size)
    part.rename(kept)
  return tuple(load_tokenizer(kept / str(i), e.max_length) for i, e in enumerate(encoders))


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """A folder, or a file into a new folder."""
  if source.is_dir():
    shutil.copytree(source, target)
  elif source.is_file():
    target.mkdir()
    shutil.copy(source, target)
  else:
    raise InputError(f"--tokenizers {source}: there is no such file or folder")
