"""Packed records -> shuffled batches with captions, dropout and a position that can be saved.

Everything random is a function of (seed, position): a restored iterator goes on with the same
clips, starts and dropped captions as one that was never stopped. The order is that of the global
batches: each process reads its own part of them, so any number of processes may go on with any
other's position. A batch has one shape: of records of several sizes each fills batches of its own,
and the order over sizes is part of the position. Of a record those frames alone are decoded that
the example takes. There is no horizontal flip: captions say left and right.
"""

import dataclasses
import functools
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8

from emu_jax.data import decode, index, latent_records, records
from emu_jax.data.index import Size
from emu_jax.data.inputs import ClipSpec, Frames, Inputs
from emu_jax.data.latent_records import (
  MOMENTS,
  Encoded,
  Encoding,
  caption_fields,
  collate_captions,
  read_encoding,
)
from emu_jax.data.workers import end_with_parent
from emu_jax.errors import InputError

# texts, overflow="error" | "truncate" -> tokens int32 [B, L], mask bool [B, L]
Tokenizer = Callable[..., tuple[np.ndarray, np.ndarray]]
Batch = dict[str, Any]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of prepared records, with what is known of each before it is read.

  By default all are of one size, without captions and numbers.
  """

  name: str  # folder and split, for messages
  size: Size  # height and width in pixels that the records were packed for
  records: Any  # random access: records[i] is a dict in the layout of `records`
  num_frames: Int[np.ndarray, "N"]
  fps: Float[np.ndarray, "N"]  # 0 for a picture
  sizes: Int[np.ndarray, "N 2"] | None = None  # of each; None: all of them `size`
  captions: Sequence[str] = ()  # of each, the first
  all_captions: Sequence[str] = ()  # of one record after another; (): none has several
  numbers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # float32 [N]
  arrays: tuple[str, ...] = ("frames",)  # of every record
  encoded: Encoded | None = None  # what the records are instead of pixels

  def __post_init__(self):
    if not self.all_captions:
      object.__setattr__(self, "all_captions", self.captions)
    if self.sizes is None:
      sizes = np.broadcast_to(np.array(self.size, np.int32), (len(self.num_frames), 2))
      object.__setattr__(self, "sizes", sizes)


def open_source(path: str | pathlib.Path, split: str) -> Source:
  """Opens a split of what `emu-train prepare` or `encode` wrote; reads no record.

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
  listed = index.read(folder, split)
  encoded = read_encoding(folder)
  frame = records.decoder
  if encoded is not None:
    frame = functools.partial(latent_records.decoder, dtype=encoded.encoding.dtype)
  name = f"{folder.name}/{split}"
  try:
    rows = builder.as_data_source(split)
  except Exception as error:  # whatever the reader of a damaged or missing file raises
    raise records.damaged(name, error) from error
  table = records.Table(rows, listed.arrays, frame, name)
  return Source(
    name, listed.size, table, listed.num_frames, listed.fps, listed.sizes,
    listed.captions, listed.all_captions, listed.numbers, listed.arrays, encoded,
  )  # fmt: skip


def has_split(path: str | pathlib.Path, split: str) -> bool:
  """Whether packed records have a split."""
  folder = pathlib.Path(path)
  packed = (folder / "dataset_info.json").is_file()
  return packed and split in tfds.builder_from_directory(folder).info.splits


def usable(source: Source, inputs: Inputs) -> Int[np.ndarray, "M"]:
  """Indices of the records that give every clip of `inputs` at one of its rates at least.

  A record that fails would have to repeat frames. Any record gives a picture.

  Raises:
    InputError: none is left, or the records lack an array, a number or the pixels that are wanted.
  """
  check_source(source, inputs)
  fitting = fitting_rates(source.num_frames, source.fps, inputs).any(axis=-1)
  if not fitting.any():
    spec = max((f.clip for f in inputs.frames.values()), key=lambda c: c.num_frames / max(c.rates))
    rates = " or ".join(f"{rate:g}" for rate in spec.rates)
    longest = int(np.argmax(source.num_frames / np.where(source.fps > 0, source.fps, np.inf)))
    raise InputError(
      f"batches: none of the {len(fitting)} records of {source.name} gives {spec.num_frames} "
      f"frames at {rates} fps without repeating any: the longest holds "
      f"{source.num_frames[longest]} frames at {source.fps[longest]:g} fps; ask for fewer, for "
      "another rate, or prepare longer clips"
    )
  if left := int(np.sum(~fitting)):
    log.warning(
      "%s: %d of %d records are too short for %s and are left out",
      *(source.name, left, len(fitting)),
      ", ".join(f"{f.clip.num_frames} frames at {f.clip.fps} fps" for f in inputs.frames.values()),
    )
  return np.flatnonzero(fitting)


def records_by_size(sources: Sequence[Source], inputs: Inputs) -> dict[Size, int]:
  """How many usable records of all sources come to each size; a batch holds records of one.

  Raises: InputError as `usable`.
  """
  sizes = [scaled_sizes(s, inputs.first)[usable(s, inputs)] for s in sources]
  found, counts = np.unique(np.concatenate(sizes), axis=0, return_counts=True)
  return dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))


def check_source(source: Source, inputs: Inputs) -> None:
  """Raises InputError where records lack an array or a number, or are of another shape."""
  if source.encoded and len(inputs.frames) > 1:
    raise InputError(
      f"batches: {source.name} holds latents of one array, {', '.join(inputs.frames)} are asked "
      "for; name the clips that it was encoded from"
    )
  for name, wanted in inputs.frames.items():
    array = stored_array(source, wanted)
    if array not in source.arrays:
      raise InputError(
        f"batches: the records of {source.name} have no array {wanted.array!r}, which {name!r} is "
        f"cut from; they have {', '.join(source.arrays)}: pack them with its files"
      )
    (height, width), (tall, wide) = source.size, wanted.size
    scale = tall / height
    if tall * width != wide * height or scale > 1 or (source.encoded and scale != 1):
      raise InputError(
        f"batches: {source.name} was packed at {height}x{width} pixels (height x width), {name!r} "
        f"takes {tall}x{wide}; "
        + ("encode clips of that size" if source.encoded else "pack it at that size, or a multiple")
      )
    scaled = source.sizes.astype(np.int64) * tall
    if (scaled % height).any():
      bad = source.sizes[(scaled % height).any(axis=1)][0]
      raise InputError(
        f"batches: records of {bad[0]}x{bad[1]} pixels in {source.name} do not scale by "
        f"{tall}/{height} to whole pixels, as {name!r} of {tall}x{wide} asks; pack other buckets"
      )
    sizes = scaled_sizes(source, wanted)
    if (unfit := (sizes % wanted.multiple).any(axis=1)).any():
      bad, (of_height, of_width) = sizes[unfit][0], wanted.multiple
      raise InputError(
        f"batches: {int(unfit.sum())} of {len(sizes)} records of {source.name} come to "
        f"{bad[0]}x{bad[1]} pixels or the like, {name!r} takes heights that are multiples of "
        f"{of_height} and widths that are multiples of {of_width}; pack buckets of such sizes"
      )
  for number in inputs.numbers:
    if number not in source.numbers:
      raise InputError(
        f"batches: the records of {source.name} have no number {number!r}; they have "
        f"{', '.join(source.numbers) or 'none'}: pack them with it"
      )
    if missing := int(np.isnan(source.numbers[number]).sum()):
      raise InputError(
        f"batches: {missing} of {len(source.num_frames)} records of {source.name} lack the number "
        f"{number!r}; give it in every line of metadata, and pack again"
      )


def stored_array(source: Source, wanted: Frames) -> str:
  """Under which name a source's records hold an array: encoded frames are moments."""
  return MOMENTS if source.encoded and wanted.array == "frames" else wanted.array


def fitting_rates(
  num_frames: Int[np.ndarray, "*N"] | int, fps: Float[np.ndarray, "*N"] | float, inputs: Inputs
) -> Bool[np.ndarray, "*N R"]:
  """Which of the first array's rates a record can be read at, with those of the other arrays.

  Any record gives pictures alone.
  """
  columns = []
  for clips in rate_choices(inputs):
    whole = [fits(num_frames, fps, clip) for clip in clips if clip.num_frames > 1]
    columns.append(np.logical_and.reduce([np.asarray(num_frames) > 0, *whole]))
  return np.stack(columns, axis=-1)


@functools.cache
def rate_choices(inputs: Inputs) -> tuple[tuple[ClipSpec, ...], ...]:
  """For each of the first array's rates, the clip of every array at one rate.

  An array of one rate has it always; of several, the one in the first array's place.

  Raises: InputError where an array has several rates, and the first another number of them.
  """
  count = len(inputs.first.clip.rates)
  for name, wanted in inputs.frames.items():
    if len(wanted.clip.rates) not in (1, count):
      raise InputError(
        f"batches: {name!r} has {len(wanted.clip.rates)} rates and the first array {count}; give "
        "one, or one for each of the first's"
      )
  at = lambda clip, i: clip.rates[i if len(clip.rates) > 1 else 0]
  return tuple(
    tuple(dataclasses.replace(f.clip, fps=float(at(f.clip, i))) for f in inputs.frames.values())
    for i in range(count)
  )


def fits(
  num_frames: Int[np.ndarray, "*N"] | int, fps: Float[np.ndarray, "*N"] | float, spec: ClipSpec
) -> Bool[np.ndarray, "*N"]:
  """Whether records of so many frames at such a rate give a spec's clip without repeating any.

  Args:
    spec: of one rate.
  """
  frame = 1 / np.maximum(fps, 1e-6)  # s; a picture's frame lasts for ever, and has no second
  span = (num_frames - 1) * frame
  # Half a frame past the end, the last frame is still the nearest one.
  long_enough = (spec.num_frames - 1) / spec.fps <= span + 0.5 * frame
  fine_enough = spec.fps <= fps * decode.SAME_RATE
  return np.asarray(long_enough & fine_enough & (spec.num_frames <= num_frames))


def clip_indices(
  num_frames: int, fps: float, clips: Sequence[ClipSpec], rng: np.random.Generator
) -> list[Int[np.ndarray, "T"]]:
  """Which stored frames make each clip: one uniform start among those that fit all, then by time.

  Args:
    clips: of one rate each; all begin with the same frame.
  """
  longest = [clip for clip in clips if clip.num_frames > 1]
  if not longest:  # pictures alone
    begun = [dataclasses.replace(clip, num_frames=clip.begins, begins=1) for clip in clips]
    longest = [clip for clip in begun if clip.num_frames > 1 and fits(num_frames, fps, clip)]
  if not longest:
    return [rng.integers(num_frames, size=1)] * len(clips)
  # 24 asked of 23.976 is 23.976: it would repeat one frame in a thousand.
  rates = [min(clip.fps, fps) for clip in longest]
  spans = [(clip.num_frames - 1) / rate for clip, rate in zip(longest, rates, strict=True)]
  first = int(np.argmax(spans))
  # A frame stands for the time half a frame around it; so every first frame is equally likely.
  span = num_frames / fps
  begin = decode.sample_times(span, longest[first].num_frames, rates[first], rng)[0]
  chosen = []
  for clip in clips:
    times = begin + np.arange(clip.num_frames) / min(clip.fps, fps) - 0.5 / fps
    chosen.append(np.clip(np.ceil(times * fps - 0.5), 0, num_frames - 1).astype(np.int64))
  return chosen


def batches(
  sources: Source | Sequence[Source],
  inputs: Inputs,
  *,
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

  A batch is numpy, and this process's own part of the global one: the arrays of `inputs` uint8
  [B, T, H, W, 3] and its numbers float32 [B] under their names, "tokens" and "masks" tuples of
  [B, L], one an encoder, "fps" float32 [B] (the rate that was drawn for the first array),
  "image_dropped" bool [B]. Of encoded records "moments" [B, T, h, w, 2 C] stand in place of
  "frames" and, without tokenizers, "text" in place of tokens and masks
  (emu_jax.data.latent_records). The parts of all processes, one after another, are the batch that
  one process would read; no process reads another's part. Close it when done.

  A record larger than `inputs` asks, by one factor of both sides, is reduced. Where records have
  sizes of their own (buckets), each is brought to its size times the factor of the nominal one, and
  a batch holds records of one size; sizes take turns by their numbers of records.

  Source: dropout rates are not published; 0.1 and 0.1 are this project's defaults (InstructPix2Pix,
    arXiv:2211.09800, uses 0.05 for each of text, image, both).

  Args:
    batch_size: examples a batch of this process.
    repeat: epochs without end, each shuffled anew; off, one pass, less what fills no batch, in
      which sources and sizes lie evenly spread.
    weights: shares of several sources; None or empty: by their numbers of usable records.
    drop_text: probability that the caption alone becomes "".
    drop_both: probability that the caption becomes "" and "image_dropped" is set.
    drop_image: probability that "image_dropped" alone is set.
    workers: processes that read; 0 reads with threads only. They are spawned, so a script needs
      its `__main__` guard, and the tokenizers must pickle.
    threads: reading at once, in each process.
  """
  sources = [sources] if isinstance(sources, Source) else list(sources)
  drops = {"drop_text": drop_text, "drop_both": drop_both, "drop_image": drop_image}
  _check_arguments(sources, weights, batch_size, drops, process_index, process_count)
  seed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # any integer becomes 32 bits
  records_encoded = sources[0].encoded  # the same of all
  with_text = records_encoded and records_encoded.encoding.text and not tokenizers
  captions = records_encoded if with_text else None
  draw = functools.partial(example, inputs=inputs, **drops, empty=captions and captions.empty)
  collate = functools.partial(
    _collate, tokenizers=tuple(tokenizers), encoding=captions and captions.encoding
  )
  chosen = [usable(source, inputs) for source in sources]
  count = sum(map(len, chosen))
  weights = [float(weight) for weight in weights or map(len, chosen)]
  groups, shares = [], []
  for number, size in enumerate(_shapes(sources, chosen, inputs)):
    parts = _records_of(size, sources, chosen, inputs, weights)
    if not parts:
      continue
    data = _mixed(parts, seed, shuffle, repeat)
    data = data.random_map(draw, seed=seed + 1 + number)
    data = data.batch(batch_size, drop_remainder=True, batch_fn=collate)
    # Batch i of all is part i % process_count of a global one; those that fill none are left out.
    full = len(data) // process_count * process_count
    if full:
      groups.append(data[process_index:full:process_count])
      shares.append(sum(share for _, share in parts))
  if not groups:
    raise InputError(
      f"batches: batch_size={batch_size} for each of {process_count} process(es) is above the "
      f"{count} records there are of one size; lower it, or repeat"
    )
  if len(groups) == 1:
    data = groups[0]
  else:
    data = grain.MapDataset.mix(groups, shares) if repeat else _in_turn(groups)
  return iter(_reader(data, workers, threads))


def _records_of(
  size: Size,
  sources: Sequence[Source],
  chosen: Sequence[np.ndarray],
  inputs: Inputs,
  weights: Sequence[float],
) -> list[tuple["_Chosen", float]]:
  """The records of one size, a part a source that has any, and their share of all draws."""
  parts = []
  for source, rows, weight in zip(sources, chosen, weights, strict=True):
    of_one_size = rows[(scaled_sizes(source, inputs.first)[rows] == size).all(axis=1)]
    if len(of_one_size) and weight:
      share = weight * len(of_one_size) / len(rows)
      parts.append((_Chosen(source, of_one_size, inputs), share))
  return parts


def _mixed(
  parts: Sequence[tuple["_Chosen", float]], seed: int, shuffle: bool, repeat: bool
) -> grain.MapDataset:
  """Records of several sources by their shares, or, in one pass, evenly spread."""
  sets = []
  for of_one_size, _ in parts:
    data = grain.MapDataset.source(of_one_size).seed(seed)
    data = data.shuffle() if shuffle else data
    sets.append(data.repeat() if repeat else data)
  if len(sets) == 1:
    return sets[0]
  if repeat:
    return grain.MapDataset.mix(sets, [share for _, share in parts])
  return _in_turn(sets)


def scaled_sizes(source: Source, wanted: Frames) -> Int[np.ndarray, "N 2"]:
  """The size that every record of a source comes to."""
  return source.sizes.astype(np.int64) * wanted.size[0] // source.size[0]


def _shapes(sources: Sequence[Source], chosen: Sequence[np.ndarray], inputs: Inputs) -> list[Size]:
  """The sizes that batches have, in an order that does not depend on that of the sources."""
  sizes = [scaled_sizes(s, inputs.first)[rows] for s, rows in zip(sources, chosen, strict=True)]
  return [tuple(size) for size in np.unique(np.concatenate(sizes), axis=0).tolist()]


def _in_turn(parts: Sequence[grain.MapDataset]) -> grain.MapDataset:
  """All elements of finite parts once, each part evenly spread over the whole."""
  places = [(np.arange(len(part)) + 0.5) / len(part) for part in parts]
  part = np.concatenate([np.full(len(p), i) for i, p in enumerate(places)])
  row = np.concatenate([np.arange(len(p)) for p in places])
  order = np.lexsort((part, np.concatenate(places)))
  return grain.MapDataset.source(_Turns(tuple(parts), part[order], row[order]))


@dataclasses.dataclass(frozen=True)
class _Turns:
  """Elements of several data sets in a given order."""

  parts: tuple[grain.MapDataset, ...]
  part: np.ndarray
  row: np.ndarray

  def __len__(self) -> int:
    return len(self.part)

  def __getitem__(self, i: int) -> Any:
    return self.parts[self.part[i]][int(self.row[i])]

  def __repr__(self) -> str:  # Grain keeps it in states: no addresses in it
    return f"_Turns({[len(part) for part in self.parts]})"


def _check_arguments(sources, weights, batch_size, drops, process_index, process_count):
  if not sources:
    raise InputError("batches: 0 sources were given; open at least one")
  if weights and (len(weights) != len(sources) or min(weights) < 0 or not any(weights)):
    raise InputError(
      f"batches: weights={list(weights)} for {len(sources)} sources; give each a share, none "
      "negative and not all 0"
    )
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


class _Chosen:
  """Some records of a source, by position; a class, since reading processes receive it pickled."""

  def __init__(self, source: Source, rows: np.ndarray, inputs: Inputs):
    self._table, self._rows = source.records, rows
    wanted = list(inputs.frames.items())  # a FrozenDict's are an iterator
    self._arrays = {name: stored_array(source, frames) for name, frames in wanted}
    self._sizes = {name: scaled_sizes(source, frames)[rows] for name, frames in wanted}
    self._numbers = {name: source.numbers[name][rows] for name in inputs.numbers}

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict:
    record = self._table[int(self._rows[i])]
    return {
      "record": record,
      "arrays": {name: record[array] for name, array in self._arrays.items()},
      "sizes": {name: tuple(sizes[i].tolist()) for name, sizes in self._sizes.items()},
      "numbers": {name: np.float32(values[i]) for name, values in self._numbers.items()},
    }

  def __repr__(self) -> str:  # Grain keeps it in states: no addresses in it
    return f"_Chosen({len(self)} records)"


def example(
  chosen: Mapping[str, Any],
  rng: np.random.Generator,
  *,
  inputs: Inputs,
  drop_text: float,
  drop_both: float,
  drop_image: float = 0.0,
  empty: dict | None = None,
) -> dict:
  """One training example of a record: random clips, one of its captions, and what was dropped.

  Args:
    chosen: "record", and by name in a batch the "arrays" of frames, the "sizes" that they come to
      and the "numbers".
    empty: fields of the empty caption; with them the example has the caption's own fields too.
  """
  record = chosen["record"]
  num_frames, fps = len(next(iter(chosen["arrays"].values()))), float(record["fps"])
  rate = _drawn_rate(num_frames, fps, inputs, rng)
  clips = rate_choices(inputs)[rate]
  taken = clip_indices(num_frames, fps, clips, rng)
  u = rng.random()
  texts = index.text_captions(record)
  text = texts[rng.integers(len(texts))] if len(texts) > 1 else texts[0]
  dropped = u < drop_text + drop_both
  arrays = {}
  for (name, frames), rows in zip(chosen["arrays"].items(), taken, strict=True):
    if MOMENTS in record:
      arrays[MOMENTS] = frames[rows]
    else:
      arrays[name] = reduced(frames[rows], chosen["sizes"][name])
  return {
    "arrays": arrays,
    "numbers": chosen["numbers"],
    "caption": "" if dropped else text,
    "fps": np.float32(inputs.first.clip.rates[rate]),
    "image_dropped": bool(drop_text <= u < drop_text + drop_both + drop_image),
    "fields": empty if dropped or empty is None else caption_fields(record),
  }


def _drawn_rate(num_frames: int, fps: float, inputs: Inputs, rng: np.random.Generator) -> int:
  """The number of a rate that the record can be read at; nothing is drawn where there is one."""
  if len(inputs.first.clip.rates) == 1:
    return 0
  fitting = np.flatnonzero(fitting_rates(num_frames, fps, inputs))
  return int(fitting[rng.integers(len(fitting))])


def reduced(frames: UInt8[np.ndarray, "T H W 3"], size: Size) -> UInt8[np.ndarray, "T h w 3"]:
  """Frames at a smaller size of one shape: means of whole blocks, else an antialiased bicubic."""
  height, width = frames.shape[1:3]
  if (height, width) == tuple(size):
    return frames
  images = (PIL.Image.fromarray(frame) for frame in frames)
  if height % size[0] == 0 and width % size[1] == 0:
    factors = (width // size[1], height // size[0])
    return np.stack([np.asarray(image.reduce(factors)) for image in images])
  return np.stack([decode.resized(image, 1.0, *size) for image in images])


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
  stacked = {
    name: np.stack([one[kind][name] for one in examples])
    for kind in ("arrays", "numbers")
    for name in examples[0][kind]
  }
  return (
    text
    | stacked
    | {
      "fps": np.stack([one["fps"] for one in examples]),
      "image_dropped": np.array([one["image_dropped"] for one in examples]),
    }
  )


def _reader(data: grain.MapDataset, workers: int, threads: int) -> grain.IterDataset:
  # Elements are whole batches here: a few ahead are enough, and hundreds would fill the memory.
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  read = data.to_iter_dataset(ahead)
  if not workers:
    return read
  if not absl.flags.FLAGS.is_parsed():  # Grain's processes read flags that only absl's main parses
    absl.flags.FLAGS(sys.argv[:1])
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
  return read.mp_prefetch(options, worker_init_fn=end_with_parent)
