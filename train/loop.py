"""The one loop that trains every stage."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import (
  global_batch,
  place,
  replicated,
  tree_shardings,
  with_shardings,
)
from emu_jax.typing import Params
from train.checkpoint import (
  EXEMPT,
  Checkpoints,
  Inherited,
  TodaysForm,
  alone_in,
  claim,
  restore_frozen,
  save_frozen,
)
from train.log import Log, Readings
from train.optimiser import OptimConfig
from train.progress import Clock, ProgressLine
from train.stage import Stage
from train.state import TrainState, abstract_state, initial_state, leaf_names
from train.step import jitted_step, validation_step
from train.watch import DataWatch


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long a run is and when it does what. All `_every` are in steps; 0 = never."""

  num_steps: int = 1000  # updates of the whole run
  log_every: int = 10
  save_every: int = 1000  # the last step is saved in any case
  keep: int = 3  # newest checkpoints kept
  validate_every: int = 0
  validate_batches: int = 4  # the same ones with the same noise each time
  sample_every: int = 0  # samples are drawn for the first validation batch
  sample_fps: int = 8
  num_samples: int = 4  # of the examples of that batch, at most
  seed: int = 0

  def __post_init__(self):
    least_one = ("num_steps", "log_every", "keep", "validate_batches", "sample_fps", "num_samples")
    for name in least_one:
      if getattr(self, name) < 1:
        raise InputError(f"LoopConfig: {name}={getattr(self, name)} is below 1; give 1 or more")
    for name in ("save_every", "validate_every", "sample_every", "seed"):
      if getattr(self, name) < 0:
        raise InputError(f"LoopConfig: {name}={getattr(self, name)} is negative; 0 = never")


def train(
  stage: Stage,
  data: Iterator,
  *,
  run_dir: str | pathlib.Path,
  optim: OptimConfig,
  loop: LoopConfig,
  config: str,
  validation: Callable[[], Iterable] | None = None,
  initial: Params | None = None,
  inherited: Inherited = Inherited(),
  mesh: Mesh | None = None,
  exempt: tuple[str, ...] = EXEMPT,
  todays_form: TodaysForm = lambda values, where: values,
) -> TrainState:
  """Trains to `loop.num_steps`, or to the end of the step in which SIGTERM or SIGINT comes.

  Args:
    data: this process's batches, without end: trees of numpy arrays [B, ...], with `get_state` and
      `set_state` as Grain's iterators have; the state is the same in every process.
    run_dir: everything the run writes; a run found there is continued.
    config: the whole experiment as JSON; a run of another is refused (train.checkpoint).
    validation: begins the validation data anew: the same batches at every call.
    initial: trees to begin from, used only where `run_dir` holds no checkpoint.
    inherited: what the run keeps of earlier ones; used as `initial` is.
    todays_form: as of `train.checkpoint.claim`.

  Returns:
    The state after the last step that was done; `state.step` tells whether it was the last.
  """
  _check(stage, loop, validation)
  mesh = mesh or make_mesh()
  run_dir = pathlib.Path(run_dir).absolute()
  keys = _keys(loop.seed, replicated(mesh))
  with contextlib.ExitStack() as stack:
    stack.enter_context(alone_in(run_dir))  # before anything is written
    claim(run_dir, config, exempt, todays_form)
    stop = stack.enter_context(StopSignal())  # outlasts the last write of the checkpoints
    stack.enter_context(jax.set_mesh(mesh))  # networks pin their activations to it
    checkpoints = stack.enter_context(Checkpoints(run_dir, loop.keep))
    start = Start(initial, inherited, checkpoints, run_dir, mesh)
    state, frozen = _begin(stage, data, optim, keys["init"], start)
    first = int(state.step)
    run = _Run(
      stage=stage, frozen=frozen, loop=loop, mesh=mesh, keys=keys, first=first,
      validation=validation, checkpoints=checkpoints,
      readings=Readings(state.params, optim.on_non_finite), data_watch=DataWatch(first),
      log=stack.enter_context(Log(run_dir, first)),
      line=stack.enter_context(ProgressLine(loop.num_steps, first)),
      stop=stop,
    )  # fmt: skip
    for text in checkpoints.notices:
      run.line.say(text)
    if first:
      run.line.say(f"{run_dir}: continuing from step {first}")
    update = jitted_step(stage.loss, optim, loop.num_steps, state, stage.rates)
    return _loop(run, update, state, data)


class StopSignal:
  """Turns the first SIGTERM or SIGINT into a request to stop; the second one exits at once.

  With several processes a SIGTERM to any one stops all at the same step, and further ones change
  nothing: a launcher sends one to each process, and none of them may cut the save short.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._received = False
    # With several processes JAX's runtime holds the handler and agrees on a common step.
    self._handles = (
      jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    )

  def __enter__(self) -> "StopSignal":
    if self._handles:
      self._before = [signal.signal(number, self._receive) for number in self.SIGNALS]
    return self

  def __exit__(self, *exception: Any) -> None:
    if self._handles:
      for number, handler in zip(self.SIGNALS, self._before, strict=True):
        signal.signal(number, handler)

  def requested(self, step: int) -> bool:
    """Whether to stop before the update that follows `step` updates; the same in every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received

  def _receive(self, number: int, frame: Any) -> None:
    if self._received:
      os._exit(128 + number)
    self._received = True


@dataclasses.dataclass(frozen=True)
class _Run:
  """What stays the same during a call of `train`."""

  stage: Stage
  frozen: Params
  loop: LoopConfig
  mesh: Mesh
  keys: dict[str, jax.Array]
  first: int  # updates done before this call
  validation: Callable[[], Iterable] | None
  checkpoints: Checkpoints
  readings: Readings
  data_watch: DataWatch
  log: Log
  line: ProgressLine
  stop: StopSignal


def _loop(run: _Run, update: Callable, state: TrainState, data: Iterator) -> TrainState:
  """The order within a step is fixed, see the numbers."""
  loop, clock, pending, clips = run.loop, Clock(), None, 0
  step = run.first
  while True:
    # 1. Save, weights and data position together, before another batch moves the data on. A step is
    #    judged before it is saved: no checkpoint holds what came of a non-finite gradient.
    stopping = run.stop.requested(step)
    ending = stopping or step >= loop.num_steps
    pauses = step > run.first and (ending or _pauses(loop, step))
    if pauses:
      pending = _read(run, pending, clock, clips)
      with clock.paused():
        _pause(run, state, step, data, ending, stopping)
    if ending:
      if stopping and step < loop.num_steps:
        run.line.say(f"stopped at step {step}; the same command continues")
      return state

    # 2. The next batch.
    with clock.waiting(busy=lambda p=pending: p is not None and not p[2].is_ready()):
      batch = global_batch(_next(data, step), run.mesh)
      clips = jax.tree.leaves(batch)[0].shape[0]

    # 3. Dispatch. The first step compiles and is left out of the timings.
    if step == run.first:
      state, metrics, fault = _first_update(run, update, state, batch)
      clock = Clock()
    else:
      with jax.transfer_guard("disallow"):  # a host array among the arguments is a mistake
        state, metrics, fault = update(state, run.frozen, batch, run.keys["step"])
    step += 1

    # 4. Read the previous step's metrics: the device works on this step meanwhile.
    _read(run, pending, clock, clips)
    pending = (step, metrics, fault)


def _first_update(run: _Run, update: Callable, state: TrainState, batch: Any) -> tuple:
  run.line.say("compiling the training step")
  clock = Clock()
  result = jax.block_until_ready(update(state, run.frozen, batch, run.keys["step"]))
  clock.step()
  run.line.say(f"compiled and did the first step in {clock.lap(1)['time/step_s']:.1f} s")
  run.line.started(int(result[0].step))
  return result


def _read(run: _Run, pending: tuple | None, clock: Clock, clips: int) -> None:
  """Waits for a step's metrics, raises if they are not finite, and logs where it is due."""
  if pending is None:
    return
  step, metrics, fault = pending
  if message := run.readings.add(step, metrics, fault):
    run.line.say(message)
  if step > run.first + 1:  # the first step was timed by itself
    clock.step()
  if step % run.loop.log_every and step < run.loop.num_steps:
    return
  means, times = run.readings.means(), clock.lap(clips)
  run.log.scalars(step, means | times)
  run.line.show(step, means.get("train/loss", float("nan")), times)
  if message := run.data_watch.add(step, times):
    run.line.say(message)


def _pauses(loop: LoopConfig, step: int) -> bool:
  return any(_due(step, n) for n in (loop.save_every, loop.validate_every, loop.sample_every))


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _pause(
  run: _Run, state: TrainState, step: int, data: Iterator, ending: bool, stopping: bool
) -> None:
  """Saves, validates and samples, each where it is due."""
  if ending or _due(step, run.loop.save_every):
    run.checkpoints.save(step, state, data)
  if stopping:
    return
  if _due(step, run.loop.validate_every):
    values = _validation_means(run, state)
    run.log.scalars(step, values)
    run.line.say(f"step {step}  validation/loss {values['validation/loss']:.4f}")
  if _due(step, run.loop.sample_every):
    batch = next(_validation_batches(run))
    videos = run.stage.sample(state.ema, run.frozen, batch, run.keys["sample"])
    run.log.videos(step, videos, run.loop.sample_fps)


def _validation_means(run: _Run, state: TrainState) -> dict[str, float]:
  """Means of the averaged weights' loss and metrics; the same batches and noise every time."""
  evaluate = Jit(validation_step, static_argnames="loss", out_shardings=replicated(run.mesh))
  total, count = {}, 0
  for batch in itertools.islice(_validation_batches(run), run.loop.validate_batches):
    key = jax.random.fold_in(run.keys["validation"], count)
    values = evaluate(state.ema, run.frozen, batch, key, state.step, loss=run.stage.loss)
    total = {name: total.get(name, 0.0) + float(v) for name, v in jax.device_get(values).items()}
    count += 1
  return {f"validation/{name}": value / count for name, value in total.items()}


def _validation_batches(run: _Run) -> Iterator:
  """The validation data from its beginning, on the mesh."""
  empty = True
  for batch in run.validation():
    yield global_batch(batch, run.mesh)
    empty = False
  if empty:
    raise InputError(
      "train: the validation data holds no batch; give more clips or smaller batches"
    )


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins or continues."""

  initial: Params | None
  inherited: Inherited
  checkpoints: Checkpoints
  run_dir: pathlib.Path
  mesh: Mesh


def _begin(
  stage: Stage, data: Iterator, optim: OptimConfig, key: jax.Array, start: Start
) -> tuple[TrainState, Params]:
  """State and frozen trees on the mesh, in the restore order of train.checkpoint."""
  mesh, run_dir = start.mesh, start.run_dir
  if start.checkpoints.latest is not None:
    frozen = restore_frozen(run_dir, with_shardings(stage.frozen, mesh))
    return start.checkpoints.restore(abstract_state(stage, optim, key, mesh), data), frozen
  state = initial_state(stage, optim, key, mesh, start.initial)
  frozen = initial_frozen(stage, key, mesh)
  both = sorted(set(leaf_names(state.params)) & set(leaf_names(frozen)))
  if both:
    raise ValueError(
      f"Stage: {both} are among the trainable and the frozen leaves; keep one of each"
    )
  save_frozen(run_dir, frozen, start.inherited)
  return state, frozen


def initial_frozen(stage: Stage, key: jax.Array, mesh: Mesh) -> Params:
  """The frozen trees on the mesh; what begins from nothing is made in place, in its pieces."""
  if stage.init_frozen is None:
    return place(stage.frozen, mesh)
  shardings = tree_shardings(jax.eval_shape(stage.init_frozen, key), mesh)
  made = jax.jit(stage.init_frozen, out_shardings=shardings)(key)
  return made | place({n: tree for n, tree in stage.frozen.items() if n not in made}, mesh)


def _keys(seed: int, sharding: NamedSharding) -> dict[str, jax.Array]:
  """The run's keys by purpose, each a function of the seed alone."""
  names = ("init", "step", "validation", "sample")
  split = lambda: tuple(jax.random.split(jax.random.key(seed), len(names)))
  return dict(zip(names, jax.jit(split, out_shardings=sharding)(), strict=True))


def _next(data: Iterator, step: int) -> Any:
  try:
    return next(data)
  except StopIteration:
    raise InputError(
      f"train: the data ended after {step} steps; repeat it, or give loop.num_steps={step}"
    ) from None


def _check(stage: Stage, loop: LoopConfig, validation: Callable | None) -> None:
  for name in ("validate_every", "sample_every"):
    if getattr(loop, name) and validation is None:
      raise InputError(f"LoopConfig: {name}={getattr(loop, name)} needs validation data; 0 = never")
  if loop.sample_every and stage.sample is None:
    raise InputError(f"LoopConfig: sample_every={loop.sample_every}, but this stage has no samples")
