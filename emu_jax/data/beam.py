"""A folder of captioned clips -> the records of `folder`, packed by an Apache Beam pipeline.

The lines of metadata are cut into runs of consecutive clips of one split, a shard each. A worker
packs a shard whole (emu_jax.data.shards). So no frame travels through Beam, a worker holds one
record at a time, and a shard is packed once: a retried bundle does not repeat it, nor does the next
run after a kill.

Clips and records lie where every worker can reach them under the same path: a disk, NFS, Lustre,
or a bucket that is mounted. Apache Beam is needed for this module alone.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from emu_jax.data import folder as local
from emu_jax.data import records, shards
from emu_jax.data.folder import Options, Report, Skipped
from emu_jax.data.metadata import Row
from emu_jax.errors import InputError

SPLITS = records.RecordBuilder.splits
# Beam's DirectRunner would first try to download a runner of another language.
DEFAULT_RUNNER = "--runner=FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Shard(shards.Shard):
  """What one worker packs at a time."""

  rows: tuple[Row, ...]


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
  planned = _shards(rows, options, clips_per_shard)
  job = arguments | {"folder": str(folder), "clips_per_shard": clips_per_shard}
  with records.resumable(out, job) as work:
    pack = functools.partial(pack_shard, folder=folder, work=work.absolute(), options=options)
    with _watched(planned, work, progress):
      run([shard for shard in planned if not shard.note(work).is_file()], pack)
    notes = [shards.Note.read(shard.note(work)) for shard in planned]
    skipped = tuple(Skipped(*entry) for note in notes for entry in note.skipped)
    if not any(note.lengths for note in notes):
      raise InputError(local.none_read(folder, len(rows), skipped[0]))
    builder = local.ClipFolder(  # it describes what the workers have written
      size=options.size, folder=folder, rows=rows, options=options, submit=None, skipped=[],
      progress=None, data_dir=str(work),
    )  # fmt: skip
    num_records = shards.assemble(builder.info, work, planned)
    seconds = round(time.monotonic() - began, 3)
    report = Report(str(out), arguments, len(rows), num_records, skipped, seconds)
    report.write(work / "whole")
  return report


def pack_shard(shard: Shard, folder: pathlib.Path, work: pathlib.Path, options: Options) -> None:
  """Packs one shard; safe to repeat, and to do twice at once."""
  skipped = []
  examples = _records(shard, folder, options, skipped)
  shards.write(shard, work, records.features(options.size), examples, skipped)


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


def _shards(rows: Sequence[Row], options: Options, clips_per_shard: int) -> list[Shard]:
  planned = []
  for split in SPLITS:
    own = [row for row in rows if local.split_of(row, options) == split]
    for number, first in enumerate(range(0, len(own), clips_per_shard)):
      planned.append(Shard(split, number, tuple(own[first : first + clips_per_shard])))
  return planned


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

  def run(planned: Sequence[Shard], pack) -> None:
    if not planned:
      return
    with beam.Pipeline(options=asked) as pipeline:
      # Without the reshuffle a runner may keep all shards in the one worker that lists them.
      _ = pipeline | beam.Create(planned) | beam.Reshuffle() | beam.Map(pack)

  return run


@contextlib.contextmanager
def _watched(planned: Sequence[Shard], work: pathlib.Path, progress: bool) -> Iterator[None]:
  """Counts clips of finished shards while the block runs, by the notes that appear."""
  ended = threading.Event()
  sizes = {shard.note(work).name: len(shard.rows) for shard in planned}
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
