"""What the commands say to words that they cannot use, before any model is read."""

import pytest

from emu_jax import cli
from emu_jax.cli import many
from emu_jax.systems.requests import Prompted
from emu_jax.train import command
from tests.tiny_recipe import refusal


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
  for module in ("task", "many", "evaluate"):
    monkeypatch.setattr(f"emu_jax.cli.{module}.loaded", None)


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (
      "emu-jax sample x --steps abc",
      "--steps: invalid literal for int() with base 10: 'abc'; it takes --steps INT; see emu-jax "
      "sample --help\n",
    ),
    ("emu-jax sample x --solver euler", "solver='euler' does not sample this process; use 'ddim'"),
    ("emu-jax sample x --seam tight", "invalid choice 'tight' for argument '--seam'. Expected one"),
    ("emu-jax sample x --steps", "Missing value for argument '--steps'. Expected 1 values"),
    ("emu-jax sample x y", "Unrecognized options: y; see emu-jax sample --help"),
    ("emu-jax evaluate --num-prompts many", "--num-prompts: invalid literal for int()"),
    ("emu-jax metrics --frames 3", "Missing from emu-jax metrics: --generated PATH folder of"),
    ("emu-jax metrics --generated a --reference b --frames x", "--frames: invalid literal for"),
    ("emu-jax convert a b --to zip", "invalid choice 'zip' for argument '--to'"),
    ("emu-jax juice", "Expected one of {make, score}; see emu-jax juice --help"),
    ("emu-jax juice make --a x", "Missing from emu-jax juice make: --b PATH"),
    ("emu-jax --seed 1 sample x", "--seed: stands before the command; write emu-jax COMMAND"),
    ("emu-jax --steps=3 sample x", "--steps: stands before the command"),
    ("emu-train draw", "Expected one of {run, prepare, encode, plan}; see emu-train --help"),
    ("emu-train run", "Missing from emu-train run: --config PATH"),
    ("emu-train run --config x --process a", "--process: invalid literal for int() with base 10"),
  ],
)
def test_words_that_are_not_understood_are_one_line(words, says, capsys):
  program, *words = words.split()
  line = refusal({"emu-jax": cli.main, "emu-train": command.main}[program], words, capsys)
  assert line.startswith(f"{program}: error: ")
  assert says in line


@pytest.mark.parametrize(
  ("words", "lines", "says"),
  [
    ("sample red", "blue\n", "every line has a 'prompt', so 'red' is never used"),
    ("interpolate a.mp4 --prompt red", "", "every line has a 'prompt', so 'red' is never used"),
    ("sample red", '{"text": "blue"}', "every line has a 'prompt', so 'red' is never used"),
    ("extend a.mp4", '{"clip": "b.mp4", "prompt": "x"}', "every line has a 'clip', so 'a.mp4' is"),
    ("sample red --suffix .gif", None, "--suffix .gif is for many examples; give --prompts or"),
    ("sample red --batch-size 4", None, "--batch-size 4 is for many examples"),
  ],
)
def test_a_word_that_changes_nothing_is_refused(words, lines, says, tmp_path, capsys):
  words = words.split()
  if lines is not None:
    file = tmp_path / f"lines.{'jsonl' if '{' in lines else 'txt'}"
    file.write_text(lines or "blue\n")
    words += ["--prompts", file, "--out", tmp_path / "out"]
  assert says in refusal(cli.main, words, capsys)
  assert not (tmp_path / "out").exists()


def test_what_some_lines_lack_may_be_given_to_all(tmp_path):
  file = tmp_path / "lines.jsonl"
  file.write_text('{"prompt": "blue"}\n{"seed": 3}\n')
  lines = many.read_lines(Prompted, file, {"prompt": "red"})
  assert [line.fields["prompt"] for line in lines] == ["blue", "red"]
