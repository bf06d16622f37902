"""The command emu-train, as a user gives it: what it makes, and what it says to bad input."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from emu_jax import cli
from emu_jax.checkpoints.run import latest_step, load_ema
from emu_jax.checkpoints.stored import newest_run
from emu_jax.data.batches import Source
from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.train import command, packing
from emu_jax.train.clips import stage_tokenizers, tell_of_cuts
from emu_jax.train.config import load_stages
from tests import tiny_recipe
from tests.data.video_files import write_numbered, write_video

STAGES = ("autoencoder", "image", "video", "interpolation", "extension")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def runs(base):
  return tiny_recipe.trained(base)


@pytest.fixture
def run(base):
  """Gives `emu-train run` of the tiny recipe, on one device."""

  def run(*words):
    with tiny_recipe.one_device():
      command.main(["run", "--config", str(tiny_recipe.config(base)), *map(str, words)])

  return run


@pytest.fixture
def refused(base, capsys):
  """The line with which `emu-train run` of the tiny recipe ends."""

  def refused(*words, config=None):
    tiny_recipe.shapes(base)  # what it prints is no part of the test
    with tiny_recipe.one_device():
      words = ["run", "--config", config or tiny_recipe.config(base), *words]
      return tiny_recipe.refusal(command.main, words, capsys)

  return refused


# What a recipe leaves.


def test_a_recipe_leaves_a_run_of_each_stage(runs):
  assert {folder.name for folder in runs.iterdir()} == set(STAGES)
  for stage in STAGES:
    assert latest_step(runs / stage) == 2
    lines = [json.loads(line) for line in (runs / stage / "metrics.jsonl").read_text().splitlines()]
    values = {name for line in lines for name in line}
    assert {"train/loss", "validation/loss", "time/clips_per_s", "time/data_wait"} <= values
    assert not list((runs / stage).glob("*part*"))


def test_each_stage_begins_with_the_run_before_it(runs):
  for before, stage in itertools.pairwise(STAGES):
    config = json.loads((runs / stage / "config.json").read_text())
    assert config["init_from"] == str(runs / before)


def test_tokenizers_are_learned_once_and_handed_on(runs):
  assert not (runs / "autoencoder" / "tokenizers").exists()
  for encoder in ("0", "1"):
    files = [runs / s / "tokenizers" / encoder / "tokenizer.json" for s in STAGES[1:]]
    assert len({file.read_bytes() for file in files}) == 1


def test_captions_that_are_cut_are_counted(tmp_path, capsys):
  captions = ["a red circle", "a red circle " * 20] * 3
  file = train_tokenizer(captions, tmp_path / "tokenizer.json", 300)
  counts = np.ones(6, np.int32), np.ones(6, np.float32)
  source = Source("clips/train", (32, 32), [], *counts, captions=captions)
  tell_of_cuts((load_tokenizer(file, 77), load_tokenizer(file, 8)), [source])
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(
    "text encoder 1: 3 of 6 captions that were read have more than max_length=8"
  )


def test_what_is_complete_is_not_trained_again(runs, run, capsys):
  before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
  run("--out", runs)
  out, err = capsys.readouterr()
  assert out.count("complete at step 2, not trained again") == len(STAGES)
  assert not err
  assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_goes_on_to_the_same_weights(runs, run, tmp_path, capsys):
  run("--out", tmp_path, "--stage", "autoencoder", "--loop.num_steps", "1")
  assert latest_step(tmp_path / "autoencoder") == 1
  capsys.readouterr()
  run("--out", tmp_path, "--stage", "autoencoder")
  assert "continuing from step 1" in capsys.readouterr().err
  resumed, whole = (load_ema(folder / "autoencoder")[1] for folder in (tmp_path, runs))
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize(("done", "number"), [(False, 15), (True, 15), (True, 2)])
def test_a_stage_that_was_stopped_stops_the_recipe(run, tmp_path, monkeypatch, done, number):
  """Also where the signal came during its last save; the exit code is the signal's."""
  parts = []

  def train_part(experiment, folder, stop):
    parts.append(experiment.part)
    stop._receive(number, None)
    return done

  monkeypatch.setattr(command, "train_part", train_part)
  with pytest.raises(SystemExit) as ended:
    run("--out", tmp_path)
  assert ended.value.code == 128 + number
  assert parts == ["autoencoder"]


def test_a_signal_during_the_last_save_of_all_is_no_failure(run, tmp_path, monkeypatch):
  def train_part(experiment, folder, stop):
    stop._receive(15, None)
    return True

  monkeypatch.setattr(command, "train_part", train_part)
  run("--out", tmp_path, "--stage", "autoencoder")


@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_a_signal_outside_of_training_ends_the_command_at_once(number, code, monkeypatch):
  """Such as while records are opened or weights are read."""
  monkeypatch.setattr(command, "run", lambda *arguments: signal.raise_signal(number))
  # What a shell starts in the background ignores Ctrl-C.
  ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as ended:
    command.main(["run", "--config", "config.py"])
  signal.signal(signal.SIGINT, ctrl_c)
  assert ended.value.code == code
  assert signal.getsignal(signal.SIGTERM) is before


def test_fields_reach_the_run_and_its_config(run, tmp_path):
  words = ["--loop.num_steps", "1", "--optim.peak-lr", "0.003", "--loop.sample_every=0"]
  run("--out", tmp_path, "--stage", "autoencoder", *words)
  config = json.loads((tmp_path / "autoencoder" / "config.json").read_text())
  assert config["optim"]["peak_lr"] == 0.003
  assert config["loop"]["sample_every"] == 0
  assert not (tmp_path / "autoencoder" / "samples").exists()


def test_init_from_is_for_the_first_of_the_chosen_stages(base, runs):
  arguments = command.Run(tiny_recipe.config(base), stage=("video", "interpolation"))
  stages = load_stages(str(arguments.config))
  words = ["--init_from", str(runs / "image")]
  planned = command.planned(arguments, stages, base / "elsewhere", words)
  assert [experiment.init_from for experiment, _ in planned] == [
    str(runs / "image"), str(base / "elsewhere" / "video")
  ]  # fmt: skip


def test_a_stage_begins_with_a_release_as_with_its_run(runs, run, tmp_path):
  cli.main(["convert", str(runs / "image"), str(tmp_path / "image"), "--to", "safetensors"])
  run("--out", tmp_path, "--stage", "video", "--init_from", tmp_path / "image")
  handed_on, whole = (load_ema(folder / "video")[1] for folder in (tmp_path, runs))
  jax.tree.map(np.testing.assert_array_equal, handed_on, whole)


def test_several_runs_of_a_stage_have_folders_of_their_own(base, tmp_path):
  """And each begins with the one before it; `--stage` takes their names."""
  file = tmp_path / "several.py"
  source = tiny_recipe.config(base).read_text()
  names = 'replace(STAGES[2], name="small"), replace(STAGES[2], name="large")'
  file.write_text(f"{source}\nfrom dataclasses import replace\nSTAGES = ({names})\n")
  words = ["--init_from", str(tiny_recipe.trained(base) / "image")]
  both = command.planned(command.Run(file), load_stages(str(file)), tmp_path, words)
  assert [folder.name for _, folder in both] == ["small", "large"]
  assert both[1][0].init_from == str(tmp_path / "small")
  assert [experiment.part for experiment, _ in both] == ["video", "video"]
  chosen = command.planned(
    command.Run(file, stage=("large",)), load_stages(str(file)), tmp_path, words
  )
  assert [folder.name for _, folder in chosen] == ["large"]


def test_two_runs_of_one_name_are_refused(base, tmp_path, refused):
  file = tmp_path / "twice.py"
  file.write_text(tiny_recipe.config(base).read_text() + "\nSTAGES = (STAGES[2], STAGES[2])\n")
  assert "2 of its STAGES would train in the folder 'video'" in refused(config=file)


def test_validation_is_the_same_at_every_call(run, tmp_path):
  """At a rate of 0 nothing else could change the loss either."""
  words = ["--optim.peak_lr", "0", "--loop.validate_every", "1", "--loop.sample_every", "0"]
  run("--out", tmp_path, "--stage", "autoencoder", *words)
  lines = map(json.loads, (tmp_path / "autoencoder/metrics.jsonl").read_text().splitlines())
  losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
  assert len(losses) == 2
  assert losses[0] == losses[1]


def test_the_users_own_tokenizers_are_kept_with_the_run(base, tmp_path):
  experiment = next(e for e in load_stages(str(tiny_recipe.config(base))) if e.part == "image")
  named = [train_tokenizer(["red circle"], tmp_path / f"{i}.json", 270) for i in range(2)]
  data = dataclasses.replace(experiment.data, tokenizers=tuple(map(str, named)))
  experiment = dataclasses.replace(experiment, data=data)
  (tmp_path / "weights.safetensors").touch()  # of the model that the tokenizer came with
  (tmp_path / "run").mkdir()
  kept = stage_tokenizers(experiment, tmp_path / "run", [])
  assert [t.max_length for t in kept] == [12, 10]
  text = ["a red circle"]
  expected = load_tokenizer(named[0], 12).encode(text)
  assert kept[0].encode(text) == expected
  files = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "run").rglob("*.*"))
  assert files == ["run/tokenizers/0/tokenizer.json", "run/tokenizers/1/tokenizer.json"]


def test_training_that_diverges_says_so_in_one_line(run, tmp_path, capsys):
  words = ["--optim.peak_lr", "1e30", "--loop.num_steps", "9", "--loop.validate_every", "0"]
  with pytest.raises(SystemExit) as ended:
    run("--out", tmp_path, "--stage", "autoencoder", *words, "--loop.sample_every", "0")
  assert ended.value.code == 1
  assert re.match(r"emu-train: error: train: .* not finite at step \d",
                  capsys.readouterr().err.splitlines()[-1])  # fmt: skip


def test_fields_are_listed_with_their_values_and_meanings(base, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main(["run", "--config", str(tiny_recipe.config(base)), "--fields"])
  assert not ended.value.code
  out = capsys.readouterr().out
  assert "Values of stage 'extension'; --stage lists those of autoencoder, image," in out
  assert "--loop.num-steps" in out
  assert "--system.image.text.0.width" in out


def test_fields_of_a_stage_are_listed_to_whoever_reads_on(base):
  """As `head` does, which closes its end."""
  words = ["run", "--config", str(tiny_recipe.config(base)), "--fields", "--stage", "image"]
  program = "import sys; from emu_jax.train import command; command.main(sys.argv[1:])"
  root = pathlib.Path(__file__).parents[2]
  with subprocess.Popen(
    [sys.executable, "-c", program, *words],
    env=os.environ | {"PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline().startswith("Values of stage 'image'")
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 0


@pytest.mark.parametrize("words", [[], ["run"], ["prepare"]])
def test_help_has_a_text_for_every_option(words, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main([*words, "--help"])
  assert not ended.value.code
  out = " ".join(capsys.readouterr().out.replace("│", " ").split())
  for option in re.findall(r"--[a-z-]+ (?:PATH|INT|FLOAT)", out):
    assert not re.search(re.escape(option) + r" \((default|required)", out), option


# Packing.


def metadata(folder, rows, name="metadata.jsonl"):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def clips(folder, *names):
  """A folder with a good clip of 12 frames and whatever other files the test has put there."""
  metadata(folder, [{"file_name": name, "text": f"clip {name}"} for name in ("good.mp4", *names)])
  write_numbered(folder / "good.mp4", 12)
  return folder


def pack(source, out, *words):
  words = ["--size", "16", "--validation-fraction", "0", "--workers", "1", *words]
  command.main(["prepare", str(source), "--out", str(out), *words])


def test_packing_says_what_was_packed_and_what_was_left_out_and_why(tmp_path, capsys):
  folder = clips(tmp_path / "clips", "missing.mp4", "text.mp4", "empty.mp4", "cut.mp4")
  (folder / "text.mp4").write_text("no video")
  write_video(folder / "empty.mp4", [])
  whole = write_numbered(tmp_path / "whole.mp4", 40).read_bytes()
  (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  pack(folder, tmp_path / "out")
  out, err = capsys.readouterr()
  assert not err  # no bar where there is no terminal
  lines = out.splitlines()
  assert lines[0] == f"{tmp_path}/out: 1 of 5 clips packed as 1 train records of 16x16 pixels"
  skipped = {line.split()[1].rstrip(":"): line for line in lines if line.startswith("  skipped")}
  assert set(skipped) == {"missing.mp4", "text.mp4", "empty.mp4", "cut.mp4"}
  assert "is missing" in skipped["missing.mp4"]
  assert re.fullmatch(r"done in \d+\.\d s", lines[-1])

  pack(folder, tmp_path / "out")
  assert "was there already" in capsys.readouterr().out


def test_packing_names_only_the_first_of_many_skipped_clips(tmp_path, capsys):
  pack(clips(tmp_path / "clips", *(f"{i}.mp4" for i in range(30))), tmp_path / "out")
  out = capsys.readouterr().out
  assert out.count("skipped") == packing.SHOWN
  assert f"and 20 more; {tmp_path}/out/report.json names them all" in out


def test_drawing_says_what_was_drawn(tmp_path, capsys):
  words = ["--size", "16", "--num-images", "2", "--num-clips", "1"]
  command.main(["prepare", "shapes", "--out", str(tmp_path / "shapes"), *words])
  out, err = capsys.readouterr()
  assert not err
  assert f"{tmp_path}/shapes/images: 2 train, 1 validation, 1 test records of 16x16" in out


def bad_folder(tmp_path, kind):
  """A folder that cannot be packed."""
  folder = tmp_path / "clips"
  if kind == "missing folder":
    return folder
  folder.mkdir()
  if kind == "empty folder":
    return folder
  if kind == "no metadata":
    write_numbered(folder / "a.mp4", 12)
    return folder
  row = {"file_name": "a.mp4", "text": "a clip"}
  if kind == "no text column":
    return metadata(folder, [{"file_name": "a.mp4", "words": "a clip"}])
  if kind == "no file_name column":
    (folder / "metadata.csv").write_text("clip,text\na.mp4,a clip\n")
    return folder
  if kind == "broken json":
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", \n')
    return folder
  if kind == "no clips":
    (folder / "metadata.csv").write_text("file_name,text\n")
    return folder
  metadata(folder, [row])
  if kind == "missing clip":
    return folder
  if kind == "text file":
    (folder / "a.mp4").write_text("no video")
  if kind == "zero frames":
    write_video(folder / "a.mp4", [])
  if kind == "empty file":
    (folder / "a.mp4").touch()
  if kind == "truncated":
    whole = write_numbered(tmp_path / "whole.mp4", 40).read_bytes()
    (folder / "a.mp4").write_bytes(whole[: len(whole) // 2])
  return folder


@pytest.mark.parametrize(
  ("kind", "says"),
  [
    ("missing folder", "clips is not a folder; name the folder that holds the clips"),
    ("empty folder", "clips is empty; put clips and a metadata.jsonl in it"),
    ("no metadata", "holds no metadata.jsonl, metadata.csv, metadata.parquet, and no clip"),
    ("no text column", "line 1 has no text in the column 'text', its columns are"),
    ("no file_name column", "line 2 has no text in the column 'file_name'"),
    ("broken json", "metadata.jsonl line 1 is not a JSON object"),
    ("no clips", "metadata.csv holds 0 clips; write a line for each"),
    ("missing clip", "names 1 clips and none exists, the first being 'a.mp4'"),
    ("text file", "a.mp4 cannot be read as video"),
    ("zero frames", "a.mp4"),
    ("empty file", "a.mp4 cannot be read as video"),
    ("truncated", "a.mp4"),
  ],
)
def test_a_folder_that_cannot_be_packed(kind, says, tmp_path, capsys):
  words = ["prepare", bad_folder(tmp_path, kind), "--out", tmp_path / "out", "--workers", "1"]
  line = tiny_recipe.refusal(command.main, words, capsys)
  assert line.startswith("emu-train: error: prepare: ")
  assert says in line
  assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("--size 4", "size=4 of 4x4 is below 8; raise it"),
    ("--workers 0", "workers=0 is below 1"),
    ("--seed -1", "seed=-1 is below 0"),
    ("--fps nan", "fps=nan is not a number"),
    ("--fps -1", "fps=-1.0 is below 0"),
    ("--max-seconds inf", "max_seconds=inf is not a number"),
    ("--max-seconds 0", "max_seconds=0.0 is below 0.1"),
    ("--validation-fraction 1.5", "validation_fraction=1.5 is not in [0, 1); try 0.05"),
    ("--nonsense 3", "--nonsense is not an option; see"),
  ],
)
def test_packing_with_a_number_out_of_range(words, says, tmp_path, capsys):
  folder = clips(tmp_path / "clips")
  words = ["prepare", folder, "--out", tmp_path / "out", *words.split()]
  assert says in tiny_recipe.refusal(command.main, words, capsys)
  assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
  ("words", "says"),
  [("--num-clips 0", "num_clips=0"), ("--size 8", "size=8"), ("--seed -5", "seed=-5")],
)
def test_drawing_with_a_number_out_of_range(words, says, tmp_path, capsys):
  words = ["prepare", "shapes", "--out", tmp_path / "out", *words.split()]
  assert says in tiny_recipe.refusal(command.main, words, capsys)
  assert not list(tmp_path.glob("*out*"))


def test_packing_where_something_is_in_the_way(tmp_path, capsys):
  folder = clips(tmp_path / "clips")
  (tmp_path / "file").write_text("mine")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "notes").write_text("mine")
  pack(folder, tmp_path / "packed")
  for out, words, says in (
    ("file", (), "exists and was not made by prepare; name a new or an empty folder"),
    ("full", (), "exists and was not made by prepare"),
    ("file/below", (), "cannot be written (Not a directory)"),
    (
      "packed",
      ("--size", "24"),
      "was prepared from other arguments (size=[16, 16] there, [24, 24] asked",
    ),
  ):
    words = ["prepare", folder, "--out", tmp_path / out, *words]
    assert says in tiny_recipe.refusal(command.main, words, capsys)
  assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes").read_text() == "mine"


# Training.


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (None, "there is no such file; give a path, or the name of one that ships: emu_2b7, "),
    ("STAGES = (", "config"),
    ("MODEL = 3", "defines no STAGES"),
    ("STAGES = (1, 2)", "defines no STAGES"),
    ("from emu_jax.train.config import DataConfig\nDataConfig(batchsize=3)", "'batchsize'"),
    ("from emu_jax.train.loop import LoopConfig\nLoopConfig(num_steps=0)",
     "num_steps=0 is below 1"),
    ("from emu_jax.diffusion.schedule import Schedule\nSchedule(zero_terminal_snr=True)",
     "prediction='epsilon' with zero_terminal_snr=True"),
    ("import no_such_module", "no_such_module"),
    ("{}['a']", "KeyError"),
    ("1 / 0", "ZeroDivisionError"),
    ("raise SystemExit('enough')", "SystemExit: enough"),
  ],
)  # fmt: skip
def test_a_config_file_that_cannot_be_used(text, says, refused, tmp_path):
  file = tmp_path / "config.py"
  if text is not None:
    file.write_text(text)
  line = refused("--out", tmp_path / "runs", config=file)
  assert str(file) in line
  assert says in line
  assert not (tmp_path / "runs").exists()


def test_a_config_file_that_is_not_python(refused, tmp_path):
  (tmp_path / "config.yaml").write_text("stages: []")
  assert "not a Python file; give one that ends in .py" in refused(config=tmp_path / "config.yaml")


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("--loop.steps 3", "--loop.steps: LoopConfig has no field 'steps'; it has num_steps"),
    ("--loop.num_steps 0", "num_steps=0 is below 1; give 1 or more"),
    ("--loop.num_steps few", "--loop.num_steps: 'few' is not of type int"),
    ("--system.image.size 20 16", "size=20x16 pixels must be multiples of 8"),
    (
      "--system.process.schedule.prediction epsilon",
      "prediction='epsilon' with zero_terminal_snr=True",
    ),
    ("--system.image.unet.context_dims 8 8", "context_dims=(8, 8) must be the widths (8, 12)"),
    ("--data.drop_text 2", "drop_text=2.0"),
    ("--data.batch_size 0", "--data.batch_size 0"),
    ("--optim.accumulate 3", "batch_size=4 must be a multiple of optim.accumulate=3"),
    ("--optim.peak_lr nan", "nan is not a finite number"),
    ("--system.fps -1", "fps=-1.0 must both be positive"),
    ("--system.num_frames 0", "clip of 0 frames"),
    ("--stage movie", "has no such stage; choose of autoencoder, image, video, interpolation"),
    ("--stage video", "which holds no checkpoint, release or pipeline of diffusers; train"),
    ("--stage video --init_from nowhere", "begins with nowhere, which holds no checkpoint"),
    ("--data.sources", "--data.sources: no clips given; pack some with `emu-train prepare`"),
    ("--data.sources nowhere", "nowhere holds no prepared records; prepare it with"),
    ("--data.tokenizers one", "--data.tokenizers: 1 given for 2 text encoders; give one each"),
    ("--init_trees text/0", "init_trees='text/0' is not of the form tree=folder"),
    ("--init_trees text/0=one", "one/config.json"),
    ("--part nothing", "part='nothing' is none of EmuVideo's; choose one of autoencoder"),
    ("--data.tokenizers one two", "one does not exist; give a folder or file with"),
    ("--system.fps 16", "stage 'interpolation': batches: none of the 40 records"),
    ("--system.fps 16", "gives 37 frames at 64 fps without repeating any"),
    ("--monitor.best loss", "--monitor.best loss: is never measured; name validation/"),
    ("--monitor.prompts absent.txt", "prompts absent.txt: cannot be read"),
    ("--monitor.evaluators no --monitor.evaluate_every 1", "evaluator 'no': is unknown; choose of"),
    (
      "--monitor.profile_steps 1 5",
      "profile_steps=1 5 are no first and last step; give two from 2",
    ),
    ("stray", "'stray' belongs to no option"),
  ],
)
def test_training_that_cannot_begin(words, says, refused, tmp_path):
  """Also where only a later stage is wrong: nothing trains before everything is known to fit."""
  assert says in refused("--out", tmp_path / "runs", *words.split())
  assert not (tmp_path / "runs").exists()


def test_data_without_validation_trains_and_a_line_says_so(runs, run, tmp_path, capsys):
  """Prompts of one's own are drawn all the same."""
  pack(clips(tmp_path / "clips"), tmp_path / "packed")
  (tmp_path / "prompts.txt").write_text("red\n")
  words = ["--stage", "image", "--data.sources", tmp_path / "packed", "--loop.sample_every", "2"]
  words += ["--init-from", runs / "autoencoder", "--monitor.prompts", tmp_path / "prompts.txt"]
  run("--out", tmp_path / "runs", *words)
  assert "has no split 'validation'; it has train; it trains without" in capsys.readouterr().err
  assert (tmp_path / "runs/image/samples/00000002/00000_00.png").is_file()
  text = (tmp_path / "runs/image/metrics.jsonl").read_text()
  assert "train/loss" in text
  assert "validation/loss" not in text


def test_data_of_another_size(base, refused, tmp_path, capsys):
  smaller = tmp_path / "smaller"
  pack(clips(tmp_path / "clips"), smaller, "--size", "8")
  line = refused("--out", tmp_path / "runs", "--data.sources", smaller)
  assert "8x8" in line
  assert "16x16" in line
  line = refused("--out", tmp_path / "runs", "--data.sources", tiny_recipe.shapes(base))
  assert "name one of ['images', 'videos'] in it" in line
  assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_split_over_the_devices(base, tmp_path, capsys):
  words = ["run", "--config", tiny_recipe.config(base), "--out", tmp_path / "runs"]
  line = tiny_recipe.refusal(command.main, words, capsys)
  assert "--data.batch_size 4: does not split over the 8 device(s) of data x fsdp = 8 x 1" in line
  assert not (tmp_path / "runs").exists()


def test_a_run_of_another_config_is_not_touched(runs, refused):
  before = (runs / "autoencoder" / "config.json").read_bytes()
  words = ["--out", runs, "--stage", "autoencoder", "--loop.num_steps", "4"]
  line = refused(*words, "--loop.seed", "5")
  assert "holds a run of another config: loop.seed is 0 there and 5 here" in line
  assert (runs / "autoencoder" / "config.json").read_bytes() == before


def test_a_complete_run_of_another_model_is_not_taken_for_this_one(runs, run, refused, capsys):
  words = ["--out", runs, "--stage", "autoencoder"]
  line = refused(*words, "--system.image.unet.norm_groups", "2")
  assert "its system: spatial: norm_groups is 4, the config's is 2" in line
  run(*words, "--optim.peak_lr", "0.5", "--loop.log_every", "3")  # how it was made is no matter
  out, err = capsys.readouterr()
  assert "complete at step 2, not trained again" in out
  effect = "without effect, as it is complete: optim.peak_lr 0.5 (trained with 0.01); train anew"
  assert err.startswith(f"{runs}/autoencoder: {effect}")
  assert err.count("\n") == 1


def test_a_run_goes_on_without_the_one_that_it_began_with(runs, base, refused, tmp_path):
  """Of which it is not read again; what it shares with it is named where it is missing."""
  shutil.copytree(runs / "image", tmp_path / "runs" / "image")
  line = refused("--out", tmp_path / "runs", "--stage", "image", "--loop.num_steps", "4")
  assert "its tree 'autoencoder' lies in" in line
  assert "which is missing; restore it, or move both folders together" in line
  assert not (tmp_path / "runs" / "image" / "changes.jsonl").exists()
  config = tmp_path / "runs" / "image" / "config.json"
  found = json.loads(config.read_text()) | {"init_from": str(tmp_path / "runs" / "autoencoder")}
  config.write_text(json.dumps(found))
  arguments = command.Run(tiny_recipe.config(base))
  chosen = command.planned(arguments, load_stages(str(arguments.config)), tmp_path / "runs", [])
  assert command.going_on_without(tmp_path / "runs" / "autoencoder", chosen) == (
    tmp_path / "runs" / "image"
  )
  assert command.going_on_without(tmp_path / "runs" / "video", chosen) is None


def test_a_run_of_another_recipe_is_no_part_of_this_one(runs, tmp_path):
  """A run may begin with one of its own name elsewhere, or that was there."""
  shutil.copytree(runs / "video", tmp_path / "mine" / "video")
  for source in (runs / "video", "elsewhere/video"):
    config = tmp_path / "mine" / "video" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_from": str(source)}))
    assert newest_run(tmp_path / "mine") == tmp_path / "mine" / "video"


def test_runs_at_an_address_are_refused(refused, base, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert "is an address, and folders are written by path" in refused("--out", "gs://bucket/runs")
  words = ["encode", "clips", "--config", tiny_recipe.config(base), "--out", "s3://bucket/latents"]
  assert "--out s3:/bucket/latents: is an address" in tiny_recipe.refusal(
    command.main, words, capsys
  )
  assert not list(tmp_path.iterdir())


def test_a_run_to_begin_with_of_another_model(runs, refused, tmp_path):
  words = ["--out", tmp_path / "runs", "--stage", "image", "--init_from", runs / "autoencoder"]
  line = refused(*words, "--system.image.first_stage.config.channels", "12")
  assert f"{runs}/autoencoder: holds the weights of another config: autoencoder/" in line
  line = refused(*words[:2], "--stage", "interpolation", "--init_from", runs / "image")
  assert "part 'interpolation' needs the trees ['temporal']" in line
  assert not (tmp_path / "runs").exists()


def test_runs_in_a_place_that_cannot_be_written(refused, tmp_path):
  (tmp_path / "file").write_text("mine")
  line = refused("--out", tmp_path / "file" / "runs")
  assert "cannot be written" in line
  assert "choose another directory" in line


def test_a_tokenizer_of_another_encoder(refused, tmp_path):
  file = train_tokenizer([f"word{i} other{i}" for i in range(300)], tmp_path / "large.json", 400)
  line = refused("--out", tmp_path / "runs", "--data.tokenizers", file, file)
  assert f"{file}: has 400 tokens, its text encoder vocab_size=300" in line
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["run"], ["prepare", "folder"], ["train"], ["run", "--stages"]])
def test_a_command_that_is_not_understood_ends_with_code_2(words, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main(words)
  assert ended.value.code == 2
