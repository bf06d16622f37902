"""A user's folder of clips, or of pictures, as a set to measure: checked before frames are read."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

from emu_jax.data import decode
from emu_jax.data.inputs import ClipSpec
from emu_jax.data.metadata import METADATA, VIDEO_SUFFIXES, read_metadata
from emu_jax.data.user_files import load_clip
from emu_jax.errors import InputError
from emu_jax.evaluation.prompts import natural_order, read_prompts

Progress = Callable[[Sequence, str], Iterable]  # goes over the first, saying the second


@dataclasses.dataclass(frozen=True)
class ClipSet:
  """Files that are read as clips of one shape, and their captions where there are some."""

  files: tuple[pathlib.Path, ...]
  captions: tuple[str, ...]  # () where there are none
  spec: ClipSpec  # one frame: pictures
  size: int

  def __len__(self) -> int:
    return len(self.files)

  def read(self, index: int) -> UInt8[np.ndarray, "T H H 3"]:
    """One clip: from its beginning, its central square, resized."""
    return load_clip(self.files[index], self.spec, (self.size, self.size))


def open_set(
  folder: str | pathlib.Path,
  *,
  num_frames: int,
  fps: float | None,
  size: int | None,
  progress: Progress = lambda files, what: iter(files),
) -> ClipSet:
  """The clips of a folder in the order of its metadata, or else of their names.

  Args:
    num_frames: of a clip; pictures have 1 whatever this says.
    fps: frames a second; None: the files' own rate, which must be one.
    size: pixels a side; None: as the shorter side of the first file.
  Raises:
    InputError: no such folder, no clip or both clips and pictures in it, or a file that cannot be
      read, is too short or of too low a rate.
  """
  files, captions = _listed(pathlib.Path(folder))
  pictures = [file for file in files if decode.is_picture(file)]
  if pictures and len(pictures) < len(files):
    raise InputError(
      f"metrics: {folder} holds {len(pictures)} pictures and {len(files) - len(pictures)} videos; "
      "put them in folders of their own"
    )
  if pictures:
    for file in progress(files, f"checking {folder}"):
      decode.shown_size(file)
    spec = ClipSpec(1, 1.0)
  else:
    rates = {}
    for file in progress(files, f"checking {folder}"):
      line = decode.timeline(file)
      rates[file] = line.fps
      rate = line.fps if fps is None else fps
      have = decode.fitting_frames(line, min(rate, line.fps))
      if have < num_frames or rate > line.fps * decode.SAME_RATE:
        raise InputError(
          f"metrics: {file} gives {have} frames at {rate:g} fps, its own rate is {line.fps:g}; "
          f"{num_frames} frames are asked for: lower --frames or --fps, or leave the file out"
        )
    slowest, fastest = (choose(rates, key=rates.get) for choose in (min, max))
    if fps is None and rates[fastest] > rates[slowest] * decode.SAME_RATE:
      raise InputError(
        f"metrics: {slowest} has {rates[slowest]:g} fps and {fastest} {rates[fastest]:g}; clips "
        f"compare at one rate only: give --fps, at most {rates[slowest]:g}"
      )
    spec = ClipSpec(num_frames, rates[slowest] if fps is None else fps)
  return ClipSet(tuple(files), tuple(captions), spec, size or min(decode.shown_size(files[0])))


def _listed(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
  if not folder.is_dir():
    raise InputError(f"metrics: {folder} is no folder; give one with clips or pictures in it")
  if any((folder / name).is_file() for name in METADATA):
    rows = read_metadata(folder)
    return [folder / row.file_name for row in rows], [row.text for row in rows]
  suffixes = (*VIDEO_SUFFIXES, *decode.PICTURE_SUFFIXES)
  files = [file for file in folder.iterdir() if file.suffix.lower() in suffixes]
  files.sort(key=natural_order)
  if not files:
    raise InputError(
      f"metrics: {folder} holds no file that ends in one of {', '.join(suffixes)}; give the folder "
      "that holds the clips or pictures"
    )
  return files, []


def captioned(clips: ClipSet, prompts: pathlib.Path) -> ClipSet:
  """The set in the natural order of its files' names, with prompts for captions.

  Raises: InputError as `read_prompts`.
  """
  files = sorted(clips.files, key=natural_order)
  captions = read_prompts(prompts, [file.stem for file in files], "metrics")
  return dataclasses.replace(clips, files=tuple(files), captions=tuple(captions))
