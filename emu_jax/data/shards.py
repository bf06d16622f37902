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

from emu_jax.data import records


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

  lengths: tuple[tuple[int, float], ...]  # frames and fps of each record
  num_bytes: int  # of the serialized records
  skipped: tuple[tuple[str, str], ...] = ()  # file name, reason

  @classmethod
  def read(cls, path: pathlib.Path) -> "Note":
    """What `write` left."""
    held = json.loads(path.read_text())
    pairs = {name: tuple(map(tuple, held[name])) for name in ("lengths", "skipped")}
    return cls(**held | pairs)


def write(
  shard: Shard,
  work: pathlib.Path,
  features: tfds.features.FeaturesDict,
  examples: Iterable[dict],
  skipped: Sequence[tuple[str, str]] = (),
) -> None:
  """Writes one shard; safe to repeat, and to do twice at once.

  Both files appear under their names whole, the note last.

  Args:
    skipped: what was left out and why; read once `examples` has ended, which may add to it.
  """
  lengths, num_bytes = [], 0
  with _appearing(work / shard.name) as partial:
    writer = ArrayRecordWriter(str(partial), "group_size:1")  # as TFDS writes them
    for record in examples:
      serialized = features.serialize_example(record)
      writer.write(serialized)
      lengths.append((records.num_frames(record), float(record["fps"])))
      num_bytes += len(serialized)
    writer.close()
  note = Note(tuple(lengths), num_bytes, tuple(skipped))
  with _appearing(shard.note(work)) as partial:
    partial.write_text(json.dumps(dataclasses.asdict(note)))


def assemble(
  info: tfds.core.DatasetInfo, work: pathlib.Path, shards: Sequence[Shard]
) -> dict[str, int]:
  """Leaves the whole dataset in `work/whole`, empty shards left out; counts records a split.

  Continues where a killed run was renaming.

  Args:
    info: describes the dataset; its splits are set here.
    shards: all of them, those of a split in their order.
  """
  whole = work / "whole"
  whole.mkdir(exist_ok=True)
  noted = [(shard, Note.read(shard.note(work))) for shard in shards]
  splits, lengths = [], {}
  for split in dict.fromkeys(shard.split for shard in shards):
    own = [(shard, note) for shard, note in noted if shard.split == split and note.lengths]
    if not own:
      continue
    template = tfds.core.ShardedFileTemplate(
      data_dir=whole, dataset_name=info.name, split=split, filetype_suffix="array_record"
    )
    for i, (shard, _) in enumerate(own):
      final = template.sharded_filepath(shard_index=i, num_shards=len(own))
      if (work / shard.name).exists():
        (work / shard.name).rename(final)
    counts = [len(note.lengths) for _, note in own]
    num_bytes = sum(note.num_bytes for _, note in own)
    splits.append(tfds.core.SplitInfo(split, counts, num_bytes, template))
    lengths[split] = [pair for _, note in own for pair in note.lengths]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(whole)
  return records.write_index(whole, lengths)


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name to write under that becomes `path` when the block ends well."""
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
