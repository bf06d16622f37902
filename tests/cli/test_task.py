"""The command emu-jax, as a user gives it: the files it writes, and what it says to bad input."""

import dataclasses
import json
import pathlib
import re
import shutil

import av
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import emu_jax
from emu_jax import cli, media
from emu_jax.checkpoints.stored import newest_run, stored
from emu_jax.cli import options, task
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import InputError
from emu_jax.model import load, loaded
from emu_jax.parallel import placement
from emu_jax.systems import registry
from tests import tiny_runs
from tests.data.video_files import numbered, numbers, write_numbered, write_video
from tests.tiny import trees

SHORT = ("--steps", "2")
PROMPT = "a square"  # the tiny encoders take few tokens


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tiny_runs.runs(tmp_path_factory.getbasetemp())


@pytest.fixture
def emu(runs):
  """Gives `emu-jax`, with the recipe's interpolation run (4 fps) unless another is named."""

  def emu(*words):
    words = [str(word) for word in words]
    if "--checkpoint" not in words:
      words += ["--checkpoint", str(runs / "interpolation")]
    cli.main([*words, *(() if "--steps" in words else SHORT)])

  return emu


@pytest.fixture
def refused(runs, capsys):
  """The line with which `emu-jax` ends."""

  def refused(*words):
    words = [*words, *(() if "--steps" in words else SHORT)]
    if "--checkpoint" not in words:
      words += ["--checkpoint", runs / "interpolation"]
    return tiny_runs.refusal(cli.main, words, capsys)

  return refused


def read(file):
  """Frames and rate of a video file."""
  with av.open(str(file)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames), float(container.streams.video[0].average_rate)


# What is written.


def test_a_prompt_becomes_an_mp4_and_the_command_says_so(emu, tmp_path, capsys):
  emu("sample", PROMPT, "--out", tmp_path / "a.mp4")
  frames, fps = read(tmp_path / "a.mp4")
  assert frames.shape == (8, 256, 256, 3)
  assert fps == 4
  out, err = capsys.readouterr()
  assert not err  # nothing moves where there is no terminal
  what, times = out.splitlines()
  assert what == (
    f"{tmp_path}/a.mp4: 8 frames at 4 a second (2 s) of 16x16 pixels, shown 16 times as large"
  )
  steps = (
    "loading",
    "prompts -> features",
    "text -> image",
    "image + text -> 8 frames",
    "latents -> pixels",
    "writing",
  )
  assert re.match(r"\d+\.\d s: " + r".* \d+\.\d s, ".join(map(re.escape, steps)), times)
  assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_single_picture_is_a_png_where_no_name_is_given(emu, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  emu("sample", PROMPT, "--frames", 1)
  assert [path.name for path in tmp_path.iterdir()] == ["sample.png"]
  emu("sample", PROMPT, "--frames", 1, "--out", "sample.mp4")
  assert len(read(tmp_path / "sample.mp4")[0]) == 1


def test_words_that_the_model_never_met_are_named_with_the_nearest(emu, tmp_path, capsys):
  emu("sample", "a bleu cat", "--frames", 1, "--out", tmp_path / "a.png")
  err = capsys.readouterr().err
  assert err.startswith("hint: this model never met these words of the prompt; nearest that it kno")
  assert re.search(r"'bleu': blue, .*; 'cat': \w+", err)
  assert err.count("\n") == 1


def test_frames_that_are_no_numbers_are_not_written(emu, tmp_path, capsys, monkeypatch):
  """Finite weights that make none: one line, and an exit code that a script sees."""
  huge = lambda model: jax.tree.map(lambda leaf: 1e38 * jnp.ones_like(leaf), model.trees["spatial"])
  spoilt = lambda model: dataclasses.replace(model, trees={**model.trees, "spatial": huge(model)})
  monkeypatch.setattr(task, "loaded", lambda *given, **named: spoilt(loaded(*given, **named)))
  with pytest.raises(SystemExit) as ended:
    emu("sample", PROMPT, "--frames", 1, "--out", tmp_path / "a.png")
  assert ended.value.code == 1
  line = capsys.readouterr().err
  assert "error: sample, text -> image: of 1 examples some came out as NaN or infinity" in line
  assert not list(tmp_path.iterdir())


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(emu, tmp_path):
  for name, seed in (("a", 3), ("b", 3), ("c", 4)):
    emu("sample", PROMPT, "--seed", seed, "--out", tmp_path / f"{name}.gif", "--enlarge", 1)
  a, b, c = ((tmp_path / f"{name}.gif").read_bytes() for name in "abc")
  assert a == b != c
  assert read(tmp_path / "a.gif")[0].shape == (8, 16, 16, 3)


def test_devices_together_sample_the_clip_of_one(emu, tmp_path, monkeypatch):
  monkeypatch.setattr(placement, "SMALL", 64)  # weights of the tiny model lie in pieces too
  split, put = [], placement.leaf_spec
  monkeypatch.setattr(placement, "leaf_spec", lambda *leaf: split.append(put(*leaf)) or split[-1])
  together = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.frames", 2)
  for name, mesh in (("one", ()), ("eight", together)):
    emu("sample", PROMPT, "--out", tmp_path / f"{name}.png", "--enlarge", 1, *mesh)
  assert sum("fsdp" in spec for spec in split) > 100
  one, eight = (np.asarray(PIL.Image.open(tmp_path / f"{n}.png"), int) for n in ("one", "eight"))
  # Float32 sums in another order: a pixel differs where its value was between two bytes.
  assert np.abs(one - eight).max() <= 1
  assert np.ptp(one) > 50


def test_an_image_model_gives_a_picture_unless_it_is_told_otherwise(emu, runs, tmp_path):
  emu("sample", PROMPT, "--checkpoint", runs / "image", "--out", tmp_path / "a.png")
  assert PIL.Image.open(tmp_path / "a.png").size == (256, 256)  # 16, shown 16 times as large


def test_one_frame_is_a_picture_and_more_are_a_strip(emu, tmp_path):
  emu("sample", PROMPT, "--frames", 1, "--out", tmp_path / "one.png", "--enlarge", 2)
  assert PIL.Image.open(tmp_path / "one.png").size == (32, 32)
  emu("sample", PROMPT, "--out", tmp_path / "strip.png", "--enlarge", 2)
  assert PIL.Image.open(tmp_path / "strip.png").size == (8 * 32, 32)


def test_the_users_picture_is_where_the_video_begins(emu, tmp_path):
  PIL.Image.fromarray(numbered(20, 24, 40)).save(tmp_path / "own.jpg")
  for name, words in (("a", ("--image", tmp_path / "own.jpg")), ("b", ())):
    emu("sample", PROMPT, "--out", tmp_path / f"{name}.png", *words)
  assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_guidance_given_takes_the_place_of_the_models_own(emu, tmp_path):
  def written(*words):
    emu("sample", PROMPT, "--out", tmp_path / "a.png", "--enlarge", 1, *words)
    return (tmp_path / "a.png").read_bytes()

  default = written()
  named = ("--text-guidance", 7.5, "--image-guidance", 2, "--picture-guidance", 7.5)
  assert written(*named) == default  # what the config says
  others = ("text-guidance", "image-guidance", "picture-guidance")
  changed = {default, written("--negative", "blue"), *(written(f"--{name}", 1) for name in others)}
  assert len(changed) == 5
  ways = [(), ("--rescale", 0.7), ("--solver", "dpm++")]  # in 2 steps the solvers are one
  assert len({written("--frames", 1, "--steps", 3, *words) for words in ways}) == 3


def test_a_written_clip_is_interpolated(emu, tmp_path, capsys):
  emu("sample", PROMPT, "--out", tmp_path / "a.mp4")
  emu("interpolate", tmp_path / "a.mp4", "--prompt", PROMPT, "--out", tmp_path / "b.mp4")
  frames, fps = read(tmp_path / "b.mp4")
  assert frames.shape == (37, 256, 256, 3)
  assert fps == 16
  assert "8 -> 37 frames, part 1 of 1" in capsys.readouterr().out
  write_numbered(tmp_path / "long.mp4", 16, fps=4)
  emu("interpolate", tmp_path / "long.mp4", "--frames", 16, "--out", tmp_path / "c.gif")
  assert len(read(tmp_path / "c.gif")[0]) == 65


def test_37_frames_from_a_prompt(emu, tmp_path):
  emu("sample", PROMPT, "--frames", 37, "--out", tmp_path / "a.webp", "--enlarge", 1)
  assert PIL.Image.open(tmp_path / "a.webp").n_frames == 37


def test_a_clip_is_continued_to_its_end_and_again(emu, runs, tmp_path):
  """All of it is kept, 18 frames of 16 pixels here, and 16 more are made of its last 16."""
  folder = ("--checkpoint", runs)  # of all the runs: the last stage's is taken, at 16 fps
  write_numbered(tmp_path / "a.mp4", 18, fps=16)
  emu("extend", tmp_path / "a.mp4", PROMPT, "--out", tmp_path / "b.mp4", *folder)
  frames, fps = read(tmp_path / "b.mp4")
  assert (len(frames), fps) == (34, 16)
  emu("extend", tmp_path / "b.mp4", "red", "--out", tmp_path / "c.mp4", *folder)
  longer = read(tmp_path / "c.mp4")[0]
  assert len(longer) == 50
  for kept in (frames, longer):
    assert numbers(kept[:18]) == list(range(18))


def test_a_folder_of_runs_stands_for_its_last_stage(runs, tmp_path):
  assert stored(runs).where == str(runs / "extension")
  shutil.copytree(runs / "image", tmp_path / "image")
  assert stored(tmp_path).where == str(tmp_path / "image")


def chained(runs, folder, *links):
  """Copies of runs that say what they began with: (name, stage, source) each."""
  for name, stage, source in links:
    shutil.copytree(runs / stage, folder / name)
    file = folder / name / "config.json"
    config = json.loads(file.read_text()) | {"init_from": f"elsewhere/{source}"}
    file.write_text(json.dumps(config))


def test_of_runs_of_one_stage_the_last_is_the_one_that_none_began_with(runs, tmp_path):
  """Names say nothing of the order."""
  links = ("b_first", "image"), ("c_second", "b_first"), ("a_third", "c_second")
  chained(runs, tmp_path, *((name, "video", source) for name, source in links))
  assert newest_run(tmp_path) == tmp_path / "a_third"
  assert newest_run(tmp_path / "b_first") == tmp_path / "b_first"


def test_a_stage_may_come_again_after_another(runs, tmp_path):
  links = ("a_clips", "video", "image"), ("pictures", "image", "a_clips")
  chained(runs, tmp_path, *links, ("b_clips", "video", "pictures"))
  assert newest_run(tmp_path) == tmp_path / "b_clips"


# Bad input.


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("--out {}/a.avi", "the ending '.avi' is not known; use one of .mp4, .gif, .webp, .png"),
    ("--out {}/a", "the ending '' is not known"),
    ("--out {}/no/a.mp4", "there is no folder {}/no; create it or give another"),
    ("--out {}/folder.mp4", "is a folder; give the name of a file"),
    ("--out {}/file/a.mp4", "there is no folder {}/file"),
    ("--out /proc/a.mp4", "output /proc/a.mp4: "),
    ("--seed -1", "seed=-1 is no whole number from 0 to 18446744073709551615; give one that is"),
    ("--seed 18446744073709551616", "seed=18446744073709551616 is no whole number from 0"),
    ("--steps 0", "steps=0"),
    ("--steps 1001", "steps=1001"),
    ("--text-guidance nan", "text_guidance=nan is not a number; give one"),
    ("--image-guidance inf", "image_guidance=inf is not a number"),
    ("--picture-guidance nan", "picture_guidance=nan is not a number"),
    ("--samples 0", "samples=0 and batch_size=8 must be at least 1"),
    ("--noise 3", "sample: has no option --noise; it has --seed --negative"),
    ("--test-guidance=3", "no option --test-guidance; did you mean --text-guidance?"),
    ("--motion-adapter {}", "motion_adapter goes with a public folder"),
    ("--checkpoint", "--checkpoint: names no folder; give one behind it"),
    ("--rescale 2", "rescale=2.0 is not from 0 to 1; 0 = off"),
    ("--enlarge -1", "enlarge=-1 is negative"),
    (
      "--mesh.frames 16",
      "frames=16 takes 16 devices, or a multiple where one is",
    ),
    ("--enlarge 9999", "enlarge=9999 makes 159984 pixels a side"),
    ("--frames 16", "frames=16 cannot be had of a model trained on 8; choose one of 1, 8, 37"),
    ("--frames 0", "frames=0"),
    ("--image {}/none.png", "{}/none.png is missing; name an existing file"),
    ("--image {}/file", "{}/file is no picture that Pillow can read"),
    ("--image {}", "{} is a folder; name an existing file"),
    ("--checkpoint {}/none", "{}/none: there is no such folder; give the folder of a run"),
    ("--checkpoint {}/empty", "{}/empty: holds no model but nothing; give the folder of a run"),
    ("--checkpoint {}/file", "{}/file: is a file and no folder; give the folder of a run"),
    ("--frames 1 --image {}/file", "image with 1 frame would come back as it is"),
    ("--frames 1 --text-guidance 3", "text_guidance=3.0 has no effect on a single picture; leave"),
    ("--frames 8 --seam published", "seam='published' has no effect on 8 frames, which have none"),
  ],
)
def test_sampling_that_cannot_be(words, says, refused, tmp_path, monkeypatch):
  """Nothing of it reads weights."""
  monkeypatch.setattr("emu_jax.checkpoints.run.load_numpy", None)
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder.mp4").mkdir()
  (tmp_path / "empty").mkdir()
  before = sorted(tmp_path.rglob("*"))
  words = words.replace("{}", str(tmp_path)).split()
  out = () if "--out" in words else ("--out", tmp_path / "out.mp4")
  line = refused("sample", PROMPT, *out, *words)
  assert line.startswith("emu-jax: error: ")
  assert says.replace("{}", str(tmp_path)) in line
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [("red " * 40,), ("red", "--negative", "blue " * 40)])
def test_a_prompt_that_is_too_long(words, refused, tmp_path):
  line = refused("sample", *words, "--out", tmp_path / "a.mp4")
  assert re.search(r"the prompt '\w+ .*' has \d+ tokens, .* and the limit is 12; shorten it", line)
  assert not list(tmp_path.iterdir())


def test_a_prompt_that_is_not_unicode(refused, tmp_path):
  line = refused("sample", "a \udcff square", "--out", tmp_path / "a.mp4")
  assert "is not Unicode at character 2; give it in UTF-8" in line


@pytest.mark.parametrize(("stage", "missing"), [("image", "temporal"), ("autoencoder", "latents")])
def test_a_run_that_has_not_come_far_enough(stage, missing, runs, refused, tmp_path):
  out = ("--frames", 8, "--out", tmp_path / "a.mp4")
  line = refused("sample", PROMPT, *out, "--checkpoint", runs / stage)
  assert f"{runs}/{stage}: the model has no '{missing}' weights; " in line
  line = refused("interpolate", tmp_path / "a.mp4", "--out", tmp_path / "b.mp4",
                 "--checkpoint", runs / "video")  # fmt: skip
  assert "no 'interpolation' weights; train its 'interpolation' part" in line
  line = refused("extend", tmp_path / "a.mp4", PROMPT, "--out", tmp_path / "b.mp4")
  assert "no 'extension' weights; train its 'extension' part" in line
  assert not list(tmp_path.iterdir())


def bad_clip(folder, kind):
  file = folder / "clip.mp4"
  if kind == "short":
    write_numbered(file, 7, fps=4)
  elif kind == "slow":
    write_numbered(file, 40, fps=2)
  elif kind == "text":
    file.write_text("no video")
  elif kind == "zero bytes":
    file.touch()
  elif kind == "zero frames":
    write_video(file, [])
  elif kind == "truncated":
    whole = write_numbered(folder / "whole.mp4", 60, fps=4).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (folder / "whole.mp4").unlink()
  elif kind == "picture":
    file = folder / "clip.png"
    PIL.Image.fromarray(numbered(3)).save(file)
  elif kind == "folder":
    file.mkdir()
  return file


@pytest.mark.parametrize(
  ("kind", "says"),
  [
    ("short", "gives 7 frames at 4 fps from 0 s, 8 are needed; use a longer clip"),
    ("slow", "has 2 fps, 4 are needed"),
    ("text", "cannot be read as video"),
    ("zero bytes", "cannot be read as video"),
    ("zero frames", "clip.mp4"),
    ("truncated", "it is truncated, damaged, a playlist or no video; copy it again or"),
    ("picture", "is a picture of 1 frame, 8 are needed; name a video"),
    ("folder", "is a folder; name an existing file"),
    ("missing", "is missing; name an existing file"),
  ],
)
def test_a_clip_that_cannot_be_used(kind, says, runs, refused, tmp_path):
  file = bad_clip(tmp_path, kind)
  before = sorted(tmp_path.iterdir())
  line = refused("interpolate", file, "--out", tmp_path / "out.mp4")
  assert str(file) in line
  assert says in line
  words = ("extend", file, PROMPT, "--out", tmp_path / "out.mp4", "--checkpoint", runs)
  assert str(file) in refused(*words)
  assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def copied(runs, tmp_path):
  return shutil.copytree(runs / "video", tmp_path / "run")


def edited(run, **changes):
  config = json.loads((run / "config.json").read_text())
  for path, value in changes.items():
    part, *rest = path.split("__")
    within = config[part] if rest else config
    for name in rest[:-1]:
      within = within[name]
    within[rest[-1] if rest else part] = value
  (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"system__temporal__num_layers": 2}, "holds the weights of another config: temporal/"),
    (
      {"system__image__first_stage__config__channels": [12]},
      "another config: autoencoder/",
    ),
    ({"system__image__size": [20, 20]}, "size=20x20 pixels must be multiples of 8x8: "),
    (
      {"system__fps": "fast"},
      "'fast' is not of type float (in fps); restore it, or use the version",
    ),
    ({"system__speed": 3}, "EmuVideo has no field 'speed'; it has image, temporal"),
    ({"system": 3}, "config.json"),
    ({"system__@kind": "of_tomorrow"}, "system 'of_tomorrow' is unknown; choose one of"),
    (
      {"version": registry.VERSION + 1},
      "config.json: was written by a newer version of emu_jax",
    ),
  ],
)
def test_a_checkpoint_of_another_config(changes, says, copied, refused, tmp_path):
  edited(copied, **changes)
  line = refused("sample", PROMPT, "--out", tmp_path / "a.mp4", "--checkpoint", copied)
  assert str(copied) in line
  assert says in line
  assert not (tmp_path / "a.mp4").exists()


def damage(run, part):
  """Makes a part of a run unusable."""
  if part == "config.json absent":
    (run / "config.json").unlink()
  elif part == "config.json cut":
    (run / "config.json").write_text('{"system": ')
  elif part == "config.json a list":
    (run / "config.json").write_text("[]")
  elif part == "tokenizers":
    shutil.rmtree(run / "tokenizers")
  elif part == "a tokenizer":
    (run / "tokenizers" / "1" / "tokenizer.json").write_text("{}")
  elif part == "a larger tokenizer":
    words = [f"word{i} other{i}" for i in range(300)]
    train_tokenizer(words, run / "tokenizers" / "0", 400)
  else:
    for file in (run / part).rglob("*"):
      if file.is_file() and "d" in file.parts:
        file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize(
  ("part", "says"),
  [
    ("config.json absent", "holds no config.json; copy it from the original run"),
    ("config.json cut", "config.json is not JSON"),
    ("config.json a list", "config.json holds no JSON object"),
    ("tokenizers", "tokenizers/0 does not exist"),
    ("a tokenizer", "tokenizers/1/tokenizer.json cannot be used"),
    ("a larger tokenizer", "tokenizers/0: has 400 tokens, its text encoder vocab_size=300"),
    ("frozen", "frozen cannot be read"),
    ("checkpoints/2/ema", "ema cannot be read"),
  ],
)
def test_a_damaged_run(part, says, copied, refused, tmp_path):
  damage(copied, part)
  line = refused("sample", PROMPT, "--out", tmp_path / "a.mp4", "--checkpoint", copied)
  assert str(copied) in line
  assert says in line
  assert len(line) < 600
  assert not (tmp_path / "a.mp4").exists()


def test_a_number_of_a_run_that_is_none_is_named(runs, refused, tmp_path):
  made = {name: tree for name, tree in trees().items() if name in (*tiny_runs.IMAGE, "temporal")}
  spatial = jax.tree.map(np.array, made.pop("spatial"))
  spatial["conv_out"]["bias"][1] = np.nan
  values = json.loads((runs / "image" / "config.json").read_text())
  run = tiny_runs.write_run(tmp_path / "run", values, {"spatial": spatial}, made)
  words = ("sample", PROMPT, "--out", tmp_path / "a.mp4", "--checkpoint", run)
  assert "run/checkpoints/2/ema: spatial/conv_out/bias holds 1 of 4 numbers" in refused(*words)
  assert not (tmp_path / "a.mp4").exists()


def test_reading_a_run_leaves_it_as_it_was(runs):
  before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
  load(runs / "video")
  assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.parametrize(
  "words", [[], ["sample"], ["sample", "red", "--frames", "9"], ["sample", "red", "--fps", "9"],
            ["sample", "red", "--steps", "many"], ["draw", "red"], ["extend", "clip.mp4"]]
)  # fmt: skip
def test_a_command_that_is_not_understood_ends_with_code_2(words, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(words)
  assert ended.value.code == 2


@pytest.mark.parametrize(
  "command",
  ["sample", "interpolate", "extend", "evaluate", "edit", "animate", "metrics", "convert"],
)
def test_help_has_a_text_for_every_option(command, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main([command, "--help"])
  assert not ended.value.code
  out = " ".join(capsys.readouterr().out.replace("│", " ").split())
  for option in re.findall(r"--[a-z-]+ (?:\{[^ ]*\}|[A-Z|]+|\{None\}\|[A-Z]+)", out):
    assert not re.search(re.escape(option) + r" \((default|required)", out), option


OLD = {
  "sample": "image picture-guidance motion-adapter frames seam keep-keys interpolation-steps",
  "interpolate": "prompt frames seam keep-keys interpolation-steps",
  "extend": "",
  "edit": "",
  "animate": "frames height width fps motion noise first-guidance last-guidance decode-chunk",
  "evaluate": "sheet num-prompts batch-size split picture-guidance",
}
SHARED = "seed steps solver checkpoint precision widen mesh.data mesh.fsdp mesh.frames out"
GUIDED = "image-guidance text-guidance rescale negative"


@pytest.mark.parametrize("command", OLD)
def test_every_option_that_there_was_is_there_whatever_model_is_chosen(command, capsys):
  """Help of a task that the shipped model has not is that of the system that has it."""
  with pytest.raises(SystemExit) as ended:
    cli.main([command, "--help"])
  assert not ended.value.code
  out = capsys.readouterr().out
  names = f"{OLD[command]} {SHARED} {'' if command == 'animate' else GUIDED}".split()
  names += [] if command in ("evaluate", "animate") else ["enlarge"]
  assert not [name for name in names if not re.search(rf"--{re.escape(name)}\b", out)]


def test_help_lists_the_tasks_of_a_model_and_those_of_others(runs, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(["--help"])
  assert not ended.value.code
  tasks, others, rest = re.split(r"\n\n(?=tasks of models|other commands)", capsys.readouterr().out)
  assert "shapes_64 (EmuVideo):" in tasks
  for name in ("sample", "interpolate", "extend"):
    assert re.search(rf"^  {name} +\S", tasks, re.M)
    assert f"  {name}" not in others
  assert "  edit (instruct_pix2pix)  Changes a picture" in others
  assert "  animate (svd)" in others
  assert "evaluate" in rest
  with pytest.raises(SystemExit):
    cli.main(["--checkpoint", str(runs / "image"), "--help"])
  assert f"tasks of {runs}/image (EmuVideo):" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (("draw", "x"), "has no task 'draw'; this model's are sample, interpolate, extend, and other"),
    (("edit", "a.png", "x"), "Give --checkpoint the folder of a model that has it: a run of instr"),
    (("animate", "a.png"), "a run of svd, or a public StableVideoDiffusionPipeline"),
    (("sample",), "sample: needs 'prompt'; give it"),
    (("extend", "a.mp4"), "extend: needs 'prompt'; give it"),
    (("sample", "--prompt", "x"), "has no option --prompt; did you mean --prompts?"),
  ],
)
def test_a_task_or_a_value_that_is_missing_is_one_line(words, says, capsys):
  assert says in tiny_runs.refusal(cli.main, words, capsys)


def test_a_system_that_does_not_import_is_one_line_and_leaves_others_alone(
  copied, capsys, monkeypatch
):
  """Of another package: a model of it says why, and every other model works."""
  broken = registry.names() | {"broken": "no_such_module:System"}
  monkeypatch.setattr(registry, "names", lambda: broken)
  with pytest.raises(SystemExit):
    cli.main(["--help"])
  assert "system 'broken': its entry point 'no_such_module:System' does not import" in (
    capsys.readouterr().out
  )
  edited(copied, **{"system__@kind": "broken"})
  words = ("sample", PROMPT, "--checkpoint", copied)
  assert "entry point 'no_such_module:System' does not import (ModuleNotFoundError" in (
    tiny_runs.refusal(cli.main, words, capsys)
  )


def test_a_field_that_is_an_option_of_every_command_is_refused():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Request:
    out: str = ""

  table = [*options.request_fields(Request), options.among(options.Output)]
  with pytest.raises(InputError, match="its request has a field 'out', which is an option of"):
    options.parsed("draw", table, [], "")


def test_three_lines_of_python_are_the_command(emu, runs, tmp_path):
  emu("sample", "None", "--seed", 3, "--frames", 8, "--out", tmp_path / "a.gif")
  model = emu_jax.load(runs / "interpolation")
  clips = model.sample("None", seed=3, frames=8, steps=2)
  media.save_video(tmp_path / "b.gif", media.enlarge(clips.frames[0], 16), clips.fps)
  assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_no_command_names_a_system():
  names = {*registry.names(), "adapter", "EmuVideo", "StableVideo", "pix2pix"}
  for file in pathlib.Path(cli.__file__).parent.glob("*.py"):
    source = file.read_text().lower().replace("emu_jax", "").replace("emu-jax", "")
    assert not [n for n in names - {"emu"} if n.lower() in source], file
    assert "systems.emu" not in source
