"""From votes to majorities, win rates, reasons and agreement.

Source: JUICE, Emu Video, arXiv:2311.10709: the majority of 5 raters decides a pair; a pair is split
(3|2), partial (4|1) or complete (5|0); agreement over all pairs is Fleiss' kappa.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from emu_jax.evaluation import metrics
from emu_jax.evaluation.juice.answers import Vote
from emu_jax.evaluation.metrics import Estimate

Winner = Literal["a", "b", "tie"]
Agreement = Literal["complete", "partial", "split"]


@dataclasses.dataclass(frozen=True)
class Tally:
  """Votes on one pair."""

  a: int
  b: int

  @property
  def winner(self) -> Winner:
    """The majority's choice; an even number of raters can tie."""
    return "tie" if self.a == self.b else "a" if self.a > self.b else "b"

  @property
  def agreement(self) -> Agreement:
    """Complete if all are of one mind, split if as many as can be differ, else partial.

    Of 5 raters these are the paper's 5|0, 3|2 and 4|1. Of 3 a pair is complete or split (2|1), of 4
    also partial (3|1), of 7 partial at 6|1 and 5|2.
    """
    fewer = min(self.a, self.b)
    if fewer == 0:
      return "complete"
    return "split" if fewer == (self.a + self.b) // 2 else "partial"


@dataclasses.dataclass(frozen=True)
class Reasons:
  """Why one side won: of the votes for it on pairs that it won, how many gave each reason."""

  votes: int
  counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Score:
  """What all votes on one question say."""

  win_rate: Estimate  # of A, among pairs that did not tie
  wins: Mapping[Winner, int]
  agreement: Mapping[Agreement, int]  # of pairs with two votes or more
  kappa: float  # Fleiss', of votes for A and for B; NaN where all chose the same
  kappa_sides: float  # the same, of votes for left and for right
  reasons: Mapping[Winner, Reasons]
  tallies: Mapping[str, Tally]  # by the pair's id


def score(votes: Sequence[Vote], question: str, reasons: Sequence[str]) -> Score:
  """The result of one question.

  Args:
    question: name of the question; votes on others are left out.
    reasons: names of its reasons.
  """
  votes = [vote for vote in votes if vote.question == question]
  for_a = Counter(vote.item for vote in votes if vote.for_a)
  left = Counter(vote.item for vote in votes if vote.left)
  total = Counter(vote.item for vote in votes)
  ids = sorted(total)
  tallies = {i: Tally(for_a[i], total[i] - for_a[i]) for i in ids}
  winners = {i: tally.winner for i, tally in tallies.items()}
  decided = np.array([winner == "a" for winner in winners.values() if winner != "tie"], bool)
  kinds = Counter(tally.agreement for i, tally in tallies.items() if total[i] > 1)
  wins = Counter(winners.values())
  return Score(
    win_rate=metrics.proportion(decided),
    wins={winner: wins[winner] for winner in ("a", "b", "tie")},
    agreement={kind: kinds[kind] for kind in ("complete", "partial", "split")},
    kappa=fleiss_kappa(_table(ids, for_a, total)),
    kappa_sides=fleiss_kappa(_table(ids, left, total)),
    reasons={side: _reasons(votes, winners, side, reasons) for side in ("a", "b")},
    tallies=tallies,
  )


def _table(ids: Sequence[str], of_one: Counter, total: Counter) -> Int[np.ndarray, "items 2"]:
  return np.array([[of_one[i], total[i] - of_one[i]] for i in ids], int).reshape(-1, 2)


def _reasons(
  votes: Sequence[Vote], winners: Mapping[str, Winner], side: Winner, names: Sequence[str]
) -> Reasons:
  won = [v for v in votes if winners[v.item] == side and v.for_a == (side == "a")]
  counts = Counter(reason for vote in won for reason in vote.reasons)
  return Reasons(len(won), {name: counts[name] for name in names})


def fleiss_kappa(counts: Int[np.ndarray, "items classes"]) -> float:
  """Agreement beyond chance: 1 if all agree on every item, 0 at chance; NaN if it is undefined.

  kappa = (P - P_e) / (1 - P_e), where P is the mean over items of the share of pairs of raters that
  agree, and P_e the sum of squares of each class's share of all votes. Where raters differ in
  number from item to item, each item's own counts; items with fewer than two are left out.

  Source: Fleiss 1971, "Measuring nominal scale agreement among many raters"; the case of unequal
  numbers is the usual one, e.g. Gwet 2014, "Handbook of Inter-Rater Reliability", chapter 2.

  Args:
    counts: raters that put an item into a class.
  """
  raters = counts.sum(axis=1)
  counts, raters = counts[raters > 1], raters[raters > 1]
  if not len(counts):
    return math.nan
  agreeing = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
  by_chance = float(np.square(counts.sum(axis=0) / raters.sum()).sum())
  if math.isclose(by_chance, 1.0):
    return math.nan
  return (float(agreeing.mean()) - by_chance) / (1 - by_chance)
