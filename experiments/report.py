"""A study's results as Markdown, JSON and a figure."""

import dataclasses
import datetime
import io
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np

from emu_jax import media
from emu_jax.evaluation.metrics import Estimate
from experiments import estimates
from experiments.study import Criterion, Results, Study, verdict

INTERVALS = (
  "Each figure is computed for every seed by itself; its value is the mean over seeds, in brackets "
  "Student's 95 % interval over them. A criterion is decided where the whole interval lies on one "
  "side of its bound."
)
PAIRS = (
  "Samples with the same prompt and noise, a minus b: over seeds as above (this is what counts); "
  "with the bootstrap interval of these seeds' samples; and the share of pairs without a tie in "
  "which a is the higher, with Wilson's interval."
)


def write(
  study: Study, results: Results, out: pathlib.Path, command: dict[str, Any]
) -> Sequence[Criterion]:
  """Leaves <name>.md, .json and .png in `out`; returns the criteria."""
  criteria = study.judge(results)
  setting = command | {"date": f"{datetime.date.today()}", "measured": list(results.origins)}
  out.mkdir(parents=True, exist_ok=True)
  files = {
    ".png": figure(study, results),
    ".json": (json.dumps(plain(document(study, results, criteria, setting)), indent=1) + "\n"),
    ".md": markdown(study, results, criteria, setting),
  }
  for ending, content in files.items():
    data = content.encode() if isinstance(content, str) else content
    media.write_whole(out / f"{study.name}{ending}", data)
  return criteria


def markdown(study: Study, results: Results, criteria: Sequence[Criterion], setting: dict) -> str:
  """The whole page."""
  return "\n".join(
    [
      f"# {study.title}",
      "",
      f"Claim: {study.claim}",
      "",
      f"**The claim {said(criteria)}** at this scale.",
      "",
      *criteria_lines(criteria),
      "",
      study.method,
      "",
      f"`{setting['command']}` on {setting['date']}; {setting['seeds']} seed(s); "
      f"measured {'; and '.join(setting['measured'])}. {INTERVALS}",
      "",
      *arm_lines(study, results),
      *pair_lines(study, results),
      "",
      f"![{study.title}]({study.name}.png)",
      "",
    ]
  )


def overview(studies: Iterable[Study], out: pathlib.Path, base: str = "") -> list[str]:
  """Lines of a table of what the pages in `out` say; `base` is where its reader finds them."""
  lines = ["| study | criterion | bound | found | verdict |", "|---|---|---:|---:|---|"]
  for study in studies:
    file = out / f"{study.name}.json"
    if file.is_file():
      title = f"[{study.title}]({base}{study.name}.md)"
      for criterion in map(read, json.loads(file.read_text())["criteria"]):
        lines.append(f"| {title} {criterion_line(criterion)}")
        title = ""
  return lines


def read(criterion: dict[str, Any]) -> Criterion:
  """A criterion of a page's JSON, where null is a number that there is not or has no end."""
  ends = {"value": math.nan, "low": -math.inf, "high": math.inf}
  number = lambda of, name, other: other if of[name] is None else of[name]
  given = criterion["found"]
  found = Estimate(**{name: number(given, name, end) for name, end in ends.items()}, n=given["n"])
  bounds = (number(criterion, "least", -math.inf), number(criterion, "most", math.inf))
  return Criterion(criterion["text"], found, *bounds)


def said(criteria: Sequence[Criterion]) -> str:
  """What the claim does, as a verb."""
  found = verdict(criteria)
  return f"is {found}" if found == "not decided" else found


def criteria_lines(criteria: Sequence[Criterion]) -> list[str]:
  lines = ["| criterion | bound | found | verdict |", "|---|---:|---:|---|"]
  return lines + [criterion_line(c) for c in criteria]


def criterion_line(c: Criterion) -> str:
  bounds = ("at least", c.least), ("at most", c.most)
  bound = " and ".join(f"{word} {end:g}" for word, end in bounds if math.isfinite(end))
  return f"| {c.text} | {bound} | {formatted(c.found)} | {c.verdict} |"


def arm_lines(study: Study, results: Results) -> list[str]:
  titles = list(study.statistics)
  lines = ["| arm | samples a seed | " + " | ".join(titles) + " |"]
  lines.append("|---|---:" + "|---:" * len(titles) + "|")
  for arm, seeds in results.arms.items():
    counts = sorted({len(v) for values in seeds for v in values.values()})
    found = [formatted(results.figure(arm, study.statistics[title])) for title in titles]
    lines.append(f"| {arm} | {', '.join(map(str, counts))} | " + " | ".join(found) + " |")
  return lines


def pair_lines(study: Study, results: Results) -> list[str]:
  if not study.pairs:
    return []
  lines = ["", PAIRS, "", "| a | b | metric | over seeds | over samples | a higher |"]
  lines.append("|---|---|---|---:|---:|---:|")
  for (a, b), metric, (mean, samples, won) in comparisons(study, results):
    lines.append(
      f"| {a} | {b} | {metric} | {formatted(mean)} | {formatted(samples)} "
      f"| {formatted(won)} of {won.n} |"
    )
  return lines


def comparisons(study: Study, results: Results) -> list[tuple]:
  """((a, b), metric, (difference over seeds, over samples, share of wins)) of every pair.

  Of the metrics that both arms have.
  """
  measures = (estimates.difference, estimates.resampled, estimates.wins)
  return [
    ((a, b), metric, tuple(f(results.arms[a], results.arms[b], metric) for f in measures))
    for a, b in study.pairs
    for metric in study.paired
    if all(metric in values for arm in (a, b) for values in results.arms[arm])
  ]


def formatted(e: Estimate) -> str:
  """A figure and its interval, in four digits; one without width is left out."""
  if math.isnan(e.value):
    return "-"
  value, low, high = (f"{number:.4g}" for number in (e.value, e.low, e.high))
  if low == high:
    return value
  return f"{value} [one seed]" if math.isinf(e.low) else f"{value} [{low}, {high}]"


def document(
  study: Study, results: Results, criteria: Sequence[Criterion], setting: dict
) -> dict[str, Any]:
  """Everything that the page says, and every seed's figures."""
  figures = {
    arm: {
      title: vars(results.figure(arm, statistic)) | {"seeds": [statistic(v) for v in seeds]}
      for title, statistic in study.statistics.items()
    }
    for arm, seeds in results.arms.items()
  }
  pairs = [
    {"a": a, "b": b, "metric": metric, "over_seeds": mean, "over_samples": samples, "wins": won}
    for (a, b), metric, (mean, samples, won) in comparisons(study, results)
  ]
  return {
    "study": study.name,
    "claim": study.claim,
    "verdict": verdict(criteria),
    "criteria": [dataclasses.asdict(c) | {"verdict": c.verdict} for c in criteria],
    "setting": setting,
    "arms": figures,
    "pairs": pairs,
  }


def plain(value: Any) -> Any:
  """JSON values; a number that there is not, or that has no end, is null."""
  if isinstance(value, dict):
    return {key: plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [plain(inner) for inner in value]
  if isinstance(value, Estimate):
    return plain(vars(value))
  return None if isinstance(value, float) and not math.isfinite(value) else value


def figure(study: Study, results: Results) -> bytes:
  """A png."""
  matplotlib.use("Agg")
  from matplotlib import pyplot  # after the choice of how it draws

  width = 5.0 if study.draw else 3.2 * len(study.statistics) + 1.5
  fig = pyplot.figure(figsize=(width, 3.8), layout="constrained")
  try:
    if study.draw:
      study.draw(fig.add_subplot(), results)
    else:
      dots(fig, study, results)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
  finally:
    pyplot.close(fig)
  return buffer.getvalue()


def dots(fig: Any, study: Study, results: Results) -> None:
  """A panel a statistic: each arm's mean with its interval, and its seeds."""
  arms = list(results.arms)
  panels = np.atleast_1d(fig.subplots(1, len(study.statistics), sharey=True))
  for axes, (title, statistic) in zip(panels, study.statistics.items(), strict=True):
    for row, arm in enumerate(arms):
      estimate = results.figure(arm, statistic)
      seeds = [statistic(values) for values in results.arms[arm]]
      axes.plot(seeds, [row] * len(seeds), ".", color="0.6")
      axes.plot(estimate.value, row, "o", color="C0")
      if math.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], "-", color="C0")
    axes.set_title(title, fontsize=9)
    axes.set_yticks(range(len(arms)), arms)
  panels[0].invert_yaxis()
