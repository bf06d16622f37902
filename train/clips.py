"""An experiment's packed clips and their captions, opened and checked."""

import dataclasses
import itertools
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from emu_jax.data.batches import Source, check_alike, has_split, open_source, records_by_size
from emu_jax.data.tokenizer import Tokenizer, tokenizer_file, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.model import load_tokenizers
from emu_jax.train.checkpoint import latest_step
from emu_jax.train.config import Experiment
from emu_jax.train.inherit import public_trees, source_of

CAPTIONS_READ = 2000  # of a source, to tell how many are too long


def opened(experiment: Experiment, split: str) -> list[Source]:
  """A split of each source, checked against the part; validation is of those that have some."""
  paths = experiment.data.sources
  if split == "validation":
    paths = [path for path in paths if has_split(path, split)] or paths
  sources = [open_source(path, split) for path in paths]
  for path, source in zip(paths, sources, strict=True):
    if source.encoded and not experiment.definition.encoders:
      raise InputError(
        f"--data.sources {path}: holds latents, and part {experiment.part!r} trains on pixels; "
        "name the clips that they were encoded from"
      )
    size = experiment.definition.inputs.first.size
    if source.encoded and source.size != size:
      raise InputError(
        f"--data.sources {path}: was encoded at {source.size[0]}x{source.size[1]} pixels, the part "
        f"works at {size[0]}x{size[1]}; encode the clips for it"
      )
  check_alike(sources)
  return sources


@dataclasses.dataclass(frozen=True)
class Validation:
  """How much a part is validated on."""

  batch_size: int  # examples, over all devices and processes; 0: there is no validation
  note: str = ""  # a line for whoever expects more


def validation_of(experiment: Experiment, num_devices: int) -> Validation:
  """Batches of the training's size, or as large ones as few records fill: none is repeated."""
  loop = experiment.loop
  if not (loop.validate_every or loop.sample_every):
    return Validation(0)
  who = f"stage {experiment.run_name!r}"
  without = "; it trains without validation loss and samples: prepare more clips to have them"
  try:
    counts = records_by_size(opened(experiment, "validation"), experiment.definition.inputs)
  except InputError as error:
    return Validation(0, f"{who}: {error}{without}")
  data, fsdp, _ = experiment.mesh.shape(num_devices)
  whole = math.lcm(data * fsdp, jax.process_count())  # what a batch is a multiple of
  most = max(counts.values())
  batch_size = min(experiment.data.batch_size, most // whole * whole)
  if not batch_size:
    few = f"{most} usable validation record(s) of one size fill no batch of {whole}"
    return Validation(0, f"{who}: {few}{without}")
  few = [f"{n} of {height}x{width}" for (height, width), n in counts.items() if n < batch_size]
  if few:
    return Validation(
      batch_size,
      f"{who}: validation leaves out records whose size fills no batch of {batch_size}: "
      f"{', '.join(few)}",
    )
  if batch_size < experiment.data.batch_size:
    return Validation(
      batch_size,
      f"{who}: validation has batches of {batch_size} examples, as {most} usable record(s) fill",
    )
  return Validation(batch_size)


def batch_options(experiment: Experiment, tokenizers: tuple[Tokenizer, ...]) -> dict[str, Any]:
  """What training and validation data have in common."""
  return {
    "inputs": experiment.definition.inputs,
    "tokenizers": tokenizers,
    "batch_size": experiment.data.batch_size // jax.process_count(),
    "seed": experiment.loop.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }


def empty_prompt(tokenizers: tuple[Tokenizer, ...]) -> Mapping[str, Any]:
  """What a batch says of text for one empty prompt: "tokens" and "masks", one an encoder."""
  pairs = [tokenizer([""], overflow="error") for tokenizer in tokenizers]
  return {"tokens": tuple(ids for ids, _ in pairs), "masks": tuple(mask for _, mask in pairs)}


def stage_tokenizers(
  experiment: Experiment, folder: pathlib.Path, sources: Sequence[Source]
) -> tuple[Tokenizer, ...]:
  """The tokenizers of a run, kept in its folder: named ones, those before it, or learned ones.

  They replace what a run that ended before its first checkpoint left there.
  """
  texts, kept = experiment.definition.texts, folder / "tokenizers"
  if not texts:
    return ()
  if jax.process_index() == 0 and (latest_step(folder) is None or not kept.is_dir()):
    part = folder / "tokenizers.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
      part.mkdir()
      for i in range(len(texts)):
        keep_tokenizer(experiment, i, part / str(i), sources)
      shutil.rmtree(kept, ignore_errors=True)
      part.rename(kept)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("tokenizers kept")
  return load_tokenizers(texts, [kept / str(i) for i in range(len(texts))])


def named_tokenizers(experiment: Experiment) -> tuple[str, ...]:
  """Folders that name the tokenizers, one a text encoder; () where none are named."""
  folders, encoders = public_trees(experiment), range(len(experiment.system.texts))
  public = tuple(folders.get(f"text/{i}", "") for i in encoders)
  return experiment.data.tokenizers or (public if all(public) else ())


def keep_tokenizer(
  experiment: Experiment, i: int, target: pathlib.Path, sources: Sequence[Source]
) -> None:
  """Leaves the tokenizer of text encoder `i` in a new folder."""
  source = source_of(experiment)
  inherited = source.tokenizers[i] if source and i < len(source.tokenizers) else None
  if named := named_tokenizers(experiment):
    copy_tokenizer(pathlib.Path(named[i]), target)
  elif inherited and inherited.is_dir() and source.public:
    copy_tokenizer(inherited, target)
  elif inherited and inherited.is_dir():
    shutil.copytree(inherited, target)
  else:
    texts = itertools.chain.from_iterable(source.all_captions for source in sources)
    train_tokenizer(texts, target, experiment.definition.texts[i].vocab_size)


def copy_tokenizer(named: pathlib.Path, target: pathlib.Path) -> None:
  """The files of a tokenizer into a new folder, and nothing else of what may lie beside them."""
  file = tokenizer_file(named)
  target.mkdir()
  fixed = file.suffix == ".model" or file.name == "vocab.json"
  shutil.copy(file, target / (file.name if fixed else "tokenizer.json"))
  for name in ("merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
    if file.with_name(name).is_file():
      shutil.copy(file.with_name(name), target)


def tell_of_cuts(tokenizers: tuple[Tokenizer, ...], sources: Sequence[Source]) -> None:
  """Prints how many captions an encoder will not see to their end, where there are any."""
  read = [spread(source.all_captions, CAPTIONS_READ) for source in sources]
  texts = list(itertools.chain.from_iterable(read))
  for i, tokenizer in enumerate(tokenizers):
    cut = sum(len(ids) > tokenizer.max_length for ids in tokenizer.encode(texts))
    if cut:
      print(
        f"text encoder {i}: {cut} of {len(texts)} captions that were read have more than "
        f"max_length={tokenizer.max_length} tokens; training sees their beginnings"
      )


def spread(captions: Sequence[str], at_most: int) -> list[str]:
  """So many of the captions, evenly spread."""
  return [captions[i] for i in range(0, len(captions), max(1, len(captions) // at_most))]
