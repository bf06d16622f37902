"""`emu-train encode`: the frozen encoders run once over packed records, not in every step.

With several processes each encodes shards of its own on its own devices, over which the weights lie
in pieces.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax.experimental import multihost_utils

from emu_jax.cli.progress import Counter
from emu_jax.data import latent_records, records, shards
from emu_jax.data.batches import Source
from emu_jax.data.latent_records import Encoded, Encoding
from emu_jax.errors import InputError
from emu_jax.model import load_tokenizers
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import place
from emu_jax.train.clips import keep_tokenizer, opened
from emu_jax.train.config import Experiment
from emu_jax.train.contents import records_digest
from emu_jax.train.frozen_encoders import FrozenEncoders, encoding_of
from emu_jax.train.inherit import inherit, source_of
from emu_jax.train.parts import frozen_as_read

NAME = "encoded"  # of the dataset, in the names of its files
READ_AHEAD = 4  # records


@dataclasses.dataclass(frozen=True)
class Report:
  """What was encoded; `report.json` holds the same."""

  out: str
  arguments: dict
  num_records: dict[str, int]  # a split
  num_bytes: int  # of the records' files
  seconds: float
  existing: bool = False  # an earlier run with the same arguments had made it: nothing was done


@dataclasses.dataclass(frozen=True)
class Stretch(shards.Shard):
  """The records of a source that make a shard."""

  first: int
  end: int


def encode(
  experiment: Experiment,
  source: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  dtype: str = "float16",
  batch_size: int = 32,
  records_per_shard: int = 64,
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Encodes every split of packed records into `out`; the same call again changes nothing.

  A killed run is continued by the same call: at most a shard of each process is encoded again.
  Where the experiment trains its text encoders, latents alone are stored.

  Args:
    dtype: of the stored numbers.
    batch_size: frames or captions at a time, over the devices of a process.
    records_per_shard: what a kill can cost a process, and the records of one file.

  Raises:
    InputError: the source is not what the experiment takes, a tree is missing, or `out` is in the
      way.
  """
  began, source, out = time.monotonic(), pathlib.Path(source), pathlib.Path(out)
  for name, value in (("batch_size", batch_size), ("records_per_shard", records_per_shard)):
    if value < 1:
      raise InputError(f"encode: {name}={value} is below 1; raise it")
  if out.resolve() == source.resolve():
    raise InputError(f"encode: out={out} is the source; name another folder")
  sources = _opened(experiment, source)
  encoding, encoders = _prepared(experiment, sources["train"], dtype, batch_size)
  arguments = _arguments(encoding) | {"contents": records_digest(source)}
  earlier = records.finished(out, arguments, overwrite, "encode")
  if earlier is not None:
    return Report(**earlier | {"out": str(out), "existing": True})
  encoders = encoders()
  planned = [
    Stretch(split, number, first, min(first + records_per_shard, len(part.records)))
    for split, part in sources.items()
    for number, first in enumerate(range(0, len(part.records), records_per_shard))
  ]
  (empty,) = encoders.captions([""])
  numbers = tuple(sources["train"].numbers)
  features = latent_records.features(empty, dtype, numbers, several_captions(sources.values()))
  settings = {"records_per_shard": records_per_shard, "batch_size": encoders.batch_size}
  with contextlib.ExitStack() as stack:
    claimed = records.resumable(out, arguments | settings, "encode")
    _together(lambda: jax.process_index() or stack.enter_context(claimed))
    work = records.unfinished(out)
    bar = progress and jax.process_index() == 0
    make = functools.partial(_encode_shards, encoders, sources, planned, work, features, bar)
    _together(make)
    report = Report(str(out), arguments, {}, 0, 0.0)
    if jax.process_index() == 0:
      lengths, masked = encoders.text_layout()
      encoding = dataclasses.replace(encoding, lengths=lengths, masked=masked)
      info = shards.describe(NAME, latent_records.__name__, work, features, latent_records.__doc__)
      num_records = shards.assemble(
        info, work, planned,
        arrays=(latent_records.MOMENTS,), numbers=numbers, size=encoding.size,
      )  # fmt: skip
      latent_records.write_encoding(work / "whole", Encoded(encoding, empty))
      size = sum(file.stat().st_size for file in (work / "whole").glob("*.array_record*"))
      seconds = round(time.monotonic() - began, 3)
      report = Report(str(out), arguments, num_records, size, seconds)
      text = json.dumps(dataclasses.asdict(report), indent=1)
      (work / "whole" / records.REPORT).write_text(text)
  _together(lambda: None)  # no process reads `out` before it is there
  return report


def _opened(experiment: Experiment, folder: pathlib.Path) -> dict[str, Source]:
  """Every split of the source, checked against the experiment."""
  data = dataclasses.replace(experiment.data, sources=(str(folder),), weights=())
  experiment = dataclasses.replace(experiment, data=data)
  if not experiment.definition.encoders:
    raise InputError(
      f"--stage {experiment.run_name}: trains on pixels; name a stage whose encoders are frozen"
    )
  (train,) = opened(experiment, "train")
  if train.encoded:
    raise InputError(f"encode: {folder} is encoded already; name the clips as prepared")
  size = experiment.definition.inputs.first.size
  if {tuple(one) for one in train.sizes.tolist()} != {size}:
    raise InputError(
      f"encode: the records of {folder} are not all of {size[0]}x{size[1]} pixels, at which stage "
      f"{experiment.run_name!r} works; prepare them with --size {size[0]} {size[1]}"
    )
  splits = tfds.builder_from_directory(folder).info.splits
  return {split: opened(experiment, split)[0] for split in splits}


def several_captions(sources: Iterable[Source]) -> bool:
  """Whether records have more than one caption."""
  return any(len(source.all_captions) > len(source.captions) for source in sources)


def _prepared(
  experiment: Experiment, source: Source, dtype: str, batch_size: int
) -> tuple[Encoding, Callable[[], FrozenEncoders]]:
  """What the records will be, and the function that puts their encoders on the devices."""
  part = experiment.definition
  if several_captions([source]):  # one is drawn a step: the step encodes it
    encoders = {name: one for name, one in part.encoders.items() if name != "captions"}
    part = dataclasses.replace(part, encoders=encoders)
    if jax.process_index() == 0:
      print("encode: clips have several captions, which the training step encodes: latents alone")
  inherited, _ = inherit(experiment, source_of(experiment))
  names = [name for encoder in part.encoders.values() for name in encoder.trees]
  if missing := [name for name in names if name not in inherited]:
    raise InputError(
      f"encode: stage {experiment.run_name!r} encodes with the trees {missing}, which init_from="
      f"{experiment.init_from!r} does not hold; train the stages before it first"
    )
  trees = {name: inherited[name] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    paths, tokenizers = [], ()
    if "captions" in part.encoders:
      paths = [pathlib.Path(folder) / str(i) for i in range(len(part.texts))]
      for i, path in enumerate(paths):
        keep_tokenizer(experiment, i, path, [source])
      tokenizers = load_tokenizers(part.texts, paths)
    encoding = encoding_of(experiment, tuple(part.encoders), trees, paths, dtype)

  def encoders() -> FrozenEncoders:
    mesh = make_mesh(jax.local_devices(), MeshConfig(data=1, fsdp=0))
    rows = -(-batch_size // mesh.size) * mesh.size
    placed = place(frozen_as_read(experiment.system, trees), mesh)
    return FrozenEncoders(part, placed, tokenizers, dtype, rows, mesh)

  return encoding, encoders


def _arguments(encoding: Encoding) -> dict[str, Any]:
  """What makes two runs the same, field by field."""
  values = dataclasses.asdict(encoding)
  return {name: values[name] for name in ("size", "autoencoder", "text", "dtype")} | encoding.model


def _encode_shards(
  encoders: FrozenEncoders,
  sources: dict[str, Source],
  planned: Sequence[Stretch],
  work: pathlib.Path,
  features: tfds.features.FeaturesDict,
  progress: bool,
) -> None:
  """Encodes this process's share of the shards that are not there yet."""
  share = planned[jax.process_index() :: jax.process_count()]
  total = sum(shard.end - shard.first for shard in share)
  with Counter("encoding", "records", total) if progress else contextlib.nullcontext() as counter:
    for shard in share:
      if shard.note(work).is_file():
        if counter:
          counter.add(shard.end - shard.first)
        continue
      examples = _records(encoders, shard, sources[shard.split])
      shards.write(shard, work, features, _counted(examples, counter))


def _counted(examples: Iterator[dict], counter: Counter | None) -> Iterator[dict]:
  for example in examples:
    yield example
    if counter:
      counter.add()


def _records(encoders: FrozenEncoders, shard: Stretch, source: Source) -> Iterator[dict]:
  """The records of a shard, encoded, in order."""
  captions = [source.captions[i] for i in range(shard.first, shard.end)]
  fields = iter(encoders.captions(captions))
  read = grain.MapDataset.source(source.records)[shard.first : shard.end].map(_decoded)
  ahead = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
  waiting = collections.deque()  # all of a record but its frames, until these are encoded

  def clips() -> Iterator[np.ndarray]:
    for record in read.to_iter_dataset(ahead):
      waiting.append(record)
      yield record.pop("frames")

  for moments in encoders.moments(clips()):
    yield latent_records.packed(waiting.popleft(), moments) | next(fields)


def _decoded(record: dict) -> dict:
  return record | {"frames": record["frames"][:]}


def _together(act: Callable[[], Any]) -> None:
  """Does something in every process, and waits for all; what one refuses ends them all."""
  error = None
  try:
    act()
  except InputError as refusal:
    error = refusal
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.bool_(error is not None))
    if error is None and np.any(failed):
      raise InputError(f"encode: process {int(np.argmax(failed))} refused; see its own line")
  if error:
    raise error
