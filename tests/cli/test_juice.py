"""The commands emu-jax juice make and score, as a user gives them."""

import json

import pytest

from emu_jax import cli
from emu_jax.evaluation.juice.answers import FORMAT
from emu_jax.evaluation.juice.study import QUESTIONS, key_path, read_key
from tests.evaluation.juice_study import words, write_folders
from tests.tiny_runs import refusal


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  base = write_folders(tmp_path_factory.mktemp("study"))
  cli.main(words(base, "--out", base / "page"))
  return base


def answer_file(base, rater, prefers):
  """What a rater saves who always prefers "a" or "b"."""
  key = read_key(key_path(base / "page"))
  given = {}
  for item in key.items:
    a_right = {"left": "right", "right": "left"}[item.a_side]
    side = item.a_side if prefers == "a" else a_right
    given[item.id] = {
      question.name: {"choice": side, "reasons": [question.reasons[-1].name]}
      for question in QUESTIONS
    }
  path = base / f"{rater}.json"
  path.write_text(
    json.dumps({"format": FORMAT, "study": key.study, "rater": rater, "answers": given})
  )
  return path


def test_make_says_what_it_made(base, capsys):
  cli.main(words(base, "--out", base / "again", "--seed", 3))
  out, err = capsys.readouterr()
  assert "\r" not in err  # nothing moves where there is no terminal
  first, second, third = out.splitlines()
  assert first == "3 pairs, matched by name"
  assert second.startswith(f"{base}/again: open index.html (study ")
  assert third == f"{base}/again.key.json: which side is whose; not for raters"


def test_score_prints_tables_and_writes_them(base, capsys):
  files = [
    answer_file(base, rater, model) for rater, model in (("Ann", "a"), ("Bo", "b"), ("C", "a"))
  ]
  given = ["juice", "score", str(base / "page.key.json"), *map(str, files)]
  cli.main([*given, "--out", str(base / "r.json")])
  out = capsys.readouterr().out
  assert f"A = {base}/secret_a" in out.replace("\n", "")
  assert "100.0 % [43.9, 100.0] (3)" in out
  assert "Amount of motion" in out
  read = json.loads((base / "r.json").read_text())
  assert read["questions"]["quality"]["agreement"] == {"complete": 0, "partial": 0, "split": 3}
  cli.main([*given, "--out", str(base / "r.md")])
  assert "| 100.0 % [43.9, 100.0] (3) |" in (base / "r.md").read_text()


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (("--seed", "-1"), "seed=-1 is negative; give 0 or more"),
    (("--prompts", "{}/none.txt"), "prompts {}/none.txt cannot be read"),
    (("--a", "{}/none"), "{}/none is not a folder; name one that holds clips"),
    (("--out", "{}/prompts.txt"), "{}/prompts.txt exists and is not empty"),
    (("--out", "{}/page"), "{}/page.key.json exists; remove it"),
  ],
)
def test_a_study_that_cannot_be_made(base, options, says, capsys):
  before = sorted(base.rglob("*"))
  options = [word.replace("{}", str(base)) for word in options]
  line = refusal(cli.main, words(base, "--out", base / "new", *options), capsys)
  assert line.startswith("emu-jax: error: ")
  assert says.replace("{}", str(base)) in line
  assert sorted(base.rglob("*")) == before


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (("{}/page.key.json",), "holds no answers of a rater"),
    (("{}/D.json", "{}/D.json"), "are both of rater 'D'"),
    (("{}/D.json", "--out", "{}/r.txt"), "the ending '.txt' is not known; use one of .json, .md"),
  ],
)
def test_answers_that_cannot_be_scored(base, arguments, says, capsys):
  answer_file(base, "D", "a")
  arguments = [word.replace("{}", str(base)) for word in arguments]
  line = refusal(cli.main, ["juice", "score", base / "page.key.json", *arguments], capsys)
  assert says in line


def test_help_says_what_there_is(capsys):
  for given, names in (
    ((), ("make", "score")),
    (("make",), ("--a", "--prompts", "--seed", "--no-post-process")),
    (("score",), ("KEY", "ANSWERS", "--out", "--unfinished")),
  ):
    with pytest.raises(SystemExit) as ended:
      cli.main(["juice", *given, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names), out
