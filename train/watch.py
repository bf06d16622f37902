"""What a person should look at in a run while it lasts, told in a line when it happens."""

import collections
import statistics


class LossWatch:
  """Finds losses far above those of the steps before.

  A spike lies more than `SPREADS` standard deviations (at least `FLOOR` of the mean, so that a loss
  that hardly varies is not said to spike) above the mean of up to `WINDOW` steps before it. All
  three are ours: six spreads are far beyond what drawing times and noise anew does to a loss.
  """

  SPREADS, FLOOR, WINDOW, LEAST = 6.0, 0.02, 100, 20

  def __init__(self):
    self._past: collections.deque[float] = collections.deque(maxlen=self.WINDOW)

  def add(self, step: int, loss: float) -> str | None:
    """Takes the loss of a step; a line where it is a spike. Spikes are no part of later means."""
    if len(self._past) >= self.LEAST:
      mean = statistics.fmean(self._past)
      spread = max(statistics.pstdev(self._past), self.FLOOR * abs(mean))
      if loss > mean + self.SPREADS * spread:
        return (
          f"step {step}: the loss {loss:.4g} is a spike, {(loss - mean) / spread:.1f} spreads above"
          f" the {mean:.4g} of the {len(self._past)} steps before"
        )
    self._past.append(loss)
    return None


class DataWatch:
  """Tells when a run begins to wait for its data, and again only after it has caught up.

  Judged over at least `STEPS` steps; one step's wait says little.
  """

  STARVED, CAUGHT_UP, STEPS = 0.2, 0.1, 20  # shares of the time; steps

  def __init__(self, step: int):
    self._step = step
    self._waited = self._elapsed = 0.0
    self._steps = 0
    self._waiting = False

  def add(self, step: int, times: dict[str, float]) -> str | None:
    """Takes what emu_jax.train.progress.Clock.lap gave at a step."""
    steps, self._step = step - self._step, step
    if not times:
      return None
    elapsed = steps * times["time/step_s"]
    self._waited += times["time/data_wait"] * elapsed
    self._elapsed += elapsed
    self._steps += steps
    if self._steps < self.STEPS:
      return None
    share, counted = self._waited / self._elapsed, self._steps
    self._waited, self._elapsed, self._steps = 0.0, 0.0, 0
    limit = self.CAUGHT_UP if self._waiting else self.STARVED
    before, self._waiting = self._waiting, share > limit
    if before or not self._waiting:
      return None
    return (
      f"step {step}: the last {counted} steps waited for data {share:.0%} of their time; give"
      " data.workers, or records on a faster disk"
    )
