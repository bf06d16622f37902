"""Laws of every noise process, and the numbers of each against its closed form.

For data N(m, V) the exact denoiser is x_0 = m + alpha V / (alpha^2 V + sigma^2) (x_t - alpha m);
the probability-flow ODE keeps (x_t - alpha m) / sqrt(alpha^2 V + sigma^2).
"""

import dataclasses
import inspect
import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.config import from_dict, to_dict
from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edm import Edm, edm_euler, edm_heun, edm_loss
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.log_snr import LogSnr
from emu_jax.diffusion.loss import Times, diffusion_loss
from emu_jax.diffusion.noise import normal
from emu_jax.diffusion.process import Process, Sampling
from emu_jax.diffusion.sampler import ddim, dpm_solver_pp_2m, time_grid
from emu_jax.diffusion.schedule import Schedule, noise_at, per_example

ZERO = Schedule(zero_terminal_snr=True, prediction="v")
KARRAS = Edm(prediction="edm", data_std=0.5, sigma_max=80.0, log_mean=-1.2, log_std=1.2)
PROCESSES = {
  "epsilon": Discrete(),
  "v": Discrete(Schedule(prediction="v"), Times(0.5, 0.3, 0.8, True)),
  "x_0": Discrete(Schedule(prediction="x_0")),
  "v zero SNR": Discrete(ZERO),
  "x_0 zero SNR": Discrete(dataclasses.replace(ZERO, prediction="x_0")),
  "edm v": Edm(),
  "edm": KARRAS,
  "log-SNR v": LogSnr(),
  "log-SNR v truncated": LogSnr(weighting="truncated_snr"),
  "log-SNR x_0 truncated": LogSnr("x_0", weighting="truncated_snr"),
  "log-SNR epsilon": LogSnr("epsilon", -8.0, 10.0, Times(stratified=True)),
  "flow": Flow(),
  "flow shifted": Flow(3.0),
}
EVERY = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
SHAPE = (5, 2, 3, 4, 2)
ULP = 2.0**-24  # half a unit in the last place of 1, what one rounding may do


def levels(process):
  """Five levels over the whole of a process, as its network receives them, float64."""
  if isinstance(process, Discrete):
    return np.array([0.0, 30.0, 500.0, 900.0, 999.0])
  if isinstance(process, Edm):
    return np.log(np.geomspace(process.sigma_min, process.sigma_max, 5)) / 4
  return 1000 * np.array([0.01 if isinstance(process, Flow) else 0.0, 0.1, 0.5, 0.9, 1.0])


def closed_form(process, level):
  """alpha and sigma at float64 levels, written another way than in the process."""
  if isinstance(process, Discrete):
    abar = process.schedule.alphas_cumprod[level.astype(int)]
    return np.sqrt(abar), np.sqrt(1 - abar)
  if isinstance(process, Edm):
    sigma = np.exp(4 * level)
    return 1 / np.hypot(sigma, process.data_std), sigma / np.hypot(sigma, process.data_std)
  u = level / 1000
  if isinstance(process, Flow):
    return 1 - u, u
  b = np.arctan(np.exp(-process.max_log_snr / 2))
  a = np.arctan(np.exp(-process.min_log_snr / 2)) - b
  log_snr = -2 * np.log(np.tan(a * u + b))
  return (1 + np.exp(-log_snr)) ** -0.5, (1 + np.exp(log_snr)) ** -0.5


def predicts_epsilon(process):
  return getattr(getattr(process, "schedule", process), "prediction", None) == "epsilon"


def slope(process, alpha, sigma):
  """How far the output moves for 1 of x_0, without its sign."""
  if isinstance(process, Edm):
    return 1 / (process.data_std * sigma)  # 1 / c_out
  if isinstance(process, Flow):
    return 1 / sigma
  prediction = getattr(process, "schedule", process).prediction
  return {"epsilon": alpha / sigma, "v": 1 / sigma, "x_0": np.ones_like(sigma)}[prediction]


def knowing(process, x_0):
  """The network that takes everything to be made of x_0."""
  return lambda x_t, level: process.output(jnp.broadcast_to(x_0, x_t.shape), x_t, level)


def float32(array):
  return jnp.asarray(array, jnp.float32)


def draws(num, shape=SHAPE, seed=0):
  return [jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(seed), num)]


# A process's numbers.


@EVERY
def test_it_is_a_process_and_a_configuration(process):
  assert isinstance(process, Process)
  assert from_dict(json.loads(json.dumps(to_dict(process))), type(process), "test") == process
  assert hash(process) == hash(dataclasses.replace(process))


@EVERY
def test_alpha_and_sigma_are_the_closed_form(process):
  level = levels(process)
  for found, wanted in zip(
    process.alpha_sigma(float32(level)), closed_form(process, level), strict=True
  ):
    # A float32 level is off by 2^-24 of itself: of a time 0..1 that is 2^-24 and at most pi / 2 of
    # it in alpha or sigma; of a log sigma up to 6.6 that is 6.6 * 2^-24 of sigma. Then 4 roundings.
    np.testing.assert_allclose(found, wanted, rtol=8 * ULP, atol=4 * ULP)
    assert found.dtype == jnp.float32


@EVERY
def test_noised_is_alpha_x_0_and_sigma_noise(process):
  (x_0,), level = draws(1), levels(process)
  alpha, sigma = (a.reshape(-1, 1, 1, 1, 1) for a in closed_form(process, level))
  for key in (jax.random.key(3), jax.random.split(jax.random.key(3), 5)):
    x_t = process.noised(x_0.astype(jnp.bfloat16), float32(level), jax.random.clone(key))
    wanted = alpha * np.asarray(x_0.astype(jnp.bfloat16), np.float64) + sigma * normal(key, SHAPE)
    np.testing.assert_allclose(x_t, wanted, rtol=0, atol=5 * 12 * ULP)
    assert x_t.dtype == jnp.float32


@EVERY
def test_clean_and_output_are_inverses(process):
  (x_0, output), level = draws(2), levels(process)
  x_t = process.noised(x_0, float32(level), jax.random.key(9))
  alpha, sigma = (np.maximum(a, 1e-30) for a in closed_form(process, level))
  # Numbers up to 5, some 8 roundings each way; epsilon is divided by alpha on the way to x_0, and
  # the way to an output multiplies what x_0 was off by.
  off = 8 * 5 * ULP / (alpha if predicts_epsilon(process) else 1)
  x_0_back = process.clean(process.output(x_0, x_t, float32(level)), x_t, float32(level))
  assert np.all(abs(x_0_back - x_0).max((1, 2, 3, 4)) <= off)
  assert np.isfinite(x_0_back).all()
  output_back = process.output(process.clean(output, x_t, float32(level)), x_t, float32(level))
  off = off * slope(process, alpha, sigma) + 8 * 5 * ULP
  assert np.all(abs(output_back - output).max((1, 2, 3, 4)) <= off)


# The loss.


@EVERY
def test_knowing_x_0_costs_nothing_and_an_error_of_1_its_weight(process):
  x_0, seen = 0.5 * draws(1)[0], []

  def off_by(error):
    def predict(x_t, level):
      seen.append(np.asarray(level, np.float64))
      return process.output(x_0 + error, x_t, level)

    return predict

  loss = process.loss(off_by(0.0), x_0, jax.random.key(1), offset_noise=0.1)
  alpha, sigma = closed_form(process, seen[0])
  weight = slope(process, alpha, sigma) ** 2
  if getattr(process, "weighting", "") == "truncated_snr":
    weight = np.maximum((alpha / sigma) ** 2, 1)
  # x_t of numbers up to 5 is rounded some times, and the output magnifies that as it does x_0.
  assert loss.dtype == jnp.float32
  assert np.all(loss <= (8 * 5 * ULP) ** 2 * np.maximum(weight, 1 / sigma**2))
  loss = process.loss(off_by(1.0), x_0, jax.random.key(1), offset_noise=0.1)
  np.testing.assert_array_equal(seen[0], seen[1])
  # (w + d)^2 with d the rounding above, of w at least the SNR.
  assert np.all(abs(loss / weight - 1) <= 4 * 8 * 5 * ULP / np.minimum(alpha, sigma))


# Sampling.


def samplings(process, num_steps, **others):
  return [Sampling(solver, num_steps, **others) for solver in process.solvers]


@EVERY
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_point_is_landed_on(process, num_steps):
  point, noise = draws(2)
  for sampling in samplings(process, num_steps):
    visited = []

    def predict(x_t, level, visited=visited):
      jax.debug.callback(lambda l: visited.append(float(l[0])), level)
      return knowing(process, point)(x_t, level)

    reached = process.sample(predict, noise, None, sampling)
    jax.effects_barrier()
    # The last call's answer is what is returned: `clean` of `output`, as above.
    cleanest = closed_form(process, np.array([min(visited)]))[0][0]
    off = 8 * 5 * ULP / (cleanest if predicts_epsilon(process) else 1)
    if sampling.solver == "heun":
      # It holds x, up to 5 sigma, and adds slopes, in which sigma_min divides that x's rounding.
      last = math.exp(4 * min(visited))
      x = 5 * process.sigma_max
      x = max(5 * last, x * ULP / process.sigma_min * process.sigma_max / 2)
      off += 8 * x * ULP
    np.testing.assert_allclose(reached, point, rtol=0, atol=off)


def visited_levels(process, num_steps):
  """Levels of a first-order sampler, written another way than in the process."""
  even = 1 - np.arange(num_steps) / num_steps
  if isinstance(process, Discrete):
    N = process.schedule.num_steps
    return time_grid(N, num_steps, "trailing").astype(float)
  if isinstance(process, Edm):
    return np.log(process.levels(num_steps)[:-1]) / 4
  if isinstance(process, Flow):
    return 1000 / (1 + (1 / even - 1) / process.shift)  # odds of data to noise over the shift
  return 1000 * even


def sampled(process, num_steps, mean, V, x):
  """The first-order sampler of N(mean, V) in float64, from noise x."""
  alpha, sigma = closed_form(process, visited_levels(process, num_steps))
  ends = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
  for a, s, a_end, s_end in zip(alpha, sigma, *ends, strict=True):
    x_0 = mean + a * V / (a**2 * V + s**2) * (x - a * mean)
    x = a_end * x_0 + s_end * (x - a * x_0) / s
  return x


@EVERY
def test_gaussian_data_reaches_its_mean_and_standard_deviation(process):
  mean, V, S = 0.7, np.array([0.2, 1.5]), 64
  z = np.array([-1.0, 2.0])  # the map from noise is affine: two points say all of it
  wide = lambda v: float32(v).reshape(-1, 1, 1, 1, 1)

  def predict(x_t, level):
    alpha, sigma = (per_example(a, x_t) for a in process.alpha_sigma(level))
    gain = alpha * wide(np.repeat(V, 2)) / (alpha**2 * wide(np.repeat(V, 2)) + sigma**2)
    return process.output(mean + gain * (x_t - alpha * mean), x_t, level)

  noise = wide(np.tile(z, 2))
  found = process.sample(predict, noise, None, Sampling(process.solvers[0], S)).ravel()
  found = np.asarray(found, np.float64).reshape(2, 2)
  by_steps = [sampled(process, n, mean, V[:, None], z) for n in (S, 2 * S, 4 * S)]
  # S steps of some 8 roundings of numbers up to 4, the first of which may be off by 1 / alpha in
  # x_0 where epsilon is predicted: it enters with weight alpha.
  np.testing.assert_allclose(found, by_steps[0], rtol=0, atol=S * 8 * 4 * ULP)
  # Where the ODE leads from noise at the noisiest level, and how far the steps are from there: a
  # first-order method halves that with their length.
  alpha, sigma = closed_form(process, visited_levels(process, S)[:1])
  deviation = np.sqrt(V / (alpha**2 * V + sigma**2))[:, None]
  exact = mean + deviation * (z - alpha * mean)
  errors = np.array(by_steps) - exact
  assert np.all(abs(errors[0]) < 0.15)
  np.testing.assert_allclose(errors[1:] / errors[:-1], 0.5, atol=0.08)


@EVERY
def test_sampling_is_one_scan(process):
  for sampling in samplings(process, 20):
    run = lambda x, sampling=sampling: process.sample(knowing(process, 0.0), x, None, sampling)
    program = str(jax.make_jaxpr(run)(jnp.ones(SHAPE, jnp.bfloat16)))
    assert program.count("scan[") == 1
    assert "while[" not in program
    assert jax.eval_shape(run, jnp.ones(SHAPE, jnp.bfloat16)).dtype == jnp.float32


# What the processes wrap.


def network(x_t, level):
  return jnp.sin(2 * x_t) + 0.1 * jnp.cos(per_example(level, x_t))


def assert_same_bits(ours, theirs, *inputs):
  """Of both as compiled programs; keys are used once in each."""
  spend = lambda i: jax.random.clone(i) if jnp.issubdtype(i.dtype, jax.dtypes.prng_key) else i
  found, wanted = (jax.jit(f)(*map(spend, inputs)) for f in (ours, theirs))
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["epsilon", "v", "v zero SNR"])
def test_a_table_of_steps_is_the_functions_bit_for_bit(name):
  process = PROCESSES[name]
  (x,), key, schedule = draws(1), jax.random.key(5), process.schedule
  grid = time_grid(1000, 5, "linspace")
  assert_same_bits(
    lambda x, k: process.sample(network, x, k, Sampling("ddim", 5, "linspace")),
    lambda x, k: ddim(network, schedule, x, grid),
    x, key,
  )  # fmt: skip
  assert_same_bits(
    lambda x, k: process.sample(network, x, k, Sampling("dpm++", 5, "linspace")),
    lambda x, k: dpm_solver_pp_2m(network, schedule, x, grid),
    x, key,
  )  # fmt: skip
  if not schedule.zero_terminal_snr:
    grid = time_grid(1000, 5, "leading", 1)
    assert_same_bits(
      lambda x, k: process.sample(network, x, k, Sampling("ddim", 5, "leading", 1, 0.7)),
      lambda x, k: ddim(network, schedule, x, grid, eta=0.7, key=k),
      x, key,
    )  # fmt: skip
  assert_same_bits(
    lambda x, k: process.loss(network, x, k, offset_noise=0.1),
    lambda x, k: diffusion_loss(
      network, schedule, x, k, offset_noise=0.1, times=process.times
    ),
    x, key,
  )  # fmt: skip
  level = float32(levels(process))
  assert_same_bits(
    lambda x, k: process.noised(x, level, k), lambda x, k: noise_at(schedule, x, level, k), x, key
  )


@pytest.mark.parametrize("edm", [Edm(), KARRAS], ids=["v", "edm"])
def test_edm_is_its_functions_bit_for_bit(edm):
  (x,), key = draws(1), jax.random.key(5)
  for solver, solve in (("euler", edm_euler), ("heun", edm_heun)):
    assert_same_bits(
      lambda x, k, solver=solver: edm.sample(network, x, k, Sampling(solver, 5)),
      lambda x, k, solve=solve: solve(network, edm, x, edm.levels(5)),
      x, key,
    )  # fmt: skip
  assert_same_bits(
    lambda x, k: edm.loss(network, x, k, offset_noise=0.1),
    lambda x, k: edm_loss(network, edm, x, k, offset_noise=0.1),
    x, key,
  )  # fmt: skip


def test_edms_x_0_is_what_its_samplers_take_it_to_be():
  """`denoised` has x and sigma, a process c_in x and log(sigma) / 4."""
  x, output = draws(2)
  for edm in (Edm(), KARRAS):
    sigma = float32(np.geomspace(0.1, 30.0, 5))
    wanted = edm.denoised(lambda *_: output, per_example(sigma, x) * x, sigma)
    c_in = edm.coefficients(sigma)[2]
    found = edm.clean(output, per_example(c_in * sigma, x) * x, jnp.log(sigma) / 4)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=16 * 5 * ULP)


# Keys.


def test_an_examples_sample_depends_on_its_key_alone():
  process, sampling = Discrete(Schedule(prediction="v")), Sampling("ddim", 4, eta=1.0)

  def sample(key):
    key_noise, key_steps = jax.random.clone(key), jax.random.clone(key)
    noise = normal(key_noise, (key.shape[0] if key.ndim else 1, *SHAPE[1:]))
    return process.sample(network, noise, key_steps, sampling)

  keys = lambda: jax.random.split(jax.random.key(2), 5)
  for run in (sample, jax.jit(sample)):
    whole = np.asarray(run(keys()))
    assert abs(whole[0] - whole[1]).max() > 0.1
    np.testing.assert_array_equal(run(keys()[::-1]), whole[::-1])
    np.testing.assert_array_equal(run(keys()[3]), run(keys()[3:4]))
    # The noise is the same bits (test_noise.py); a program of another batch may round otherwise.
    for order in ([3], [4, 1]):
      off = 4 * 8 * 5 * ULP  # steps, roundings, numbers up to 5
      np.testing.assert_allclose(run(keys()[np.array(order)]), whole[order], rtol=0, atol=off)


# Continuous log-SNR.


def test_log_snr_runs_from_20_to_minus_20_by_the_cosine():
  u = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
  found = LogSnr().log_snr(float32(1000 * u))
  b = math.atan(math.exp(-10))
  a = math.atan(math.exp(10)) - b
  wanted = -2 * np.log(np.tan(a * u + b))
  np.testing.assert_allclose(wanted[[0, 2, 4]], [20, 0, -20], atol=1e-10)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
  alpha, sigma = LogSnr().alpha_sigma(float32(1000 * u))
  np.testing.assert_allclose(alpha**2, 1 / (1 + np.exp(-wanted)), rtol=2e-6)
  np.testing.assert_allclose(sigma**2, 1 / (1 + np.exp(wanted)), rtol=2e-6)
  lopsided = LogSnr(min_log_snr=-6.0, max_log_snr=9.0)
  np.testing.assert_allclose(lopsided.log_snr(float32([0.0, 1000.0])), [9, -6], rtol=1e-5)


def drawn_levels(process, num):
  seen = []
  predict = lambda x_t, level: seen.append(level) or x_t
  process.loss(predict, jnp.zeros((num, 1, 1, 1, 1)), jax.random.key(0))
  return np.sort(seen[0]) / 1000


def test_training_draws_u_alike():
  u, n = drawn_levels(LogSnr(), 4000), 4000
  # Kolmogorov: the largest difference exceeds 1.95 / sqrt(n) once in a thousand times.
  assert abs(u - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5
  strata = drawn_levels(LogSnr(times=Times(stratified=True)), 8)
  np.testing.assert_array_equal(np.floor(8 * strata), np.arange(8))


# Flow.


def test_flows_times_are_logit_normal_and_shifted():
  n = 4000
  for shift in (1.0, 3.0):
    t = drawn_levels(Flow(shift), n)
    # logit t = logit u + log shift: the normal of mean 0, moved.
    normal = statistics.NormalDist(math.log(shift), 1.0)
    below = [normal.cdf(math.log(x / (1 - x))) for x in t]
    assert abs(np.array(below) - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5


def test_flows_sampling_visits_shifted_times():
  visited = []

  def predict(x_t, level):
    jax.debug.callback(lambda l: visited.append(l[0]), level, ordered=True)
    return x_t

  Flow(3.0).sample(predict, jnp.ones((1, 1, 1, 1, 1)), None, Sampling("euler", 4))
  jax.effects_barrier()
  # 3 u / (1 + 2 u) of u = 1, 3/4, 1/2, 1/4
  np.testing.assert_allclose(visited, [1000, 900, 750, 500], rtol=1e-6)
  assert Flow(1.0).shifted(0.3) == 0.3


def test_a_flow_is_straight():
  """One step with the true speed is exact, and the target is eps - x_0."""
  x_0, eps = draws(2)
  flow = Flow()
  t = float32(levels(flow))
  x_t = per_example(1 - t / 1000, x_0) * x_0 + per_example(t / 1000, eps) * eps
  # Division by t = 0.01 magnifies 4 roundings of numbers up to 5.
  np.testing.assert_allclose(flow.output(x_0, x_t, t), eps - x_0, rtol=0, atol=4 * 5 * ULP / 0.01)
  reached = flow.sample(lambda x, t: eps - x_0, eps, None, Sampling("euler", 1))
  np.testing.assert_allclose(reached, x_0, rtol=0, atol=4 * 5 * ULP)


# What cannot be sampled or means nothing does not start.


@pytest.mark.parametrize(
  ("process", "sampling", "message"),
  [
    (Discrete(), Sampling("heun"), r"Discrete: solver='heun' .* use 'ddim' or 'dpm\+\+'"),
    (Discrete(ZERO), Sampling(eta=1.0), "eta=1.0 > 0 where alpha=0"),
    (Discrete(ZERO), Sampling(spacing="leading"), "'leading' never visits t=999"),
    (Discrete(), Sampling(num_steps=1001), "num_steps=1001"),
    (Discrete(), Sampling(offset=1), "offset=1 with spacing='trailing'"),
    (Edm(), Sampling(), "Edm: solver='ddim' .* use 'euler' or 'heun'"),
    (Edm(), Sampling("euler", 0), "Edm: num_steps=0 must be at least 1"),
    (Edm(), Sampling("euler", spacing="leading"), "Edm: spacing='leading' has no meaning here"),
    (LogSnr(), Sampling("dpm++"), r"LogSnr: solver='dpm\+\+' .* use 'ddim'"),
    (LogSnr(), Sampling(eta=0.5), "LogSnr: eta=0.5 has no meaning here; leave it at 0.0"),
    (Flow(), Sampling("ddim"), "Flow: solver='ddim' .* use 'euler'"),
    (Flow(), Sampling("euler", offset=1), "Flow: offset=1 has no meaning here; leave it at 0"),
  ],
)
def test_a_sampling_that_does_not_fit_does_not_start(process, sampling, message):
  with pytest.raises(ValueError, match=message):
    process.check(sampling)
  with pytest.raises(ValueError, match=message):
    process.sample(network, jnp.ones(SHAPE), jax.random.key(0), sampling)


@EVERY
def test_the_usual_sampling_fits(process):
  for sampling in samplings(process, 50):
    process.check(sampling)


def test_numbers_without_meaning_do_not_start():
  with pytest.raises(ValueError, match=r"eta=0.5 with solver='dpm\+\+', which is deterministic"):
    Sampling("dpm++", eta=0.5)
  with pytest.raises(ValueError, match=r"eta=0\.5 with solver='heun', which is deterministic"):
    Sampling("heun", eta=0.5)
  with pytest.raises(ValueError, match="Sampling: solver='plms' is none of"):
    inspect.unwrap(Sampling.__init__)(object.__new__(Sampling), "plms")
  with pytest.raises(ValueError, match=r"min_log_snr=3.0 is not below max_log_snr=3.0"):
    LogSnr(min_log_snr=3.0, max_log_snr=3.0)
  with pytest.raises(ValueError, match="use prediction='v' or 'x_0'"):
    LogSnr("epsilon", weighting="truncated_snr")
  with pytest.raises(ValueError, match="Flow: shift=0"):
    Flow(0.0)
