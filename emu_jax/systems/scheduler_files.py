"""Scheduler files of diffusers: the noise of a network's training, and how it is sampled.

A file names one of many solvers, of which the house has few. What it says of noise acts whatever
its class (betas, steps, prediction, zero terminal SNR); so does what it says of the times that
sampling visits (`timestep_spacing`, `steps_offset`), of where it ends (`set_alpha_to_one`) and of
clipping (`clip_sample`), where its class has that option. What belongs to its solver alone
(`SOLVER`) has no effect. All else is refused, since it would mean other noise or other pictures.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from emu_jax.config import check_kinds
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.sampler import Spacing
from emu_jax.diffusion.schedule import Schedule
from emu_jax.weights.files import read_json
from emu_jax.weights.options import Options

FILE = "scheduler_config.json"
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What one of diffusers' schedulers takes for an option that a file leaves out.

  Attributes:
    ends_clean: whether its last step ends at x_0 itself (`set_alpha_to_one`).
    says_end, clips: whether it has the options `set_alpha_to_one` and `clip_sample`; diffusers lets
      others' options be.
  """

  spacing: Spacing = "linspace"
  betas: tuple[float, float] = (1e-4, 0.02)
  ends_clean: bool = True
  says_end: bool = False
  clips: bool = False
  clip: bool = False


STABLE = (8.5e-4, 1.2e-2)
# Those whose noise is a table of steps, and whose network is sampled in many steps: a distilled
# one (LCM, TCD) needs its own solver.
SCHEDULERS: Mapping[str, Defaults] = {
  "DDIMScheduler": Defaults("leading", says_end=True, clips=True, clip=True),
  "DDPMScheduler": Defaults("leading", clips=True, clip=True),
  "PNDMScheduler": Defaults("leading", ends_clean=False, says_end=True),
  "EulerDiscreteScheduler": Defaults(),
  "EulerAncestralDiscreteScheduler": Defaults(),
  "LMSDiscreteScheduler": Defaults(),
  "HeunDiscreteScheduler": Defaults(betas=STABLE, clips=True),
  "KDPM2DiscreteScheduler": Defaults(betas=STABLE),
  "KDPM2AncestralDiscreteScheduler": Defaults(betas=STABLE),
  "DPMSolverMultistepScheduler": Defaults(),
  "DPMSolverSinglestepScheduler": Defaults(),
  "DEISMultistepScheduler": Defaults(),
  "UniPCMultistepScheduler": Defaults(),
}
# Options of solvers that the house does not have, and what acts only with options refused below.
SOLVER = (
  "algorithm_type",
  "disable_corrector",
  "dynamic_thresholding_ratio",
  "euler_at_final",
  "flow_shift",
  "interpolation_type",
  "lambda_min_clipped",
  "lower_order_final",
  "predict_x0",
  "sample_max_value",
  "skip_prk_steps",
  "solver_order",
  "solver_p",
  "solver_type",
  "tensor_format",  # files of 2022
  "time_shift_type",
  "use_beta_sigmas",
  "use_exponential_sigmas",
  "use_karras_sigmas",
  "use_lu_lambdas",
)


def read_discrete(
  folder: pathlib.Path,
  kind: str | None = None,
  overruled: Mapping[str, Any] = MappingProxyType({}),
) -> Discrete:
  """The noise of a pipeline whose scheduler is a table of steps, and how it is sampled by DDIM.

  Args:
    folder: of the scheduler.
    kind: its class where the file does not say it, by the pipeline's index.
    overruled: options that diffusers' pipeline sets whatever the file says.
  Raises: InputError for another class, an option that is not supported, or one that is unknown.
  """
  o, name = _opened(folder, kind)
  if not isinstance(name, str) or name not in SCHEDULERS:
    raise o.refuse(
      f"_class_name={name!r} is not supported; schedulers of a table of steps are: "
      f"{', '.join(SCHEDULERS)}. Choose another checkpoint"
    )
  usual = SCHEDULERS[name]
  o.only("thresholding", False)
  o.only("trained_betas", None)
  o.only("timestep_type", "discrete")
  o.only("final_sigmas_type", "zero")
  o.only("use_flow_sigmas", False)
  o.only("use_dynamic_shifting", False)
  # A learned variance is a second half of the network's output.
  fixed = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
  o.only("variance_type", None, *fixed)
  o.ignore(*SOLVER)
  spacing = o.get("timestep_spacing", usual.spacing)
  if spacing not in get_args(Spacing):
    raise o.refuse(f"timestep_spacing={spacing!r} is not supported; {_any_of(get_args(Spacing))}")
  offset = overruled.get("steps_offset", o.get("steps_offset", 0))
  ends_clean = o.get("set_alpha_to_one", usual.ends_clean)
  clip = overruled.get("clip_sample", o.get("clip_sample", usual.clip))
  clip_range = o.get("clip_sample_range", 1.0)
  with o.building():
    process = Discrete(
      _schedule(o, usual),
      spacing=spacing,
      offset=offset if spacing == "leading" else 0,
      ends_clean=ends_clean if usual.says_end else True,
      clip=float(clip_range) if clip and usual.clips else 0.0,
    )
    check_kinds(process)
  o.done()
  if process.schedule.zero_terminal_snr and spacing == "leading":
    raise o.refuse(
      "timestep_spacing='leading' never visits the last step, where rescale_betas_zero_snr=True "
      "has pure noise; write 'trailing' there"
    )
  return process


def _opened(folder: pathlib.Path, kind: str | None) -> tuple[Options, Any]:
  path = folder / FILE
  o = Options(read_json(path), str(path))
  return o, o.get("_class_name", kind)


def _schedule(o: Options, usual: Defaults) -> Schedule:
  kind, predicted = o.get("beta_schedule", "linear"), o.get("prediction_type", "epsilon")
  for name, value, known in (
    ("beta_schedule", kind, BETAS),
    ("prediction_type", predicted, PREDICTIONS),
  ):
    if value not in known:
      raise o.refuse(f"{name}={value!r} is not supported; {_any_of(known)}")
  start, end = usual.betas
  return Schedule(
    kind=BETAS[kind],
    num_steps=o.get("num_train_timesteps", 1000),
    beta_start=o.get("beta_start", start),
    beta_end=o.get("beta_end", end),
    zero_terminal_snr=o.get("rescale_betas_zero_snr", False) or False,
    prediction=PREDICTIONS[predicted],
  )


def _any_of(values: Any) -> str:
  return f"{', '.join(values)} are. Choose another checkpoint"


def read_edm(folder: pathlib.Path) -> Edm:
  """The noise levels of Stable Video Diffusion's scheduler.

  Raises: InputError for a scheduler of another kind of network, or of levels without bounds.
  """
  o, name = _opened(folder, None)
  if name != "EulerDiscreteScheduler":
    raise o.refuse(
      f"_class_name={name!r} is not supported; 'EulerDiscreteScheduler' is. Choose another "
      "checkpoint"
    )
  o.only("prediction_type", "v_prediction")
  o.only("timestep_type", "continuous")  # networks whose time is log(sigma) / 4
  o.only("use_karras_sigmas", True)
  for name in ("use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr"):
    o.only(name, False)
  o.only("final_sigmas_type", "zero")
  # Of "leading" noise begins with the spread that x has at sigma_max; else with sigma_max itself.
  o.only("timestep_spacing", "leading")
  # Levels go from sigma_max to sigma_min, whatever the table of steps; others' options do nothing.
  o.ignore("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")
  o.ignore("steps_offset", "set_alpha_to_one", "clip_sample", *SOLVER)
  lowest, highest = o.get("sigma_min", None), o.get("sigma_max", None)
  if not all(isinstance(sigma, int | float) for sigma in (lowest, highest)):
    raise o.refuse(f"sigma_min={lowest!r} and sigma_max={highest!r} must both be numbers")
  o.done()
  with o.building():
    return Edm(sigma_min=float(lowest), sigma_max=float(highest))


def written(process: Discrete) -> dict[str, Any]:
  """scheduler_config.json of a process; the inverse of `read_discrete`."""
  kinds = {ours: theirs for theirs, ours in BETAS.items()}
  predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  schedule = process.schedule
  return {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": schedule.num_steps,
    "beta_schedule": kinds[schedule.kind],
    "beta_start": schedule.beta_start,
    "beta_end": schedule.beta_end,
    "prediction_type": predictions[schedule.prediction],
    "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    "timestep_spacing": process.spacing,
    # Diffusers' pipeline asks for 1, which acts with "leading" alone.
    "steps_offset": process.offset if process.spacing == "leading" else 1,
    "clip_sample": process.clip > 0,
    "clip_sample_range": process.clip or 1.0,
    "set_alpha_to_one": process.ends_clean,
  }
