"""Votes to results: majorities, win rates, reasons, agreement; and the laws that hold of them."""

import itertools
import json
import math
import random

import numpy as np
import pytest

from emu_jax.errors import InputError
from emu_jax.evaluation import metrics
from emu_jax.evaluation.juice import answers, report
from emu_jax.evaluation.juice.answers import Vote, read_votes
from emu_jax.evaluation.juice.scoring import Tally, fleiss_kappa, score
from emu_jax.evaluation.juice.study import QUESTIONS, Item, Key

REASONS = ("sharpness", "motion")


def votes_of(table, sides=None):
  """Votes on "quality" of {item: a row of "a" and "b", a rater each}; A stands left by default."""
  sides = sides or {}
  return [
    Vote(
      f"rater {r}", item, "quality", c == "a", (c == "a") == (sides.get(item) != "right"), (reason,)
    )
    for item, choices in table.items()
    for r, (c, reason) in enumerate(zip(choices, itertools.cycle(REASONS), strict=False))
  ]


TABLE = {"x": "aaaaa", "y": "aaaab", "z": "aabbb", "w": "bbbbb", "v": "ababa"}


def scored(votes):
  return score(votes, "quality", REASONS)


# Agreement.


@pytest.mark.parametrize(
  ("rows", "value"),
  [
    ([[5, 0], [0, 5]] * 3, 1.0),
    ([[4, 1], [1, 4]] * 3, 0.2),
    ([[3, 2], [2, 3]] * 3, -0.2),
  ],
)
def test_kappa_of_complete_partial_and_split_items_that_balance(rows, value):
  """The ends of the paper's range, derived: P = 1, 0.6 and 0.4, P_e = 0.5."""
  assert fleiss_kappa(np.array(rows)) == pytest.approx(value, abs=1e-12)


def test_kappa_of_the_example_that_introduced_it():
  """Fleiss 1971, as usually given: 14 raters, 10 items, 5 classes, kappa = 0.210."""
  rows = """0 0 0 0 14, 0 2 6 4 2, 0 0 3 5 6, 0 3 9 2 0, 2 2 8 1 1,
            7 7 0 0 0, 3 2 6 3 0, 2 5 3 2 2, 6 5 2 1 0, 0 2 2 3 7"""
  counts = np.array([[int(n) for n in row.split()] for row in rows.split(",")])
  assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("unequal", [False, True])
def test_kappa_is_agreement_of_pairs_of_raters_beyond_that_of_random_votes(unequal):
  """A second formula, from the votes themselves: no squares, no class shares."""
  rng = random.Random(1)
  items = [
    [rng.choice("aab") for _ in range(rng.randint(2, 6) if unequal else 5)] for _ in range(30)
  ]
  together = [
    np.mean([one == other for one, other in itertools.combinations(votes, 2)]) for votes in items
  ]
  every = list(itertools.chain(*items))
  by_chance = np.mean([one == other for one, other in itertools.product(every, every)])
  counts = np.array([[votes.count("a"), votes.count("b")] for votes in items])
  expected = (np.mean(together) - by_chance) / (1 - by_chance)
  assert fleiss_kappa(counts) == pytest.approx(expected, abs=1e-12)
  alone = np.concatenate([counts, [[1, 0], [0, 0]]])  # who agrees with nobody says nothing
  assert fleiss_kappa(alone) == pytest.approx(expected, abs=1e-12)


def test_kappa_is_undefined_where_nobody_could_have_disagreed():
  assert math.isnan(fleiss_kappa(np.array([[5, 0]] * 4)))
  assert math.isnan(fleiss_kappa(np.zeros((0, 2), int)))
  assert math.isnan(fleiss_kappa(np.array([[1, 0], [0, 1]])))


@pytest.mark.parametrize(
  ("raters", "kinds"),
  [
    (1, ["complete"]),
    (2, ["complete", "split"]),
    (3, ["complete", "split"]),
    (4, ["complete", "partial", "split"]),
    (5, ["complete", "partial", "split"]),
    (7, ["complete", "partial", "partial", "split"]),
  ],
)
def test_a_pair_is_complete_partial_or_split(raters, kinds):
  for fewer, kind in enumerate(kinds):
    assert Tally(raters - fewer, fewer).agreement == kind
    assert Tally(fewer, raters - fewer).agreement == kind


# Results.


def test_the_majority_decides_each_pair():
  found = scored(votes_of(TABLE))
  assert {i: tally.winner for i, tally in found.tallies.items()} == {
    "x": "a", "y": "a", "z": "b", "w": "b", "v": "a",
  }  # fmt: skip
  assert found.wins == {"a": 3, "b": 2, "tie": 0}
  assert found.win_rate == metrics.proportion(np.array([1, 1, 0, 0, 1], bool))
  assert found.agreement == {"complete": 2, "partial": 1, "split": 2}


def test_ties_are_said_and_left_out_of_the_win_rate():
  found = scored(votes_of({"x": "ab", "y": "aa", "z": "bb", "w": "a"}))
  assert found.wins == {"a": 2, "b": 1, "tie": 1}
  assert (found.win_rate.value, found.win_rate.n) == (pytest.approx(2 / 3), 3)
  assert found.agreement == {"complete": 2, "partial": 0, "split": 1}  # one vote agrees with none


def test_reasons_are_counted_among_the_winners_votes():
  """Raters 0, 2, 4 give "sharpness", 1 and 3 "motion"."""
  found = scored(votes_of(TABLE)).reasons
  assert found["a"].votes == 5 + 4 + 3
  assert found["a"].counts == {"sharpness": 3 + 2 + 3, "motion": 2 + 2 + 0}
  assert found["b"].votes == 3 + 5
  assert found["b"].counts == {"sharpness": 2 + 3, "motion": 1 + 2}
  tied = scored(votes_of({"x": "ab"})).reasons
  assert tied["a"].votes == tied["b"].votes == 0


def test_other_questions_votes_are_left_out():
  other = [Vote("r", "x", "faithfulness", False, True, ("spatial",))]
  assert scored(votes_of(TABLE) + other) == scored(votes_of(TABLE))


# Laws.


def test_the_order_of_votes_changes_nothing():
  votes = votes_of(TABLE)
  assert scored(random.Random(0).sample(votes, len(votes))) == scored(votes)


def test_b_has_what_a_has_not():
  """Renaming the models mirrors win rate and interval, and swaps wins and reasons."""
  found = scored(votes_of(TABLE))
  renamed = {item: row.translate(str.maketrans("ab", "ba")) for item, row in TABLE.items()}
  swapped = scored(votes_of(renamed))
  rate, mirror = found.win_rate, swapped.win_rate
  assert mirror.value == pytest.approx(1 - rate.value)
  assert (mirror.low, mirror.high) == (pytest.approx(1 - rate.high), pytest.approx(1 - rate.low))
  assert (swapped.wins["a"], swapped.wins["b"]) == (found.wins["b"], found.wins["a"])
  assert (swapped.reasons["a"], swapped.reasons["b"]) == (found.reasons["b"], found.reasons["a"])
  assert swapped.agreement == found.agreement
  assert swapped.kappa == pytest.approx(found.kappa)


def test_the_side_on_which_a_model_stands_changes_no_result():
  found = scored(votes_of(TABLE))
  moved = scored(votes_of(TABLE, {"x": "right", "z": "right"}))
  assert moved.kappa_sides != found.kappa_sides  # which is of sides, and only that
  for name in ("win_rate", "wins", "agreement", "kappa", "reasons", "tallies"):
    assert getattr(moved, name) == getattr(found, name)


def test_agreement_shows_by_sides_where_one_model_always_wins():
  found = scored(votes_of({"x": "aaaaa", "y": "aaaaa"}, {"y": "right"}))
  assert math.isnan(found.kappa)
  assert found.kappa_sides == 1


# Answers of raters, and reports.


@pytest.fixture
def key():
  items = (Item("p1", "a cat", "left", "m/1.mp4", "n/1.mp4"),
           Item("p2", "a dog", "right", "m/2.mp4", "n/2.mp4"))  # fmt: skip
  return Key("0123", "m", "n", 0, items)


def given(**choices):
  """A rater's answers: pair -> two sides, of quality and faithfulness."""
  names = [(question.name, question.reasons[0].name) for question in QUESTIONS]
  return {
    pair: {n: {"choice": c, "reasons": [r]} for (n, r), c in zip(names, sides, strict=True)}
    for pair, sides in choices.items()
  }


WHOLE = {"p1": ("left", "left"), "p2": ("left", "right")}


@pytest.fixture
def file(tmp_path):
  def file(name, rater="Ann", **fields):
    whole = {"format": answers.FORMAT, "study": "0123", "rater": rater, "answers": given(**WHOLE)}
    (tmp_path / name).write_text(json.dumps(whole | fields))
    return tmp_path / name

  return file


def test_sides_are_unscrambled_by_the_key(key, file):
  """A is left in p1 and right in p2."""
  votes = read_votes(key, [file("a.json")])
  assert {(v.item, v.question): (v.for_a, v.left) for v in votes} == {
    ("p1", "quality"): (True, True),
    ("p1", "faithfulness"): (True, True),
    ("p2", "quality"): (False, True),
    ("p2", "faithfulness"): (True, False),
  }
  assert {v.reasons for v in votes if v.question == "quality"} == {("sharpness",)}


def changed(choice="left", reasons=("sharpness",), pair="p1", question="quality"):
  return given(**WHOLE) | {pair: {question: {"choice": choice, "reasons": list(reasons)}}}


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"study": "9"}, "answers study '9', the key is of '0123'; give the key of its own study"),
    ({"format": "x"}, "holds no answers of a rater"),
    ({"rater": " "}, "names no rater"),
    ({"answers": []}, "holds no answers; ask"),
    ({"answers": given(p1=WHOLE["p1"])}, "of 'Ann' holds 2 of 4 answers; let it be finished, or"),
    ({"answers": changed(pair="p3")}, "pair 'p3', which the study has not"),
    ({"answers": {"p1": 3}}, "pair 'p1', which"),
    ({"answers": changed(question="beauty")}, "question 'beauty', which the study has not"),
    ({"answers": changed(choice="up")}, "the choice 'up', neither left nor right"),
    ({"answers": {"p1": {"quality": 1}}}, "the choice None"),
    ({"answers": changed(reasons=())}, "a choice without a reason for 'quality'"),
    ({"answers": changed(reasons=["spatial"])}, "the reason 'spatial', which 'quality' has not"),
    ({"answers": changed(reasons=[["motion"]])}, r"the reason \['motion'\]"),
  ],
)
def test_answers_that_cannot_be(key, file, fields, says):
  with pytest.raises(InputError, match=says) as caught:
    read_votes(key, [file("a.json", **fields)])
  assert "a.json" in str(caught.value)


def test_a_rater_counts_once(key, file):
  with pytest.raises(InputError, match=r"a\.json are both of rater 'ann'; give one file a rater"):
    read_votes(key, [file("a.json"), file("b.json", rater=" ann ")])


def test_unfinished_files_count_where_they_are_asked_for(key, file):
  half = file("b.json", rater="Bob", answers=given(p1=WHOLE["p1"]))
  found = report.scored(key, read_votes(key, [file("a.json"), half], unfinished=True))
  assert found.raters == ("Ann", "Bob")
  assert found.scores["quality"].tallies == {"p1": Tally(2, 0), "p2": Tally(0, 1)}
  with pytest.raises(InputError, match="no answers; give the files that raters saved"):
    read_votes(key, [file("c.json", answers={})], unfinished=True)


def test_files_that_are_no_json(key, tmp_path):
  (tmp_path / "a.json").write_text("no")
  (tmp_path / "b.json").write_text("[1]")
  for name, says in (("a", "is not JSON"), ("b", "no JSON object"), ("c", "cannot be read")):
    with pytest.raises(InputError, match=says):
      read_votes(key, [tmp_path / f"{name}.json"])


def test_a_report_holds_every_number(key, file):
  votes = read_votes(key, [file("a.json"), file("b.json", rater="Bob"), file("c.json", rater="C")])
  made = report.scored(key, votes)
  read = json.loads(report.to_json(made))
  assert (read["a"], read["b"], read["raters"]) == ("m", "n", ["Ann", "Bob", "C"])
  quality, faithful = (read["questions"][question.name] for question in QUESTIONS)
  assert metrics.Estimate(**quality["win_rate"]) == made.scores["quality"].win_rate
  assert quality["wins"] == {"a": 1, "b": 1, "tie": 0}
  assert quality["kappa"] == 1
  assert faithful["kappa"] is None  # all chose A
  assert faithful["kappa_sides"] == 1
  first = quality["pairs"][0]
  assert (first["prompt"], first["a"], first["b"], first["winner"]) == ("a cat", 3, 0, "a")
  text = report.markdown(made)
  rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if " | " in line}
  assert "50.0 % [9.5, 90.5] (2) | 100.0 % [34.2, 100.0] (2)" in rows["A wins, of decided pairs"]
  assert rows["Fleiss' kappa, of A and B"].endswith("| 1.00 | - |")
  assert rows["Pixel sharpness"].endswith("| 3 (100 %) | 3 (100 %) |")
  assert rows["Temporal text alignment"].endswith("| 0 (0 %) | - |")
  assert text.startswith("A = m, B = n: 2 pairs, 3 raters\n")
