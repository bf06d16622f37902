"""Files of diffusers' schedulers: what they mean there at every step, or one line that says no."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.edm import edm_euler
from emu_jax.diffusion.sampler import ddim, time_grid
from emu_jax.errors import InputError
from emu_jax.systems.scheduler_files import SCHEDULERS, read_discrete, read_edm, written
from tests.tiny_public import EULER, LEVELS, SCHEDULE

V2 = SCHEDULE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
# Of AnimateDiff's own code.
ANIMATEDIFF = {
  "_class_name": "DDIMScheduler",
  "num_train_timesteps": 1000,
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "linear",
  "steps_offset": 1,
  "clip_sample": False,
}
CLIPPED = {key: value for key, value in ANIMATEDIFF.items() if key != "clip_sample"}
ZERO_SNR = V2 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
DDIM = {
  "SD 1.5": SCHEDULE,
  "SD 2.1": V2,
  "XL": EULER,
  "AnimateDiff": ANIMATEDIFF,
  "clipped": CLIPPED,
  "zero SNR": ZERO_SNR,
  "pixels": {"_class_name": "DDPMScheduler", "prediction_type": "sample", "clip_sample": False},
}
# Rounding alone: diffusers has abar as a product of 1000 numbers in float32 (1000 x 6e-8 at most),
# and x_0 = (x_t - sigma eps) / alpha multiplies it by 1 / alpha, 15 at t = 981.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def diffusers():
  return pytest.importorskip("diffusers", reason="diffusers is the oracle")


@pytest.fixture
def scheduler(tmp_path):
  def write(**values):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(values))
    return tmp_path

  return write


def network(np_or_torch, x, t):
  """Something that is nobody's solution, alike in both libraries."""
  return np_or_torch.tanh(0.7 * x + float(t) / 500)


def noise():
  return np.random.default_rng(0).standard_normal((1, 1, 4, 4, 4)).astype(np.float32)


def theirs(solver, steps, scale=1.0):
  """The state after each step, from noise times `scale`."""
  import torch

  solver.set_timesteps(steps)
  x, states = torch.tensor(noise() * scale), []
  for t in solver.timesteps:
    output = network(torch, solver.scale_model_input(x, t), t)
    x = solver.step(output, t, x).prev_sample
    states.append(x.numpy())
  return np.stack(states)


def ours(process, steps):
  grid = time_grid(process.schedule.num_steps, steps, process.spacing, process.offset)
  predict = lambda x_t, t: jnp.tanh(0.7 * x_t + t.reshape(-1, 1, 1, 1, 1) / 500)
  kept = {"ends_clean": process.ends_clean, "clip": process.clip}
  return np.asarray(
    ddim(predict, process.schedule, jnp.asarray(noise()), grid, trajectory=True, **kept)
  )


def assert_same_steps(found, expected):
  assert found.shape == expected.shape
  errors = np.abs(found - expected).max((1, 2, 3, 4, 5)) / expected.std()
  assert errors.max() <= TOLERANCE, errors


@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize("name", DDIM)
def test_a_file_is_sampled_as_diffusers_ddim_samples_it_at_every_step(
  name, steps, diffusers, scheduler
):
  process = read_discrete(scheduler(**DDIM[name]))
  solver = diffusers.DDIMScheduler.from_config(DDIM[name])
  if name == "XL":  # its own class ends at x_0, whatever `set_alpha_to_one` says
    solver = diffusers.DDIMScheduler.from_config(DDIM[name], set_alpha_to_one=True)
  assert_same_steps(ours(process, steps), theirs(solver, steps))


@pytest.mark.parametrize("steps", [4, 25])
def test_xl_is_sampled_as_diffusers_euler_samples_it_at_every_step(steps, diffusers, scheduler):
  """Euler's steps go along sigma / alpha, on x / alpha."""
  process = read_discrete(scheduler(**EULER))
  solver = diffusers.EulerDiscreteScheduler.from_config(EULER)
  solver.set_timesteps(steps)
  expected = theirs(solver, steps, float(solver.init_noise_sigma))
  alpha = 1 / np.sqrt(1 + np.asarray(solver.sigmas[1:], np.float64) ** 2)
  expected = (expected * alpha.reshape(-1, 1, 1, 1, 1, 1)).astype(np.float32)
  assert_same_steps(ours(process, steps), expected)


def test_svd_is_sampled_as_diffusers_euler_samples_it_at_every_step(diffusers, scheduler):
  process, steps = read_edm(scheduler(**LEVELS)), 5
  solver = diffusers.EulerDiscreteScheduler.from_config(LEVELS)
  solver.set_timesteps(steps)
  expected = theirs(solver, steps, float(solver.init_noise_sigma))
  predict = lambda x, t: jnp.tanh(0.7 * x + t.reshape(-1, 1, 1, 1, 1) / 500)
  levels = process.levels(steps)
  found = [edm_euler(predict, process, jnp.asarray(noise()), levels[: k + 2]) for k in range(steps)]
  for state, other in zip(found, expected, strict=True):
    assert np.abs(np.asarray(state) - other).max() <= TOLERANCE * np.std(other)


def test_defaults_are_those_of_diffusers(diffusers, scheduler):
  """A file that says nothing but its class."""
  for name, usual in SCHEDULERS.items():
    config = getattr(diffusers, name)().config
    process = read_discrete(scheduler(_class_name=name, clip_sample=False))
    assert process.spacing == config.get("timestep_spacing", process.spacing), name
    schedule = process.schedule
    assert (schedule.beta_start, schedule.beta_end) == (config.beta_start, config.beta_end), name
    assert usual.says_end == ("set_alpha_to_one" in config), name
    assert usual.clips == ("clip_sample" in config), name
    assert usual.clip == config.get("clip_sample", False), name
    if usual.says_end:
      assert process.ends_clean == config.set_alpha_to_one


def test_what_diffusers_pipeline_sets_itself_is_set_here(scheduler):
  """Its Stable Diffusion mends files of 2022, which lack two options."""
  bare = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
  assert read_discrete(scheduler(**bare)).clip == 1.0
  mended = read_discrete(scheduler(**bare), overruled={"steps_offset": 1, "clip_sample": False})
  assert (mended.offset, mended.clip) == (1, 0.0)


def test_a_class_that_the_file_leaves_out_is_that_of_the_index(scheduler):
  bare = {key: value for key, value in SCHEDULE.items() if key != "_class_name"}
  assert read_discrete(scheduler(**bare), "PNDMScheduler") == read_discrete(scheduler(**SCHEDULE))
  with pytest.raises(InputError, match="_class_name=None is not supported; schedulers"):
    read_discrete(scheduler(**bare))


@pytest.mark.parametrize("name", DDIM)
def test_written_again_a_file_means_the_same(name, scheduler):
  process = read_discrete(scheduler(**DDIM[name]))
  assert read_discrete(scheduler(**written(process))) == process


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, "'EDMEulerScheduler' is not support"),
    ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "'EDMDPMSolverMultistepScheduler' is not"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "'FlowMatchEulerDiscrete"),
    ({"_class_name": "LCMScheduler"}, "'LCMScheduler' is not supported; schedulers of a table"),
    ({"_class_name": "TCDScheduler"}, "'TCDScheduler' is not supported"),
    ({"_class_name": ["DDIMScheduler"]}, "_class_name="),
    ({"made_up": 3}, "made_up=3 is not supported; choose another checkpoint"),
    ({"thresholding": True}, "thresholding=True is not supported; False is"),
    ({"trained_betas": [0.1, 0.2]}, r"trained_betas=\[0.1, 0.2\] is not supported"),
    ({"timestep_type": "continuous"}, "timestep_type='continuous' is not supported"),
    ({"timestep_spacing": "even"}, "timestep_spacing='even' is not supported; trailing, leading"),
    ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min' is not supported; 'zero'"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not supported; scaled_linear"),
    ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction' is not supported"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas=True is not supported"),
    ({"variance_type": "learned_range"}, "variance_type='learned_range' is not supported"),
    ({"sigma_max": 80.0}, "sigma_max=80.0 is not supported"),
    ({"num_train_timesteps": "many"}, "; choose another checkpoint"),
    ({"steps_offset": "one"}, "; choose another checkpoint"),
    ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "'leading' never visits"),
  ],
)
def test_what_would_be_sampled_otherwise_is_refused_by_name(changes, says, scheduler):
  with pytest.raises(InputError, match=says) as caught:
    read_discrete(scheduler(**SCHEDULE | changes))
  assert "scheduler_config.json: " in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"_class_name": "EDMEulerScheduler"}, "'EDMEulerScheduler' is not supported"),
    ({"timestep_spacing": "trailing"}, "timestep_spacing='trailing' is not supported; 'leading'"),
    ({"timestep_type": "discrete"}, "timestep_type='discrete' is not supported"),
    ({"use_karras_sigmas": False}, "use_karras_sigmas=False is not supported"),
    ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min' is not supported"),
    ({"sigma_max": None}, "sigma_max=None must both be numbers"),
    ({"sigma_min": 800.0}, "0 < sigma_min < sigma_max"),
    ({"rho": 7.0}, "rho=7.0 is not supported"),
  ],
)
def test_levels_that_would_be_others_are_refused_by_name(changes, says, scheduler):
  with pytest.raises(InputError, match=says):
    read_edm(scheduler(**LEVELS | changes))
