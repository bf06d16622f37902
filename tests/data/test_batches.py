"""Batches are deterministic, disjoint between processes, resumable, and never repeat a frame."""

import itertools
import json
import logging
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from orbax.checkpoint import v1 as ocp
from video_files import numbers, write_numbered

from emu_jax.data import batches as reading
from emu_jax.data import codecs, folder, records
from emu_jax.data.batches import Source, batches, open_source
from emu_jax.data.clip_files import Options
from emu_jax.data.inputs import ClipSpec, Frames, Inputs, clip_inputs
from emu_jax.data.user_files import load_clip, load_picture
from emu_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
SPEC = ClipSpec(4, 8.0)


class Letters:
  """A tokenizer of `length` bytes: so a batch shows which caption it was made of."""

  def __init__(self, length):
    self.length = length

  def __call__(self, captions, *, overflow):
    assert overflow == "truncate"
    rows = [list(text.encode()[: self.length]) for text in captions]
    tokens = np.array([row + [0] * (self.length - len(row)) for row in rows], np.int32)
    return tokens, tokens > 0


def source(count=40, frames=10, fps=8.0, size=4):
  """Records in memory: every frame's red is its record's number, its green its own."""

  def record(i):
    pixels = np.zeros((frames, size, size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = i, np.arange(frames)[:, None, None]
    return {"frames": pixels, "fps": np.float32(fps), "caption": f"{i:03d}".encode()}

  lengths, rates = np.full(count, frames, np.int32), np.full(count, fps, np.float32)
  return Source(f"memory{size}", (size, size), [record(i) for i in range(count)], lengths, rates)


def stream(sources, batch_size=4, *, spec=SPEC, inputs=None, tokenizers=(Letters(3),), **options):
  options = {"seed": 0, "threads": 2} | options
  inputs = inputs or clip_inputs(spec, (4, 4))
  return batches(sources, inputs, tokenizers=tokenizers, batch_size=batch_size, **options)


def take(iterator, count):
  taken = [next(iterator) for _ in range(count)]
  iterator.close()
  return taken


def records_of(batch):
  """Record numbers of a batch."""
  return batch["frames"][:, 0, 0, 0, 0].tolist()


def same(a, b):
  for name in ("frames", "fps", "image_dropped"):
    np.testing.assert_array_equal(a[name], b[name])
  for name in ("tokens", "masks"):
    for x, y in zip(a[name], b[name], strict=True):
      np.testing.assert_array_equal(x, y)


def test_a_batch_is_what_the_contract_says():
  (batch,) = take(stream(source(), tokenizers=(Letters(3), Letters(5))), 1)
  assert batch["frames"].shape == (4, 4, 4, 4, 3)
  assert batch["frames"].dtype == np.uint8
  assert [t.shape for t in batch["tokens"]] == [m.shape for m in batch["masks"]] == [(4, 3), (4, 5)]
  assert {t.dtype for t in batch["tokens"]} == {np.dtype(np.int32)}
  assert {m.dtype for m in batch["masks"]} == {np.dtype(bool)}
  np.testing.assert_array_equal(batch["fps"], np.float32([8, 8, 8, 8]))
  assert batch["fps"].dtype == np.float32
  assert batch["image_dropped"].dtype == bool
  captions = [bytes(row).decode() for row in batch["tokens"][0].astype(np.uint8)]
  assert captions == [f"{i:03d}" for i in records_of(batch)]  # a clip keeps its own caption


@pytest.mark.parametrize(("stored", "rate"), [(8.0, 8.0), (8.0, 4.0), (30.0, 8.0), (23.976, 24.0)])
def test_clips_keep_the_asked_rate_and_repeat_no_frame(stored, rate):
  rng, spec, steps = np.random.default_rng(0), ClipSpec(5, rate), []
  for _ in range(300):
    chosen = reading.clip_indices(40, stored, [spec], rng)[0]
    assert chosen[0] >= 0
    assert chosen[-1] <= 39
    steps.append(np.diff(chosen))
    # By nearest time: no frame is further than half a stored one from where it belongs.
    drift = chosen - chosen[0] - np.arange(5) * max(1.0, stored / rate)
    assert np.abs(drift).max() <= 1 + 1e-6
  assert np.min(steps) >= 1
  # The mean step is the ratio of the rates: each of 300 clips may round by one frame in 4 steps.
  np.testing.assert_allclose(np.mean(steps), max(1.0, stored / rate), atol=0.25 / 300**0.5 * 5)


def test_every_start_is_equally_likely():
  rng = np.random.default_rng(0)
  starts = [reading.clip_indices(10, 8.0, [SPEC], rng)[0][0] for _ in range(7000)]
  counts = np.bincount(starts, minlength=7)  # 10 - 4 + 1 starts fit
  assert len(counts) == 7
  assert np.abs(counts - 1000).max() < 5 * (7000 / 7 * 6 / 7) ** 0.5
  pictures = [reading.clip_indices(10, 0.0, [ClipSpec(1, 4.0)], rng)[0][0] for _ in range(7000)]
  assert np.abs(np.bincount(pictures) - 700).max() < 5 * (7000 * 0.1 * 0.9) ** 0.5


def test_a_picture_that_begins_a_clip_is_one_of_its_possible_first_frames():
  rng = np.random.default_rng(0)
  clip, picture = ClipSpec(8, 4.0), ClipSpec(1, 4.0, begins=8)
  starts, pictures = (
    [reading.clip_indices(40, 16.0, [spec], rng)[0][0] for _ in range(13_000)]
    for spec in (clip, picture)
  )
  counts = [np.bincount(found, minlength=40) for found in (starts, pictures)]
  assert (counts[0] > 0).tolist() == (counts[1] > 0).tolist()
  assert np.abs(counts[0] - counts[1]).max() < 6 * np.sqrt(2 * max(counts[0]))
  # Records that hold no such clip still give any of their frames.
  short = {int(reading.clip_indices(5, 16.0, [picture], rng)[0][0]) for _ in range(200)}
  assert short == set(range(5))
  with pytest.raises(ValueError, match="begins=8 with num_frames=2"):
    ClipSpec(2, 4.0, begins=8)


def test_a_clip_of_exactly_the_length_asked_for_is_taken_whole():
  for batch in take(stream(source(frames=4)), 3):
    np.testing.assert_array_equal(batch["frames"][:, :, 0, 0, 1], [[0, 1, 2, 3]] * 4)


def mixed_lengths():
  whole = source(6)
  lengths, rates = np.array([10, 3, 10, 4, 10, 1]), np.array([8, 8, 4, 8, 30, 0], np.float32)
  table = [r | {"frames": r["frames"][:n]} for r, n in zip(whole.records, lengths, strict=True)]
  table = [r | {"fps": f} for r, f in zip(table, rates, strict=True)]
  return Source("mixed", (4, 4), table, lengths.astype(np.int32), rates)


def test_what_would_repeat_frames_is_left_out_and_counted(caplog):
  with caplog.at_level(logging.WARNING):
    chosen = reading.usable(mixed_lengths(), clip_inputs(SPEC, (4, 4)))
  # Too short, stored at too low a rate, too short for its rate (10 / 30 s), a picture.
  assert chosen.tolist() == [0, 3]
  assert "4 of 6 records" in caplog.text
  assert reading.usable(mixed_lengths(), clip_inputs(ClipSpec(1, 8.0), (4, 4))).tolist() == [
    0,
    1,
    2,
    3,
    4,
    5,
  ]
  seen = {i for batch in take(stream(mixed_lengths(), 2), 4) for i in records_of(batch)}
  assert seen == {0, 3}


def test_nothing_long_enough_quotes_both_lengths():
  with pytest.raises(InputError, match=r"37 frames at 8 fps .* holds 10 frames at 8 fps"):
    stream(source(), spec=ClipSpec(37, 8.0))
  with pytest.raises(InputError, match=r"4 frames at 16 fps"):
    stream(source(), spec=ClipSpec(4, 16.0))


def test_pictures_come_from_clips_and_from_pictures():
  spec = ClipSpec(1, 8.0)
  batch = take(stream([source(), source(8, frames=1, fps=0.0)], spec=spec), 1)[0]
  assert batch["frames"].shape == (4, 1, 4, 4, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_restored_position_goes_on_exactly(workers):
  options = {"drop_text": 0.3, "drop_both": 0.2, "workers": workers}
  straight = take(stream(source(), **options | {"workers": 0}), 6)
  first = stream(source(), **options)
  for expected in straight[:3]:
    same(next(first), expected)
  state = json.loads(json.dumps(first.get_state()))  # plain data, as a checkpoint keeps it
  first.close()
  second = stream(source(), **options)
  second.set_state(state)
  for expected, got in zip(straight[3:], take(second, 3), strict=True):
    same(got, expected)


def test_the_position_is_part_of_a_checkpoint(tmp_path):
  straight = take(stream(source(), drop_text=0.5), 5)
  first = stream(source(), drop_text=0.5)
  for _ in range(3):
    next(first)
  with ocp.training.Checkpointer(tmp_path / "run") as run:
    run.save_checkpointables(3, {"weights": {"w": np.ones(2)}, "data": first})
  second = stream(source(), drop_text=0.5)
  with ocp.training.Checkpointer(tmp_path / "run") as run:
    run.load_checkpointables(3, {"weights": {"w": np.ones(2)}, "data": second})
  for expected, got in zip(straight[3:], take(second, 2), strict=True):
    same(got, expected)


MIXED = {
  "sources": [source(), source(30)],
  "weights": [0.75, 0.25],
  "drop_text": 0.2,
  "drop_both": 0.2,
}


def together(count, number, position=None, **options):
  """So many global batches of 8 that `count` processes read, and where each of them then is."""
  read, positions = [], []
  for index in range(count):
    one = stream(batch_size=8 // count, process_index=index, process_count=count, **options)
    if position:
      one.set_state(position)
    read.append(list(itertools.islice(one, number)))
    positions.append(one.get_state())
    one.close()
  join = lambda *parts: np.concatenate(parts)
  return [jax.tree.map(join, *parts) for parts in zip(*read, strict=True)], positions


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_together_what_one_process_reads(count):
  (one, _), (many, _) = together(1, 12, **MIXED), together(count, 12, **MIXED)
  for a, b in zip(one, many, strict=True):
    same(a, b)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 2), (2, 1)])
def test_another_number_of_processes_goes_on_where_some_were(before, after):
  whole, _ = together(1, 4, **MIXED)
  _, positions = together(before, 2, **MIXED)
  assert all(position == positions[0] for position in positions)
  rest, _ = together(after, 2, positions[0], **MIXED)
  for a, b in zip(whole[2:], rest, strict=True):
    same(a, b)


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_see_each_record_once_and_equally_many(shuffle):
  options = {"sources": source(43), "repeat": False, "shuffle": shuffle, "process_count": 4}
  parts = [
    [records_of(b) for b in stream(**options, batch_size=2, process_index=p)] for p in range(4)
  ]
  assert {len(part) for part in parts} == {5}  # 3 records fill no batch of all four
  numbers = [i for part in parts for batch in part for i in batch]
  assert len(set(numbers)) == len(numbers) == 40


def test_one_pass_sees_each_record_once_and_epochs_differ():
  once = [i for batch in stream(source(), repeat=False) for i in records_of(batch)]
  assert sorted(once) == list(range(40))
  assert once != sorted(once)
  epochs = take(stream(source()), 20)
  first, second = ([i for b in epochs[k : k + 10] for i in records_of(b)] for k in (0, 10))
  assert sorted(first) == sorted(second) == list(range(40))
  assert first != second
  assert len(list(stream(source(), 16, repeat=False))) == 2  # what does not fill a batch is left


def test_the_seed_decides_everything():
  one, again, other = (take(stream(source(), seed=s, drop_both=0.5), 3) for s in (1, 1, 2))
  for a, b in zip(one, again, strict=True):
    same(a, b)
  assert [records_of(b) for b in one] != [records_of(b) for b in other]


def test_dropout_rates():
  drops = {"drop_text": 0.2, "drop_both": 0.1}
  taken = take(stream(source(), 50, **drops), 40)
  text = np.concatenate([~b["masks"][0].any(1) for b in taken])
  image = np.concatenate([b["image_dropped"] for b in taken])
  assert np.all(text[image])  # the image is never dropped alone
  n = len(text)
  for share, rate in ((text.mean(), 0.3), (image.mean(), 0.1)):
    assert abs(share - rate) < 5 * (rate * (1 - rate) / n) ** 0.5  # five standard deviations
  kept = take(stream(source(), 50), 10)
  assert all(b["masks"][0].any(1).all() and not b["image_dropped"].any() for b in kept)


def test_a_direct_model_is_never_shown_an_image_but_reads_captions():
  taken = take(stream(source(), 50, drop_both=0.1, drop_image=0.9), 20)
  assert all(b["image_dropped"].all() for b in taken)
  text = np.concatenate([~b["masks"][0].any(1) for b in taken])
  assert abs(text.mean() - 0.1) < 5 * (0.1 * 0.9 / len(text)) ** 0.5  # five standard deviations


def test_sources_mix_by_weight():
  a, b = source(30, fps=8.0), source(30, frames=20, fps=8.0)
  for record in b.records:
    record["frames"][..., 2] = 1
  taken = take(stream([a, b], 20, weights=[3.0, 1.0]), 20)
  assert np.mean([batch["frames"][:, 0, 0, 0, 2].mean() for batch in taken]) == 0.25


def test_without_weights_sources_count_by_their_records():
  """The share of each is that of its usable records, so that every record is equally frequent."""
  a, b = source(30), source(10, frames=20)
  short = source(50, frames=3)  # none of these is usable
  joined = Source(
    "partly", (4, 4), [*b.records, *short.records],
    np.concatenate([b.num_frames, short.num_frames]), np.concatenate([b.fps, short.fps]),
  )  # fmt: skip
  for record in b.records:
    record["frames"][..., 2] = 1
  for weights in (None, ()):
    taken = take(stream([a, joined], 20, weights=weights), 20)
    assert np.mean([batch["frames"][:, 0, 0, 0, 2].mean() for batch in taken]) == 0.25


def test_one_pass_spreads_every_source_evenly():
  a, b = source(40), source(10)
  for record in b.records:
    record["frames"][..., 2] = 1
  for shuffle in (True, False):
    read = list(stream([a, b], 5, repeat=False, shuffle=shuffle))
    assert [batch["frames"][:, 0, 0, 0, 2].sum() for batch in read] == [1] * 10
    assert sorted(i for batch in read for i in records_of(batch)) == sorted(
      [*range(40), *range(10)]
    )
  one, two = ([records_of(x) for x in stream([a, b], 5, repeat=False)] for _ in range(2))
  assert one == two


def bucketed(counts=((4, 4, 24), (4, 8, 12), (8, 4, 6))):
  """Records of several shapes, (height, width, number of them), numbered on end by their red."""
  table, sizes = [], []
  for height, width, count in counts:
    for _ in range(count):
      pixels = np.zeros((10, height, width, 3), np.uint8)
      pixels[..., 0] = len(table)
      table.append({"frames": pixels, "fps": np.float32(8), "caption": b""})
      sizes.append((height, width))
  lengths, rates = np.full(len(table), 10, np.int32), np.full(len(table), 8, np.float32)
  return Source("buckets", (4, 4), table, lengths, rates, np.array(sizes, np.int32))


def test_a_batch_has_one_shape_and_shapes_take_turns_by_their_records():
  taken = take(stream(bucketed(), 3), 140)
  shapes = [batch["frames"].shape[2:4] for batch in taken]
  assert {shape: shapes.count(shape) for shape in shapes} == {(4, 4): 80, (4, 8): 40, (8, 4): 20}
  sizes = bucketed().sizes
  for batch, shape in zip(taken, shapes, strict=True):
    assert {tuple(sizes[i]) for i in records_of(batch)} == {shape}
  once = list(stream(bucketed(), 3, repeat=False))
  assert sorted(i for batch in once for i in records_of(batch)) == list(range(42))
  first = [batch["frames"].shape[2:4] for batch in once[:4]]
  assert set(first) == {(4, 4), (4, 8), (8, 4)}  # a few batches show every shape


def test_shapes_of_two_sources_share_batches():
  other = bucketed(((4, 8, 12),))
  for record in other.records:
    record["frames"][..., 2] = 1
  taken = take(stream([bucketed(), other], 4), 54)
  wide = [batch for batch in taken if batch["frames"].shape[2:4] == (4, 8)]
  assert len(wide) == 24  # of 54 records 24 are wide
  assert all(batch["frames"][:, 0, 0, 0, 2].sum() == 2 for batch in wide)


def test_reading_processes_read_shapes_and_several_sources_too():
  options = {"sources": [bucketed(), bucketed()], "repeat": False, "drop_text": 0.3}
  serial, parallel = (list(stream(**options, workers=workers)) for workers in (0, 1))
  assert len(serial) == len(parallel) == 84 // 4
  for expected, got in zip(serial, parallel, strict=True):
    same(got, expected)


@pytest.mark.parametrize("repeat", [True, False])
def test_the_order_over_shapes_is_part_of_the_position(repeat):
  options = {"sources": bucketed(), "repeat": repeat, "drop_text": 0.3}
  (one, _), (two, positions) = together(1, 2, **options), together(2, 2, **options)
  whole, _ = together(1, 4, **options)
  for a, b, c in zip(one, two, whole, strict=False):
    same(a, b)
    same(a, c)
  rest, _ = together(1, 2, positions[0], **options)
  for a, b in zip(whole[2:], rest, strict=True):
    same(a, b)
  seeds = [[records_of(b) for b in together(1, 3, **options, seed=seed)[0]] for seed in (1, 1, 2)]
  assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("size", [(2, 2), (3, 3)])
def test_larger_records_are_reduced(size):
  rng = np.random.default_rng(0)
  made = source(8, frames=4, size=6 if size == (3, 3) else 4)
  for record in made.records:
    record["frames"][:] = rng.integers(0, 256, record["frames"].shape)
  (batch,) = take(stream(made, 8, inputs=clip_inputs(SPEC, size), shuffle=False), 1)
  whole = np.stack([record["frames"] for record in made.records]).astype(float)
  blocks = whole.reshape(8, 4, size[0], 2, size[1], 2, 3).mean((3, 5))
  np.testing.assert_allclose(batch["frames"], blocks, atol=0.5 + 1e-9)


def test_a_fraction_of_the_size_is_a_resize_without_aliasing():
  made = source(4, frames=4, size=12)
  for record in made.records:
    record["frames"][:] = (np.indices((12, 12)).sum(0) % 2 * 255)[..., None]
  (batch,) = take(stream(made, 4, inputs=clip_inputs(SPEC, (8, 8))), 1)
  assert np.abs(batch["frames"][:, :, 1:-1, 1:-1].astype(int) - 128).max() <= 43
  (batch,) = take(stream(bucketed(), 3, inputs=clip_inputs(SPEC, (2, 2))), 1)
  assert batch["frames"].shape[2:4] in {(2, 2), (2, 4), (4, 2)}


UNFIT = {
  "upscaling": (Frames(SPEC, (8, 8)), r"packed at 4x4 .* takes 8x8; pack it at that size"),
  "another aspect": (Frames(SPEC, (4, 2)), r"packed at 4x4 .* takes 4x2"),
  "no such array": (Frames(SPEC, (4, 4), "mask"), r"buckets have no array 'mask'.* have frames"),
  "a part of a pixel": (Frames(SPEC, (1, 1)), r"records of 6x4 pixels .* do not scale by 1/4"),
  "no multiple": (
    Frames(SPEC, (2, 2), multiple=(2, 4)),
    r"30 of 42 records of buckets come to 2x2 pixels .* widths that are multiples of 4; pack",
  ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_records_of_another_shape_or_array_are_refused(name):
  wanted, words = UNFIT[name]
  made = bucketed(((4, 4, 4), (6, 4, 4))) if name == "a part of a pixel" else bucketed()
  with pytest.raises(InputError, match=words):
    stream(made, 2, inputs=Inputs({"frames": wanted}))


def test_numbers_stand_in_the_batch_under_their_names():
  made = source()
  made.numbers["motion"] = np.arange(40, dtype=np.float32) * 2
  wanted = clip_inputs(SPEC, (4, 4), numbers=("motion",))
  for batch in take(stream(made, inputs=wanted), 3):
    np.testing.assert_array_equal(batch["motion"], 2 * np.float32(records_of(batch)))
    assert batch["motion"].dtype == np.float32
  with pytest.raises(InputError, match=r"memory4 have no number 'score'; they have motion"):
    stream(made, inputs=clip_inputs(SPEC, (4, 4), numbers=("score",)))
  made.numbers["motion"][3] = np.nan
  with pytest.raises(InputError, match=r"1 of 40 records of memory4 lack the number 'motion'"):
    stream(made, inputs=wanted)


def several(fps=8.0, frames=24):
  """Records whose second array is the first one's complement, at the same moments."""
  made = source(12, frames=frames, fps=fps, size=8)
  for record in made.records:
    record["source"] = 255 - record["frames"]
  return Source(
    made.name, made.size, made.records, made.num_frames, made.fps, arrays=("frames", "source")
  )


@pytest.mark.parametrize("longest", ["frames", "edited"])
def test_several_arrays_begin_at_the_same_second(longest):
  long, short = ClipSpec(6, 4.0), ClipSpec(3, 2.0)
  clips = {"frames": short, "edited": long} if longest == "edited" else {"frames": long}
  clips = {"edited": short} | clips
  wanted = Inputs(
    {
      "frames": Frames(clips["frames"], (8, 8)),
      "edited": Frames(clips["edited"], (4, 4), "source"),
      "first": Frames(ClipSpec(1, 1.0), (2, 2), "source"),
    }
  )
  starts = set()
  for batch in take(stream(several(), 6, inputs=wanted), 40):
    begin = batch["frames"][:, 0, 0, 0, 1].astype(int)
    starts |= set(begin.tolist())
    for name, clip in (*clips.items(), ("first", ClipSpec(1, 1.0))):
      frame_numbers = batch[name][:, :, 0, 0, 1].astype(int)
      frame_numbers = frame_numbers if name == "frames" else 255 - frame_numbers
      steps = np.arange(clip.num_frames) * round(8 / clip.fps)
      np.testing.assert_array_equal(frame_numbers, begin[:, None] + steps[None])
    np.testing.assert_array_equal(batch["fps"], np.float32([clips["frames"].fps] * 6))
    assert batch["edited"].shape[2:] == (4, 4, 3)
    assert batch["first"].shape[1:] == (1, 2, 2, 3)
  assert starts == set(range(24 - 10))  # 6 frames at 4 fps span 11 stored ones


def test_every_array_must_fit_the_record():
  wanted = Inputs(
    {"frames": Frames(ClipSpec(2, 8.0), (8, 8)), "b": Frames(ClipSpec(5, 4.0), (8, 8))}
  )
  assert len(reading.usable(several(frames=9), wanted)) == 12
  with pytest.raises(InputError, match="5 frames at 4 fps"):
    reading.usable(several(frames=8), wanted)


def test_a_rate_that_fits_is_drawn_uniformly():
  lengths = np.array([10, 16, 29], np.int32)  # 8 frames at 8, at 4 and at 2 fps take 8, 15, 29
  whole = source(3, frames=29)
  table = [r | {"frames": r["frames"][:n]} for r, n in zip(whole.records, lengths, strict=True)]
  made = Source("rates", (4, 4), table, lengths, whole.fps)
  wanted = clip_inputs(ClipSpec(8, (8.0, 4.0, 2.0)), (4, 4))
  drawn = {0: [], 1: [], 2: []}
  for batch in take(stream(made, 30, inputs=wanted), 30):
    steps = np.diff(batch["frames"][:, :, 0, 0, 1].astype(int))
    np.testing.assert_array_equal(steps, np.broadcast_to(8 / batch["fps"][:, None], steps.shape))
    for record, fps in zip(records_of(batch), batch["fps"].tolist(), strict=True):
      drawn[record].append(fps)
  for record, rates in ((0, [8]), (1, [8, 4]), (2, [8, 4, 2])):
    assert set(drawn[record]) == set(rates)
    for rate in rates:  # five standard deviations of 300 draws
      share = 1 / len(rates)
      got = drawn[record].count(rate) / len(drawn[record])
      assert abs(got - share) <= 5 * (share * (1 - share) / 300) ** 0.5
  followers = {"frames": Frames(ClipSpec(8, (8.0, 4.0)), (4, 4))}
  followers["low"] = Frames(ClipSpec(4, (4.0, 2.0)), (2, 2))
  for batch in take(stream(made, 30, inputs=Inputs(followers)), 5):
    steps = np.diff(batch["low"][:, :, 0, 0, 1].astype(int))
    np.testing.assert_array_equal(steps, np.broadcast_to(16 / batch["fps"][:, None], steps.shape))
  followers["low"] = Frames(ClipSpec(4, (4.0, 2.0, 1.0)), (2, 2))
  with pytest.raises(InputError, match="'low' has 3 rates and the first array 2"):
    stream(made, inputs=Inputs(followers))


def test_frames_that_no_example_takes_are_not_decoded(tmp_path, monkeypatch):
  where = tmp_path / "clips"
  where.mkdir()
  for i in range(4):
    write_numbered(where / f"{i}.mp4", 40)
  rows = [{"file_name": f"{i}.mp4", "text": f"clip {i}"} for i in range(4)]
  (where / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  options = Options((16, 16), validation_fraction=0.0)
  folder.prepare_folder(where, tmp_path / "out", options=options, workers=1, progress=False)
  decoded, decode = [], codecs.decode
  monkeypatch.setattr(codecs, "decode", lambda string: decoded.append(1) or decode(string))
  opened = open_source(tmp_path / "out", "train")
  assert len(decoded) == 0
  wanted = clip_inputs(ClipSpec(3, 2.0), (16, 16))
  taken = list(stream(opened, 2, inputs=wanted, repeat=False, tokenizers=()))
  assert len(decoded) == 4 * 3
  for batch in taken:
    for frames in batch["frames"]:
      assert np.diff(numbers(frames)).tolist() == [4, 4]
  assert len(opened.records[0]["frames"]) == 40
  assert len(decoded) == 4 * 3


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"sources": []}, "0 sources"),
    ({"sources": [source(), source(size=2)]}, r"memory2 was packed at 2x2 .* takes 4x4"),
    ({"sources": [source()] * 2, "weights": [1.0]}, r"weights=\[1.0\] for 2 sources"),
    ({"batch_size": 0}, "batch_size=0"),
    (
      {"batch_size": 41, "repeat": False},
      "batch_size=41 for each of 1 .* the 40 records",
    ),
    ({"drop_text": 0.7, "drop_both": 0.4}, r"drop_text=0.7, drop_both=0.4"),
    ({"process_index": 2, "process_count": 2}, r"process_index=2 is not in \[0, process_count=2"),
    ({"process_index": 2, "process_count": 64, "repeat": False}, "4 for each of 64 process"),
  ],
)
def test_impossible_arguments(options, words):
  with pytest.raises(ValueError, match=words):
    stream(**({"sources": source()} | options))
  with pytest.raises(ValueError, match="num_frames=0"):
    ClipSpec(0, 8.0)


def test_folders_that_were_not_prepared(tmp_path):
  with pytest.raises(InputError, match="no prepared records; prepare it"):
    open_source(tmp_path, "train")
  (tmp_path / "videos").mkdir()
  (tmp_path / "videos/dataset_info.json").write_text("{}")
  with pytest.raises(InputError, match=r"name one of \['videos'\] in it"):
    open_source(tmp_path, "train")


class Unindexed(tfds.core.GeneratorBasedBuilder):
  """A dataset of the same features that this project did not write."""

  VERSION = tfds.core.Version("2.0.0")
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=records.features())

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    record = {"frames": np.zeros((3, 8, 8, 3), np.uint8), "fps": 4.0}
    yield "0", records.packed(record | {"caption": "", "name": "0", "truth": ""})


def test_a_dataset_without_an_index_is_refused(tmp_path):
  builder = Unindexed(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  with pytest.raises(InputError, match=r"by an earlier version or by another program; pack it"):
    open_source(str(builder.data_path), "train")
  with pytest.raises(InputError, match="no split 'test'; it has train"):
    open_source(str(builder.data_path), "test")


def test_a_clip_of_the_users_own(tmp_path):
  path = write_numbered(tmp_path / "a.mp4", 40, fps=16)
  frames = load_clip(path, ClipSpec(8, 4.0), (16, 16))
  assert frames.shape == (8, 16, 16, 3)
  assert numbers(frames) == list(range(0, 32, 4))
  assert numbers(load_clip(path, ClipSpec(2, 16.0), (16, 16), start=1.0)) == [16, 17]
  assert numbers(load_clip(path, ClipSpec(1, 99.0), (16, 16))) == [0]
  with pytest.raises(
    InputError, match=r"lasts 2\.5 s and gives 10 frames at 4 fps .* 12 are needed"
  ):
    load_clip(path, ClipSpec(12, 4.0), (16, 16))
  with pytest.raises(InputError, match="has 16 fps, 24 are needed"):
    load_clip(path, ClipSpec(4, 24.0), (16, 16))


def test_a_picture_of_the_users_own(tmp_path):
  PIL.Image.new("RGB", (20, 10), (9, 8, 7)).save(tmp_path / "a.png")
  picture = load_picture(tmp_path / "a.png", (8, 8))
  assert picture.shape == (1, 8, 8, 3)
  assert (picture == [9, 8, 7]).all()
  np.testing.assert_array_equal(load_clip(tmp_path / "a.png", ClipSpec(1, 8.0), (8, 8)), picture)
  with pytest.raises(InputError, match="a picture of 1 frame, 8 are needed"):
    load_clip(tmp_path / "a.png", ClipSpec(8, 8.0), (8, 8))


def test_real_captioned_clips_from_folder_to_batch(tmp_path):
  where = ROOT.parent / "shared/data/sprites"
  if not where.is_dir():
    pytest.skip(f"{where} is not there")
  subset = tmp_path / "subset"
  subset.mkdir()
  (subset / "clips").symlink_to(where / "clips")
  lines = (where / "metadata.jsonl").read_text().splitlines()[:12]
  (subset / "metadata.jsonl").write_text("\n".join(lines))
  options = Options((32, 32), validation_fraction=0.0, codec="lossless")
  folder.prepare_folder(subset, tmp_path / "out", options=options, workers=1, progress=False)
  opened = open_source(tmp_path / "out", "train")
  (batch,) = take(
    stream(opened, 12, inputs=clip_inputs(ClipSpec(8, 8.0), (32, 32)), shuffle=False), 1
  )
  # 8 frames at 8 fps are the whole clip: batch and file agree, since nothing is left to chance.
  for line, frames in zip(lines, batch["frames"], strict=True):
    clip = load_clip(where / json.loads(line)["file_name"], ClipSpec(8, 8.0), (32, 32))
    np.testing.assert_array_equal(frames, clip)


def test_one_of_several_captions_is_drawn_anew_each_time_and_resumes():
  made = source(4)
  for i, record in enumerate(made.records):
    record["captions"] = [f"{i}a".encode(), f"{i}b".encode(), f"{i}c".encode()]
  made.records[3].pop("captions")
  taken = take(stream(made, 4), 90)
  texts = [
    bytes(row).rstrip(b"\0").decode() for b in taken for row in b["tokens"][0].astype(np.uint8)
  ]
  assert texts.count("003") == 90
  for text in (f"{i}{letter}" for i in range(3) for letter in "abc"):
    assert abs(texts.count(text) - 30) < 5 * (90 * 1 / 3 * 2 / 3) ** 0.5  # five standard deviations
  first = stream(made, 4)
  for expected in taken[:20]:
    same(next(first), expected)
  second = stream(made, 4)
  second.set_state(json.loads(json.dumps(first.get_state())))
  first.close()
  for expected, got in zip(taken[20:40], take(second, 20), strict=True):
    same(got, expected)
