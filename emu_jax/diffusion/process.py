"""What every noise process can do, so that systems are put together from interchangeable parts.

A process mixes data with noise, x_t = alpha x_0 + sigma eps, at levels from nearly clean to nearly
pure noise, and says what a network's output means there. In all of it

  level  is what the network receives as its time, float32 [B], and
  x_t    is what the network receives as its input,

so that a function from `Predict` to `Predict` (guidance, `edits.edited`) needs nothing else:

  process               level                x_t                        output
  discrete.Discrete     step 0 .. N - 1      (1) of schedule.py         epsilon, v or x_0
  edm.Edm               log(sigma) / 4       c_in x, (21) of edm.py     F, or v
  log_snr.LogSnr        1000 u               (27) of log_snr.py         epsilon, v or x_0
  flow.Flow             1000 t               (1 - t) x_0 + t eps        eps - x_0

Each is a frozen, hashable dataclass: a configuration, static under jit.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import jax

from emu_jax.diffusion.sampler import Spacing
from emu_jax.typing import PerExample, Predict, Video

Solver = Literal["ddim", "dpm++", "euler", "heun"]

# A continuous time from 0 to 1 reaches the network times this number: the range of a table of 1000
# steps, for which the frequencies of time embeddings are made (Stable Diffusion 3 does the same).
TIME_SCALE = 1000.0


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a sampling run is discretised, and where it is guided.

  A value of the compiled program, not of its inputs.
  """

  solver: Solver | None = "ddim"  # None: the usual one of the process
  num_steps: int = 50  # of the solver
  # Of the steps of a `Schedule`; no other process has spacings. None: the process's own.
  spacing: Spacing | None = "trailing"
  offset: int = 0  # added to "leading" times; of spacing=None the process's own is
  eta: float = 0.0  # share of fresh noise, DDIM only
  guided: bool = True  # False: every scale of guidance is 1, for which one branch is computed
  # sigma / alpha, from and to, where guidance is applied (`guidance.led`); None: everywhere.
  guidance_interval: tuple[float, float] | None = None

  def __post_init__(self):
    if self.solver not in (None, *get_args(Solver)):
      raise ValueError(f"Sampling: solver={self.solver!r} is none of {get_args(Solver)}")
    if self.solver != "ddim" and self.eta:
      raise ValueError(
        f"Sampling: eta={self.eta} with solver={self.solver!r}, which is deterministic; use 'ddim'"
      )
    if self.spacing is None and self.offset:
      raise ValueError(
        f"Sampling: offset={self.offset} with spacing=None, which means the process's own of both; "
        "give a spacing"
      )
    if self.guidance_interval is not None:
      low, high = self.guidance_interval
      if not 0 <= low < high:
        raise ValueError(
          f"Sampling: guidance_interval={self.guidance_interval} is none; give sigma / alpha from "
          "0 on, the lower one first"
        )


@runtime_checkable
class Process(Protocol):
  """Noise levels, and what a network learns and says at them."""

  solvers: ClassVar[tuple[Solver, ...]]  # those that `sample` has; the first is the usual one

  def loss(
    self, predict: Predict, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
  ) -> PerExample:
    """Squared error at a drawn level, mean over T H W C, float32.

    Args:
      key: one for the batch; times may be drawn together.
      offset_noise: standard deviation of the noise shared by a clip and channel; static.
    """
    ...

  def sample(
    self, predict: Predict, noise: Video, key: jax.Array | None, sampling: Sampling
  ) -> Video:
    """x_0, float32, from unit normal noise: one scan.

    Args:
      key: of the noise drawn on the way, one for the batch or one an example [B]; unused, and may
        be None, where eta = 0.
    Raises: ValueError as `check` does.
    """
    ...

  def noised(self, clean: Video, level: PerExample, key: jax.Array) -> Video:
    """`clean` with fresh noise of a level, float32: a network's input, or a noised condition.

    Args:
      key: one for the batch, or one an example [B].
    """
    ...

  def clean(self, output: Video, x_t: Video, level: PerExample) -> Video:
    """x_0, float32, from what a network said of x_t."""
    ...

  def output(self, x_0: Video, x_t: Video, level: PerExample) -> Video:
    """What a network says of x_t, float32, that takes it to be made of x_0; inverts `clean`."""
    ...

  def alpha_sigma(self, level: PerExample) -> tuple[PerExample, PerExample]:
    """alpha and sigma of x_t = alpha x_0 + sigma eps, float32."""
    ...

  def check(self, sampling: Sampling) -> None:
    """Raises ValueError where this process cannot be sampled with `sampling`; before any work."""
    ...


def check_solver(who: str, sampling: Sampling, solvers: Sequence[Solver]) -> None:
  """Raises ValueError where a process lacks the solver."""
  if sampling.solver not in (None, *solvers):
    raise ValueError(
      f"{who}: solver={sampling.solver!r} does not sample this process; use "
      + " or ".join(map(repr, solvers))
    )


def check_continuous(who: str, sampling: Sampling, solvers: Sequence[Solver]) -> None:
  """As `check_solver`, and where anything is set that only the steps of a `Schedule` have."""
  check_solver(who, sampling, solvers)
  if sampling.num_steps < 1:
    raise ValueError(f"{who}: num_steps={sampling.num_steps} must be at least 1")
  for name in ("spacing", "offset", "eta"):
    usual = getattr(Sampling, name)
    if getattr(sampling, name) not in (None, usual):
      raise ValueError(
        f"{who}: {name}={getattr(sampling, name)!r} has no meaning here; leave it at {usual!r}"
      )
