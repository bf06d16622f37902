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
from emu_jax.data import folder, records
from emu_jax.data.batches import ClipSpec, Source, batches, open_source
from emu_jax.data.own_files import load_clip, load_picture
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
  return Source(f"memory{size}", size, [record(i) for i in range(count)], lengths, rates)


def stream(sources, batch_size=4, *, tokenizers=(Letters(3),), **options):
  options = {"spec": SPEC, "seed": 0, "threads": 2} | options
  return batches(sources, tokenizers=tokenizers, batch_size=batch_size, **options)


def take(iterator, count):
  taken = [next(iterator) for _ in range(count)]
  iterator.close()
  return taken


def which(batch):
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
  assert captions == [f"{i:03d}" for i in which(batch)]  # a clip keeps its own caption


@pytest.mark.parametrize(("stored", "asked"), [(8.0, 8.0), (8.0, 4.0), (30.0, 8.0), (23.976, 24.0)])
def test_clips_keep_the_asked_rate_and_repeat_no_frame(stored, asked):
  rng, spec, steps = np.random.default_rng(0), ClipSpec(5, asked), []
  for _ in range(300):
    chosen = reading.clip_indices(40, stored, spec, rng)
    assert chosen[0] >= 0
    assert chosen[-1] <= 39
    steps.append(np.diff(chosen))
    # By nearest time: no frame is further than half a stored one from where it belongs.
    drift = chosen - chosen[0] - np.arange(5) * max(1.0, stored / asked)
    assert np.abs(drift).max() <= 1 + 1e-6
  assert np.min(steps) >= 1
  # The mean step is the ratio of the rates: each of 300 clips may round by one frame in 4 steps.
  np.testing.assert_allclose(np.mean(steps), max(1.0, stored / asked), atol=0.25 / 300**0.5 * 5)


def test_every_start_is_equally_likely():
  rng = np.random.default_rng(0)
  starts = [reading.clip_indices(10, 8.0, SPEC, rng)[0] for _ in range(7000)]
  counts = np.bincount(starts, minlength=7)  # 10 - 4 + 1 starts fit
  assert len(counts) == 7
  assert np.abs(counts - 1000).max() < 5 * (7000 / 7 * 6 / 7) ** 0.5
  pictures = [reading.clip_indices(10, 0.0, ClipSpec(1, 4.0), rng)[0] for _ in range(7000)]
  assert np.abs(np.bincount(pictures) - 700).max() < 5 * (7000 * 0.1 * 0.9) ** 0.5


def test_a_picture_that_begins_a_clip_is_one_of_its_possible_first_frames():
  rng = np.random.default_rng(0)
  clip, picture = ClipSpec(8, 4.0), ClipSpec(1, 4.0, begins=8)
  starts, pictures = (
    [reading.clip_indices(40, 16.0, spec, rng)[0] for _ in range(13_000)]
    for spec in (clip, picture)
  )
  counts = [np.bincount(found, minlength=40) for found in (starts, pictures)]
  assert (counts[0] > 0).tolist() == (counts[1] > 0).tolist()
  assert np.abs(counts[0] - counts[1]).max() < 6 * np.sqrt(2 * max(counts[0]))
  # Records that hold no such clip still give any of their frames.
  short = {int(reading.clip_indices(5, 16.0, picture, rng)[0]) for _ in range(200)}
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
  return Source("mixed", 4, table, lengths.astype(np.int32), rates)


def test_what_would_repeat_frames_is_left_out_and_counted(caplog):
  with caplog.at_level(logging.WARNING):
    chosen = reading.usable(mixed_lengths(), SPEC)
  # Too short, stored at too low a rate, too short for its rate (10 / 30 s), a picture.
  assert chosen.tolist() == [0, 3]
  assert "4 of 6 records" in caplog.text
  assert reading.usable(mixed_lengths(), ClipSpec(1, 8.0)).tolist() == [0, 1, 2, 3, 4, 5]
  seen = {i for batch in take(stream(mixed_lengths(), 2), 4) for i in which(batch)}
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
  parts = [[which(b) for b in stream(**options, batch_size=2, process_index=p)] for p in range(4)]
  assert {len(part) for part in parts} == {5}  # 3 records fill no batch of all four
  numbers = [i for part in parts for batch in part for i in batch]
  assert len(set(numbers)) == len(numbers) == 40


def test_one_pass_sees_each_record_once_and_epochs_differ():
  once = [i for batch in stream(source(), repeat=False) for i in which(batch)]
  assert sorted(once) == list(range(40))
  assert once != sorted(once)
  epochs = take(stream(source()), 20)
  first, second = ([i for b in epochs[k : k + 10] for i in which(b)] for k in (0, 10))
  assert sorted(first) == sorted(second) == list(range(40))
  assert first != second
  assert len(list(stream(source(), 16, repeat=False))) == 2  # what does not fill a batch is left


def test_the_seed_decides_everything():
  one, again, other = (take(stream(source(), seed=s, drop_both=0.5), 3) for s in (1, 1, 2))
  for a, b in zip(one, again, strict=True):
    same(a, b)
  assert [which(b) for b in one] != [which(b) for b in other]


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
  turn = list(stream([a, b], 20, repeat=False))
  assert [batch["frames"][:, 0, 0, 0, 2].sum() for batch in turn] == [0, 10, 20]


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"sources": []}, "0 sources"),
    ({"sources": [source(), source(size=8)]}, r"memory4.: 4.*memory8.: 8"),
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


class SomeoneElses(tfds.core.GeneratorBasedBuilder):
  """A dataset of the same layout that this project did not write."""

  VERSION = tfds.core.Version("2.0.0")
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=records.features(8))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(5):
      frames = np.full((3 + i, 8, 8, 3), i, np.uint8)
      yield str(i), {"frames": frames, "fps": 4.0, "caption": "", "name": str(i), "truth": ""}


class NoCaptions(SomeoneElses):
  """A dataset of another layout."""

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict({"fps": np.float32})
    )

  def _generate_examples(self):
    yield "0", {"fps": 1.0}


def test_a_like_dataset_of_other_origin_is_measured(tmp_path):
  builder = SomeoneElses(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  opened = open_source(str(builder.data_path), "train")
  assert sorted(opened.num_frames.tolist()) == [3, 4, 5, 6, 7]
  for i, frames in enumerate(opened.num_frames):
    assert len(opened.records[i]["frames"]) == frames
  assert take(stream(opened, 2, spec=ClipSpec(5, 4.0)), 1)[0]["frames"].shape == (2, 5, 8, 8, 3)
  with pytest.raises(InputError, match="no split 'test'; it has train"):
    open_source(str(builder.data_path), "test")


def test_a_dataset_of_another_layout_is_refused(tmp_path):
  builder = NoCaptions(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  with pytest.raises(InputError, match=r"lack \['caption', 'frames', 'name', 'truth'\]"):
    open_source(str(builder.data_path), "train")


def test_a_clip_of_the_users_own(tmp_path):
  path = write_numbered(tmp_path / "a.mp4", 40, fps=16)
  frames = load_clip(path, ClipSpec(8, 4.0), 16)
  assert frames.shape == (8, 16, 16, 3)
  assert numbers(frames) == list(range(0, 32, 4))
  assert numbers(load_clip(path, ClipSpec(2, 16.0), 16, start=1.0)) == [16, 17]
  assert numbers(load_clip(path, ClipSpec(1, 99.0), 16)) == [0]
  with pytest.raises(
    InputError, match=r"lasts 2\.5 s and gives 10 frames at 4 fps .* 12 are needed"
  ):
    load_clip(path, ClipSpec(12, 4.0), 16)
  with pytest.raises(InputError, match="has 16 fps, 24 are needed"):
    load_clip(path, ClipSpec(4, 24.0), 16)


def test_a_picture_of_the_users_own(tmp_path):
  PIL.Image.new("RGB", (20, 10), (9, 8, 7)).save(tmp_path / "a.png")
  picture = load_picture(tmp_path / "a.png", 8)
  assert picture.shape == (1, 8, 8, 3)
  assert (picture == [9, 8, 7]).all()
  np.testing.assert_array_equal(load_clip(tmp_path / "a.png", ClipSpec(1, 8.0), 8), picture)
  with pytest.raises(InputError, match="a picture of 1 frame, 8 are needed"):
    load_clip(tmp_path / "a.png", ClipSpec(8, 8.0), 8)


def test_real_captioned_clips_from_folder_to_batch(tmp_path):
  where = ROOT.parent / "shared/data/sprites"
  if not where.is_dir():
    pytest.skip(f"{where} is not there")
  few = tmp_path / "few"
  few.mkdir()
  (few / "clips").symlink_to(where / "clips")
  lines = (where / "metadata.jsonl").read_text().splitlines()[:12]
  (few / "metadata.jsonl").write_text("\n".join(lines))
  folder.prepare_folder(
    few, tmp_path / "out", size=32, validation_fraction=0.0, workers=1, progress=False
  )
  opened = open_source(tmp_path / "out", "train")
  (batch,) = take(stream(opened, 12, spec=ClipSpec(8, 8.0), shuffle=False), 1)
  # 8 frames at 8 fps are the whole clip: batch and file agree, since nothing is left to chance.
  for line, frames in zip(lines, batch["frames"], strict=True):
    clip = load_clip(where / json.loads(line)["file_name"], ClipSpec(8, 8.0), 32)
    np.testing.assert_array_equal(frames, clip)
