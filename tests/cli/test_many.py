"""Many requests in one call: what is made of which line, in batches, and continued."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from emu_jax import cli, media
from emu_jax.checkpoints.stored import stored
from emu_jax.cli import many
from emu_jax.cli.progress import Counter, counted
from emu_jax.data import decode
from emu_jax.data.metadata import read_metadata
from emu_jax.errors import InputError
from emu_jax.model import Model, load, outlined
from tests import tiny_runs
from tests.data.video_files import numbered

PROMPTS = ["a square", "red", "a circle"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tiny_runs.runs(tmp_path_factory.getbasetemp())


@pytest.fixture
def emu(runs):
  def emu(*words):
    model = ("--checkpoint", runs / "image") if "--checkpoint" not in words else ()
    cli.main([str(word) for word in (*words, *model, "--steps", 2)])

  return emu


@pytest.fixture
def refused(runs, capsys):
  def refused(*words):
    model = () if "--checkpoint" in words else ("--checkpoint", runs / "image")
    model = (*model, "--steps", 2)
    return tiny_runs.refusal(cli.main, ("sample", *words, *model), capsys)

  return refused


@pytest.fixture
def prompts(tmp_path):
  (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS[:1], "", *PROMPTS[1:]]) + "\n")
  return tmp_path / "prompts.txt"


def batches(monkeypatch):
  """Batches as they are run from now on: how many examples each has."""
  sizes, run = [], Model.run_all

  def counting(model, task, requests, **options):
    sizes.append(len(requests))
    return run(model, task, requests, **options)

  monkeypatch.setattr(Model, "run_all", counting)
  return sizes


PNG = ("--suffix", ".png", "--enlarge", 1)


def test_every_line_has_its_samples_its_seeds_and_its_row(
  emu, prompts, tmp_path, monkeypatch, capsys
):
  sizes, out = batches(monkeypatch), tmp_path / "many"
  emu("sample", "--prompts", prompts, "--out", out, "--samples", 2, "--batch-size", 4,
      "--seed", 10, *PNG)  # fmt: skip
  assert sizes == [4, 4]  # the last is filled up
  files = [f"{i:05d}_{j:02d}.png" for i in range(3) for j in range(2)]
  assert sorted(p.name for p in out.iterdir()) == [*files, "metadata.jsonl", "request.json"]
  rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
  assert [row["file_name"] for row in rows] == files
  assert [row["text"] for row in rows] == [p for p in PROMPTS for _ in range(2)]
  assert [row["seed"] for row in rows] == [10 + k for k in range(6)]
  printed, err = capsys.readouterr()
  assert not err  # nothing moves where there is no terminal
  assert f"{out}: 6 files, 6 of them new; metadata.jsonl names them" in printed
  assert [row.file_name for row in read_metadata(out)] == files  # as emu-train prepare reads it


def test_an_example_is_what_its_prompt_and_seed_give_alone(emu, runs, prompts, tmp_path):
  """At most one level in one pixel of a hundred: float32 sums in another order, the same noise."""
  out = tmp_path / "many"
  emu("sample", "--prompts", prompts, "--out", out, "--batch-size", 3, "--seed", 10, *PNG)
  model = load(runs / "image")
  for i, prompt in enumerate(PROMPTS):
    alone = model.sample(prompt, seed=10 + i, steps=2).frames[0, 0].astype(int)
    difference = np.abs(alone - np.asarray(PIL.Image.open(out / f"{i:05d}_00.png"), int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01
    assert np.ptp(alone) > 50


def test_what_is_there_is_not_made_again_and_what_is_not_is(
  emu, prompts, tmp_path, monkeypatch, capsys
):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  words = ("sample", "--prompts", prompts, "--samples", 2, "--batch-size", 4, *PNG, "--out")
  emu(*words, whole)
  shutil.copytree(whole, cut)
  for name in ("00000_01.png", "00002_00.png"):
    (cut / name).unlink()
  (cut / ".00002_00.png.7.part").write_bytes(b"half")
  (cut / "00001_00.png").write_bytes(b"kept")
  sizes = batches(monkeypatch)
  emu(*words, cut)
  assert sizes == [4]  # as large as before, so that nothing is compiled
  assert "2 of them new" in capsys.readouterr().out
  assert (cut / "00001_00.png").read_bytes() == b"kept"
  assert (cut / "metadata.jsonl").read_bytes() == (whole / "metadata.jsonl").read_bytes()
  for name in ("00000_01.png", "00002_00.png"):
    a, b = (np.asarray(PIL.Image.open(folder / name), int) for folder in (whole, cut))
    assert np.abs(a - b).max() <= 1
  monkeypatch.setattr("emu_jax.cli.many.loaded", None)  # weights are not read for nothing
  emu(*words, cut)
  assert "6 files, 0 of them new" in capsys.readouterr().out


def test_an_interruption_leaves_metadata_of_what_is_there(emu, prompts, tmp_path, monkeypatch):
  run, calls = Model.run_all, []

  def interrupted(model, task, requests, **options):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return run(model, task, requests, **options)

  monkeypatch.setattr(Model, "run_all", interrupted)
  out = tmp_path / "many"
  with pytest.raises(SystemExit) as ended:
    emu("sample", "--prompts", prompts, "--out", out, "--batch-size", 1, *PNG)
  assert ended.value.code == 130
  assert [row.file_name for row in read_metadata(out)] == ["00000_00.png"]


def test_another_request_does_not_go_into_the_same_folder(emu, refused, runs, prompts, tmp_path):
  out = tmp_path / "many"
  words = ("--prompts", prompts, "--out", out, "--batch-size", 2, *PNG)
  emu("sample", *words)
  before = {p: p.read_bytes() for p in out.iterdir()}
  for options, names in (
    (("--seed", 1), "requests"),
    (("--picture-guidance", 2), "requests"),
    (("--samples", 2), "samples, requests"),
    (("--precision", "bfloat16"), "precision"),
  ):
    says = f"{out}: holds the examples of another request ({names}); give another folder"
    assert says in refused(*words, *options)
  prompts.write_text("another\n")
  assert "another request (requests)" in refused(*words)
  assert {p: p.read_bytes() for p in out.iterdir()} == before
  other = tmp_path / "other"
  other.mkdir()
  (other / "mine").touch()
  assert "holds other files; give a new folder" in refused("x", "--samples", 2, "--out", other)


def test_samples_of_one_prompt_go_to_a_folder(emu, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  emu("sample", "red", "--samples", 2, *PNG)
  rows = [row.file_name for row in read_metadata(tmp_path / "sample")]
  assert rows == ["00000_00.png", "00000_01.png"]


def test_lines_of_json_have_fields_of_their_own(emu, runs, tmp_path, monkeypatch):
  """Lines of one program go together, whatever is between them; pictures are beside the file."""
  sizes, out = batches(monkeypatch), tmp_path / "out"
  (tmp_path / "in").mkdir()
  for i in range(2):
    PIL.Image.fromarray(numbered(20 * i, 24, 40)).save(tmp_path / "in" / f"{i}.png")
  lines = [
    {"prompt": "red", "image": "0.png"},
    {"text": "blue", "image": "1.png", "seed": 7},
    {"text": "red", "image": "0.png", "text_guidance": 3.0},
    {"prompt": "red"},
    {"prompt": "red", "image": "1.png", "negative": "blue"},
  ]
  file = tmp_path / "in" / "lines.jsonl"
  file.write_text("\n".join(map(json.dumps, lines)))
  emu("sample", "--prompts", file, "--out", out, "--checkpoint", runs / "video", "--seed", 3,
      "--batch-size", 2, "--suffix", ".gif", "--enlarge", 1)  # fmt: skip
  assert sizes == [2, 2, 1, 1]  # the last line goes with the first two, negative prompt or not
  rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
  assert [row["seed"] for row in rows] == [3, 7, 5, 6, 7]
  assert [row["text"] for row in rows] == ["red", "blue", "red", "red", "red"]
  assert rows[2]["text_guidance"] == 3.0
  made = {(out / row["file_name"]).read_bytes() for row in rows}
  assert len(made) == 5
  alone = load(runs / "video").sample("blue", image=tmp_path / "in" / "1.png", seed=7, steps=2)
  read = decode.frames_at(out / "00001_00.gif", np.arange(8) / 4, (16, 16),
                          decode.timeline(out / "00001_00.gif"))  # fmt: skip
  assert np.abs(read.astype(int) - alone.frames[0]).mean() < 8  # a GIF has 256 colours


@pytest.mark.parametrize(
  ("name", "text", "says"),
  [
    ("a.txt", "\n \n", "a.txt: holds no line"),
    ("a.csv", "red\n", "the ending '.csv' is not .txt or .jsonl"),
    ("a.jsonl", "{", "a.jsonl line 1: is not JSON"),
    ("a.jsonl", "[1]", "line 1: is no JSON object"),
    ("a.jsonl", '{"prompt": "a"}\n{"promt": "b"}', "line 2: has the field 'promt'; a request has"),
    ("a.jsonl", '{"prompt": "a"}\n\n{"seed": 3}', "line 3: has no field 'prompt'; write it"),
    ("a.jsonl", '{"prompt": "a", "steps": "2"}', "line 1: sample: steps: '2' is not of type int"),
    ("a.jsonl", '{"prompt": "a", "frames": 7}', "line 1: sample: frames=7 cannot be had"),
    ("a.jsonl", '{"prompt": "a", "image": "no.png"}', "line 1: sample: image with 1 frame would"),
    ("a.jsonl", '{"prompt": "a", "image": 3}', "line 1: image=3 is no file"),
    ("a.jsonl", '{"prompt": ["a", "b"]}', "line 1: sample: a line is one example"),
    ("a.jsonl", f'{{"prompt": "{"red " * 40}"}}', "line 1: Tokenizer: "),
    ("a.txt", "\udcff", "a.txt: cannot be read"),
    ("", "", "none.txt: cannot be read"),
  ],
)
def test_a_file_that_cannot_be_used_names_its_line_before_weights_are_read(
  name, text, says, refused, tmp_path, monkeypatch
):
  monkeypatch.setattr("emu_jax.cli.many.loaded", None)
  file = tmp_path / (name or "none.txt")
  if name:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
  before = sorted(tmp_path.iterdir())
  line = refused("--prompts", file, "--out", tmp_path / "out")
  assert says in line
  assert sorted(tmp_path.iterdir()) == before


def test_a_picture_that_is_missing_is_named_with_its_line(refused, runs, tmp_path, monkeypatch):
  monkeypatch.setattr("emu_jax.cli.many.loaded", None)
  (tmp_path / "a.jsonl").write_text('{"prompt": "a", "image": "no.png"}')
  words = ("--prompts", tmp_path / "a.jsonl", "--out", tmp_path / "out")
  line = refused(*words, "--checkpoint", runs / "video")
  assert "a.jsonl line 1: " in line
  assert "no.png is missing; name an existing file" in line


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (("--out", "{}/a.mp4"), "a.mp4: many examples go to a folder; give a name without an ending"),
    (("--out", "{}/prompts"), "prompts: is a file; give the name of a folder"),
    (("--out", "{}/no/out"), "there is no folder {}/no"),
    (("--out", "{}/out", "--suffix", ".avi"), "the ending '.avi' is not known"),
    (("--out", "{}/out", "--batch-size", 0), "batch_size=0 must be at least 1"),
    (("--out", "{}/out", "--seed", 2**64 - 2), f"seed={2**64} is no whole number from 0"),
  ],
)
def test_a_folder_that_cannot_be(words, says, refused, prompts, tmp_path):
  (tmp_path / "prompts").touch()
  words = [str(word).replace("{}", str(tmp_path)) for word in words]
  assert says.replace("{}", str(tmp_path)) in refused("--prompts", prompts, *words)
  assert not (tmp_path / "out").exists()


def test_a_request_without_a_prompt_takes_lines_with_a_text(runs, tmp_path):
  """Interpolation's prompt may be absent; where there is no prompt the text is a caption."""
  outline = outlined(stored(runs / "video"))
  request = outline.tasks["interpolate"].request
  file = tmp_path / "a.jsonl"
  file.write_text('{"clip": "a.mp4", "text": "a cat"}')
  (line,) = many.read_lines(request, file, {"steps": 2})
  assert line.fields == {"steps": 2, "prompt": "a cat", "clip": tmp_path / "a.mp4"}


def test_metrics_and_juice_read_what_was_made(emu, runs, prompts, tmp_path, capsys):
  made = []
  for name in ("a", "b"):
    made.append(tmp_path / name)
    emu("sample", "--prompts", prompts, "--out", made[-1], "--samples", 4,
        "--checkpoint", runs / "video", "--seed", len(name), "--text-guidance", len(made),
        "--batch-size", 12)  # fmt: skip
  cli.main(["metrics", "--generated", str(made[0]), "--reference", str(made[1]), "--shapes",
            "--frames", "8", "--out", str(tmp_path / "r.json")])  # fmt: skip
  report = json.loads((tmp_path / "r.json").read_text())
  assert report["generated"]["num_clips"] == 12
  capsys.readouterr()
  words = ["--a", made[0], "--b", made[1], "--prompts", made[0] / "metadata.jsonl"]
  cli.main(["juice", "make", *map(str, words), "--out", str(tmp_path / "page")])
  assert "12 pairs, matched by name" in capsys.readouterr().out


# What people see while they wait.


def test_a_pipe_gets_a_line_a_while_with_what_is_left(capsys):
  with Counter("making", "examples", 4, every=0.0) as counter:
    counter.says("batch 1 of 2, text -> image")
    counter.add(2)
  first, second = capsys.readouterr().err.splitlines()
  assert first == "batch 1 of 2, text -> image: 0 of 4 examples in 0 s"
  assert second == "batch 1 of 2, text -> image: 2 of 4 examples in 0 s, 0 s left"


def test_items_are_counted_as_they_are_taken(capsys):
  assert list(counted([3, 1], "drawing", "clips")) == [3, 1]
  assert list(counted(iter([3, 1]), "drawing", "clips", 2)) == [3, 1]
  assert not capsys.readouterr().err


def test_files_that_are_written_are_the_endings_that_are_known(tmp_path):
  for ending in media.ENDINGS:
    media.save_video(tmp_path / f"a{ending}", np.zeros((2, 16, 16, 3), np.uint8), 4)
  with pytest.raises(InputError):
    media.check_output(tmp_path / "a.avi")
