"""`emu-train encode`: the frozen encoders run once over packed records, not in every step.

With several processes each encodes shards of its own on its own devices, over which the weights lie
in pieces.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax.experimental import multihost_utils
from tqdm import tqdm

from emu_jax.data import latent_records as encoded
from emu_jax.data import records, shards
from emu_jax.data.batches import Source
from emu_jax.data.latent_records import Encoded, Encoding
from emu_jax.encoding import Encoder
from emu_jax.errors import InputError
from emu_jax.loading import check_trees, load_tokenizers
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import place
from train.config import Experiment
from train.encoders import encoding_of
from train.inputs import inherit, opened
from train.tokenizers import keep_tokenizer

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
  encoding, encoder = _prepared(experiment, sources["train"], dtype, batch_size)
  arguments = _arguments(encoding) | {"contents": _contents(source)}
  earlier = records.finished(out, arguments, overwrite, "encode")
  if earlier is not None:
    return Report(**earlier | {"out": str(out), "existing": True})
  encoder = encoder()
  planned = [
    Stretch(split, number, first, min(first + records_per_shard, len(part.records)))
    for split, part in sources.items()
    for number, first in enumerate(range(0, len(part.records), records_per_shard))
  ]
  (empty,) = encoder.captions([""])
  features = encoded.features(encoder.latent_shape(), empty, dtype)
  settings = {"records_per_shard": records_per_shard, "batch_size": encoder.batch_size}
  with contextlib.ExitStack() as stack:
    claimed = records.resumable(out, arguments | settings, "encode")
    _together(lambda: jax.process_index() or stack.enter_context(claimed))
    work = records.unfinished(out)
    shown = progress and jax.process_index() == 0
    make = functools.partial(_encode_shards, encoder, source, planned, work, features, shown)
    _together(make)
    report = Report(str(out), arguments, {}, 0, 0.0)
    if jax.process_index() == 0:
      lengths, masked = encoder.text_layout()
      encoding = dataclasses.replace(encoding, lengths=lengths, masked=masked)
      num_records = shards.assemble(_info(work, features), work, planned)
      encoded.write_encoding(work / "whole", Encoded(encoding, empty))
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
  if experiment.stage == "autoencoder":
    raise InputError(
      "--stage autoencoder: trains the encoder, on pixels; name a stage that comes after it"
    )
  (train,) = opened(experiment, "train")
  if train.encoded:
    raise InputError(f"encode: {folder} is encoded already; name the clips as prepared")
  splits = tfds.builder_from_directory(folder).info.splits
  return {split: opened(experiment, split)[0] for split in splits}


def _prepared(
  experiment: Experiment, source: Source, dtype: str, batch_size: int
) -> tuple[Encoding, Callable[[], Encoder]]:
  """What the records will be, and the function that puts their encoder on the devices."""
  image = experiment.model.image
  inherited = inherit(experiment)
  names = ("autoencoder",) if experiment.trains_text else ("autoencoder", "text")
  if missing := [name for name in names if name not in inherited]:
    raise InputError(
      f"encode: stage {experiment.stage!r} encodes with the trees {missing}, which init_from="
      f"{experiment.init_from!r} does not hold; train the stages before it first"
    )
  check_trees(experiment.model, inherited, experiment.init_from)
  trees = {name: inherited[name] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    paths, tokenizers = [], ()
    if not experiment.trains_text:
      kept = pathlib.Path(folder) / "tokenizers"
      kept.mkdir()
      paths = [kept / str(i) for i in range(len(image.text))]
      for i, path in enumerate(paths):
        keep_tokenizer(experiment, i, path, [source])
      tokenizers = load_tokenizers(experiment.model, pathlib.Path(folder))
    encoding = encoding_of(experiment, trees, paths, dtype)

  def encoder() -> Encoder:
    mesh = make_mesh(jax.local_devices(), MeshConfig(data=1, fsdp=0))
    rows = -(-batch_size // mesh.size) * mesh.size
    return Encoder(image, place(trees, mesh), tokenizers, dtype, rows, mesh)

  return encoding, encoder


def _arguments(encoding: Encoding) -> dict[str, Any]:
  """What makes two runs the same, field by field."""
  own = dataclasses.asdict(encoding)
  return {name: own[name] for name in ("size", "autoencoder", "text", "dtype")} | encoding.model


def _contents(folder: pathlib.Path) -> str:
  """Of packed records, without reading them: a source packed anew is not taken for the one before.

  What `emu-train prepare` says of the clips, and lengths and bytes of the files.
  """
  digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
  if (folder / records.REPORT).is_file():
    report = json.loads((folder / records.REPORT).read_text())
    digest.update(json.dumps(report.get("arguments")).encode())
  return digest.hexdigest()[:16]


def _encode_shards(
  encoder: Encoder,
  source: pathlib.Path,
  planned: Sequence[Stretch],
  work: pathlib.Path,
  features: tfds.features.FeaturesDict,
  progress: bool,
) -> None:
  """Encodes this process's own shards that are not there yet."""
  own = planned[jax.process_index() :: jax.process_count()]
  tables = {split: _tables(source, split) for split in {shard.split for shard in own}}
  total = sum(shard.end - shard.first for shard in own)
  with tqdm(total=total, desc="encoding", unit="record", disable=not progress) as bar:
    for shard in own:
      if shard.note(work).is_file():
        bar.update(shard.end - shard.first)
        continue
      examples = _records(encoder, shard, *tables[shard.split])
      shards.write(shard, work, features, _counted(examples, bar))


def _counted(examples: Iterator[dict], bar: tqdm) -> Iterator[dict]:
  for example in examples:
    yield example
    bar.update()


def _tables(source: pathlib.Path, split: str) -> tuple[Any, Any]:
  """The records of a split, and the same with frames as they are stored: quick to look into."""
  builder = tfds.builder_from_directory(source)
  undecoded = {"frames": tfds.decode.SkipDecoding()}
  return builder.as_data_source(split), builder.as_data_source(split, decoders=undecoded)


def _records(encoder: Encoder, shard: Stretch, whole: Any, undecoded: Any) -> Iterator[dict]:
  """The records of a shard, encoded, in order."""
  captions = [undecoded[i]["caption"].decode() for i in range(shard.first, shard.end)]
  fields = iter(encoder.captions(captions))
  read = grain.MapDataset.source(whole)[shard.first : shard.end]
  ahead = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
  waiting = collections.deque()  # all of a record but its frames, until these are encoded

  def clips() -> Iterator[np.ndarray]:
    for record in read.to_iter_dataset(ahead):
      waiting.append({name: record[name] for name in ("fps", "caption", "name", "truth")})
      yield record["frames"]

  for moments in encoder.moments(clips()):
    yield waiting.popleft() | {"moments": moments} | next(fields)


def _info(work: pathlib.Path, features: tfds.features.FeaturesDict) -> tfds.core.DatasetInfo:
  """The description of the dataset, as TFDS reads it; its splits are not set."""
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=NAME,
    version=tfds.core.Version("1.0.0"),
    data_dir=str(work / "whole"),
    module_name=encoded.__name__,
  )
  info = tfds.core.DatasetInfo(
    builder=identity, features=features, description=encoded.__doc__, disable_shuffling=True
  )
  info.set_file_format("array_record")
  return info


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
