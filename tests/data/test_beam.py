"""A Beam pipeline packs what one process packs, continues what was killed, and repeats nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from video_files import write_numbered

from emu_jax.data import beam, clip_files, folder, index
from emu_jax.data.batches import open_source
from emu_jax.data.clip_files import Options
from emu_jax.data.metadata import Layout
from emu_jax.errors import InputError
from emu_jax.train import command
from tests.tiny_recipe import refusal

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = Options((16, 16), max_seconds=1.5, validation_fraction=0.3)
WITHOUT_BEAM = "Apache Beam is absent; install requirements-beam.txt"


@pytest.fixture
def needs_beam():
  pytest.importorskip("apache_beam", reason=WITHOUT_BEAM)


@pytest.fixture
def clips(tmp_path):
  """Twelve lines: ten clips of 5 + i frames at 8 fps, one file that is no video, one missing."""
  where = tmp_path / "clips"
  where.mkdir()
  for i in range(10):
    write_numbered(where / f"{i}.mp4", 5 + i)
  (where / "10.mp4").write_text("no video")
  rows = [{"file_name": f"{i}.mp4", "text": f"clip {i}", "score": i} for i in range(12)]
  (where / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
  return where


def pack(clips, out, **options):
  options = {"options": OPTIONS, "clips_per_shard": 2, "progress": False} | options
  return beam.prepare_folder(clips, out, **options)


def pack_here(clips, out):
  return folder.prepare_folder(clips, out, options=OPTIONS, workers=1, progress=False)


def stored(out, split):
  """A split's records in order, over all its files, every field of them."""
  return [
    (r["frames"].shape, r["frames"][:].tobytes(), r["fps"], r["caption"], r["name"], r["truth"])
    for r in open_source(out, split).records
  ]


def assert_same(one, two):
  """Record by record, not byte by byte: each process orders a record's fields in its own way."""
  for split in ("train", "validation"):
    assert len(stored(one, split)) > 1
    assert stored(one, split) == stored(two, split)
    a, b = (open_source(out, split) for out in (one, two))
    np.testing.assert_array_equal(a.num_frames, b.num_frames)
    np.testing.assert_array_equal(a.fps, b.fps)
    np.testing.assert_array_equal(a.numbers["score"], b.numbers["score"])
    assert list(a.captions) == list(b.captions)


def hidden(tmp_path):
  return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("needs_beam")
def test_beam_packs_what_one_process_packs(clips, tmp_path):
  here, there = tmp_path / "here", tmp_path / "there"
  one, two = pack_here(clips, here), pack(clips, there)
  assert_same(here, there)
  assert len(list(there.glob("*-train.*"))) > 2  # the order holds across files
  for name in ("num_clips", "num_packed", "num_records", "arguments", "skipped"):
    assert getattr(one, name) == getattr(two, name)
  assert {skipped.file_name for skipped in two.skipped} == {"10.mp4", "11.mp4"}
  written = json.loads((there / "report.json").read_text())
  assert len(written["skipped"]) == 2
  infos = [json.loads((out / "dataset_info.json").read_text()) for out in (here, there)]
  for info in infos:
    for split in info["splits"]:
      split["shardLengths"] = sum(map(int, split["shardLengths"]))
  assert infos[0] == infos[1]
  assert hidden(tmp_path) == []


@pytest.mark.usefixtures("needs_beam")
def test_running_again_changes_nothing_whoever_packed(clips, tmp_path):
  out = tmp_path / "out"
  pack(clips, out)
  stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
  assert pack(clips, out).existing
  assert pack(clips, out, clips_per_shard=5).existing  # the records would be the same
  assert pack_here(clips, out).existing
  assert stamps == {path: path.stat().st_mtime_ns for path in out.iterdir()}
  with pytest.raises(InputError, match=r"size=\[16, 16\] there, \[24, 24\] asked"):
    pack(clips, out, options=Options((24, 24), max_seconds=1.5, validation_fraction=0.3))
  again = pack(clips, out, overwrite=True)
  assert not again.existing
  assert hidden(tmp_path) == []


def test_a_shard_packed_twice_is_one_file(clips, tmp_path):
  rows = tuple(row for row in folder.read_metadata(clips))[:3]
  shard, made = folder.Shard("train", 7, rows), []
  for _ in range(2):
    folder.pack_shard(shard, clips, tmp_path, OPTIONS, Layout.of(rows))
    made.append({path.name: path.read_bytes() for path in tmp_path.glob("*train*")})
  assert made[0] == made[1]
  assert made[0].keys() == {"train-00007", "train-00007.json"}
  assert hidden(tmp_path) == []


KILLED = """
import sys, time
from emu_jax.data import beam, clip_files
opened = clip_files.open_files
def slow(folder, row, options, layout):
  if row.file_name == "8.mp4":
    print("half way", flush=True)
    time.sleep(60)
  return opened(folder, row, options, layout)
clip_files.open_files = slow
options = clip_files.Options((16, 16), max_seconds=1.5, validation_fraction=0.3)
beam.prepare_folder(
  sys.argv[1], sys.argv[2], options=options, clips_per_shard=2, progress=False
)
"""


@pytest.mark.usefixtures("needs_beam")
def test_a_killed_run_is_continued_and_repeats_no_finished_shard(clips, tmp_path, monkeypatch):
  here, there = tmp_path / "here", tmp_path / "there"
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  script = [sys.executable, "-c", KILLED, str(clips), str(there)]
  with subprocess.Popen(script, stdout=subprocess.PIPE, env=environment, text=True) as process:
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
  assert not there.exists()
  assert hidden(tmp_path) == [".there.unfinished"]
  shards = folder.plan(folder.read_metadata(clips), OPTIONS, 2)
  finished = [s for s in shards if (tmp_path / ".there.unfinished" / f"{s.name}.json").exists()]
  assert 0 < len(finished) < len(shards)
  opened, names = clip_files.open_files, []

  def counted(where, row, options, layout):
    names.append(row.file_name)
    return opened(where, row, options, layout)

  monkeypatch.setattr(clip_files, "open_files", counted)
  pack(clips, there)
  monkeypatch.undo()
  left = {row.file_name for shard in shards if shard not in finished for row in shard.rows}
  assert set(names) == left
  pack_here(clips, here)
  assert_same(here, there)
  assert hidden(tmp_path) == []


@pytest.mark.usefixtures("needs_beam")
def test_a_kill_while_files_are_renamed_is_continued(clips, tmp_path, monkeypatch):
  here, there = tmp_path / "here", tmp_path / "there"

  def dies(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(index, "write", dies)
    with pytest.raises(KeyboardInterrupt):
      pack(clips, there)
  whole = tmp_path / ".there.unfinished/whole"
  first = min(whole.glob("*-train.*"))
  first.rename(whole.parent / "train-00000")  # as though it had ended before this one
  pack(clips, there)
  pack_here(clips, here)
  assert_same(here, there)


@pytest.mark.usefixtures("needs_beam")
def test_another_job_takes_nothing_of_an_unfinished_one(clips, tmp_path, monkeypatch):
  made, out = clip_files.clip_records, tmp_path / "out"

  def fails_at_the_eighth(where, row, *rest):
    if row.file_name == "8.mp4":
      raise MemoryError
    return made(where, row, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(clip_files, "clip_records", fails_at_the_eighth)
    with pytest.raises(RuntimeError, match="MemoryError"):  # as Beam hands it on
      pack(clips, out)
  assert not out.exists()
  larger = Options((24, 24), max_seconds=1.5, validation_fraction=0.3)
  pack(clips, out, options=larger)
  assert {r["frames"].shape[1] for r in open_source(out, "train").records} == {24}


@pytest.mark.usefixtures("needs_beam")
def test_the_command_packs_with_the_runner_of_the_flags(clips, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the worker processes
  words = ["prepare", str(clips), "--out", str(tmp_path / "there"), "--size", "16"]
  words += ["--max-seconds", "1.5", "--validation-fraction", "0.3", "--clips-per-shard", "2"]
  flags = ["--runner=FnApiRunner", "--direct_num_workers=2"]
  flags += ["--direct_running_mode=multi_processing"]
  command.main([*words, "--runner", "beam", "--", *flags])
  printed = capsys.readouterr().out
  assert "10 of 12 clips packed" in printed
  assert "skipped 10.mp4" in printed
  pack_here(clips, tmp_path / "here")
  assert_same(tmp_path / "here", tmp_path / "there")


REFUSED = {
  "an address": (["--runner", "beam", "--out", "gs://bucket/x"], "is an address"),
  "no clips a shard": (["--runner", "beam", "--clips-per-shard", "0"], "clips_per_shard=0"),
  "flags without the runner": (["--", "--project=x"], "add --runner beam"),
}
REFUSED_BY_BEAM = {
  "a runner that is none": (["--", "--runner=Nobody"], "refuses --runner=Nobody"),
  "a flag's bad value": (["--", "--direct_num_workers=x"], "invalid int value: 'x'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_one_line(clips, tmp_path, capsys, name):
  given, line = REFUSED[name]
  before = set(tmp_path.iterdir())
  out = [] if "--out" in given else ["--out", tmp_path / "out"]
  assert line in refusal(command.main, ["prepare", clips, *out, *given], capsys)
  assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", REFUSED_BY_BEAM)
@pytest.mark.usefixtures("needs_beam")
def test_bad_flags_of_beam_are_one_line(clips, tmp_path, capsys, name):
  given, line = REFUSED_BY_BEAM[name]
  words = ["prepare", clips, "--out", tmp_path / "out", "--runner", "beam", *given]
  before = set(tmp_path.iterdir())
  assert line in refusal(command.main, words, capsys)
  assert set(tmp_path.iterdir()) == before


def test_without_beam_the_command_says_what_to_install(clips, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  words = ["prepare", clips, "--out", tmp_path / "out", "--runner", "beam"]
  assert "install requirements-beam.txt" in refusal(command.main, words, capsys)


@pytest.mark.usefixtures("needs_beam")
def test_nothing_readable_leaves_nothing(clips, tmp_path):
  for path in clips.glob("*.mp4"):
    path.write_text("no video")
  before = set(tmp_path.iterdir())
  with pytest.raises(InputError, match=r"none of the 12 clips .* can be read; the first: decode"):
    pack(clips, tmp_path / "out")
  assert set(tmp_path.iterdir()) == before
