"""The best checkpoint of a run so far: which it is, by which metric, and that it is kept."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from emu_jax.checkpoints.best import BEST, best_entry, read_best
from emu_jax.errors import InputError
from emu_jax.train.checkpoint import replace_text
from emu_jax.train.monitor import MonitorConfig


@dataclasses.dataclass(frozen=True)
class KeepsBest:
  """Has Orbax keep the best checkpoint, the one that is being written as well as the last whole."""

  folder: pathlib.Path  # of the run

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    found = read_best(self.folder)
    kept = [entry["step"] for entry in (found and found["best"], best_entry(self.folder)) if entry]
    return [one.step in kept for one in checkpoints]


class Best:
  """Which checkpoint of a run is its best so far, by the metric of a configuration."""

  def __init__(self, run_dir: pathlib.Path, config: MonitorConfig, first: int):
    """Takes up best.json where it is of the same metric.

    Args:
      first: where the run begins or continues; what lies after it is from a run that was lost.
    """
    self._path, self._metric, self._is = run_dir / BEST, config.best, config.best_is
    found, entry = read_best(run_dir), best_entry(run_dir)
    same = found is not None and (found["metric"], found["is"]) == (self._metric, self._is)
    self._entry = entry if same and entry and entry["step"] <= first else None

  def check(self, measured: Collection[str]) -> None:
    """Raises InputError where the metric is one of validation that a step does not measure."""
    kind, _, name = self._metric.partition("/")
    if kind == "validation" and name not in measured:
      names = ", ".join(f"validation/{name}" for name in sorted(measured))
      raise InputError(
        f"--monitor.best {self._metric}: validation has no such metric; choose of {names}"
      )

  def missing(self, values: Mapping[str, float]) -> str | None:
    """A line where numbers of the metric's kind were measured, and it is none of them."""
    kind = self._metric.rpartition("/")[0] + "/"
    names = [name for name in values if name.startswith(kind)]
    if not self._metric or not names or self._metric in names:
      return None
    return f"no checkpoint is the best: {self._metric} is none of {', '.join(names)}"

  def improves(self, step: int, values: Mapping[str, float]) -> bool:
    """Whether the metric is among the values, finite and better than ever; best.json says so then.

    The checkpoint is still to be written: until it is whole, the best one before it counts.
    """
    value = values.get(self._metric, math.nan)
    sign = 1 if self._is == "lowest" else -1
    if not math.isfinite(value):
      return False
    if self._entry is not None and sign * value >= sign * self._entry["value"]:
      return False
    before, self._entry = self._entry, {"step": step, "value": value}
    if jax.process_index() == 0:
      record = {"metric": self._metric, "is": self._is, "best": self._entry, "before": before}
      replace_text(self._path, json.dumps(record, indent=1) + "\n")
    return True


def check_best(config: MonitorConfig, validate_every: int) -> None:
  """Raises InputError for a metric that the run never measures.

  Args:
    validate_every: as of emu_jax.train.loop.LoopConfig.
  """
  kind, _, name = config.best.partition("/")
  evaluated = name.partition("/")[0] in config.evaluators
  if config.best and not {"validation": validate_every > 0, "evaluation": evaluated}.get(kind):
    raise InputError(
      f"--monitor.best {config.best}: is never measured; name validation/... with "
      "--loop.validate_every, or evaluation/... with --monitor.evaluate_every"
    )
