"""Records written shard by shard, each whole or not at all, so that a killed job goes on.

A worker writes one ArrayRecord file and then a note of what it holds. A shard that has its note is
never made again: not by a repeated task, and not by the next run after a kill. Once all are there,
they become the files of one TFDS dataset.
"""

import contextlib
import dataclasses
import json
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Sequence

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from emu_jax.data import index, records
from emu_jax.data.index import Entry, Size


@dataclasses.dataclass(frozen=True)
class Shard:
  """A run of consecutive records; its two files begin with its name."""

  split: str
  number: int  # in its split

  @property
  def name(self) -> str:
    return f"{self.split}-{self.number:05d}"

  def note(self, work: pathlib.Path) -> pathlib.Path:
    """The file that says that the shard is made."""
    return work / f"{self.name}.json"


@dataclasses.dataclass(frozen=True)
class Note:
  """What became of a shard."""

  entries: tuple[Entry, ...]  # of its records, in order
  num_bytes: int  # of the serialized records
  num_clips: int = 0  # of which at least one record was made
  skipped: tuple[tuple[str, str], ...] = ()  # file name, reason

  @classmethod
  def read(cls, path: pathlib.Path) -> "Note":
    """What `write` left."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    entries = tuple(Entry(**row | {"size": tuple(row["size"]), "captions": tuple(row["captions"])})
                    for row in stored.pop("entries"))  # fmt: skip
    return cls(entries, **stored | {"skipped": tuple(map(tuple, stored["skipped"]))})


@dataclasses.dataclass
class Skips:
  """What a shard's examples leave out; filled while they are made."""

  skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  num_clips: int = 0  # of which at least one record was made


def write(
  shard: Shard,
  work: pathlib.Path,
  features: tfds.features.FeaturesDict,
  examples: Iterable[dict],
  skips: Skips | None = None,
) -> None:
  """Writes one shard; safe to repeat, and to do twice at once.

  Both files appear under their names whole, the note last; OSError where the disk is full.

  Args:
    examples: records as `records.packed` or `latent_records.packed` gives them.
    skips: what was left out and why; read once `examples` has ended, which fills it.
  """
  entries, num_bytes = [], 0
  with _appearing(work / shard.name) as partial:
    # Records apart, as TFDS writes them; what is in them is compressed already.
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    for record in examples:
      serialized = features.serialize_example(record)
      with _writing():
        writer.write(serialized)
      entries.append(Entry.of(record, records.num_frames(record)))
      num_bytes += len(serialized)
    with _writing():
      writer.close()
  skips = skips or Skips()
  note = Note(tuple(entries), num_bytes, skips.num_clips, tuple(skips.skipped))
  with _appearing(shard.note(work)) as partial:
    partial.write_text(json.dumps(dataclasses.asdict(note)), encoding="utf-8")


def describe(
  name: str, module: str, work: pathlib.Path, features: tfds.features.FeaturesDict, text: str
) -> tfds.core.DatasetInfo:
  """The description of the dataset in `work/whole`, as TFDS reads it; its splits are not set."""
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name, version=records.VERSION, data_dir=str(work / "whole"), module_name=module
  )
  info = tfds.core.DatasetInfo(
    builder=identity, features=features, description=text, disable_shuffling=True
  )
  info.set_file_format("array_record")
  return info


def assemble(
  info: tfds.core.DatasetInfo,
  work: pathlib.Path,
  shards: Sequence[Shard],
  *,
  arrays: Iterable[str] = ("frames",),
  numbers: Iterable[str] = (),
  size: Size,
) -> dict[str, int]:
  """Leaves the whole dataset in `work/whole`, empty shards left out; counts records a split.

  Continues where a killed run was renaming.

  Args:
    info: describes the dataset; its splits are set here.
    shards: all of them, those of a split in their order.
    arrays: that every record has.
    numbers: that every record has.
    size: that the records were packed for.
  """
  whole = work / "whole"
  whole.mkdir(exist_ok=True)
  noted = [(shard, Note.read(shard.note(work))) for shard in shards]
  splits, entries = [], {}
  for split in dict.fromkeys(shard.split for shard in shards):
    filled = [(shard, note) for shard, note in noted if shard.split == split and note.entries]
    if not filled:
      continue
    template = tfds.core.ShardedFileTemplate(
      data_dir=whole, dataset_name=info.name, split=split, filetype_suffix="array_record"
    )
    for i, (shard, _) in enumerate(filled):
      final = template.sharded_filepath(shard_index=i, num_shards=len(filled))
      if (work / shard.name).exists():
        (work / shard.name).rename(final)
    counts = [len(note.entries) for _, note in filled]
    num_bytes = sum(note.num_bytes for _, note in filled)
    splits.append(tfds.core.SplitInfo(split, counts, num_bytes, template))
    entries[split] = [entry for _, note in filled for entry in note.entries]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(whole)
  return index.write(whole, entries, arrays=arrays, numbers=numbers, size=size)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
  """Makes an OSError of what ArrayRecord says of a failed write."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(str(error).partition(";")[0]) from error


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name to write under that becomes `path` when the block ends well."""
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
