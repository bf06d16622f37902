"""A folder of clips is packed whole or not at all, and what could not be read is named."""

import csv
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
from video_files import numbers, write_numbered

from emu_jax.data import folder, records
from emu_jax.data.batches import open_source
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


def prepare(clips, out, **options):
  options = {"size": 16, "validation_fraction": 0.0, "workers": 1, "progress": False} | options
  return folder.prepare_folder(clips, out, **options)


def packed(out, split="train"):
  return list(open_source(out, split).records)


def texts(out):
  return {(r["name"].decode(), r["caption"].decode(), r["truth"].decode()) for r in packed(out)}


def test_records_are_the_clips(clips, tmp_path):
  report = prepare(clips, tmp_path / "out")
  assert (report.num_clips, report.num_records, report.skipped) == (4, {"train": 4}, ())
  for i, record in enumerate(packed(tmp_path / "out")):
    assert record["frames"].shape == (10 + i, 16, 16, 3)
    assert record["frames"].dtype == np.uint8
    assert numbers(record["frames"]) == list(range(10 + i))
    assert record["fps"] == 8
    assert record["name"].decode() == f"{i}.mp4"
    assert record["caption"].decode() == f"clip, “number” {i}"
    assert record["truth"] == b""
  source = open_source(tmp_path / "out", "train")
  assert list(source.num_frames) == [10, 11, 12, 13]
  assert list(source.fps) == [8] * 4


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


@pytest.mark.parametrize(
  ("asked", "stored", "step"), [(4.0, 4.0, 2), (0.0, 8.0, 1), (30.0, 8.0, 1)]
)
def test_frames_are_stored_at_the_asked_rate_but_never_made_up(
  clips, tmp_path, asked, stored, step
):
  prepare(clips, tmp_path / "out", fps=asked)
  record = packed(tmp_path / "out")[3]
  assert record["fps"] == stored
  assert numbers(record["frames"]) == list(range(0, 13, step))


def test_the_split_goes_by_name_alone(pictures, tmp_path):
  prepare(pictures, tmp_path / "out", validation_fraction=0.2)
  held = {r["name"] for r in packed(tmp_path / "out", "validation")}
  rest = {r["name"] for r in packed(tmp_path / "out")}
  assert len(held | rest) == 300
  assert not held & rest
  assert abs(len(held) - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5  # five standard deviations
  write_jsonl(pictures, rows_of(300, "png")[:100])
  prepare(pictures, tmp_path / "fewer", validation_fraction=0.2)
  assert {r["name"] for r in packed(tmp_path / "fewer", "validation")} < held
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
  with pytest.raises(InputError, match="size=16 there, 24 asked"):
    prepare(clips, out, size=24)
  write_numbered(clips / "0.mp4", 30)
  with pytest.raises(InputError, match=r"contents=\w+ there"):
    prepare(clips, out)
  assert prepare(clips, out, size=24, overwrite=True).num_records == {"train": 4}
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
  "no metadata": (lambda w: (w / "metadata.jsonl").unlink(), "no metadata.jsonl or metadata.csv"),
  "both": (lambda w: (w / "metadata.csv").write_text("file_name,text\n"), "both"),
  "no line": (metadata("metadata.jsonl", "\n"), "0 clips"),
  "no JSON": (metadata("metadata.jsonl", "{}\nfile"), "line 1 has no text|line 2 is not"),
  "broken JSON": (metadata("metadata.jsonl", '{"file_name": '), "line 1 is not a JSON object"),
  "missing column": (
    metadata("metadata.csv", "file_name,caption\n0.mp4,a\n"),
    r"column 'text', its columns are \['caption', 'file_name'\]",
  ),
  "stray comma": (metadata("metadata.csv", "file_name,text\n0.mp4,a, b\n"), "line 2 has not the 2"),
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
  with pytest.raises(InputError, match="size=4 is below 8"):
    prepare(clips, tmp_path / "out", size=4)


def test_a_failure_leaves_nothing(clips, tmp_path, monkeypatch):
  read, before = folder.read_part, set(tmp_path.iterdir())

  def fails_at_the_third(path, part, options):
    if path.name == "2.mp4":
      raise MemoryError
    return read(path, part, options)

  monkeypatch.setattr(folder, "read_part", fails_at_the_third)
  with pytest.raises(MemoryError):
    prepare(clips, tmp_path / "out")
  assert set(tmp_path.iterdir()) == before


def test_two_writers_do_not_mix(tmp_path):
  with records.staged(tmp_path / "out") as partial:
    (partial / "file").write_text("mine")
    with pytest.raises(InputError, match="another process"), records.staged(tmp_path / "out"):
      pass
    assert (partial / "file").exists()
  assert (tmp_path / "out/file").read_text() == "mine"


KILLED = """
import sys, time
from emu_jax.data import folder
read = folder.read_part
def slow(path, part, options):
  if path.name == "2.mp4":
    loaded = [name in sys.modules for name in ("tensorflow", "jax")]
    print("half way", *loaded, file=sys.__stdout__, flush=True)  # TFDS is kept quiet on stdout
    time.sleep(60)
  return read(path, part, options)
folder.read_part = slow
folder.prepare_folder(sys.argv[1], sys.argv[2], size=16, workers=1, validation_fraction=0.0)
"""


def test_a_killed_run_leaves_nothing_under_the_name(clips, tmp_path):
  out = tmp_path / "out"
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED, str(clips), str(out)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
    # Neither of them: packing starts no TensorFlow, and its processes start without JAX.
    assert process.stdout.readline() == "half way False False\n"
    process.send_signal(signal.SIGKILL)
  assert not out.exists()
  assert (tmp_path / ".out.partial").exists()
  assert prepare(clips, out).num_records == {"train": 4}
  assert not (tmp_path / ".out.partial").exists()


READER = """
import sys
from emu_jax.data import batches, folder, shapes
source = batches.open_source(sys.argv[1], "train")
spec = batches.ClipSpec(4, 8.0)
with_frames = next(batches.batches(source, spec=spec, batch_size=2, seed=0))
print(with_frames["frames"].shape, "tensorflow" in sys.modules)
"""


def test_reading_needs_no_tensorflow(clips, tmp_path):
  prepare(clips, tmp_path / "out")
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", READER, str(tmp_path / "out")]
  done = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
  assert done.stdout == "(2, 4, 16, 16, 3) False\n"


def test_decoding_processes_end_with_their_parent(tmp_path):
  script = (
    "import os, signal, time\n"
    "from emu_jax.data import folder\n"
    "if __name__ == '__main__':\n"
    "  with folder._submitter(2, 99) as submit:\n"
    "    print(submit(os.getpid)(), flush=True)\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  (tmp_path / "parent.py").write_text(script)
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  with (tmp_path / "pid").open("w") as pid:  # no pipe: an orphan would hold it open
    command = [sys.executable, str(tmp_path / "parent.py")]
    subprocess.run(command, stdout=pid, env=environment, check=False)
  worker = int((tmp_path / "pid").read_text())
  for _ in range(100):
    if not pathlib.Path(f"/proc/{worker}").exists() or "Z" in state(worker):
      return
    time.sleep(0.1)
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
