"""Continuous time with a cosine log-SNR: Video Diffusion Models, Imagen Video.

The numbers continue those of `edm.py`:

 (27) alpha = cos(phi), sigma = sin(phi) as in (3), with phi = a u + b for u from 0 (nearly clean)
      to 1 (nearly pure noise). The log-SNR, *twice* the lambda of (2), is -2 log tan(phi).
 (28) It runs from max at u = 0 to min at u = 1: b = arctan(exp(-max / 2)),
      a = arctan(exp(-min / 2)) - b.
 (29) An error of x_0 is one of alpha / sigma times its size in eps and of 1 / sigma in v: squared,
      SNR and 1 / sigma^2.

Sources: (27) (28) Progressive Distillation, arXiv:2202.00512, sec. 2 and app. D, with the ends cut
off; Video Diffusion Models, arXiv:2204.03458, has limits -20 and 20.
"""

import dataclasses
import math
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.config import kind
from emu_jax.diffusion.loss import Times, training_noise
from emu_jax.diffusion.noise import normal
from emu_jax.diffusion.process import TIME_SCALE, Sampling, Solver, check_continuous
from emu_jax.diffusion.sampler import first_order
from emu_jax.diffusion.schedule import Prediction, add_noise, target, to_x_0_and_eps
from emu_jax.typing import PerExample, Predict, Video

SnrWeighting = Literal["prediction", "truncated_snr"]


@kind("log_snr")
@dataclasses.dataclass(frozen=True)
class LogSnr:
  """A `Process`: the cosine schedule between two log-SNRs; a level is 1000 u.

  "epsilon" multiplies its error by sigma / alpha in x_0, at min_log_snr = -20 by 22026: edits that
  clip x_0 (`edits.py`) belong to it.

  Raises: ValueError where the numbers have no meaning.
  """

  prediction: Prediction = "v"  # what the network's output means
  min_log_snr: float = -20.0  # of the noisiest time
  max_log_snr: float = 20.0  # of the cleanest time
  times: Times = Times()  # of u in training
  # The loss weights squared errors of what is predicted all alike, or those of x_0 by
  # max(SNR, 1), arXiv:2202.00512, sec. 4.
  weighting: SnrWeighting = "prediction"

  solvers: ClassVar[tuple[Solver, ...]] = ("ddim",)

  def __post_init__(self):
    for name, choices in (
      ("prediction", get_args(Prediction)),
      ("weighting", get_args(SnrWeighting)),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(f"LogSnr: {name}={getattr(self, name)!r} is none of {choices}")
    if not self.min_log_snr < self.max_log_snr:
      raise ValueError(
        f"LogSnr: min_log_snr={self.min_log_snr} is not below max_log_snr={self.max_log_snr}"
      )
    if self.prediction == "epsilon" and self.weighting == "truncated_snr":
      raise ValueError(
        "LogSnr: weighting='truncated_snr' divides errors of prediction='epsilon' by an SNR near 0;"
        " use prediction='v' or 'x_0'"
      )

  def loss(
    self, predict: Predict, x_0: Video, key: jax.Array, *, offset_noise: float = 0.0
  ) -> PerExample:
    """Weighted squared error to the target at a drawn u, mean over T H W C."""
    key_u, key_eps = jax.random.split(key)
    level = TIME_SCALE * self.times.fraction(key_u, x_0.shape[0])
    x_0 = x_0.astype(jnp.float32)
    eps = training_noise(key_eps, x_0.shape, offset_noise)
    alpha, sigma = self.alpha_sigma(level)
    output = predict(add_noise(x_0, eps, alpha, sigma), level).astype(jnp.float32)
    error = output - target(self.prediction, x_0, eps, alpha, sigma)
    loss = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
    return loss if self.weighting == "prediction" else self._truncated(alpha, sigma) * loss

  def _truncated(self, alpha: PerExample, sigma: PerExample) -> PerExample:
    """max(SNR, 1) as a factor of the predicted quantity's squared error, by (29)."""
    if self.prediction == "v":
      return jnp.maximum(jnp.square(alpha), jnp.square(sigma))
    return jnp.maximum(jnp.square(alpha / sigma), 1.0)

  def sample(
    self, predict: Predict, noise: Video, key: jax.Array | None, sampling: Sampling
  ) -> Video:
    """DDIM on even u from 1; the last step, from u = 1 / S, goes to the clean end (1, 0).

    Source: arXiv:2010.02502, eq. 12; the last step is ours: it returns x_0 itself.
    """
    self.check(sampling)
    u = np.linspace(1.0, 0.0, sampling.num_steps + 1)
    alpha, sigma = self._alpha_sigma(np, u)
    alpha[-1], sigma[-1] = 1.0, 0.0
    return first_order(predict, self.clean, noise, TIME_SCALE * u[:-1], alpha, sigma)

  def noised(self, clean: Video, level: PerExample, key: jax.Array) -> Video:
    eps = normal(key, clean.shape)
    return add_noise(clean.astype(jnp.float32), eps, *self.alpha_sigma(level))

  def clean(self, output: Video, x_t: Video, level: PerExample) -> Video:
    return to_x_0_and_eps(self.prediction, output, x_t, *self.alpha_sigma(level))[0]

  def output(self, x_0: Video, x_t: Video, level: PerExample) -> Video:
    alpha, sigma = self.alpha_sigma(level)
    x_0, eps = to_x_0_and_eps("x_0", x_0, x_t, alpha, sigma)
    return target(self.prediction, x_0, eps, alpha, sigma)

  def alpha_sigma(self, level: PerExample) -> tuple[PerExample, PerExample]:
    return self._alpha_sigma(jnp, level / TIME_SCALE)

  def log_snr(self, level: PerExample) -> PerExample:
    """The log-SNR of (27)."""
    alpha, sigma = self.alpha_sigma(level)
    return 2 * (jnp.log(alpha) - jnp.log(sigma))

  def check(self, sampling: Sampling) -> None:
    check_continuous("LogSnr", sampling, self.solvers)

  def _alpha_sigma(self, numpy, u):
    """(27) and (28), cos(phi) as the sine of what is left to a quarter turn.

    Near u = 1 a float32 cosine would have lost its digits.
    """
    clean_end = math.atan(math.exp(-self.max_log_snr / 2))
    noisy_end = math.atan(math.exp(self.min_log_snr / 2))
    a = math.pi / 2 - clean_end - noisy_end
    return numpy.sin(a * (1 - u) + noisy_end), numpy.sin(a * u + clean_end)
