"""The command `emu-train`: what one does to make a model."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import jax
import tyro

from emu_jax.checkpoints.run import latest_step, read_config
from emu_jax.checkpoints.stored import begins_with, is_stored, newest_run
from emu_jax.cli import failures
from emu_jax.cli.options import read
from emu_jax.config import override
from emu_jax.data.batches import batches, records_by_size
from emu_jax.data.latent_records import collate_captions
from emu_jax.errors import InputError
from emu_jax.evaluation.evaluators import evaluator
from emu_jax.model import checked_tokenizer
from emu_jax.parallel.compilation import enable_cache, quiet_libtpu
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import place
from emu_jax.systems.registry import from_config
from emu_jax.train.best import check_best
from emu_jax.train.checkpoint import (
  EXEMPT,
  IDLE,
  Changes,
  Due,
  alone_in,
  check_config,
  claim,
  matches,
)
from emu_jax.train.clips import (
  batch_options,
  empty_prompt,
  named_tokenizers,
  opened,
  stage_tokenizers,
  tell_of_cuts,
  validation_of,
)
from emu_jax.train.config import (
  Experiment,
  check_comes_back,
  config_json,
  load_stages,
  todays_form,
)
from emu_jax.train.contents import moved, note
from emu_jax.train.encode import encode
from emu_jax.train.evaluations import evaluation_looks
from emu_jax.train.frozen_encoders import check_encoding
from emu_jax.train.inherit import (
  SAME_WEIGHTS,
  begin,
  check_public_trees,
  check_same_config,
  measured,
)
from emu_jax.train.live_model import LiveModel
from emu_jax.train.loop import train
from emu_jax.train.packing import Prepare, finished, prepare, split_at_dashes, splits
from emu_jax.train.parts import Split, build, encoded_fields, encoded_trees, initial_trees
from emu_jax.train.planning import command as planning
from emu_jax.train.processes import together
from emu_jax.train.prompts import check_prompts, prompts_look
from emu_jax.train.stop import StopSignal, sigterm_ends_at_once
from emu_jax.train.wandb_run import check_installed


@dataclasses.dataclass(frozen=True)
class Run:
  """Trains the stages of a config file, each from the one before it; continues what was begun.

  Every field of the config's experiments is an option too, and is set in every stage that trains:
  `--data.sources data/clips --loop.num_steps 2000`.
  """

  config: pathlib.Path
  """Python file that defines STAGES, or the name of a config that ships, such as shapes_64."""
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
  """Python file that defines STAGES, or the name of a config that ships, such as shapes_64."""
  out: pathlib.Path
  """New folder for the encoded records; the same command again changes nothing in it."""
  stage: str = ""
  """The stage that will train on them, and all whose autoencoder and text encoders are the same;
  empty: the first of clips, or the last one where none is."""
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
  with failures.errors("emu-train"):
    parsed, words = read(commands, "emu-train", given, return_unknown_args=True)
    if isinstance(parsed, Run | Encode):
      quiet_libtpu()
      with together("emu-train", parsed.coordinator, parsed.processes, parsed.process):
        {Run: run, Encode: encode_source}[type(parsed)](parsed, words + of_beam)
    elif isinstance(parsed, planning.Plan):
      planning.main(parsed, words)
    elif words:
      raise InputError(f"prepare: {words[0]} is not an option; see `emu-train prepare --help`")
    else:
      prepare(parsed, of_beam)


def run(arguments: Run, words: list[str]) -> None:
  """Trains the chosen stages in order; one that is complete is not touched."""
  check_local("--out", arguments.out)
  stages = load_stages(str(arguments.config))
  if arguments.fields:
    list_fields(arguments, stages, words)
  folders = arguments.out or pathlib.Path("runs") / arguments.config.stem
  pending = []
  chosen = planned(arguments, stages, folders, words)
  for experiment, folder in chosen:
    done = latest_step(folder)
    if done is not None and done >= experiment.loop.num_steps and not Due(folder).read(done):
      check_same_system(experiment, folder)
      tell_of_complete(experiment, folder, done)
    elif done is None and (after := going_on_without(folder, chosen)):
      if jax.process_index() == 0:
        print(f"{folder}: holds no checkpoint any more; {after} began with it and goes on alone")
    else:
      if done is not None:
        check_continues(experiment, folder)
      check_data(experiment, done is not None)  # of every part, before the first one trains
      pending.append((experiment, folder))
  for number, (experiment, folder) in enumerate(pending, 1):
    stop = StopSignal()
    done = train_part(experiment, folder, stop)
    # A signal during the last save of a part ends the recipe, too.
    if not done or (stop.received and number < len(pending)):
      raise SystemExit(stop.exit_code)


def going_on_without(
  folder: pathlib.Path, chosen: Sequence[tuple[Experiment, pathlib.Path]]
) -> pathlib.Path | None:
  """The run that began with a folder that holds no run any more: to train that again is no use."""
  for experiment, child in chosen:
    built = experiment.init_from == str(folder) and latest_step(child) is not None
    if built and folder.resolve() in {before.resolve() for before in begins_with(child)}:
      return child
  return None


def check_continues(experiment: Experiment, folder: pathlib.Path) -> Changes:
  """What changes where a run continues. Raises: InputError where that is not its to change."""
  config = config_json(experiment)
  return check_config(folder, config, (*EXEMPT, *moved(folder, config, todays_form)), todays_form)


def tell_of_complete(experiment: Experiment, folder: pathlib.Path, done: int) -> None:
  """Says that a run is complete, and which changed options therefore have no effect."""
  if jax.process_index():
    return
  print(f"{folder}: complete at step {done}, not trained again")
  config = config_json(experiment)
  changed, elsewhere = check_config(folder, config, ("*",), todays_form), ()
  with contextlib.suppress(InputError):  # other records than it was trained on are no mere move
    elsewhere = moved(folder, config, todays_form)
  if fields := [name for name in changed if not matches(name, (*IDLE, *elsewhere))]:
    listed = ", ".join(f"{name} {changed[name][1]!r} (trained with {changed[name][0]!r})"
                       for name in fields[:3])  # fmt: skip
    more = f" and {len(fields) - 3} more" if len(fields) > 3 else ""
    print(
      f"{folder}: without effect, as it is complete: {listed}{more}; train anew in another --out",
      file=sys.stderr,
    )


def check_same_system(experiment: Experiment, folder: pathlib.Path) -> None:
  """Raises InputError where a complete run holds the weights of other networks."""
  where = str(folder / "config.json")
  found = from_config(read_config(folder) or {}, where)
  if type(found) is not type(experiment.system):
    raise InputError(
      f"{where}: holds a {type(found).__name__}, the config is of a "
      f"{type(experiment.system).__name__}; choose another directory"
    )
  for name, network in experiment.system.networks.items():
    check_same_config(network, found.networks.get(name), SAME_WEIGHTS, where, f"system: {name}: ")


def encode_source(arguments: Encode, words: list[str]) -> None:
  """Encodes packed records by the encoders that a stage begins with."""
  a = arguments
  for option, path in (("--out", a.out), ("--runs", a.runs)):
    check_local(option, path)
  stages = load_stages(str(a.config))
  folders = a.runs or pathlib.Path("runs") / a.config.stem
  of_clips = (e.run_name for e in stages if e.definition.inputs.first.clip.num_frames > 1)
  stage = a.stage or next(of_clips, stages[-1].run_name)
  ((experiment, _),) = planned(Run(a.config, stage=(stage,)), stages, folders, words)
  with sigterm_ends_at_once():  # of several processes too: shards that are whole are kept
    report = encode(
      experiment, a.source, a.out, dtype=a.dtype, batch_size=a.batch_size,
      records_per_shard=a.records_per_shard, overwrite=a.overwrite,
    )  # fmt: skip
  if jax.process_index() == 0:
    what = "latents and text features" if report.arguments["text"] else "latents"
    print(f"{a.out}: {what} of {splits(report.num_records)}, {report.num_bytes / 1e6:.1f} MB")
    print(finished(report.seconds, report.existing))


def list_fields(arguments: Run, stages: Sequence[Experiment], words: list[str]) -> None:
  """Prints the options that a stage's fields are, with its values, and ends the process."""
  names = [experiment.run_name for experiment in stages]
  check_names(arguments, names)
  name = arguments.stage[0] if arguments.stage else names[-1]
  experiment = override(stages[names.index(name)], words)
  others = [other for other in names if other != name]
  marks = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
  try:
    if others:
      print(f"Values of stage {name!r}; --stage lists those of {', '.join(others)}.\n")
    with contextlib.suppress(SystemExit):  # of the help's end, or of rich for a closed pipe
      tyro.cli(Experiment, prog="emu-train run", default=experiment, args=["--help"], config=marks)
    sys.stdout.flush()
  except BrokenPipeError:  # whoever reads it has seen enough, as `head` has
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  raise SystemExit(0)


def check_local(option: str, path: pathlib.Path | None) -> None:
  """Raises InputError for an address such as gs://bucket/runs, which would become a folder here."""
  if path and re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
    raise InputError(
      f"{option} {path}: is an address, and folders are written by path; name one of this machine, "
      "or of a mounted disk with atomic renames (docs/pods.md, section 1)"
    )


def check_names(arguments: Run, names: Sequence[str]) -> None:
  """Raises InputError for a stage that the config does not have."""
  for name in arguments.stage:
    if name not in names:
      raise InputError(
        f"--stage {name}: {arguments.config} has no such stage; choose of {', '.join(names)}"
      )


def planned(
  arguments: Run, stages: Sequence[Experiment], folders: pathlib.Path, words: list[str]
) -> list[tuple[Experiment, pathlib.Path]]:
  """The chosen experiments as they will train, each with the folder of its run."""
  check_names(arguments, [experiment.run_name for experiment in stages])
  chosen, before = [], ""
  for experiment in stages:
    folder, chained = folders / experiment.run_name, not experiment.init_from
    if not arguments.stage or experiment.run_name in arguments.stage:
      experiment = dataclasses.replace(experiment, init_from=experiment.init_from or before)
      changed = override(experiment, words)
      if chosen and chained:  # --init_from is for the first of the chosen stages
        changed = dataclasses.replace(changed, init_from=before)
      chosen.append((changed, folder))
    before = str(folder)
  ready = {str(folder) for _, folder in chosen}
  for experiment, folder in chosen:
    source = experiment.init_from
    if latest_step(folder) is not None:
      continue  # it holds what it began with
    if source and source not in ready and not is_stored(newest_run(source)):
      raise InputError(
        f"stage {experiment.run_name!r} begins with {source}, which holds no checkpoint, release "
        "or pipeline of diffusers; train that stage first, or name another folder with --init_from"
      )
  return chosen


def check_data(experiment: Experiment, continues: bool = False) -> None:
  """Raises InputError for data that a stage cannot train on, and for numbers that do not fit it.

  Args:
    continues: whether the run has a checkpoint: it holds the tokenizers and trees it began with.
  """
  check_monitor(experiment)
  if not experiment.data.sources:
    raise InputError(
      "--data.sources: no clips given; pack some with `emu-train prepare` and name the folder"
    )
  if not continues:
    check_beginning(experiment)
  experiment.check_mesh(jax.device_count())
  sources = opened(experiment, "train")
  try:
    records_by_size(sources, experiment.definition.inputs)
  except InputError as error:  # the recipe's other stages may well fit
    raise InputError(f"stage {experiment.run_name!r}: {error}") from error
  validation = validation_of(experiment, jax.device_count())
  if validation.note:
    tell(validation.note)


def check_beginning(experiment: Experiment) -> None:
  """Raises InputError for tokenizers and public trees that are not the system's."""
  encoders, given = experiment.system.texts, experiment.data.tokenizers
  if given and len(given) != len(encoders):
    raise InputError(
      f"--data.tokenizers: {len(given)} given for {len(encoders)} text encoders; give one each"
    )
  check_public_trees(experiment)
  for path, encoder in zip(named_tokenizers(experiment), encoders, strict=False):
    checked_tokenizer(path, encoder)


def check_monitor(experiment: Experiment) -> None:
  """Raises InputError for what cannot be logged, drawn or measured while a stage trains."""
  check_installed(experiment.monitor.wandb)
  check_best(experiment.monitor, experiment.loop.validate_every)
  check_prompts(experiment)
  for name in experiment.monitor.evaluators:
    evaluator(name)


def train_part(
  experiment: Experiment, folder: pathlib.Path, stop: StopSignal | None = None
) -> bool:
  """Trains one part in its folder; True once all its steps and what was due at them are done."""
  check_comes_back(experiment)
  config, new = config_json(experiment), not folder.exists()
  with alone_in(folder):  # what another process holds is not touched
    try:
      exempt = (*EXEMPT, *moved(folder, config, todays_form))
      if latest_step(folder) is None:
        claim(folder, config, exempt, todays_form)
      note(folder, config)
      return _train(experiment, folder, config, exempt, stop)
    except InputError:
      if new and jax.process_index() == 0:
        _remove_unbegun(folder)
      raise


def tell(text: str) -> None:
  """Says a line on stderr, in process 0."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr)


def _remove_unbegun(folder: pathlib.Path) -> None:
  """Removes the folder of a run without metrics and checkpoints, and an empty one above it."""
  begun = (folder / "metrics.jsonl").exists() or any(folder.glob("checkpoints/*"))
  if folder.is_dir() and not begun:
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
      folder.parent.rmdir()


def _train(
  experiment: Experiment,
  folder: pathlib.Path,
  config: str,
  exempt: tuple[str, ...],
  stop: StopSignal | None,
) -> bool:
  batch_size, loop = validation_of(experiment, jax.device_count()).batch_size, experiment.loop
  if not batch_size:  # prompts and evaluators need no validation data
    loop = dataclasses.replace(loop, validate_every=0, sample_every=0)
  sources = opened(experiment, "train")
  records = sources[0].encoded  # the same of all
  encoding = records and records.encoding
  mesh = make_mesh(config=experiment.mesh)
  start = begin(experiment, folder, encoding)
  tokenizers = stage_tokenizers(experiment, folder, sources)
  if jax.process_index() == 0:
    tell_of_cuts(tokenizers, sources)
  if unread := encoded_trees(experiment, encoding):
    check_encoding(experiment, start.read(unread), folder, sources)
  if "captions" in encoded_fields(experiment, encoding):
    readers, empty = (), {"text": collate_captions([records.empty], encoding)}
  else:
    readers, empty = tokenizers, empty_prompt(tokenizers)

  def validation() -> Iterator:
    options = batch_options(experiment, readers)
    options |= {"batch_size": batch_size // jax.process_count()}
    return batches(opened(experiment, "validation"), **options, shuffle=False, repeat=False)

  training = batches(
    sources,
    **batch_options(experiment, readers),
    shuffle=True,
    drop_text=experiment.data.drop_text,
    drop_both=experiment.data.drop_both,
    drop_image=experiment.data.drop_image,
    weights=experiment.data.weights or None,
    workers=experiment.data.workers,
  )
  with contextlib.closing(training):
    trees = start.trees | measured(experiment, start.trees, training, mesh)
    # Samples are drawn of the captions in the data: without text encoders, like the step.
    drawn = [name for name in unread if name != "text"] if loop.sample_every else ()
    sampling_trees = place(start.read(drawn), mesh) if drawn else None
    stage = build(experiment, trees, empty, encoding=encoding, sampling_trees=sampling_trees)
    in_step = {*stage.frozen, *Split(experiment.system, experiment.part).trained_trees}
    live = LiveModel(
      experiment.system, tokenizers, in_step, set(trees), start.read, where=folder, mesh=mesh
    )
    looks = *prompts_look(experiment, live, tell), *evaluation_looks(experiment, live, tell)
    state = train(
      stage,
      training,
      run_dir=folder,
      optim=experiment.optim,
      loop=loop,
      config=config,
      monitor=experiment.monitor,
      looks=looks,
      validation=validation,
      initial=initial_trees(experiment, trees) if start.fresh else None,
      inherited=start.inherited,
      mesh=mesh,
      exempt=exempt,
      todays_form=todays_form,
      stop=stop,
    )
  step = int(state.step)
  return step >= experiment.loop.num_steps and not Due(folder).read(step)
