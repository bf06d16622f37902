"""A user's folder of captioned clips -> packed records, decoded in parallel, once.

The lines of metadata are cut into runs of consecutive clips of one split, a shard each. A worker
packs a shard whole (emu_jax.data.shards), so it holds one record at a time, and a killed run is
continued: no finished shard is packed again. Who runs the workers is all that tells the packer of
one machine from that of a cluster (emu_jax.data.beam).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from emu_jax.data import clip_files, records, shards
from emu_jax.data.clip_files import Options
from emu_jax.data.metadata import Layout, Row, fingerprint, read_metadata
from emu_jax.data.motion import MOTION
from emu_jax.data.workers import end_with_parent
from emu_jax.errors import InputError

SPLITS = ("train", "validation", "test")
NAME = "clip_folder"  # of the dataset, in the names of its files
DESCRIPTION = "Captioned clips of a user's folder, cropped and resized."
CLIPS_PER_SHARD = 64  # at most
SHARDS = 32  # ours: a small folder becomes about so many, that every worker has some

# Packs shards, each by the function: (shards, function)
Run = Callable[[Sequence["Shard"], Callable[["Shard"], None]], None]


@dataclasses.dataclass(frozen=True)
class Skipped:
  file_name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of a folder; `report.json` holds the same."""

  out: str
  arguments: dict
  num_clips: int  # lines of metadata
  num_packed: int  # of them, those that gave a record
  num_records: dict[str, int]  # a split; a long clip is several records
  skipped: tuple[Skipped, ...]  # files that gave no record, or not all of theirs
  seconds: float
  existing: bool = False  # an earlier run with the same arguments had made it: nothing was done
  notes: tuple[str, ...] = ()  # what a person should know besides

  def write(self, folder: pathlib.Path) -> None:
    """As `report.json` of a folder."""
    (folder / records.REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1))


@dataclasses.dataclass(frozen=True)
class Shard(shards.Shard):
  """What one worker packs at a time."""

  rows: tuple[Row, ...]


def prepare_folder(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  options: Options,
  workers: int | None = None,
  clips_per_shard: int = CLIPS_PER_SHARD,
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Packs a folder of captioned clips into `out`; a rerun with the same arguments changes nothing.

  A killed or failed run is continued by the same call. Decoding processes are spawned: a script
  that calls this with workers > 1 needs the usual `if __name__ == "__main__":`.

  Args:
    workers: decoding processes; None takes a core each, 1 decodes in this process.
    clips_per_shard: of one file at most; a kill costs a worker no more.

  Raises:
    InputError: nothing usable in `folder`, or `out` is in the way.
  """
  return pack(
    folder, out, options=options, clips_per_shard=clips_per_shard, overwrite=overwrite,
    progress=progress, run=functools.partial(_run_here, workers),
  )  # fmt: skip


def pack(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  options: Options,
  clips_per_shard: int,
  overwrite: bool,
  progress: bool,
  run: Run,
) -> Report:
  """What every runner does: records, their order, index and report do not depend on `run`."""
  began = time.monotonic()
  if clips_per_shard < 1:
    raise InputError(f"prepare: clips_per_shard={clips_per_shard} is below 1; raise it")
  # Workers elsewhere share the path, not this process's working directory.
  folder, out = pathlib.Path(folder).absolute(), pathlib.Path(out)
  rows = read_metadata(folder)
  layout = layout_of(rows, options)
  arguments = dataclasses.asdict(options) | {"contents": fingerprint(folder, rows)}
  earlier = records.finished(out, arguments, overwrite)
  if earlier is not None:
    skipped = tuple(Skipped(**entry) for entry in earlier.pop("skipped"))
    notes = tuple(earlier.get("notes", ()))
    return Report(
      **earlier | {"out": str(out), "skipped": skipped, "existing": True, "notes": notes}
    )
  planned = plan(rows, options, clips_per_shard)
  job = arguments | {"folder": str(folder), "clips_per_shard": clips_per_shard}
  with records.resumable(out, job) as work:
    make = functools.partial(
      pack_shard, folder=folder, work=work.absolute(), options=options, layout=layout
    )
    with _watched(planned, work, progress):
      run([shard for shard in planned if not shard.note(work).is_file()], make)
    notes = [shards.Note.read(shard.note(work)) for shard in planned]
    skipped = tuple(Skipped(*entry) for note in notes for entry in note.skipped)
    if not any(note.entries for note in notes):
      raise InputError(
        f"prepare: none of the {len(rows)} clips named by the metadata of {folder} can be read; "
        f"the first: {skipped[0].reason}"
      )
    features = records.features(layout.arrays, layout.numbers, layout.captions)
    info = shards.describe(NAME, __name__, work, features, DESCRIPTION)
    num_records = shards.assemble(
      info, work, planned, arrays=layout.arrays, numbers=layout.numbers, size=options.size
    )
    num_packed = sum(note.num_clips for note in notes)
    seconds = round(time.monotonic() - began, 3)
    report = Report(
      str(out), arguments, len(rows), num_packed, num_records, skipped, seconds,
      notes=without_validation(rows, options),
    )  # fmt: skip
    report.write(work / "whole")
  return report


def layout_of(rows: Sequence[Row], options: Options) -> Layout:
  """What the records will have.

  Raises: InputError where "motion" would be measured and is a column of the metadata.
  """
  layout = Layout.of(rows)
  if not options.motion:
    return layout
  if MOTION in layout.numbers:
    raise InputError(
      f"prepare: the metadata has a column {MOTION!r}; leave --motion away, or rename the column"
    )
  return dataclasses.replace(layout, numbers=(*layout.numbers, MOTION))


def plan(rows: Sequence[Row], options: Options, clips_per_shard: int) -> list[Shard]:
  """The shards of all splits: runs of rows in their order, by these arguments alone."""
  size = min(clips_per_shard, math.ceil(len(rows) / SHARDS))
  splits, planned = splits_of(rows, options), []
  for split in SPLITS:
    of_split = [row for row, of_row in zip(rows, splits, strict=True) if of_row == split]
    for number, first in enumerate(range(0, len(of_split), size)):
      planned.append(Shard(split, number, tuple(of_split[first : first + size])))
  return planned


def splits_of(rows: Sequence[Row], options: Options) -> list[str]:
  """The split of each row: its folder's, else by its file's name alone, as a grown folder keeps it.

  Where validation's share is less than one file, or all there is, it takes nothing.
  """
  splits = [row.split or "train" for row in rows]
  if "validation" in splits:
    return splits
  chosen = [s == "train" and _held_back(row, options) for row, s in zip(rows, splits, strict=True)]
  files = {row.file_name for row, split in zip(rows, splits, strict=True) if split == "train"}
  if options.validation_fraction * len(files) < 1 or chosen.count(True) == splits.count("train"):
    return splits
  return ["validation" if held else split for held, split in zip(chosen, splits, strict=True)]


def _held_back(row: Row, options: Options) -> bool:
  """Whether a file's name puts it into validation; alike for both ways to write an accent."""
  digest = hashlib.sha256(unicodedata.normalize("NFC", row.file_name).encode()).digest()
  return int.from_bytes(digest[:8]) < options.validation_fraction * 2**64


def without_validation(rows: Sequence[Row], options: Options) -> tuple[str, ...]:
  """A line that says that validation was asked for and has no file."""
  if not options.validation_fraction or "validation" in splits_of(rows, options):
    return ()
  files = len({row.file_name for row in rows})
  return (
    f"no validation split: a share of {options.validation_fraction:g} of {files} file(s) leaves "
    "none for it, and all train; prepare more clips, or raise --validation-fraction",
  )


def pack_shard(
  shard: Shard, folder: pathlib.Path, work: pathlib.Path, options: Options, layout: Layout
) -> None:
  """Packs one shard; safe to repeat, and to do twice at once."""
  skips = shards.Skips()
  examples = shard_records(shard, folder, options, layout, skips)
  features = records.features(layout.arrays, layout.numbers, layout.captions)
  shards.write(shard, work, features, examples, skips)


def shard_records(
  shard: Shard, folder: pathlib.Path, options: Options, layout: Layout, skips: shards.Skips
) -> Iterator[dict]:
  """The records of a shard in order; what cannot be read is added to `skips`."""
  for row in shard.rows:
    if row.fault:
      skips.skipped.append((row.file_name, row.fault))
      continue
    captions = {"captions": list(row.texts)} if layout.captions else {}
    reasons, count = [], 0
    for count, made in enumerate(clip_files.clip_records(folder, row, options, layout), 1):
      if isinstance(made, str):
        reasons.append((count - 1, made))
      else:
        yield made | captions
    skips.num_clips += len(reasons) < count
    if reasons:
      skips.skipped.append((row.file_name, clip_files.skipped_parts(reasons, count)))


def _run_here(workers: int | None, planned: Sequence[Shard], make: Callable) -> None:
  """Packs shards in processes of this machine, or in this process."""
  num_clips = sum(len(shard.rows) for shard in planned)
  workers = workers or os.cpu_count() or 1
  workers = min(workers, len(planned), math.ceil(num_clips / 8))  # ours: a process costs 1 s
  if workers <= 1:
    for shard in planned:
      make(shard)
    return
  spawn = multiprocessing.get_context("spawn")  # forking a process that runs JAX can deadlock
  pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_parent)
  try:
    running = [pool.submit(make, shard) for shard in planned]
    wait(running, return_when=FIRST_EXCEPTION)
    for one in running:
      if one.done():
        one.result()
  except BrokenProcessPool as error:
    raise records.StoppedError(
      "prepare: a decoding process died (out of memory, a file that crashes FFmpeg, or a script "
      "without its __main__ guard); try again with fewer workers, or workers=1 to see at which file"
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


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
