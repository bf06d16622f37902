"""The process of a table of steps: DDPM's, Stable Diffusion's, Emu Video's."""

import dataclasses
import math
from typing import ClassVar

import jax

from emu_jax.config import kind
from emu_jax.diffusion.loss import Times, diffusion_loss
from emu_jax.diffusion.process import Sampling, Solver, check_solver
from emu_jax.diffusion.sampler import Grid, Spacing, check_grid, ddim, dpm_solver_pp_2m, time_grid
from emu_jax.diffusion.schedule import Schedule, noise_at, target, to_x_0_and_eps
from emu_jax.typing import PerExample, Predict, Video


@kind("discrete")
@dataclasses.dataclass(frozen=True)
class Discrete:
  """A `Process`: a schedule of N steps, and how often training visits each of them.

  A level is a 0-based step. With zero terminal SNR, where alpha = 0 at the last step, `clean` and
  `output` are finite there for "v" and "x_0"; "epsilon" needs alpha > 0.

  Raises: ValueError for a clip below 0 or without bounds.
  """

  schedule: Schedule = Schedule()
  times: Times = Times()
  # How it is sampled where a `Sampling` leaves the spacing open; public models say it.
  spacing: Spacing = "trailing"
  offset: int = 0  # added to "leading" times
  ends_clean: bool = True  # False: DDIM ends at the noise of step 0
  clip: float = 0.0  # bound of |x_0| in every step of DDIM; 0: none

  solvers: ClassVar[tuple[Solver, ...]] = ("ddim", "dpm++")

  def __post_init__(self):
    if not 0 <= self.clip < math.inf:
      raise ValueError(f"Discrete: clip={self.clip} is no bound from 0 on; 0 = none")

  def loss(
    self, predict: Predict, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
  ) -> PerExample:
    """`loss.diffusion_loss`."""
    return diffusion_loss(
      predict, self.schedule, x_0, key, offset_noise=offset_noise, times=self.times
    )

  def sample(
    self, predict: Predict, noise: Video, key: jax.Array | None, sampling: Sampling
  ) -> Video:
    """`sampler.ddim` or `sampler.dpm_solver_pp_2m`."""
    self.check(sampling)
    grid = self._grid(sampling)
    if sampling.solver == "dpm++":
      return dpm_solver_pp_2m(predict, self.schedule, noise, grid)
    key = key if sampling.eta else None
    return ddim(
      predict,
      self.schedule,
      noise,
      grid,
      eta=sampling.eta,
      key=key,
      ends_clean=self.ends_clean,
      clip=self.clip,
    )

  def noised(self, clean: Video, level: PerExample, key: jax.Array) -> Video:
    return noise_at(self.schedule, clean, level, key)

  def clean(self, output: Video, x_t: Video, level: PerExample) -> Video:
    return to_x_0_and_eps(self.schedule.prediction, output, x_t, *self.schedule(level))[0]

  def output(self, x_0: Video, x_t: Video, level: PerExample) -> Video:
    alpha, sigma = self.schedule(level)
    x_0, eps = to_x_0_and_eps("x_0", x_0, x_t, alpha, sigma)
    return target(self.schedule.prediction, x_0, eps, alpha, sigma)

  def alpha_sigma(self, level: PerExample) -> tuple[PerExample, PerExample]:
    return self.schedule(level)

  def check(self, sampling: Sampling) -> None:
    check_solver("Discrete", sampling, self.solvers)
    check_grid(self.schedule, sampling.spacing or self.spacing, sampling.eta)
    self._grid(sampling)

  def _grid(self, sampling: Sampling) -> Grid:
    spacing, offset = sampling.spacing, sampling.offset
    if spacing is None:
      spacing, offset = self.spacing, self.offset
    return time_grid(self.schedule.num_steps, sampling.num_steps, spacing, offset)
