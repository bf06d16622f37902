"""Of packed clips, those that move most are kept: a command, and what it refuses."""

import json
import shutil

import pytest

from emu_jax.data.batches import open_source
from emu_jax.data.shapes import prepare_shapes
from experiments.chosen_clips import scores
from experiments.lively import main


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  out = tmp_path_factory.mktemp("shapes")
  prepare_shapes(out, size=32, num_images=10, num_clips=24, seed=0)
  return out / "videos"


def words(records):
  return [json.loads(records[i]["truth"]) for i in range(len(records))]


def test_it_keeps_the_clips_of_the_highest_scores_and_all_that_validate(clips, tmp_path, capsys):
  main(["--clips", str(clips), "--out", str(tmp_path / "lively"), "--num", "5"])
  assert "5 of 24 clips" in capsys.readouterr().out
  kept = words(open_source(tmp_path / "lively", "train").records)
  every = words(open_source(clips, "train").records)
  found = dict(zip(map(json.dumps, every), scores(clips), strict=True))
  others = [score for truth, score in found.items() if truth not in map(json.dumps, kept)]
  assert len(kept) == 5
  assert min(found[json.dumps(truth)] for truth in kept) >= max(others)
  assert {truth["speed"] for truth in kept} == {"quickly"}
  records = [open_source(folder, "validation").records for folder in (clips, tmp_path / "lively")]
  assert words(records[0]) == words(records[1])


@pytest.mark.parametrize("num", ["0", "25"])
def test_more_clips_than_there_are_cannot_be_chosen(clips, tmp_path, capsys, num):
  with pytest.raises(SystemExit) as stopped:
    main(["--clips", str(clips), "--out", str(tmp_path / "lively"), "--num", num])
  assert stopped.value.code == 2
  assert "choose 1 to 24" in capsys.readouterr().err
  assert not (tmp_path / "lively").exists()


def test_what_is_there_is_kept(clips, tmp_path, capsys):
  """The same command again changes nothing; another one, or the clips' own folder, is refused."""
  out = tmp_path / "lively"
  ask = lambda out, num: main(["--clips", str(clips), "--out", str(out), "--num", num])
  ask(out, "3")
  before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
  ask(out, "3")
  assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
  first, second = capsys.readouterr().out.splitlines()
  assert first == second
  for refused, num in ((out, "4"), (clips, "3")):
    with pytest.raises(SystemExit) as stopped:
      ask(refused, num)
    assert stopped.value.code == 2
  assert len(open_source(clips, "train").records) == 24
  assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_clips_that_were_packed_anew_are_chosen_anew(clips, tmp_path, capsys):
  packed, out = tmp_path / "packed" / "videos", tmp_path / "lively"
  shutil.copytree(clips, packed)
  main(["--clips", str(packed), "--out", str(out), "--num", "3"])
  shutil.rmtree(packed.parent)
  prepare_shapes(packed.parent, size=32, num_images=10, num_clips=24, seed=1)
  with pytest.raises(SystemExit) as stopped:
    main(["--clips", str(packed), "--out", str(out), "--num", "3"])
  assert stopped.value.code == 2
  assert "from other arguments (clips=" in capsys.readouterr().err
