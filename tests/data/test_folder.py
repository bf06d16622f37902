"""A folder of clips is packed whole or not at all, and what could not be read is named."""

import csv
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from video_files import numbered, numbers, write_numbered, write_video

from emu_jax.data import clip_files, decode, ffmpeg_files, folder, index, records
from emu_jax.data.batches import open_source
from emu_jax.data.clip_files import Options
from emu_jax.data.motion import motion_percent
from emu_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


def write_jsonl(where, rows):
  lines = [json.dumps(row) for row in rows]
  (where / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(count, suffix="mp4"):
  return [{"file_name": f"{i}.{suffix}", "text": f"clip, “number” {i}"} for i in range(count)]


@pytest.fixture
def clips(tmp_path):
  """Four clips of 10 + i frames at 8 fps."""
  where = tmp_path / "clips"
  where.mkdir()
  for i in range(4):
    write_numbered(where / f"{i}.mp4", 10 + i)
  write_jsonl(where, rows_of(4))
  return where


@pytest.fixture
def pictures(tmp_path):
  """300 one-colour pictures: a set whose preparation takes no time."""
  where = tmp_path / "pictures"
  where.mkdir()
  for i in range(300):
    PIL.Image.new("RGB", (9, 8), (i % 256, i // 256, 7)).save(where / f"{i}.png")
  write_jsonl(where, rows_of(300, "png"))
  return where


SETTINGS = ("workers", "clips_per_shard", "overwrite")


def prepare(clips, out, *, size=(16, 16), **options):
  settings = {name: options.pop(name) for name in SETTINGS if name in options}
  options = Options(size, **{"validation_fraction": 0.0, "codec": "lossless"} | options)
  return folder.prepare_folder(
    clips, out, options=options, **{"workers": 1, "progress": False} | settings
  )


def packed(out, split="train"):
  return list(open_source(out, split).records)


def texts(out):
  return {(r["name"].decode(), r["caption"].decode(), r["truth"].decode()) for r in packed(out)}


def test_records_are_the_clips(clips, tmp_path):
  report = prepare(clips, tmp_path / "out")
  assert (report.num_clips, report.num_records, report.skipped) == (4, {"train": 4}, ())
  for i, record in enumerate(packed(tmp_path / "out")):
    assert record["frames"].shape == (10 + i, 16, 16, 3)
    assert record["frames"][:].dtype == np.uint8
    assert numbers(record["frames"][:]) == list(range(10 + i))
    assert record["fps"] == 8
    assert record["name"].decode() == f"{i}.mp4"
    assert record["caption"].decode() == f"clip, “number” {i}"
    assert record["truth"] == b""
  source = open_source(tmp_path / "out", "train")
  assert list(source.num_frames) == [10, 11, 12, 13]
  assert list(source.fps) == [8] * 4
  assert source.sizes.tolist() == [[16, 16]] * 4


def test_csv_and_jsonl_say_the_same(clips, tmp_path):
  rows = [row | {"score": str(i)} for i, row in enumerate(rows_of(4))]
  write_jsonl(clips, rows)
  prepare(clips, tmp_path / "a")
  (clips / "metadata.jsonl").unlink()
  with (clips / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
    writer = csv.DictWriter(file, ["score", "text", "file_name"])  # columns in any order
    writer.writeheader()
    writer.writerows(rows)
  prepare(clips, tmp_path / "b")
  assert texts(tmp_path / "a") == texts(tmp_path / "b")
  assert ("2.mp4", "clip, “number” 2", '{"score": "2"}') in texts(tmp_path / "b")


def test_processes_pack_what_one_process_packs(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  for i in range(17):
    write_numbered(where / f"{i}.mp4", 5 + i)
  write_jsonl(where, rows_of(17))
  for workers in (1, 2):
    prepare(where, tmp_path / str(workers), workers=workers, max_seconds=1.0)
  one, two = (packed(tmp_path / str(workers)) for workers in (1, 2))
  assert [r["name"] for r in one] == [r["name"] for r in two]
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a["frames"], b["frames"])


def test_a_long_clip_becomes_consecutive_records(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  write_numbered(where / "0.mp4", 100, fps=8)
  write_jsonl(where, rows_of(1))
  prepare(where, tmp_path / "out", max_seconds=3.0)
  parts = packed(tmp_path / "out")
  assert [r["name"].decode() for r in parts] == [f"0.mp4#{k}" for k in range(5)]
  assert all(len(r["frames"]) == 20 for r in parts)  # 12.5 s in five equal parts, none above 3 s
  assert numbers(np.concatenate([r["frames"] for r in parts])) == list(range(100))


@pytest.mark.parametrize("fps", [0.0, 0.05])
def test_frames_further_apart_than_a_part_lasts_are_a_record_each(tmp_path, fps):
  where = tmp_path / "clips"
  where.mkdir()
  frames = [numbered(i) for i in range(0, 5)]
  write_video(where / "0.mp4", frames, times=[30.0 * i for i in range(5)])
  write_jsonl(where, rows_of(1))
  report = prepare(where, tmp_path / "out", fps=fps)
  assert report.skipped == ()
  found = numbers(np.concatenate([r["frames"][:] for r in packed(tmp_path / "out")]))
  assert set(found) == set(range(5))
  assert found == sorted(found)


@pytest.mark.parametrize(("fps", "stored", "step"), [(4.0, 4.0, 2), (0.0, 8.0, 1), (30.0, 8.0, 1)])
def test_frames_are_stored_at_the_asked_rate_but_never_made_up(clips, tmp_path, fps, stored, step):
  prepare(clips, tmp_path / "out", fps=fps)
  record = packed(tmp_path / "out")[3]
  assert record["fps"] == stored
  assert numbers(record["frames"][:]) == list(range(0, 13, step))


def test_the_split_goes_by_name_alone(pictures, tmp_path):
  prepare(pictures, tmp_path / "out", validation_fraction=0.2)
  validation = {r["name"] for r in packed(tmp_path / "out", "validation")}
  training = {r["name"] for r in packed(tmp_path / "out")}
  assert len(validation | training) == 300
  assert not validation & training
  assert abs(len(validation) - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5  # five standard deviations
  write_jsonl(pictures, rows_of(300, "png")[:100])
  prepare(pictures, tmp_path / "fewer", validation_fraction=0.2)
  assert {r["name"] for r in packed(tmp_path / "fewer", "validation")} < validation
  assert all(r["fps"] == 0 and len(r["frames"]) == 1 for r in packed(tmp_path / "fewer"))


def test_what_cannot_be_read_is_counted_and_named(clips, tmp_path):
  (clips / "1.mp4").write_text("no video")
  write_jsonl(clips, [*rows_of(4), {"file_name": "gone.mp4", "text": "no file"}])
  report = prepare(clips, tmp_path / "out")
  assert report.num_records == {"train": 3}
  assert report.num_clips == 5
  reasons = {skipped.file_name: skipped.reason for skipped in report.skipped}
  assert reasons.keys() == {"1.mp4", "gone.mp4"}
  assert "cannot be read" in reasons["1.mp4"]
  assert "missing" in reasons["gone.mp4"]
  written = json.loads((tmp_path / "out/report.json").read_text())
  assert {entry["file_name"] for entry in written["skipped"]} == reasons.keys()


def test_running_again_changes_nothing_unless_asked(clips, tmp_path):
  out = tmp_path / "out"
  first = prepare(clips, out)
  stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
  again = prepare(clips, out)
  assert again.existing
  assert not first.existing
  assert again.num_records == first.num_records
  assert again.skipped == first.skipped
  assert stamps == {path: path.stat().st_mtime_ns for path in out.iterdir()}
  with pytest.raises(InputError, match=r"size=\[16, 16\] there, \[24, 24\] asked"):
    prepare(clips, out, size=(24, 24))
  write_numbered(clips / "0.mp4", 30)
  with pytest.raises(InputError, match=r"contents=\w+ there"):
    prepare(clips, out)
  assert prepare(clips, out, size=(24, 24), overwrite=True).num_records == {"train": 4}
  assert packed(out)[0]["frames"].shape == (30, 24, 24, 3)
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_someone_else_is_never_replaced(clips, tmp_path):
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis/chapter.txt").write_text("years of work")
  for overwrite in (False, True):
    with pytest.raises(InputError, match="not made by prepare"):
      prepare(clips, tmp_path / "thesis", overwrite=overwrite)
  assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"


def emptied(where):
  for path in where.iterdir():
    path.unlink()


def metadata(name, text):
  def change(where):
    (where / "metadata.jsonl").unlink()
    (where / name).write_text(text)

  return change


def all_damaged(where):
  for path in where.glob("*.mp4"):
    path.write_text("no video")


BAD = {
  "empty": (emptied, "is empty"),
  "no metadata": (lambda w: (w / "metadata.jsonl").unlink(), "no metadata.jsonl, metadata.csv"),
  "both": (lambda w: (w / "metadata.csv").write_text("file_name,text\n"), "both"),
  "no line": (metadata("metadata.jsonl", "\n"), "0 clips"),
  "no JSON": (metadata("metadata.jsonl", "{}\nfile"), "line 1 has no text|line 2 is not"),
  "broken JSON": (metadata("metadata.jsonl", '{"file_name": '), "line 1 is not a JSON object"),
  "missing column": (
    metadata("metadata.csv", "file_name,words\n0.mp4,a\n"),
    r"column 'text', its columns are \['file_name', 'words'\]",
  ),
  "stray comma": (metadata("metadata.csv", "file_name,text\n0.mp4,a, b\n"), "line 2 has not the 2"),
  "latin-1": (
    lambda w: (w / "metadata.jsonl").write_bytes(b'{"file_name": "0.mp4", "text": "\xe4"}'),
    "line 1 is not UTF-8",
  ),
  "half a character": (
    metadata("metadata.jsonl", '{"file_name": "0.mp4", "text": "\\ud800"}'),
    "line 1 holds half of a character",
  ),
  "an array without a name": (
    metadata("metadata.jsonl", '{"file_name": "0.mp4", "text": "a", "fps_file_name": "1.mp4"}'),
    "'fps_file_name' does not name the file of an array",
  ),
  "no file exists": (metadata("metadata.csv", "file_name,text\nx.mp4,a\n"), "none exists.*'x.mp4'"),
  "all damaged": (all_damaged, "none of the 4 clips .* can be read; the first: decode"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(clips, tmp_path, name):
  change, words = BAD[name]
  change(clips)
  before = set(tmp_path.iterdir())
  with pytest.raises(InputError, match=words) as caught:
    prepare(clips, tmp_path / "out")
  assert ";" in str(caught.value)
  assert "\n" not in str(caught.value)
  assert set(tmp_path.iterdir()) == before


def test_a_missing_folder_and_an_unwritable_place(clips, tmp_path):
  with pytest.raises(InputError, match=r"none is not a folder"):
    prepare(tmp_path / "none", tmp_path / "out")
  with pytest.raises(InputError, match="cannot be written"):
    prepare(clips, clips / "0.mp4" / "out")
  with pytest.raises(InputError, match="size=4 of 4x4 is below 8"):
    prepare(clips, tmp_path / "out", size=(4, 4))


def test_whatever_one_file_raises_the_others_are_packed(clips, tmp_path, monkeypatch):
  timeline = decode.timeline

  def fails(path):
    if path.name == "2.mp4":
      raise MemoryError("no room\nsecond line")
    if path.name == "1.mp4":
      raise KeyError
    return timeline(path)

  monkeypatch.setattr(decode, "timeline", fails)
  report = prepare(clips, tmp_path / "out")
  assert (report.num_clips, report.num_packed, report.num_records) == (4, 2, {"train": 2})
  reasons = {skipped.file_name: skipped.reason for skipped in report.skipped}
  assert reasons == {"1.mp4": "KeyError", "2.mp4": "MemoryError: no room"}
  assert [r["name"].decode() for r in packed(tmp_path / "out")] == ["0.mp4", "3.mp4"]


def test_parts_that_fail_are_one_entry_and_their_clip_counts_as_packed(tmp_path, monkeypatch):
  where = tmp_path / "clips"
  where.mkdir()
  for i in range(2):
    write_numbered(where / f"{i}.mp4", 100, fps=8)
  write_jsonl(where, rows_of(2))
  record = clip_files._record

  def fails(row, part, *rest):
    if row.file_name == "1.mp4" or part in (1, 3):
      raise ValueError(f"part {part}")
    return record(row, part, *rest)

  monkeypatch.setattr(clip_files, "_record", fails)
  report = prepare(where, tmp_path / "out", max_seconds=3.0)
  assert (report.num_clips, report.num_packed, report.num_records) == (2, 1, {"train": 3})
  assert [(s.file_name, s.reason) for s in report.skipped] == [
    ("0.mp4", "part 1, 3 of 5: ValueError: part 1"),
    ("1.mp4", "ValueError: part 0"),
  ]
  # After a part that fails, the next one holds its own frames again.
  found = {r["name"].decode(): numbers(r["frames"][:]) for r in packed(tmp_path / "out")}
  expected = {f"0.mp4#{k}": list(range(20 * k, 20 * k + 20)) for k in (0, 2, 4)}
  assert found == expected


def test_a_file_is_demuxed_and_decoded_once_for_all_of_its_records(tmp_path, monkeypatch):
  where = tmp_path / "clips"
  where.mkdir()
  write_numbered(where / "0.mp4", 100, fps=8)
  write_jsonl(where, rows_of(1))
  calls = {"timeline": 0, "decoded": 0}
  timeline, decoded = decode.timeline, ffmpeg_files.frames

  def counted_timeline(path):
    calls["timeline"] += 1
    return timeline(path)

  def counted_frames(*arguments):
    for frame in decoded(*arguments):
      calls["decoded"] += 1
      yield frame

  monkeypatch.setattr(decode, "timeline", counted_timeline)
  monkeypatch.setattr(ffmpeg_files, "frames", counted_frames)
  assert prepare(where, tmp_path / "out", max_seconds=1.0).num_records == {"train": 13}
  assert calls["timeline"] == 1
  assert calls["decoded"] <= 101


def test_two_writers_do_not_mix(tmp_path):
  with records.staged(tmp_path / "out") as partial:
    (partial / "file").write_text("mine")
    with pytest.raises(InputError, match="another process"), records.staged(tmp_path / "out"):
      pass
    assert (partial / "file").exists()
  assert (tmp_path / "out/file").read_text() == "mine"


KILLED = """
import sys, time
from emu_jax.data import clip_files, folder
opened = clip_files.open_files
def slow(folder, row, options, layout):
  if row.file_name == "2.mp4":
    loaded = [name in sys.modules for name in ("tensorflow", "jax")]
    print("half way", *loaded, flush=True)
    time.sleep(60)
  return opened(folder, row, options, layout)
clip_files.open_files = slow
options = clip_files.Options((16, 16), validation_fraction=0.0, codec="lossless")
folder.prepare_folder(sys.argv[1], sys.argv[2], options=options, workers=1, progress=False)
"""


def test_a_killed_run_leaves_nothing_under_the_name_and_is_continued(clips, tmp_path, monkeypatch):
  out = tmp_path / "out"
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED, str(clips), str(out)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
    # Neither of them: packing starts no TensorFlow, and its processes start without JAX.
    assert process.stdout.readline() == "half way False False\n"
    process.send_signal(signal.SIGKILL)
  assert not out.exists()
  assert (tmp_path / ".out.unfinished").exists()
  opened, again = clip_files.open_files, []
  monkeypatch.setattr(
    clip_files, "open_files", lambda *a: again.append(a[1].file_name) or opened(*a)
  )
  assert prepare(clips, out).num_records == {"train": 4}
  assert again == ["2.mp4", "3.mp4"]  # what the killed run had finished is not made again
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
  prepare(clips, tmp_path / "straight")
  assert texts(out) == texts(tmp_path / "straight")


def test_a_kill_while_files_are_renamed_is_continued(clips, tmp_path, monkeypatch):
  def dies(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(index, "write", dies)
    with pytest.raises(KeyboardInterrupt):
      prepare(clips, tmp_path / "out")
  whole = tmp_path / ".out.unfinished/whole"
  first = min(whole.glob("*-train.*"))
  first.rename(whole.parent / "train-00000")  # as though it had ended before this one
  prepare(clips, tmp_path / "out")
  prepare(clips, tmp_path / "straight")
  assert texts(tmp_path / "out") == texts(tmp_path / "straight")
  assert len(packed(tmp_path / "out")) == 4


def test_what_stops_the_work_keeps_what_is_finished_and_bad_input_does_not(tmp_path):
  def work_until(error):
    with records.resumable(tmp_path / "out", {"job": 1}) as work:
      (work / "finished").write_text("")
      raise error

  for error, kept in ((records.StoppedError, True), (KeyboardInterrupt, True), (InputError, False)):
    with pytest.raises(error):
      work_until(error)
    assert (tmp_path / ".out.unfinished/finished").exists() == kept


READER = """
import sys
from emu_jax.data import batches, folder, inputs, shapes
source = batches.open_source(sys.argv[1], "train")
wanted = inputs.clip_inputs(inputs.ClipSpec(4, 8.0), (16, 16))
with_frames = next(batches.batches(source, wanted, batch_size=2, seed=0))
print(with_frames["frames"].shape, "tensorflow" in sys.modules)
"""


def test_reading_needs_no_tensorflow(clips, tmp_path):
  prepare(clips, tmp_path / "out")
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", READER, str(tmp_path / "out")]
  done = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
  assert done.stdout == "(2, 4, 16, 16, 3) False\n"


POOL = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from emu_jax.data import workers
if __name__ == '__main__':
  spawn = multiprocessing.get_context('spawn')
  pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=workers.end_with_parent)
  print(pool.submit(os.getpid).result(), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""
READERS = """
import multiprocessing, os, signal
import numpy as np
from emu_jax.data import batches, inputs
if __name__ == '__main__':
  frames = {'frames': np.zeros((4, 4, 4, 3), np.uint8), 'fps': np.float32(8), 'caption': b''}
  source = batches.Source('memory', (4, 4), [frames] * 4, np.full(4, 4), np.full(4, 8.0))
  wanted = inputs.clip_inputs(inputs.ClipSpec(2, 8.0), (4, 4))
  read = batches.batches(source, wanted, batch_size=2, seed=0, workers=1)
  next(read)
  print(multiprocessing.active_children()[0].pid, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("script", [POOL, READERS], ids=["decoding", "reading"])
def test_processes_end_with_their_parent(tmp_path, script):
  (tmp_path / "parent.py").write_text(script)
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  with (tmp_path / "pid").open("w") as pid:  # no pipe: an orphan would hold it open
    command = [sys.executable, str(tmp_path / "parent.py")]
    subprocess.run(command, stdout=pid, stderr=subprocess.DEVNULL, env=environment, check=False)
  worker = int((tmp_path / "pid").read_text())
  for _ in range(100):
    if not pathlib.Path(f"/proc/{worker}").exists() or "Z" in state(worker):
      return
    time.sleep(0.1)
  os.kill(worker, signal.SIGKILL)
  pytest.fail(f"process {worker} outlived its parent")


def state(process):
  try:
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return "Z"


def test_real_clips_of_several_kinds(tmp_path):
  where = ROOT.parent / "shared/data/clips"
  if not where.is_dir():
    pytest.skip(f"{where} is not there")
  report = prepare(where, tmp_path / "out", fps=4.0, max_seconds=60.0)
  assert report.num_records == {"train": 3}
  assert report.skipped == ()
  source = open_source(tmp_path / "out", "train")
  assert list(source.fps) == [4.0] * 3
  # 10.0 s, 5.28 s and 10.33 s by their timestamps
  assert list(source.num_frames) == [40, 22, 42]


def test_the_index_says_what_the_records_say(clips, tmp_path):
  rows = [row | {"score": i / 2, "kind": "a" * i} for i, row in enumerate(rows_of(4))]
  del rows[1]["score"]
  write_jsonl(clips, rows)
  prepare(clips, tmp_path / "out", motion=True, max_seconds=1.0)
  source = open_source(tmp_path / "out", "train")
  listed = index.read(tmp_path / "out", "train")
  stored_records = list(source.records)
  assert list(source.captions) == [r["caption"].decode() for r in stored_records]
  assert list(listed.names) == [r["name"].decode() for r in stored_records]
  assert source.captions[-1] == source.captions[len(source.captions) - 1]
  assert source.captions[1:3] == [source.captions[1], source.captions[2]]
  np.testing.assert_array_equal(source.sizes, [r["size"] for r in stored_records])
  np.testing.assert_array_equal(source.num_frames, [len(r["frames"]) for r in stored_records])
  np.testing.assert_array_equal(source.fps, [r["fps"] for r in stored_records])
  assert source.numbers.keys() == {"score", "motion"}  # what is no number stays text
  for name, values in source.numbers.items():
    np.testing.assert_array_equal(values, [r["numbers"][name] for r in stored_records])
  by_name = dict(zip(listed.names, source.numbers["score"], strict=True))
  assert by_name["3.mp4#1"] == 1.5
  assert np.isnan(by_name["1.mp4#0"])


def test_text_is_read_without_opening_a_record(clips, tmp_path, monkeypatch):
  prepare(clips, tmp_path / "out")
  source = open_source(tmp_path / "out", "train")
  monkeypatch.setattr(records.Table, "__getitem__", lambda *_: pytest.fail("a record was opened"))
  assert source.captions[2] == "clip, “number” 2"


def test_one_runs_records_do_not_depend_on_workers_or_shards(clips, tmp_path):
  reports = [
    prepare(clips, tmp_path / str(size), clips_per_shard=size, max_seconds=1.0) for size in (1, 3)
  ]
  assert reports[0].num_records == reports[1].num_records
  a, b = (open_source(tmp_path / name, "train") for name in ("1", "3"))
  for one, two in zip(a.records, b.records, strict=True):
    assert one["frames"].strings == two["frames"].strings
    assert one["name"] == two["name"]
  bytes_of = [(tmp_path / name / index.FILE).read_bytes() for name in ("1", "3")]
  assert bytes_of[0] == bytes_of[1]


@pytest.fixture
def shapes_of_files(tmp_path):
  """Six pictures of three aspects; the one on its side is upright by its EXIF."""
  where = tmp_path / "aspects"
  where.mkdir()
  sides = [(40, 40), (30, 60), (60, 30), (33, 40), (24, 80), (60, 30)]
  for i, (height, width) in enumerate(sides):
    image = PIL.Image.new("RGB", (width, height), (40 * i, 0, 0))
    exif = image.getexif()
    if i == 5:
      exif[0x0112] = 6  # "rotate 90 degrees clockwise to display"
    image.save(where / f"{i}.png", exif=exif)
  write_jsonl(where, rows_of(6, "png"))
  return where


BUCKETS = ((16, 16), (12, 24), (24, 12))


def test_a_file_is_stored_at_the_bucket_of_the_nearest_aspect(shapes_of_files, tmp_path):
  report = prepare(shapes_of_files, tmp_path / "out", buckets=BUCKETS)
  source = open_source(tmp_path / "out", "train")
  assert source.size == (16, 16)
  expected = [(16, 16), (12, 24), (24, 12), (16, 16), (12, 24), (12, 24)]
  assert [tuple(size) for size in source.sizes.tolist()] == expected
  assert [r["frames"].shape for r in source.records] == [(1, *size, 3) for size in expected]
  assert report.arguments["buckets"] == BUCKETS
  with pytest.raises(InputError, match=r"size 16x24 is none of the buckets 16x16 12x24 24x12"):
    prepare(shapes_of_files, tmp_path / "other", size=(16, 24), buckets=BUCKETS)


def test_buckets_of_videos(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  for i, (height, width) in enumerate([(32, 64), (64, 32)]):
    write_numbered(where / f"{i}.mp4", 4, height=height, width=width)
  write_jsonl(where, rows_of(2))
  prepare(where, tmp_path / "out", buckets=BUCKETS)
  source = open_source(tmp_path / "out", "train")
  assert source.sizes.tolist() == [[12, 24], [24, 12]]
  assert [numbers(r["frames"][:]) for r in source.records] == [[0, 1, 2, 3]] * 2


def test_further_files_are_arrays_of_the_same_moments(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  write_numbered(where / "0.mp4", 24, fps=8)
  # Twice as fine, and longer: frame 2 i is shown when frame i of the other is.
  write_numbered(where / "edit.mp4", 60, fps=16)
  write_jsonl(where, [rows_of(1)[0] | {"source_file_name": "edit.mp4"}])
  prepare(where, tmp_path / "out", fps=4.0, max_seconds=2.0)
  source = open_source(tmp_path / "out", "train")
  assert source.arrays == ("frames", "source")
  first, second = source.records
  assert numbers(np.concatenate([first["frames"], second["frames"]])) == list(range(0, 24, 2))
  assert numbers(np.concatenate([first["source"], second["source"]])) == list(range(0, 48, 4))
  assert first["truth"] == b""  # a file's name is no fact of the clip


UNFIT = {
  "absent": ({}, "has no source_file_name"),
  "too short": ({"source_file_name": "short.mp4"}, "gives 5 frames"),
  "a picture": ({"source_file_name": "still.png"}, "mixes pictures and videos"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_further_file_that_does_not_fit_is_named(clips, tmp_path, name):
  columns, words = UNFIT[name]
  write_numbered(clips / "short.mp4", 5)
  PIL.Image.new("RGB", (16, 16)).save(clips / "still.png")
  good, bad = rows_of(2)
  write_jsonl(clips, [good | {"source_file_name": "1.mp4"}, bad | columns])
  report = prepare(clips, tmp_path / "out")
  assert report.num_records == {"train": 1}
  (skipped,) = report.skipped
  assert skipped.file_name == "1.mp4"
  assert words in skipped.reason


def test_masks_are_stored_without_loss_whatever_the_codec(tmp_path):
  where = tmp_path / "pictures"
  where.mkdir()
  noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  for name in ("0", "mask"):
    PIL.Image.fromarray(noise).save(where / f"{name}.png")
  write_jsonl(where, [rows_of(1, "png")[0] | {"mask_file_name": "mask.png"}])
  prepare(where, tmp_path / "out", codec="jpeg80")
  (record,) = open_source(tmp_path / "out", "train").records
  np.testing.assert_array_equal(record["mask"][0], noise)
  assert (record["frames"][0] != noise).any()
  with pytest.raises(InputError, match="codec='gif' is unknown"):
    prepare(where, tmp_path / "other", codec="gif")


def test_motion_of_a_tall_clip_is_that_of_the_wide_one_it_is_turned_to():
  """A share of the shorter side, whichever that is."""
  texture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
  texture = np.asarray(PIL.Image.fromarray(texture).resize((640, 384)))
  wide = np.stack([texture[:96, 2 * i : 2 * i + 192] for i in range(24)])
  # 2 px a frame at 16 frames/s of a shorter side of 96: 33 %/s
  found = [motion_percent(clip, 16.0) for clip in (wide, wide.swapaxes(1, 2))]
  np.testing.assert_allclose(found, 100 * 2 * 16 / 96, rtol=0.15)
  np.testing.assert_allclose(*found, rtol=1e-2)


def test_motion_is_measured_in_percent_of_the_shorter_side_a_second(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  texture = np.random.default_rng(0).integers(0, 256, (48, 160, 3), np.uint8)
  texture = np.asarray(PIL.Image.fromarray(texture).resize((320, 96)))  # no single-pixel noise
  # 1 px a frame at 16 frames/s of a height of 64: 25 %/s
  write_video(where / "0.mp4", [texture[:64, i : i + 96] for i in range(48)], fps=16)
  write_video(where / "1.mp4", [texture[:64, :96]] * 24)
  PIL.Image.fromarray(texture).save(where / "2.png")
  write_jsonl(where, [*rows_of(2), rows_of(3, "png")[2]])
  prepare(where, tmp_path / "out", size=(64, 96), motion=True)
  source = open_source(tmp_path / "out", "train")
  # Blocks that enter at the edge match nothing: at most one column in twelve.
  np.testing.assert_allclose(source.numbers["motion"], [25, 0, 0], rtol=0.1)
  write_jsonl(where, [row | {"motion": 1} for row in rows_of(2)])
  with pytest.raises(InputError, match="has a column 'motion'"):
    prepare(where, tmp_path / "other", motion=True)


def test_records_of_an_earlier_layout_are_refused(clips, tmp_path):
  out = tmp_path / "out"
  prepare(clips, out)
  with np.load(out / index.FILE) as columns:
    kept = {name: columns[name] for name in columns if name.startswith("train/")}
  np.savez(out / index.FILE, **kept)
  with pytest.raises(InputError, match=r"was packed by an earlier version.*pack it again"):
    open_source(out, "train")
  (out / index.FILE).unlink()
  with pytest.raises(InputError, match=r"was packed by an earlier version.*pack it again"):
    open_source(out, "train")


def test_an_unreadable_report_is_one_line(clips, tmp_path):
  prepare(clips, tmp_path / "out")
  (tmp_path / "out" / records.REPORT).write_text('{"argu')
  with pytest.raises(InputError, match=r"cannot be read .*; overwrite"):
    prepare(clips, tmp_path / "out")
  assert prepare(clips, tmp_path / "out", overwrite=True).num_packed == 4


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.999])
def test_validation_takes_nothing_where_it_would_starve_training(tmp_path, fraction):
  where = tmp_path / "clips"
  where.mkdir()
  PIL.Image.new("RGB", (16, 16)).save(where / "8.png")  # by its name one of the 5 % for validation
  write_jsonl(where, [{"file_name": "8.png", "text": "a"}] * 3)
  report = prepare(where, tmp_path / "out", validation_fraction=fraction)
  assert report.num_records == {"train": 3}
  (note,) = report.notes
  assert "no validation split" in note
  assert "\n" not in note
  assert prepare(where, tmp_path / "out", validation_fraction=fraction).notes == report.notes
  assert prepare(where, tmp_path / "all", validation_fraction=0.0).notes == ()


def test_the_split_is_the_same_for_both_ways_to_write_an_accent():
  rows = [folder.Row(f"e{i}.mp4", ("a",)) for i in range(200)]
  options = Options((16, 16), validation_fraction=0.5)
  composed, apart = (
    [dataclasses.replace(row, file_name=row.file_name.replace("e", e)) for row in rows]
    for e in ("\u00e9", "e\u0301")
  )
  assert folder.splits_of(composed, options) == folder.splits_of(apart, options)


def test_folders_of_splits_are_the_splits(tmp_path):
  where = tmp_path / "clips"
  for split, count in (("train", 40), ("val", 2), ("test", 3)):
    (where / split).mkdir(parents=True)
    for i in range(count):
      PIL.Image.new("RGB", (16, 16)).save(where / split / f"{i}.png")
      (where / split / f"{i}.txt").write_text(f"{split} {i}")
  report = prepare(where, tmp_path / "out", validation_fraction=0.9)
  assert report.num_records == {"train": 40, "validation": 2, "test": 3}
  assert report.notes == ()
  assert set(open_source(tmp_path / "out", "test").captions) == {f"test {i}" for i in range(3)}


def test_clips_without_a_caption_are_counted_and_named(tmp_path):
  where = tmp_path / "clips"
  where.mkdir()
  for name in ("a", "b", "c:d"):
    write_numbered(where / f"{name}.mp4", 5)
  (where / "a.txt").write_text("one\n\n two \n")
  (where / "c:d.txt").write_text("three")
  report = prepare(where, tmp_path / "out")
  assert (report.num_clips, report.num_packed) == (3, 2)
  ((name, reason),) = [(s.file_name, s.reason) for s in report.skipped]
  assert (name, reason) == ("b.mp4", "has no caption; write it into b.txt beside it")
  source = open_source(tmp_path / "out", "train")
  assert list(source.captions) == ["one", "three"]
  assert list(source.all_captions) == ["one", "two", "three"]
  assert [list(r["captions"]) for r in source.records] == [[b"one", b"two"], [b"three"]]


FULL = """
import resource, signal, sys
from emu_jax.data import folder
from emu_jax.train import command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pack = folder.shards.write
def write(shard, *rest):
  if shard.number == 2:  # a file may grow no further: as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
  pack(shard, *rest)
folder.shards.write = write
words = ["--size", "16", "--workers", "1", "--validation-fraction", "0", "--codec", "lossless"]
command.main(["prepare", sys.argv[1], "--out", sys.argv[2], *words])
"""


def test_a_full_disk_is_one_line_and_what_is_finished_is_kept(clips, tmp_path):
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", FULL, str(clips), str(tmp_path / "out")]
  done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
  assert done.returncode == 2, done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
  assert "cannot be written" in done.stderr
  assert "make room" in done.stderr
  assert not (tmp_path / "out").exists()
  kept = {path.name for path in (tmp_path / ".out.unfinished").iterdir()}
  assert {"train-00000.json", "train-00001.json"} <= kept
  assert "train-00002" not in kept
  assert prepare(clips, tmp_path / "out").num_records == {"train": 4}


def test_a_damaged_record_is_one_line_that_names_it(clips, tmp_path):
  prepare(clips, tmp_path / "out")
  source = open_source(tmp_path / "out", "train")
  (record,) = [r for r in source.records if r["name"] == b"2.mp4"]
  file = next(p for p in (tmp_path / "out").glob("*array_record*") if b"2.mp4" in p.read_bytes())
  whole = file.read_bytes()
  file.write_bytes(
    whole.replace(record["frames"].strings[0], bytes(len(record["frames"].strings[0])))
  )
  for act in (
    lambda: [r["frames"][:] for r in open_source(tmp_path / "out", "train").records],
    lambda: (file.write_bytes(whole[:200]), list(open_source(tmp_path / "out", "train").records)),
  ):
    with pytest.raises(InputError, match=r"out/train.*; copy the records again") as caught:
      act()
    assert "\n" not in str(caught.value)


def test_the_lock_of_a_packer_is_a_file(tmp_path):
  """Network file systems share the locks of files, and none of folders."""
  with records.staged(tmp_path / "a"), records.resumable(tmp_path / "b", {}) as work:
    for lock in (tmp_path / ".a.partial/lock", work / "lock"):
      with lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (work / "whole").mkdir()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
  assert not any((tmp_path / "a").iterdir())
