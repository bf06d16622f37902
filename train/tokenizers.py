"""The tokenizers of a run: named ones, those of the run before it, or learned from its captions."""

import itertools
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import multihost_utils

from emu_jax.data.batches import Source
from emu_jax.data.tokenizer import Tokenizer, tokenizer_file, train_tokenizer
from emu_jax.loading import load_tokenizers
from emu_jax.public import is_public, tokenizer_folders
from train.config import Experiment

CAPTIONS_READ = 2000  # of a source, to tell how many are too long


def stage_tokenizers(
  experiment: Experiment, folder: pathlib.Path, sources: Sequence[Source]
) -> tuple[Tokenizer, ...]:
  """The tokenizers of a run, kept in its folder: named ones, those before it, or learned ones."""
  if experiment.stage == "autoencoder":
    return ()
  kept = folder / "tokenizers"
  if jax.process_index() == 0 and not kept.is_dir():
    part = folder / "tokenizers.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
      part.mkdir()
      for i in range(len(experiment.model.image.text)):
        keep_tokenizer(experiment, i, part / str(i), sources)
      part.rename(kept)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("tokenizers kept")
  return load_tokenizers(experiment.model, folder)


def keep_tokenizer(
  experiment: Experiment, i: int, target: pathlib.Path, sources: Sequence[Source]
) -> None:
  """Leaves the tokenizer of text encoder `i` in a new folder."""
  inherited = pathlib.Path(experiment.init_from) / "tokenizers" / str(i)
  if named := experiment.tokenizers or experiment.text_encoders:
    copy_tokenizer(pathlib.Path(named[i]), target)
  elif experiment.init_from and is_public(experiment.init_from):
    encoders = len(experiment.model.image.text)
    copy_tokenizer(tokenizer_folders(pathlib.Path(experiment.init_from), encoders)[i], target)
  elif experiment.init_from and inherited.is_dir():
    shutil.copytree(inherited, target)
  else:
    texts = itertools.chain.from_iterable(map(captions, sources))
    train_tokenizer(texts, target, experiment.model.image.text[i].vocab_size)


def copy_tokenizer(named: pathlib.Path, target: pathlib.Path) -> None:
  """The files of a tokenizer into a new folder, and nothing else of what may lie beside them."""
  file = tokenizer_file(named)
  target.mkdir()
  fixed = file.suffix == ".model" or file.name == "vocab.json"
  shutil.copy(file, target / (file.name if fixed else "tokenizer.json"))
  for name in ("merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
    if file.with_name(name).is_file():
      shutil.copy(file.with_name(name), target)


def captions(source: Source, at_most: int | None = None) -> Iterator[str]:
  """Every caption of a source, or so many of them, evenly spread."""
  for i in range(0, len(source.records), max(1, len(source.records) // (at_most or sys.maxsize))):
    yield source.records[i]["caption"].decode()


def tell_of_cuts(tokenizers: tuple[Tokenizer, ...], sources: Sequence[Source]) -> None:
  """Prints how many captions an encoder will not see to their end, where there are any."""
  for i, tokenizer in enumerate(tokenizers):
    texts = [text for source in sources for text in captions(source, CAPTIONS_READ)]
    cut = sum(len(ids) > tokenizer.max_length for ids in tokenizer.encode(texts))
    if cut:
      print(
        f"text encoder {i}: {cut} of {len(texts)} captions that were read have more than "
        f"max_length={tokenizer.max_length} tokens; training sees their beginnings"
      )
