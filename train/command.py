"""The command `emu-train`: what one does to make a model."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import jax
import tyro

from emu_jax import command_line
from emu_jax.checkpoints.release import is_release
from emu_jax.checkpoints.run import latest_step
from emu_jax.config import override, refused, to_dict
from emu_jax.data.batches import batches, usable
from emu_jax.data.latent_records import collate_captions
from emu_jax.data.tokenizer import load_tokenizer
from emu_jax.errors import InputError
from emu_jax.loading import check_tokenizer, check_trees
from emu_jax.parallel.compilation import enable_cache
from emu_jax.parallel.mesh import make_mesh
from emu_jax.public import check_text, is_public
from train.checkpoint import check_config, claim
from train.config import Experiment, load_stages
from train.encode import encode
from train.encoders import spare_encoders
from train.inputs import data_options, empty_prompt, inherit, opened, statistics_batch
from train.loop import train
from train.packing import Prepare, finished, prepare, split_at_dashes, splits
from train.planning import command as planning
from train.processes import join, together
from train.stages import build, check_inherited, initial_trees, packs_text
from train.tokenizers import stage_tokenizers, tell_of_cuts

WITHOUT_VALIDATION = "prepare more clips, or set --loop.validate_every 0 --loop.sample_every 0"
# What may differ in a stage that is complete: it says how the model was made, not what it is.
ALL_BUT_MODEL = (
  *(field.name for field in dataclasses.fields(Experiment) if field.name != "model"),
  "model.guidance",
)


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
  coordinator: str = ""
  """HOST:PORT of process 0, the same in every process; empty: what Slurm or a TPU's host says."""
  processes: int = 0
  """Number of processes that train together; 0: what Slurm or a TPU's host says."""
  process: int = -1
  """Which of them this is, from 0 on; -1: what Slurm or a TPU's host says."""


@dataclasses.dataclass(frozen=True)
class Encode:
  """Runs a stage's frozen encoders once over packed records: a stage trains on what it writes.

  Name the result with `--data.sources` in place of the records. The stages before must be there;
  every field of the config is an option, as of `run`.
  """

  source: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
  """Folder of records, as `prepare` leaves it."""
  config: pathlib.Path
  """Python file that defines STAGES, such as those of configs/."""
  out: pathlib.Path
  """New folder for the encoded records; the same command again changes nothing in it."""
  stage: str = "video"
  """The stage that will train on them, and all whose autoencoder and text encoders are the same."""
  runs: pathlib.Path | None = None
  """Folder of the runs, one a stage; None: runs/ and the config's name."""
  dtype: Literal["float16", "float32"] = "float16"
  """Of the stored numbers; float16 rounds them to 3 digits and takes half the space."""
  batch_size: int = 32
  """Frames, or captions, that a process encodes at a time."""
  records_per_shard: int = 64
  """Records of one file, and what a process may have to encode again after a kill."""
  overwrite: bool = False
  """Replace what other arguments encoded there."""
  coordinator: str = ""
  """HOST:PORT of process 0, the same in every process; empty: what Slurm or a TPU's host says."""
  processes: int = 0
  """Number of processes that encode together; 0: what Slurm or a TPU's host says."""
  process: int = -1
  """Which of them this is, from 0 on; -1: what Slurm or a TPU's host says."""


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-train`."""
  enable_cache()
  given = list(sys.argv[1:] if arguments is None else arguments)
  given, of_beam = split_at_dashes(given)
  commands = (
    Annotated[Run, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Prepare, tyro.conf.subcommand("prepare", prefix_name=False)]
    | Annotated[Encode, tyro.conf.subcommand("encode", prefix_name=False)]
    | Annotated[planning.Plan, tyro.conf.subcommand("plan", prefix_name=False)]
  )
  with command_line.errors("emu-train"):
    parsed, words = tyro.cli(commands, prog="emu-train", args=given, return_unknown_args=True)
    if isinstance(parsed, Run | Encode):
      with together("emu-train"):
        join(parsed.coordinator, parsed.processes, parsed.process)
        {Run: run, Encode: encode_source}[type(parsed)](parsed, words + of_beam)
    elif isinstance(parsed, planning.Plan):
      planning.main(parsed, words)
    elif words:
      raise InputError(f"prepare: {words[0]} is not an option; see `emu-train prepare --help`")
    else:
      prepare(parsed, of_beam)


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
      if jax.process_index() == 0:
        print(f"{folder}: complete at step {done}, not trained again")
    else:
      check_data(experiment)  # of every stage, before the first one trains
      pending.append((experiment, folder))
  for experiment, folder in pending:
    if not train_stage(experiment, folder):
      return  # it was asked to stop, and so was the recipe


def encode_source(arguments: Encode, words: list[str]) -> None:
  """Encodes packed records by the encoders that a stage begins with."""
  a = arguments
  stages = load_stages(str(a.config))
  folders = a.runs or pathlib.Path("runs") / a.config.stem
  ((experiment, _),) = plan(Run(a.config, stage=(a.stage,)), stages, folders, words)
  bar = sys.stderr.isatty()
  report = encode(
    experiment, a.source, a.out, dtype=a.dtype, batch_size=a.batch_size,
    records_per_shard=a.records_per_shard, overwrite=a.overwrite, progress=bar,
  )  # fmt: skip
  if jax.process_index() == 0:
    told = "latents and text features" if report.arguments["text"] else "latents"
    print(f"{a.out}: {told} of {splits(report.num_records)}, {report.num_bytes / 1e6:.1f} MB")
    print(finished(report.seconds, report.existing))


def list_fields(experiment: Experiment) -> None:
  """Prints the options that an experiment's fields are, and ends the process."""
  marks = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
  tyro.cli(Experiment, prog="emu-train run", default=experiment, args=["--help"], config=marks)


def plan(
  arguments: Run, stages: Sequence[Experiment], folders: pathlib.Path, words: list[str]
) -> list[tuple[Experiment, pathlib.Path]]:
  """The chosen stages as they will train, each with the folder of its run."""
  names = [experiment.run_name for experiment in stages]
  for name in arguments.stage:
    if name not in names:
      raise InputError(
        f"--stage {name}: {arguments.config} has no such stage; choose of {', '.join(names)}"
      )
  planned, before = [], ""
  for experiment in stages:
    folder, chained = folders / experiment.run_name, not experiment.init_from
    if not arguments.stage or experiment.run_name in arguments.stage:
      experiment = dataclasses.replace(experiment, init_from=experiment.init_from or before)
      changed = override(experiment, words)
      if planned and chained:  # --init_from is for the first of the chosen stages
        changed = dataclasses.replace(changed, init_from=before)
      planned.append((changed, folder))
    before = str(folder)
  ready = {str(folder) for _, folder in planned}
  for experiment, _ in planned:
    source = experiment.init_from
    known = latest_step(source) is not None or is_release(source) or is_public(source)
    if source and source not in ready and not known:
      raise InputError(
        f"stage {experiment.stage!r} begins with {source}, which holds no checkpoint, release or "
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
  for option in ("tokenizers", "text_encoders"):
    given = getattr(experiment, option)
    if given and len(given) != len(encoders):
      raise InputError(
        f"--{option}: {len(given)} given for {len(encoders)} text encoders; give one each"
      )
  for path, encoder in zip(experiment.text_encoders, encoders, strict=False):
    check_text(encoder, path)
  named = experiment.tokenizers or experiment.text_encoders
  for path, encoder in zip(named, encoders, strict=False):
    check_tokenizer(load_tokenizer(path, encoder.max_length), encoder, path)
  with refused(f"stage {experiment.stage!r}"):
    spec, loop = experiment.clips, experiment.loop
  needed = ("train", "validation") if loop.validate_every or loop.sample_every else ("train",)
  experiment.check_mesh(jax.device_count())
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
    if split == "validation" and sum(counts) < experiment.data.batch_size:
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
  mesh = make_mesh(config=experiment.mesh)
  inherited, aside = spare_encoders(experiment, inherited, folder, sources, mesh)
  held = sources[0].encoded
  encoding = held and held.encoding
  if packs_text(experiment, encoding):
    readers, empty = (), collate_captions([held.empty], encoding)
  else:
    readers, empty = tokenizers, empty_prompt(tokenizers)

  def validation() -> Iterator:
    options = data_options(experiment, readers)
    return batches(opened(experiment, "validation"), **options, shuffle=False, repeat=False)

  training = batches(
    sources,
    **data_options(experiment, readers),
    shuffle=True,
    drop_text=experiment.data.drop_text,
    drop_both=experiment.data.drop_both,
    drop_image=experiment.data.drop_image,
    weights=experiment.data.weights or None,
    workers=experiment.data.workers,
  )
  with contextlib.closing(training):
    some = statistics_batch(experiment, inherited, training)
    state = train(
      build(experiment, inherited, some, empty, encoding=encoding, aside=aside),
      training,
      run_dir=folder,
      optim=experiment.optim,
      loop=experiment.loop,
      config=config,
      validation=validation,
      initial=initial_trees(experiment, inherited),
      mesh=mesh,
    )
  return int(state.step) >= experiment.loop.num_steps
