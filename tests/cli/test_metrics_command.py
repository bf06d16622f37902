"""The command emu-jax metrics: what it prints and writes, and what it says to bad input."""

import json

import pytest
from PIL import Image

from emu_jax import cli, media
from emu_jax.data import shapes
from emu_jax.evaluation import features
from tests.data.video_files import write_numbered
from tests.tiny_runs import refusal

FRAMES = 4


def clip(index, seed):
  return shapes.draw(shapes.scene("videos", "train", index, seed), 32)[: 4 * FRAMES : 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Twelve clips and twelve pictures each, generated and real."""
  base = tmp_path_factory.mktemp("sets")
  for seed, name in enumerate(("made", "real")):
    for kind in ("clips", "pictures"):
      (base / f"{name}_{kind}").mkdir()
    for i in range(12):
      frames = clip(i, seed)
      media.save_video(base / f"{name}_clips" / f"{i:02d}.mp4", frames, 4)
      Image.fromarray(frames[0]).save(base / f"{name}_pictures" / f"{i:02d}.png")
  return base


def run(*words):
  cli.main(["metrics", *(str(word) for word in words)])


def clips_of(folders):
  return ("--generated", folders / "made_clips", "--reference", folders / "real_clips")


def pictures_of(folders):
  return ("--generated", folders / "made_pictures", "--reference", folders / "real_pictures")


def test_clips_are_measured_and_the_report_has_every_count(folders, tmp_path, capsys):
  file = tmp_path / "a.json"
  run(*clips_of(folders), "--shapes", "--frames", FRAMES, "--out", file)
  out, err = capsys.readouterr()
  assert not err  # nothing moves where there is no terminal
  found = json.loads(file.read_text())
  assert [found[c]["num_clips"] for c in ("generated", "reference")] == [12, 12]
  assert found["generated"]["num_frames"] == FRAMES
  distances = found["generated"]["distances"]
  fid, fvd = (next(d for n, d in distances.items() if n.startswith(k)) for k in ("FID-o", "FVD-o"))
  assert (fid["n"], fvd["n"], fid["dims"]) == (12 * FRAMES, 12, 64)
  assert fid["low"] < fid["value"] < fid["high"]
  assert "12 samples of 64 features" in fvd["notice"]
  assert not found["reference"]["distances"]
  for column in found.values():
    assert column["estimates"]["h264_motion_score"]["n"] == 12
  for words in (
    "FID-o (shape features of frames)",
    "(48 to 48, bias",
    "(12 to 12",
    "12 samples of",
  ):
    assert words in out


def test_the_report_does_not_depend_on_batch_or_devices(folders, tmp_path):
  for name, words in (("a", ("--batch-size", 5)), ("b", ("--mesh.data", 8))):
    run(
      *clips_of(folders), "--shapes", "--frames", FRAMES, *words, "--out", tmp_path / f"{name}.json"
    )
  a, b = (json.loads((tmp_path / f"{n}.json").read_text())["generated"] for n in "ab")
  assert a["estimates"] == b["estimates"]
  for name, distance in a["distances"].items():
    for key in ("value", "low", "high"):
      assert b["distances"][name][key] == pytest.approx(distance[key], rel=1e-3, abs=1e-4)


def test_pictures_are_measured_with_a_users_own_weights(folders, tmp_path, monkeypatch):
  """The networks themselves: tests/evaluation/test_published_networks.py."""
  paths = []

  def fid(path):
    paths.append(path)
    rows = lambda params, x: x.reshape(x.shape[0], -1)[:, ::200]
    return features.Features("FID", "frames", 16, {}, rows)

  monkeypatch.setattr(features, "fid", fid)
  file = tmp_path / "fid.safetensors"
  run(*pictures_of(folders), "--fid-weights", file, "--out", tmp_path / "a.md")
  assert paths == [file]
  lines = (tmp_path / "a.md").read_text().splitlines()
  assert any(line.startswith("| FID | ") and "(12 to 12" in line for line in lines)
  assert "12 x 1 x 32 x 32" in lines[2]
  assert any(line.startswith("- FID: 12 samples of 16 features") for line in lines)
  assert not any("motion" in line for line in lines)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "nothing is to be measured; give --fid-weights"),
    (("--shapes", "--frames", 0), "frames=0 is not 1 or more"),
    (("--shapes", "--fps", 0), "fps=0.0 is not above 0"),
    (("--shapes", "--seed", -1), "seed=-1 is below 0"),
    (
      ("--shapes", "--frames", 5),
      "00.mp4 gives 4 frames at 4 fps, its own rate is 4; 5 frames are",
    ),
    (("--shapes", "--frames", 4, "--fps", 8), "gives 4 frames at 8 fps, its own rate is 4"),
    (("--shapes", "--out", "a.txt"), "the ending '.txt' is not known"),
    (
      ("--fid-weights", "no.safetensors", "--frames", 4),
      "there is no no.safetensors, to hold the Inception-v3 of FID",
    ),
    (("--clip", "no", "--frames", 4), "no/config.json is missing"),
    (("--shapes", "--frames", 4, "--prompts", "no.txt"), "prompts no.txt cannot be read"),
    (("--shapes", "--frames", 4, "--mesh.data", 9), "takes 9 devices"),
  ],
)
def test_bad_input_is_one_line(words, message, folders, capsys):
  line = refusal(cli.main, ["metrics", *clips_of(folders), *words], capsys)
  assert message in line


def test_sets_that_do_not_compare_are_refused(folders, tmp_path, capsys):
  made = folders / "made_clips"

  def refused(generated, reference, *words):
    sets = ("--generated", generated, "--reference", reference, "--shapes", "--frames", FRAMES)
    return refusal(cli.main, ["metrics", *sets, *words], capsys)

  assert "is no folder" in refused(tmp_path / "no", made)
  assert "holds no file that ends in" in refused(made, tmp_path)
  assert "generated are videos, reference are pictures" in refused(made, folders / "real_pictures")
  fast, mixed = tmp_path / "fast", tmp_path / "mixed"
  fast.mkdir(), mixed.mkdir()
  write_numbered(fast / "a.mp4", 20, fps=8)
  assert "generated clips have 4 fps and those of reference 8; motion" in refused(made, fast)
  for folder, number, fps in ((mixed, 0, 8), (mixed, 1, 12)):
    write_numbered(folder / f"{number}.mp4", 20, fps=fps)
  assert "has 8 fps and" in (line := refused(mixed, made))
  assert "give --fps, at most 8" in line
  Image.new("RGB", (8, 8)).save(mixed / "a.png")
  assert "holds 1 pictures and 2 videos" in refused(mixed, made)
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("one\ntwo\n")
  assert "holds 2 prompts for 12 clips" in refused(made, made, "--prompts", prompts)
