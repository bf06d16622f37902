"""A folder of captioned clips -> the records of `folder`, packed by an Apache Beam pipeline.

The lines of metadata are cut into runs of consecutive clips of one split, a shard each. A worker
packs a shard whole: it decodes the clips, writes one ArrayRecord file and then a note of what it
holds. So no frame travels through Beam, a worker holds one record at a time, and a shard that has
its note is never packed again: not by a retried bundle, and not by the next run after a kill.

Clips and records lie where every worker can reach them under the same path: a disk, NFS, Lustre,
or a bucket that is mounted. Apache Beam is needed for this module alone.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from emu_jax.data import folder as local
from emu_jax.data import records
from emu_jax.data.folder import Options, Report, Skipped
from emu_jax.data.metadata import Row
from emu_jax.errors import InputError

SPLITS = records.RecordBuilder.splits
# Beam's DirectRunner would first try to download a runner of another language.
DEFAULT_RUNNER = "--runner=FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one worker packs at a time; its two files begin with its name."""

  split: str
  number: int  # in its split
  rows: tuple[Row, ...]

  @property
  def name(self) -> str:
    return f"{self.split}-{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class Note:
  """What became of a shard."""

  lengths: tuple[tuple[int, float], ...]  # frames and fps of each record
  num_bytes: int  # of the serialized records
  skipped: tuple[tuple[str, str], ...]  # file name, reason

  @classmethod
  def read(cls, path: pathlib.Path) -> "Note":
    """What `pack_shard` wrote."""
    held = json.loads(path.read_text())
    pairs = {name: tuple(map(tuple, held[name])) for name in ("lengths", "skipped")}
    return cls(**held | pairs)


def prepare_folder(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  options: Options,
  clips_per_shard: int = 64,
  beam_options: Sequence[str] = (),
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Packs as `folder.prepare_folder` does, on the workers of a Beam runner.

  The records, their order, the index and the report are the same; only the division into files
  differs. A killed or failed run is continued by the same call.

  Args:
    clips_per_shard: what a kill can cost a worker, and the clips of one file.
    beam_options: flags of Beam and its runner, `--runner=…` among them; without one the pipeline
      runs in this process.

  Raises:
    InputError: as `folder.prepare_folder`, or no Beam, or flags that it refuses.
  """
  began = time.monotonic()
  for name, path in (("folder", folder), ("out", out)):
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):  # pathlib makes one slash of two
      raise InputError(
        f"prepare: {name}={path} is an address, clips and records need a path; mount the bucket "
        "on every worker and name the mounted folder"
      )
  if clips_per_shard < 1:
    raise InputError(f"prepare: clips_per_shard={clips_per_shard} is below 1; raise it")
  # Workers elsewhere share the path, not this process's working directory.
  folder, out = pathlib.Path(folder).absolute(), pathlib.Path(out)
  run = _runner(beam_options)
  rows, arguments, earlier = local.asked(folder, out, options, overwrite)
  if earlier is not None:
    return earlier
  shards = _shards(rows, options, clips_per_shard)
  job = arguments | {"folder": str(folder), "clips_per_shard": clips_per_shard}
  with records.resumable(out, job) as work:
    pack = functools.partial(pack_shard, folder=folder, work=work.absolute(), options=options)
    with _watched(shards, work, progress):
      run([shard for shard in shards if not _note(work, shard).is_file()], pack)
    notes = [Note.read(_note(work, shard)) for shard in shards]
    skipped = tuple(Skipped(*entry) for note in notes for entry in note.skipped)
    if not any(note.lengths for note in notes):
      raise InputError(local.none_read(folder, len(rows), skipped[0]))
    builder = local.ClipFolder(  # it describes what the workers have written
      size=options.size, folder=folder, rows=rows, options=options, submit=None, skipped=[],
      progress=None, data_dir=str(work),
    )  # fmt: skip
    num_records = _assemble(builder, work, shards, notes)
    seconds = round(time.monotonic() - began, 3)
    report = Report(str(out), arguments, len(rows), num_records, skipped, seconds)
    report.write(work / "whole")
  return report


def pack_shard(shard: Shard, folder: pathlib.Path, work: pathlib.Path, options: Options) -> None:
  """Packs one shard; safe to repeat, and to do twice at once.

  Both files appear under their names whole, the note last.
  """
  features = records.features(options.size)
  lengths, skipped, num_bytes = [], [], 0
  with _appearing(work / shard.name) as partial:
    writer = ArrayRecordWriter(str(partial), "group_size:1")  # as TFDS writes them
    for record in _records(shard, folder, options, skipped):
      serialized = features.serialize_example(record)
      writer.write(serialized)
      lengths.append((len(record["frames"]), float(record["fps"])))
      num_bytes += len(serialized)
    writer.close()
  note = Note(tuple(lengths), num_bytes, tuple(skipped))
  with _appearing(_note(work, shard)) as partial:
    partial.write_text(json.dumps(dataclasses.asdict(note)))


def _records(
  shard: Shard, folder: pathlib.Path, options: Options, skipped: list[tuple[str, str]]
) -> Iterator[dict]:
  """The records of a shard in order; what cannot be read is added to `skipped`."""
  for row in shard.rows:
    part, num_parts = 0, 1
    while part < num_parts:
      result = local.read_part(folder / row.file_name, part, options)
      if isinstance(result, str):
        skipped.append((row.file_name, result))
      else:
        num_parts = result.num_parts
        yield local.record_of(row, part, result)
      part += 1


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name to write under that becomes `path` when the block ends well."""
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def _note(work: pathlib.Path, shard: Shard) -> pathlib.Path:
  return work / f"{shard.name}.json"


def _shards(rows: Sequence[Row], options: Options, clips_per_shard: int) -> list[Shard]:
  shards = []
  for split in SPLITS:
    own = [row for row in rows if local.split_of(row, options) == split]
    for number, first in enumerate(range(0, len(own), clips_per_shard)):
      shards.append(Shard(split, number, tuple(own[first : first + clips_per_shard])))
  return shards


def _runner(flags: Sequence[str]) -> Callable[[Sequence[Shard], Callable], None]:
  """A function of (shards, pack) that runs the pipeline to its end; Beam refuses flags now."""
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
  except ImportError as error:
    raise InputError(
      f"prepare: the runner beam needs Apache Beam ({error}); install requirements-beam.txt, or "
      "leave --runner beam away"
    ) from error
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      asked = PipelineOptions(list(flags))
      if asked.view_as(StandardOptions).runner is None:
        asked = PipelineOptions([DEFAULT_RUNNER, *flags])
      asked.get_all_options()  # parses them all, which the constructor does not
      beam.runners.create_runner(asked.view_as(StandardOptions).runner)
  except (SystemExit, ValueError, ImportError) as error:  # argparse's, an unknown or absent runner
    reason = (said.getvalue().strip() or str(error)).splitlines()[-1]
    raise InputError(
      f"prepare: Apache Beam refuses {' '.join(flags)} ({reason}); give flags of its runner"
    ) from error

  def run(shards: Sequence[Shard], pack) -> None:
    if not shards:
      return
    with beam.Pipeline(options=asked) as pipeline:
      # Without the reshuffle a runner may keep all shards in the one worker that lists them.
      _ = pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(pack)

  return run


@contextlib.contextmanager
def _watched(shards: Sequence[Shard], work: pathlib.Path, progress: bool) -> Iterator[None]:
  """Counts clips of finished shards while the block runs, by the notes that appear."""
  ended = threading.Event()
  sizes = {_note(work, shard).name: len(shard.rows) for shard in shards}
  with tqdm(total=sum(sizes.values()), desc="packing", unit="clip", disable=not progress) as bar:

    def watch() -> None:
      last = False
      while not last:
        last = ended.wait(1.0)  # s; once more after the end, for the last shards
        bar.update(sum(sizes.get(name, 0) for name in os.listdir(work)) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    if progress:
      thread.start()
    try:
      yield
    finally:
      ended.set()
      if progress:
        thread.join()


def _assemble(
  builder: records.RecordBuilder,
  work: pathlib.Path,
  shards: Sequence[Shard],
  notes: Iterable[Note],
) -> dict[str, int]:
  """Leaves the whole dataset in `work/whole`, empty shards left out; counts records a split.

  Continues where a killed run was renaming.
  """
  whole = work / "whole"
  whole.mkdir(exist_ok=True)
  full = [(shard, note) for shard, note in zip(shards, notes, strict=True) if note.lengths]
  infos, lengths = [], {}
  for split in SPLITS:
    own = [(shard, note) for shard, note in full if shard.split == split]
    if not own:
      continue
    template = tfds.core.ShardedFileTemplate(
      data_dir=whole, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    for i, (shard, _) in enumerate(own):
      final = template.sharded_filepath(shard_index=i, num_shards=len(own))
      if (work / shard.name).exists():
        (work / shard.name).rename(final)
    counts = [len(note.lengths) for _, note in own]
    num_bytes = sum(note.num_bytes for _, note in own)
    infos.append(tfds.core.SplitInfo(split, counts, num_bytes, template))
    lengths[split] = [pair for _, note in own for pair in note.lengths]
  builder.info.set_splits(tfds.core.SplitDict(infos))
  builder.info.write_to_directory(whole)
  return records.write_index(whole, lengths)
