"""The result of a study as tables, Markdown and JSON."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import rich.table

from emu_jax import media
from emu_jax.evaluation.juice.answers import Vote
from emu_jax.evaluation.juice.scoring import Score, score
from emu_jax.evaluation.juice.study import QUESTIONS, Key, Question

ENDINGS = (".json", ".md")


@dataclasses.dataclass(frozen=True)
class Report:
  """A study's scores, one for each of `QUESTIONS`, by their names."""

  key: Key
  raters: tuple[str, ...]
  scores: dict[str, Score]


def scored(key: Key, votes: Sequence[Vote]) -> Report:
  """Everything that the votes on a study say."""
  scores = {
    question.name: score(votes, question.name, [reason.name for reason in question.reasons])
    for question in QUESTIONS
  }
  return Report(key, tuple(sorted({vote.rater for vote in votes})), scores)


def heading(report: Report) -> str:
  """What was compared, by how many."""
  key = report.key
  return f"A = {key.a}, B = {key.b}: {len(key.items)} pairs, {len(report.raters)} raters"


def tables(report: Report) -> list[rich.table.Table]:
  """The results, and the reasons of each question, for the terminal."""
  names = [question.name for question in QUESTIONS]
  made = [_table("Which is better", ["", *names], _results(report))]
  for question in QUESTIONS:
    made.append(_table(_why(question), ["", "A", "B"], _reasons(report, question)))
  return made


def markdown(report: Report) -> str:
  """The same as Markdown, ending in a newline."""
  parts = [heading(report), _markdown(["", *(q.name for q in QUESTIONS)], _results(report))]
  for question in QUESTIONS:
    parts.append(_markdown([_why(question), "A", "B"], _reasons(report, question)))
  return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
  """All numbers, also each pair's votes; one that there is not (NaN) is null."""
  key = report.key
  questions = {}
  for name, result in report.scores.items():
    fields = dataclasses.asdict(result)
    fields["pairs"] = [
      {"id": item.id, "prompt": item.prompt, "a_file": item.a_file, "b_file": item.b_file}
      | dataclasses.asdict(result.tallies[item.id])
      | {"winner": result.tallies[item.id].winner, "agreement": result.tallies[item.id].agreement}
      for item in key.items
      if item.id in result.tallies
    ]
    del fields["tallies"]
    questions[name] = fields
  whole = {"study": key.study, "a": key.a, "b": key.b, "raters": report.raters}
  return json.dumps(_plain(whole | {"questions": questions}), indent=2, allow_nan=False) + "\n"


def save(path: pathlib.Path, report: Report) -> None:
  """Writes JSON or Markdown, by the name's ending; check it early with `ENDINGS`."""
  text = to_json(report) if path.suffix.lower() == ".json" else markdown(report)
  media.write_whole(media.check_output(path, ENDINGS), text.encode())


def _plain(value):
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _results(report: Report) -> list[list[str]]:
  scores = [report.scores[question.name] for question in QUESTIONS]
  rows = {
    "A wins, of decided pairs": [_share(s) for s in scores],
    "pairs: A, B, tied": [f"{s.wins['a']}, {s.wins['b']}, {s.wins['tie']}" for s in scores],
    "agreement: complete, partial, split": [
      ", ".join(str(number) for number in s.agreement.values()) for s in scores
    ],
    "Fleiss' kappa, of A and B": [_kappa(s.kappa) for s in scores],
    "Fleiss' kappa, of left and right": [_kappa(s.kappa_sides) for s in scores],
  }
  return [[title, *cells] for title, cells in rows.items()]


def _share(result: Score) -> str:
  rate = result.win_rate
  if not rate.n:
    return "-"
  return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] ({rate.n})"


def _kappa(value: float) -> str:
  return "-" if math.isnan(value) else f"{value:.2f}"


def _why(question: Question) -> str:
  return f"{question.name}: votes for the winner that give a reason"


def _reasons(report: Report, question: Question) -> list[list[str]]:
  of_side = report.scores[question.name].reasons
  return [
    [reason.title, *(_of(of_side[s].counts[reason.name], of_side[s].votes) for s in ("a", "b"))]
    for reason in question.reasons
  ] + [["votes for the winner", *(str(of_side[s].votes) for s in ("a", "b"))]]


def _of(count: int, total: int) -> str:
  return f"{count} ({100 * count / total:.0f} %)" if total else "-"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> rich.table.Table:
  made = rich.table.Table(title=title, title_justify="left")
  made.add_column(head[0])
  for name in head[1:]:
    made.add_column(name, justify="right", no_wrap=True)
  for row in rows:
    made.add_row(*row)
  return made


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
