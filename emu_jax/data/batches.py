"""Packed records -> shuffled batches with captions, dropout and a position that can be saved.

Everything random is a function of (seed, position): a restored iterator goes on with the same
clips, starts and dropped captions as one that was never stopped. The order is that of the global
batches: each process reads its own part of them, so any number of processes may go on with any
other's position. There is no horizontal flip: captions say left and right.
"""

import dataclasses
import functools
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int

from emu_jax.data import decode, records
from emu_jax.data.latent_records import (
  Encoded,
  Encoding,
  caption_fields,
  collate_captions,
  read_encoding,
)
from emu_jax.errors import InputError

# texts, overflow="error" | "truncate" -> tokens int32 [B, L], mask bool [B, L]
Tokenizer = Callable[..., tuple[np.ndarray, np.ndarray]]
Batch = dict[str, Any]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """What a network takes: frames of a clip and their rate. One frame is a picture, at any rate."""

  num_frames: int
  fps: float  # frames/s
  begins: int = 1  # a picture is the first of so many frames, of records that have as many

  def __post_init__(self):
    if self.num_frames < 1 or not self.fps > 0:
      raise ValueError(
        f"ClipSpec: num_frames={self.num_frames} and fps={self.fps} must both be positive; "
        "a picture is 1 frame at any rate"
      )
    if self.begins < 1 or self.begins > 1 < self.num_frames:
      raise ValueError(
        f"ClipSpec: begins={self.begins} with num_frames={self.num_frames}; only a picture begins "
        "a clip, of 1 frame or more"
      )


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of prepared records, with what is known of each before it is read."""

  name: str  # folder and split, for messages
  size: int  # pixels a side
  records: Any  # random access: records[i] is a dict in the layout of `records`
  num_frames: Int[np.ndarray, "N"]
  fps: Float[np.ndarray, "N"]  # 0 for a picture
  encoded: Encoded | None = None  # what the records are instead of pixels


def open_source(path: str | pathlib.Path, split: str) -> Source:
  """Opens a split of what `emu-train prepare` or `encode` wrote, or of a like TFDS dataset.

  A TFDS dataset of another origin is read through once, to learn the length of every record.

  Raises:
    InputError: not prepared, no such split, or records of another layout.
  """
  folder = pathlib.Path(path)
  if not (folder / "dataset_info.json").is_file():
    inner = sorted(info.parent.name for info in folder.glob("*/dataset_info.json"))
    hint = f"name one of {inner} in it" if inner else "prepare it with `emu-train prepare`"
    raise InputError(f"open_source: {folder} holds no prepared records; {hint}")
  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise InputError(
      f"open_source: {folder} has no split {split!r}; it has {', '.join(builder.info.splits)}"
    )
  held = read_encoding(folder)
  layout = set(records.features(8))
  if held is not None:
    layout = layout - {"frames"} | {"moments"}
  if missing := sorted(layout - set(builder.info.features)):
    raise InputError(
      f"open_source: the records of {folder} lack {missing}; pack them with `emu-train prepare`"
    )
  table = builder.as_data_source(split)
  num_frames, fps = _lengths(folder, split, table)
  size = held.encoding.size if held else builder.info.features["frames"].shape[1]
  return Source(f"{folder.name}/{split}", size, table, num_frames, fps, held)


def _lengths(folder: pathlib.Path, split: str, table) -> tuple[np.ndarray, np.ndarray]:
  if (folder / records.INDEX).is_file():
    with np.load(folder / records.INDEX) as index:
      return index[f"{split}/num_frames"], index[f"{split}/fps"]
  log.warning("%s has no %s: reading all %d records once", folder, records.INDEX, len(table))
  pairs = [(len(record["frames"]), record["fps"]) for record in table]
  num_frames, fps = np.array(pairs, np.float32).reshape(-1, 2).T
  return num_frames.astype(np.int32), fps


def usable(source: Source, spec: ClipSpec) -> Int[np.ndarray, "M"]:
  """Indices of the records long enough for a spec, and stored at no lower a rate.

  A record that fails would have to repeat frames. Any record gives a picture.

  Raises:
    InputError: none is left.
  """
  if spec.num_frames == 1:
    return np.flatnonzero(source.num_frames > 0)
  fitting = fits(source.num_frames, source.fps, spec)
  if not fitting.any():
    longest = int(np.argmax(source.num_frames / np.where(source.fps > 0, source.fps, np.inf)))
    raise InputError(
      f"batches: none of the {len(fitting)} records of {source.name} gives {spec.num_frames} "
      f"frames at {spec.fps:g} fps without repeating any: the longest holds "
      f"{source.num_frames[longest]} frames at {source.fps[longest]:g} fps; ask for fewer, for "
      "another rate, or prepare longer clips"
    )
  if left := int(np.sum(~fitting)):
    log.warning(
      "%s: %d of %d records are too short for %d frames at %g fps and are left out",
      *(source.name, left, len(fitting), spec.num_frames, spec.fps),
    )
  return np.flatnonzero(fitting)


def fits(
  num_frames: Int[np.ndarray, "*N"] | int, fps: Float[np.ndarray, "*N"] | float, spec: ClipSpec
) -> Bool[np.ndarray, "*N"]:
  """Whether records of so many frames at such a rate give a spec's clip without repeating any."""
  frame = 1 / np.maximum(fps, 1e-6)  # s; a picture's frame lasts for ever, and has no second
  span = (num_frames - 1) * frame
  # Half a frame past the end, the last frame is still the nearest one.
  long_enough = (spec.num_frames - 1) / spec.fps <= span + 0.5 * frame
  fine_enough = spec.fps <= fps * decode.SAME_RATE
  return np.asarray(long_enough & fine_enough & (spec.num_frames <= num_frames))


def clip_indices(
  num_frames: int, fps: float, spec: ClipSpec, rng: np.random.Generator
) -> Int[np.ndarray, "T"]:
  """Which stored frames make a clip: a uniform start among those that fit, then by nearest time."""
  if spec.num_frames == 1:
    clip = ClipSpec(spec.begins, spec.fps)
    if spec.begins > 1 and fits(num_frames, fps, clip):
      return clip_indices(num_frames, fps, clip, rng)[:1]
    return rng.integers(num_frames, size=1)
  # A frame stands for the time half a frame around it; so every first frame is equally likely.
  rate = min(spec.fps, fps)  # 24 asked of 23.976 is 23.976: it would repeat one frame in a thousand
  times = decode.sample_times(num_frames / fps, spec.num_frames, rate, rng) - 0.5 / fps
  return np.clip(np.ceil(times * fps - 0.5), 0, num_frames - 1).astype(np.int64)


def batches(
  sources: Source | Sequence[Source],
  *,
  spec: ClipSpec,
  tokenizers: Sequence[Tokenizer] = (),
  batch_size: int,
  seed: int,
  shuffle: bool = True,
  repeat: bool = True,
  weights: Sequence[float] | None = None,
  drop_text: float = 0.0,
  drop_both: float = 0.0,
  drop_image: float = 0.0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 8,
) -> grain.DatasetIterator:
  """An iterator of batches; `get_state` and `set_state` save and restore its position exactly.

  A batch is numpy, and this process's own part of the global one: "frames" uint8 [B, T, H, W, 3],
  "tokens" and "masks" tuples of [B, L], one an encoder, "fps" float32 [B] (the spec's),
  "image_dropped" bool [B]. Of encoded records "moments" [B, T, h, w, 2 C] stand in place of frames
  and, without tokenizers, "text" in place of tokens and masks (emu_jax.data.latent_records).
  The parts of all processes, one after another, are the batch that one process would read; no
  process reads another's part. Close it when done.

  Source: dropout rates are not published; 0.1 and 0.1 are this project's defaults (InstructPix2Pix,
    arXiv:2211.09800, uses 0.05 for each of text, image, both).

  Args:
    batch_size: examples a batch of this process.
    repeat: epochs without end, each shuffled anew; off, one pass, less what fills no batch.
    weights: shares of several sources, by default equal; without repeat they are read in turn.
    drop_text: probability that the caption alone becomes "".
    drop_both: probability that the caption becomes "" and "image_dropped" is set.
    drop_image: probability that "image_dropped" alone is set.
    workers: processes that read; 0 reads with threads only. They are spawned, so a script needs
      its `__main__` guard, and the tokenizers must pickle.
    threads: reading at once, in each process.
  """
  sources = [sources] if isinstance(sources, Source) else list(sources)
  drops = {"drop_text": drop_text, "drop_both": drop_both, "drop_image": drop_image}
  _check_arguments(sources, batch_size, drops, process_index, process_count)
  seed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # any integer becomes 32 bits
  parts = []
  for source in sources:
    part = grain.MapDataset.source(_Chosen(source.records, usable(source, spec))).seed(seed)
    part = part.shuffle() if shuffle else part
    parts.append(part.repeat() if repeat else part)
  if len(parts) == 1:
    data = parts[0]
  elif repeat:
    data = grain.MapDataset.mix(parts, weights)
  else:
    data = grain.MapDataset.concatenate(parts)
  if len(data) < batch_size * process_count:
    raise InputError(
      f"batches: batch_size={batch_size} for each of {process_count} process(es) is above the "
      f"{len(data)} records there are; lower it, or repeat"
    )
  held = sources[0].encoded  # the same of all
  told = held if held and held.encoding.text and not tokenizers else None
  draw = functools.partial(example, spec=spec, **drops, empty=told and told.empty)
  data = data.random_map(draw, seed=seed + 1)
  collate = functools.partial(
    _collate, tokenizers=tuple(tokenizers), encoding=told and told.encoding
  )
  data = data.batch(batch_size, drop_remainder=True, batch_fn=collate)
  # Batch i of all is part i % process_count of a global one; those that fill none are left out.
  data = data[process_index : len(data) // process_count * process_count : process_count]
  return iter(_reader(data, workers, threads))


def _check_arguments(sources, batch_size, drops, process_index, process_count):
  if not sources:
    raise InputError("batches: 0 sources were given; open at least one")
  sizes = {source.name: source.size for source in sources}
  if len(set(sizes.values())) > 1:
    raise InputError(f"batches: sources differ in size ({sizes}); prepare them at one size")
  check_alike(sources)
  if batch_size < 1:
    raise InputError(f"batches: batch_size={batch_size} is below 1; raise it")
  if min(drops.values()) < 0 or sum(drops.values()) > 1:
    given = ", ".join(f"{name}={share}" for name, share in drops.items())
    raise InputError(
      f"batches: {given} are probabilities of events that exclude each other; they must not be "
      "negative, nor exceed 1 together"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"batches: process_index={process_index} is not in [0, process_count={process_count}); "
      "pass jax.process_index() and jax.process_count()"
    )


def check_alike(sources: Sequence[Source]) -> None:
  """Raises InputError for a mixture of pixels and encoded records, or of two encodings."""
  found = {source.name: source.encoded and source.encoded.encoding for source in sources}
  kinds = {name: "encoded" if encoding else "pixels" for name, encoding in found.items()}
  if len(set(kinds.values())) > 1:
    raise InputError(
      f"--data.sources: {kinds} do not mix; encode all of them with `emu-train encode`, or none"
    )
  (first, one), *others = found.items()
  for name, other in others:
    if other != one:
      raise InputError(
        f"--data.sources: {first} and {name} were not encoded alike; encode both by one stage's "
        "model, with one --dtype"
      )


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """Some records of a table, by position; a class, since reading processes receive it pickled."""

  table: Any
  indices: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> dict:
    return self.table[int(self.indices[i])]

  def __repr__(self) -> str:  # Grain keeps it in states: no addresses in it
    return f"_Chosen({len(self)} records)"


def example(
  record: dict,
  rng: np.random.Generator,
  *,
  spec: ClipSpec,
  drop_text: float,
  drop_both: float,
  drop_image: float = 0.0,
  empty: dict | None = None,
) -> dict:
  """One training example of a record: a random clip, its caption, and what was dropped of it.

  Args:
    empty: fields of the empty caption; with them the example has the caption's own fields too.
  """
  shown = "frames" if "frames" in record else "moments"
  frames = record[shown]
  chosen = clip_indices(len(frames), float(record["fps"]), spec, rng)
  u = rng.random()
  text = record["caption"]
  text = text.decode() if isinstance(text, bytes) else text
  dropped = u < drop_text + drop_both
  return {
    shown: frames[chosen],
    "caption": "" if dropped else text,
    "fps": np.float32(spec.fps),
    "image_dropped": bool(drop_text <= u < drop_text + drop_both + drop_image),
    "fields": empty if dropped or empty is None else caption_fields(record),
  }


def _collate(
  examples: Sequence[dict], tokenizers: tuple[Tokenizer, ...], encoding: Encoding | None
) -> Batch:
  if encoding is None:
    captions = [one["caption"] for one in examples]
    # A caption longer than an encoder takes is cut: training must not stop over one.
    rows = [tokenize(captions, overflow="truncate") for tokenize in tokenizers]
    text = {"tokens": tuple(ids for ids, _ in rows), "masks": tuple(mask for _, mask in rows)}
  else:
    text = {"text": collate_captions([one["fields"] for one in examples], encoding)}
  shown = "frames" if "frames" in examples[0] else "moments"
  return text | {
    shown: np.stack([one[shown] for one in examples]),
    "fps": np.stack([one["fps"] for one in examples]),
    "image_dropped": np.array([one["image_dropped"] for one in examples]),
  }


def _reader(data: grain.MapDataset, workers: int, threads: int) -> grain.IterDataset:
  # Elements are whole batches here: a few ahead are enough, and hundreds would fill the memory.
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  read = data.to_iter_dataset(ahead)
  if not workers:
    return read
  if not absl.flags.FLAGS.is_parsed():  # Grain's processes read flags that only absl's main parses
    absl.flags.FLAGS(sys.argv[:1])
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
  return read.mp_prefetch(options)
