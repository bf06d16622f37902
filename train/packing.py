"""`emu-train prepare`: clips or shapes are packed, here or by Apache Beam."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from emu_jax.data import beam
from emu_jax.data.clip_files import Options
from emu_jax.data.codecs import DEFAULT
from emu_jax.data.folder import Report, prepare_folder
from emu_jax.data.index import Size
from emu_jax.data.shapes import prepare_shapes
from emu_jax.errors import InputError

SHOWN = 10  # skipped clips that are printed one by one


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Packs a folder of captioned clips, or the built-in moving shapes, for training."""

  source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|shapes")]
  """Folder of clips with metadata.jsonl, .csv or .parquet (file_name, text), or with each clip's
  captions in a .txt beside it; or the word `shapes`."""
  out: pathlib.Path
  """New folder for the records; the same command again changes nothing in it."""
  size: tuple[int, ...] = ()
  """Height and width of the stored frames in pixels, one number for a square: the central part of
  that shape, antialiased. Default: the first bucket, else 64."""
  buckets: tuple[str, ...] = ()
  """Shapes HEIGHTxWIDTH, such as 64x64 48x80 80x48: each file is stored at that nearest to its own
  (folders only)."""
  codec: str = DEFAULT
  """How frames are compressed: jpeg or webp with a quality of 1 to 100, or lossless. Shapes are
  stored without loss."""
  lossless: tuple[str, ...] = ("mask", "depth")
  """Arrays that are stored without loss, whatever the codec (folders only)."""
  motion: bool = False
  """Measure how much moves in each record, as its number "motion": percent of the shorter side a
  second (folders only; shapes have it)."""
  fps: float = 0.0
  """Stored frames a second, at most; 0: the files' own. Shapes have 16."""
  max_seconds: float = 10.0
  """Longest record in seconds; longer clips are cut into several of equal length."""
  validation_fraction: float = 0.05
  """Share of the files kept for validation, chosen by their names; none where that is less than
  one file, and folders train, validation and test are splits themselves."""
  workers: int = 2
  """Decoding processes, 1 or more (the local runner only)."""
  runner: Literal["local", "beam"] = "local"
  """Who decodes: processes of this machine, or an Apache Beam runner, whose flags follow `--`."""
  clips_per_shard: int = 64
  """Clips that a worker packs at a time into one file, at most: what a kill can cost it."""
  overwrite: bool = False
  """Replace what other arguments packed there."""
  num_images: int = 20_000
  """Training pictures (shapes only); validation and test get a tenth as many each."""
  num_clips: int = 10_000
  """Training clips of 2.5 s (shapes only); validation and test get a tenth as many each."""
  seed: int = 0
  """Of what is drawn, 0 or more (shapes only)."""


def split_at_dashes(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """A command's own words, and those after `--`, which are Beam's."""
  words = list(words)
  cut = words.index("--") if "--" in words else len(words)
  return words[:cut], words[cut + 1 :]


def prepare(arguments: Prepare, beam_options: Sequence[str] = ()) -> None:
  """Packs clips; prints what was packed and what was left out, and why."""
  a, bar = arguments, sys.stderr.isatty()
  for name in ("fps", "max_seconds", "validation_fraction"):
    if not math.isfinite(getattr(a, name)):
      raise InputError(f"prepare: {name}={getattr(a, name)} is not a number; give one")
  for name, least in (("seed", 0), ("workers", 1)):
    if getattr(a, name) < least:
      raise InputError(f"prepare: {name}={getattr(a, name)} is below {least}; raise it")
  if beam_options and a.runner != "beam":
    raise InputError(
      f"prepare: {beam_options[0]} after -- is for Apache Beam, which is not asked for; add "
      "--runner beam, or leave it away"
    )
  if a.source == "shapes" and a.runner == "beam":
    raise InputError(
      "prepare: the runner beam packs folders, shapes are drawn here; leave --runner beam away"
    )
  size, buckets = sizes(a)
  if a.source == "shapes":
    report = prepare_shapes(
      a.out, size=size, num_images=a.num_images, num_clips=a.num_clips, seed=a.seed,
      overwrite=a.overwrite, progress=bar,
    )  # fmt: skip
    for kind, counts in report["num_records"].items():
      print(f"{a.out / kind}: {splits(counts)} of {shape(size)} pixels")
    print(finished(report["seconds"], report["existing"]))
    return
  options = Options(
    size, a.fps, a.max_seconds, a.validation_fraction, buckets, a.codec, a.lossless, a.motion
  )
  common = {
    "options": options,
    "clips_per_shard": a.clips_per_shard,
    "overwrite": a.overwrite,
    "progress": bar,
  }
  if a.runner == "beam":
    report = beam.prepare_folder(a.source, a.out, beam_options=beam_options, **common)
  else:
    report = prepare_folder(a.source, a.out, workers=a.workers, **common)
  summarise(report, options)


def sizes(arguments: Prepare) -> tuple[Size, tuple[Size, ...]]:
  """Height and width to pack for, and the buckets.

  Raises: InputError for what is no size, and for buckets of shapes.
  """
  a, buckets = arguments, []
  for word in a.buckets:
    height, _, width = word.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
      raise InputError(f"prepare: --buckets {word} is no shape; write HEIGHTxWIDTH, such as 48x80")
    buckets.append((int(height), int(width)))
  if len(a.size) > 2:
    raise InputError(f"prepare: --size {a.size} has {len(a.size)} numbers; give height and width")
  if buckets and a.source == "shapes":
    raise InputError("prepare: --buckets are for folders, shapes have one size; leave them away")
  size = (a.size[0], a.size[-1]) if a.size else buckets[0] if buckets else (64, 64)
  return size, tuple(buckets)


def shape(size: Size) -> str:
  """`48x80`, height first."""
  return f"{size[0]}x{size[1]}"


def summarise(report: Report, options: Options) -> None:
  """Prints what became of a folder."""
  pixels = ", ".join(map(shape, options.buckets or (options.size,)))
  print(
    f"{report.out}: {report.num_packed} of {report.num_clips} clips packed as "
    f"{splits(report.num_records)} of {pixels} pixels"
  )
  for note in report.notes:
    print(f"  {note}")
  for skipped in report.skipped[:SHOWN]:
    print(f"  skipped {skipped.file_name}: {skipped.reason}")
  if len(report.skipped) > SHOWN:
    print(f"  and {len(report.skipped) - SHOWN} more; {report.out}/report.json names them all")
  print(finished(report.seconds, report.existing))


def splits(counts: dict[str, int]) -> str:
  """`120 train, 6 validation records`."""
  return f"{', '.join(f'{count} {split}' for split, count in counts.items())} records"


def finished(seconds: float, existing: bool) -> str:
  """How long it took, or that it was not done again."""
  return f"was there already (made in {seconds:.1f} s)" if existing else f"done in {seconds:.1f} s"
