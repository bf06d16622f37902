"""What raters send back, checked against the study's key and put into votes for A or for B."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from emu_jax.errors import InputError
from emu_jax.evaluation.juice.study import QUESTIONS, SIDES, Key, Question, read_object

FORMAT = "emu-jax juice answers 1"  # also in static/page.js


@dataclasses.dataclass(frozen=True)
class Vote:
  """One rater's answer to one question about one pair."""

  rater: str
  item: str  # id
  question: str
  for_a: bool
  left: bool  # where the chosen video stood
  reasons: tuple[str, ...]


def read_votes(key: Key, paths: Sequence[pathlib.Path], unfinished: bool = False) -> list[Vote]:
  """The votes of all raters.

  Args:
    unfinished: take files in which answers are missing, for what they hold.

  Raises:
    InputError: a file of another study, a rater twice, an unknown pair, question, choice or reason,
      a choice without a reason, missing answers.
  """
  votes: list[Vote] = []
  raters: dict[str, pathlib.Path] = {}
  for path in paths:
    rater, answers = _read(key, path)
    same = rater.casefold()
    if same in raters:
      raise InputError(
        f"juice: {path} and {raters[same]} are both of rater {rater!r}; give one file a rater"
      )
    raters[same] = path
    found = _votes(key, path, rater, answers)
    total = len(key.items) * len(QUESTIONS)
    if len(found) < total and not unfinished:
      raise InputError(
        f"juice: {path} of {rater!r} holds {len(found)} of {total} answers; let it be finished, or "
        "take it as it is with --unfinished"
      )
    votes += found
  if not votes:
    raise InputError("juice: no answers; give the files that raters saved")
  return votes


def _read(key: Key, path: pathlib.Path) -> tuple[str, Mapping]:
  fields = read_object(path)
  if fields.get("format") != FORMAT:
    raise InputError(
      f"juice: {path} holds no answers of a rater; give the files that the page saves"
    )
  if fields.get("study") != key.study:
    raise InputError(
      f"juice: {path} answers study {fields.get('study')!r}, the key is of {key.study!r}; give the "
      "key of its own study"
    )
  rater, answers = fields.get("rater"), fields.get("answers")
  if not isinstance(rater, str) or not rater.strip() or not isinstance(answers, Mapping):
    raise InputError(f"juice: {path} names no rater, or holds no answers; ask for the file again")
  return " ".join(rater.split()), answers


def _votes(key: Key, path: pathlib.Path, rater: str, answers: Mapping) -> list[Vote]:
  items = {item.id: item for item in key.items}
  questions = {question.name: question for question in QUESTIONS}
  votes = []
  for item_id, given in answers.items():
    if item_id not in items or not isinstance(given, Mapping):
      raise _bad(path, f"pair {item_id!r}, which the study has not")
    for name, answer in given.items():
      if name not in questions:
        raise _bad(path, f"question {name!r}, which the study has not")
      choice, reasons = _answer(path, questions[name], answer)
      for_a = choice == items[item_id].a_side
      votes.append(Vote(rater, item_id, name, for_a, choice == "left", reasons))
  return votes


def _answer(path: pathlib.Path, question: Question, answer) -> tuple[str, tuple[str, ...]]:
  choice = answer.get("choice") if isinstance(answer, Mapping) else None
  if choice not in SIDES:
    raise _bad(path, f"the choice {choice!r}, neither left nor right")
  reasons = answer.get("reasons")
  if not isinstance(reasons, list) or not reasons:
    raise _bad(path, f"a choice without a reason for {question.name!r}")
  known = {reason.name for reason in question.reasons}
  if unknown := [r for r in reasons if not isinstance(r, str) or r not in known]:
    raise _bad(path, f"the reason {unknown[0]!r}, which {question.name!r} has not")
  return choice, tuple(dict.fromkeys(reasons))


def _bad(path: pathlib.Path, what: str) -> InputError:
  return InputError(f"juice: {path} holds {what}; it was changed: ask its rater to save it again")
