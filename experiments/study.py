"""What an experiment is: arms to compare, what is measured of them, and when the claim holds."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from emu_jax.evaluation.metrics import Estimate
from experiments import estimates
from experiments.artefact import Artefact
from experiments.estimates import Values

Size = Literal["tiny", "default"]
Verdict = Literal["holds", "does not hold", "not decided"]
Measure = Callable[[tuple[pathlib.Path, ...]], Mapping[str, Sequence[float]]]
Statistic = Callable[[Values], float]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One arm of a study with one seed.

  Attributes:
    of: what is trained, or drawn, before anything can be measured.
    options: JSON values of everything else that the values depend on.
    measure: folders of `of` -> values by metric, one a sample. Sample i of every arm has the same
      prompt and the same noise, so that arms can be compared pair by pair.
  """

  of: tuple[Artefact, ...]
  options: Mapping[str, Any]
  measure: Measure


@dataclasses.dataclass(frozen=True)
class Results:
  """Values of every arm, one set a seed, and by which code and where they were measured."""

  arms: Mapping[str, Sequence[Values]]
  origins: tuple[str, ...] = ()

  def figure(self, arm: str, statistic: Statistic) -> Estimate:
    """A statistic of each seed's values, over seeds."""
    return estimates.over_seeds([statistic(values) for values in self.arms[arm]])

  def mean(self, arm: str, metric: str) -> Estimate:
    return self.figure(arm, average(metric))

  def difference(self, a: str, b: str, metric: str) -> Estimate:
    """Mean of a - b over pairs of samples, over seeds."""
    return estimates.difference(self.arms[a], self.arms[b], metric)


@dataclasses.dataclass(frozen=True)
class Criterion:
  """What the claim says of a figure: that it lies between two bounds."""

  text: str
  found: Estimate
  least: float = -math.inf
  most: float = math.inf

  @property
  def verdict(self) -> Verdict:
    """Decided where the whole interval lies on one side of a bound."""
    if math.isnan(self.found.value):
      return "not decided"
    if self.found.low >= self.least and self.found.high <= self.most:
      return "holds"
    if self.found.high < self.least or self.found.low > self.most:
      return "does not hold"
    return "not decided"


@dataclasses.dataclass(frozen=True)
class Study:
  """One claim as an experiment.

  Attributes:
    cells: size, seed -> the cell of each arm.
    statistics: title -> a figure of one cell's values, for the table.
    judge: the claim's criteria.
    pairs: arms (a, b) whose samples are compared one by one, in the metrics `paired`.
    draw: draws the figure on Matplotlib axes; None shows the statistics of each arm.
    version: of the measurement's code: values of another version are measured again.
  """

  name: str
  title: str
  claim: str
  method: str
  cells: Callable[[Size, int], dict[str, Cell]]
  statistics: Mapping[str, Statistic]
  judge: Callable[[Results], Sequence[Criterion]]
  pairs: tuple[tuple[str, str], ...] = ()
  paired: tuple[str, ...] = ()
  draw: Callable[[Any, Results], None] | None = None
  version: int = 1


def average(metric: str) -> Statistic:
  """The mean over samples; NaN in arms that do not have the metric."""

  def statistic(values: Values) -> float:
    return float(np.mean(values[metric])) if metric in values else math.nan

  return statistic


def averages(*metrics: str) -> dict[str, Statistic]:
  return {metric: average(metric) for metric in metrics}


def verdict(criteria: Sequence[Criterion]) -> Verdict:
  """Of the whole claim: that of its weakest criterion."""
  found = [criterion.verdict for criterion in criteria]
  for weakest in ("does not hold", "not decided"):
    if weakest in found:
      return weakest
  return "holds"
