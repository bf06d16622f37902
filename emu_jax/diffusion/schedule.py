"""Noise schedules: what x_t is, and what a network's output says about it.

The whole of it, in the order in which the other files of this package cite it:

  (1) One diffusion step keeps the variance: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise.
      Composed, x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 = abar_t = prod(1 - beta_i) and
      sigma_t^2 = 1 - abar_t; eps is unit normal.
  (2) SNR_t = alpha_t^2 / sigma_t^2. The *half* log-SNR is lambda_t = log(alpha_t / sigma_t).
  (3) alpha = cos(phi), sigma = sin(phi): x_t = cos(phi) x_0 + sin(phi) eps. Its derivative along
      phi is v = alpha eps - sigma x_0, so (x_t, v) is (x_0, eps) turned by phi.
  (4) Turned back: x_0 = alpha x_t - sigma v, eps = sigma x_t + alpha v. Nothing is divided, so v
      says what x_0 is at every noise level; at alpha = 0 it is v = -x_0.
  (5) From eps: x_0 = (x_t - sigma eps) / alpha. At alpha = 0, x_t *is* eps and says nothing of x_0.
  (6) From x_0: eps = (x_t - alpha x_0) / sigma. sigma > 0 at every step of a table: the clean end
      (alpha, sigma) = (1, 0) is not one of its N steps.
  (7) DDIM holds x_0 and eps between a step t and a cleaner one s: x_s = alpha_s x_0 + sigma_s eps.
      By (4) this is a turn by delta = phi_t - phi_s: x_s = cos(delta) x_t - sin(delta) v.
  (8) Of the noise sigma_s in (7) a part tau may be drawn anew: x_s = alpha_s x_0 +
      sqrt(sigma_s^2 - tau^2) eps + tau z. tau = eta (sigma_s / sigma_t) sqrt(1 - abar_t / abar_s)
      makes eta = 0 deterministic and eta = 1 the DDPM posterior. tau <= sigma_s whenever eta <= 1.
  (9) (7) solved for x_t: x_t = (x_s + sin(delta) v) / cos(delta), cos(delta) > 0 unless one step
      goes from pure noise to the clean end.
 (10) In lambda, x_s = (sigma_s / sigma_t) x_t + sigma_s * integral of e^l x_0(l) dl over
      [lambda_t, lambda_s]. x_0 held constant gives (7), with weight alpha_s - alpha_t sigma_s /
      sigma_t; x_0 taken linear through the last two steps gives DPM-Solver++(2M).
 (11) A table whose last alpha is not 0 leaks x_0 into what should be pure noise. Shifting alpha so
      that the last is 0 and scaling so that the first stays closes the leak.

Time is the 0-based index of a step, 0 (nearly clean) .. N - 1 (noisiest). Tables are made in
float64 on the host and leave as float32.

Sources: (1) arXiv:2006.11239; (3) (4) arXiv:2202.00512 app. D; (7) (8) arXiv:2010.02502 eq. 12, 16;
(10) arXiv:2211.01095; (11) arXiv:2305.08891 alg. 1.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emu_jax.diffusion.noise import normal
from emu_jax.typing import PerExample, Video

Kind = Literal["scaled_linear", "linear", "cosine"]
Prediction = Literal["epsilon", "v", "x_0"]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """N noise levels and the quantity that a network predicts at them; hashable, static under jit.

  Called with times it returns (alpha, sigma) of (1).

  Source: "scaled_linear" is Stable Diffusion's (beta linear in its root), called "quad" in Emu
    Video, arXiv:2311.10709, table 3; "linear" is arXiv:2006.11239; "cosine" is arXiv:2102.09672,
    eq. 17, betas capped at 0.999.
  Raises: ValueError where the combination has no meaning.
  """

  kind: Kind = "scaled_linear"  # how betas grow over the steps
  num_steps: int = 1000  # of the forward process
  beta_start: float = (
    8.5e-4  # Stable Diffusion's; 1e-4 in DDPM's "linear"; "cosine" has no use for it
  )
  beta_end: float = 1.2e-2  # Stable Diffusion's; 0.02 in DDPM's "linear"
  zero_terminal_snr: bool = False  # (11)
  prediction: Prediction = "epsilon"  # what the network's output means

  def __post_init__(self):
    for name, choices in (("kind", get_args(Kind)), ("prediction", get_args(Prediction))):
      if getattr(self, name) not in choices:
        raise ValueError(f"Schedule: {name}={getattr(self, name)!r} is none of {choices}")
    if self.num_steps < 2:
      raise ValueError(f"Schedule: num_steps={self.num_steps} is below 2")
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        f"Schedule: beta_start={self.beta_start}, beta_end={self.beta_end} break"
        " 0 < beta_start <= beta_end < 1"
      )
    if self.zero_terminal_snr and self.prediction == "epsilon":
      raise ValueError(
        "Schedule: prediction='epsilon' with zero_terminal_snr=True cannot give x_0 where alpha=0;"
        " use prediction='v' (or 'x_0'), or zero_terminal_snr=False"
      )

  def _betas(self) -> np.ndarray:
    N = self.num_steps
    if self.kind == "linear":
      return np.linspace(self.beta_start, self.beta_end, N, dtype=np.float64)
    if self.kind == "scaled_linear":
      return np.linspace(self.beta_start**0.5, self.beta_end**0.5, N, dtype=np.float64) ** 2
    abar = np.cos((np.arange(N + 1) / N + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)

  @functools.cached_property
  def alphas_cumprod(self) -> np.ndarray:
    """abar of (1): float64 [N], falling; the last is exactly 0 with zero terminal SNR (11)."""
    abar = np.cumprod(1 - self._betas())
    if self.zero_terminal_snr:
      root = np.sqrt(abar)
      # The quotient is exactly 1 at the first step and 0 at the last, so both ends are exact.
      abar = abar[0] * ((root - root[-1]) / (root[0] - root[-1])) ** 2
    abar.setflags(write=False)
    return abar

  @functools.cached_property
  def log_snr(self) -> np.ndarray:
    """log of SNR in (2), twice lambda: float64 [N]; -inf at the last with zero terminal SNR."""
    with np.errstate(divide="ignore"):
      return np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)

  def __call__(self, t: Float[Array, "B"] | Int[Array, "B"]) -> tuple[PerExample, PerExample]:
    """(alpha, sigma), float32, at the steps t; NaN where t is not a step of the table."""
    index = t.astype(jnp.int32)
    return tuple(
      jnp.asarray(np.sqrt(square), jnp.float32)
      # A time beyond the table would otherwise quietly be its neighbour's.
      .at[index]
      .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
      for square in (self.alphas_cumprod, 1 - self.alphas_cumprod)
    )


def per_example(v: PerExample, like: Array) -> Array:
  """[B] -> [B, 1, ..., 1] of `like`'s rank: the only way a per-example scalar meets a video."""
  return v.reshape(v.shape + (1,) * (like.ndim - 1))


def add_noise(x_0: Video, eps: Video, alpha: PerExample, sigma: PerExample) -> Video:
  """x_t of (1)."""
  return per_example(alpha, x_0) * x_0 + per_example(sigma, eps) * eps


def noise_at(
  schedule: Schedule, clean: Video, t: Float[Array, "B"] | Int[Array, "B"], key: jax.Array
) -> Video:
  """`clean` with fresh noise of level t, float32: the noise augmentation of a condition.

  Source: Emu Video, arXiv:2311.10709, sec. 3.3: t drawn from {0, ..., 250} in training and 100 when
    sampling, on the condition of the interpolation model.

  Args:
    key: one for the batch, or one an example [B].
  """
  eps = normal(key, clean.shape)
  return add_noise(clean.astype(jnp.float32), eps, *schedule(t))


def target(
  prediction: Prediction, x_0: Video, eps: Video, alpha: PerExample, sigma: PerExample
) -> Video:
  """What a network with this prediction should return, given what x_t was made of."""
  if prediction == "epsilon":
    return eps
  if prediction == "x_0":
    return x_0
  return per_example(alpha, eps) * eps - per_example(sigma, x_0) * x_0  # (3)


def to_x_0_and_eps(
  prediction: Prediction, output: Video, x_t: Video, alpha: PerExample, sigma: PerExample
) -> tuple[Video, Video]:
  """(x_0, eps), float32, that a network's output stands for; the inverse of `target`.

  "v" is never taken through eps, so it is exact where alpha = 0; "epsilon" needs alpha > 0.
  """
  x_t, output = x_t.astype(jnp.float32), output.astype(jnp.float32)
  alpha, sigma = per_example(alpha, x_t), per_example(sigma, x_t)
  if prediction == "epsilon":
    return (x_t - sigma * output) / alpha, output  # (5)
  if prediction == "x_0":
    return output, (x_t - alpha * output) / sigma  # (6)
  return alpha * x_t - sigma * output, sigma * x_t + alpha * output  # (4)
