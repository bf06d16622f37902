"""The one loop that trains every stage."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from emu_jax.checkpoints.run import latest_step
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
from emu_jax.train.best import Best, KeepsBest
from emu_jax.train.checkpoint import (
  EXEMPT,
  Checkpoints,
  Due,
  Inherited,
  TodaysForm,
  alone_in,
  check_config,
  claim,
  restore_frozen,
  save_frozen,
)
from emu_jax.train.log import Log, Readings
from emu_jax.train.monitor import Look, MonitorConfig
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.processes import FaultError
from emu_jax.train.profiling import Profiler
from emu_jax.train.progress import Clock, ProgressLine
from emu_jax.train.snapshots import discard_after, save_snapshot
from emu_jax.train.stage import Stage
from emu_jax.train.state import TrainState, abstract_state, initial_state, leaf_names
from emu_jax.train.step import TRAINER_METRICS, jitted_step, validation_step
from emu_jax.train.stop import StopSignal
from emu_jax.train.utilisation import Utilisation
from emu_jax.train.wandb_run import tracked
from emu_jax.train.watch import DataWatch
from emu_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long a run is and when it does what. All `_every` are in steps; 0 = never."""

  num_steps: int = 1000  # updates of the whole run
  log_every: int = 10  # losses and times, averaged over these steps
  save_every: int = 1000  # the last step is saved in any case
  keep: int = 3  # newest checkpoints kept
  validate_every: int = 0  # loss on the validation split
  validate_batches: int = 4  # the same ones with the same noise each time
  sample_every: int = 0  # samples are drawn for the first validation batch
  sample_fps: int = 8  # of the samples' videos
  num_samples: int = 4  # of the examples of that batch, at most
  average_every: int = 0  # snapshots of `optim.ema_lengths`; the last step has one in any case
  seed: int = 0  # of initial weights, noise and the order of the data

  def __post_init__(self):
    least_one = ("num_steps", "log_every", "keep", "validate_batches", "sample_fps", "num_samples")
    for name in least_one:
      if getattr(self, name) < 1:
        raise InputError(f"LoopConfig: {name}={getattr(self, name)} is below 1; give 1 or more")
    for name in ("save_every", "validate_every", "sample_every", "average_every", "seed"):
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
  monitor: MonitorConfig = MonitorConfig(),
  looks: Sequence[Look] = (),
  validation: Callable[[], Iterable] | None = None,
  initial: Params | None = None,
  inherited: Inherited = Inherited(),
  mesh: Mesh | None = None,
  exempt: tuple[str, ...] = EXEMPT,
  todays_form: TodaysForm = lambda values, where: values,
  stop: StopSignal | None = None,
) -> TrainState:
  """Trains to `loop.num_steps`, or to the end of the step in which SIGTERM or SIGINT comes.

  Args:
    data: this process's batches, without end: trees of numpy arrays [B, ...], with `get_state` and
      `set_state` as Grain's iterators have; the state is the same in every process.
    run_dir: everything the run writes; a run found there is continued.
    config: the whole experiment as JSON; a run of another is refused (emu_jax.train.checkpoint).
    looks: what is drawn and measured between steps.
    validation: begins the validation data anew: the same batches at every call.
    initial: trees to begin from, used only where `run_dir` holds no checkpoint.
    inherited: what the run keeps of earlier ones; used as `initial` is.
    todays_form: as of `emu_jax.train.checkpoint.claim`.
    stop: tells afterwards whether a signal came, and which exit code it has.

  Returns:
    The state after the last step that was done; `state.step` tells whether it was the last.
  """
  _check(stage, optim, loop, validation)
  mesh = mesh or make_mesh()
  run_dir = pathlib.Path(run_dir).absolute()
  keys = _keys(loop.seed, replicated(mesh))
  with contextlib.ExitStack() as stack:
    stack.enter_context(alone_in(run_dir))  # before anything is written
    check_config(run_dir, config, exempt, todays_form)
    if latest_step(run_dir) is None:
      claim(run_dir, config, exempt, todays_form)
    stop = stack.enter_context(stop or StopSignal())  # outlasts the checkpoints' last write
    stack.enter_context(jax.set_mesh(mesh))  # networks pin their activations to it
    checkpoints = stack.enter_context(Checkpoints(run_dir, loop.keep, [KeepsBest(run_dir)]))
    start = Start(initial, inherited, checkpoints, run_dir, mesh)
    state, frozen = _begin(stage, data, optim, keys["init"], start)
    claim(run_dir, config, exempt, todays_form)  # what changes is noted once it has continued
    first = int(state.step)
    discard_after(run_dir, first)
    tracker = stack.enter_context(tracked(monitor.wandb, run_dir, config))
    run = _Run(
      stage=stage, frozen=frozen, loop=loop, mesh=mesh, keys=keys, first=first,
      validation=validation, checkpoints=checkpoints, due=Due(run_dir),
      readings=Readings(state.params, optim.on_non_finite), data_watch=DataWatch(first),
      log=stack.enter_context(Log(run_dir, first, tracker)),
      line=stack.enter_context(ProgressLine(run_dir.name, loop.num_steps, first)),
      stop=stop, looks=looks, best=Best(run_dir, monitor, first),
      profiler=stack.enter_context(Profiler(run_dir, monitor.profile_steps)),
      utilisation=Utilisation(stage.loss, optim.accumulate, mesh.devices.flatten()),
    )  # fmt: skip
    for text in checkpoints.notices:
      run.line.say(text)
    began = f"continuing from step {first}" if first else "begins"
    run.line.say(f"{began}, {loop.num_steps} steps in {run_dir}")
    update = jitted_step(stage.loss, optim, loop.num_steps, state, stage.rates)
    try:
      return _loop(run, update, state, data)
    except FaultError:
      raise
    except OSError as error:  # of data that could be read at first
      raise FaultError(
        f"{run_dir}: {error}; see to it and give the same command: it continues from step "
        f"{checkpoints.latest or 0}"
      ) from error


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
  due: Due
  log: Log
  line: ProgressLine
  stop: StopSignal
  looks: Sequence[Look]
  best: Best
  profiler: Profiler
  utilisation: Utilisation


def _loop(run: _Run, update: Callable, state: TrainState, data: Iterator) -> TrainState:
  """The order within a step is fixed, see the numbers."""
  loop, clock, pending, clips = run.loop, Clock(), None, 0
  step = run.first
  while True:
    # 1. Save, weights and data position together, before another batch moves the data on. A step is
    #    judged before it is saved: no checkpoint holds what came of a non-finite gradient.
    stopping = run.stop.requested()
    ending = stopping or step >= loop.num_steps
    if step > run.first and (ending or _pauses(run, step)):
      pending = _read(run, pending, clock, clips, ending)
      with clock.paused():
        _pause(run, state, step, data, ending, stopping)
    elif step == run.first and not stopping:
      every = _every(run)
      due = [name for name in run.due.read(step) if every.get(name)]
      _look(run, state, step, data, due)
    # A stop that comes during validation or samples: every step has been judged, as above.
    if run.stop.received and pending is None and not ending:
      if step > run.first:
        run.checkpoints.save(step, state, data)
        if step % loop.log_every:
          _log(run, step, clock, clips)
      ending = stopping = True
    if ending:
      if stopping and step < loop.num_steps:
        run.line.say(f"stopped at step {step}; the same command continues")
      return state

    # 2. The next batch.
    with clock.waiting(busy=lambda p=pending: p is not None and not p[2].is_ready()):
      batch = global_batch(_next(data, step), run.mesh)
      clips = jax.tree.leaves(batch)[0].shape[0]

    # 3. Dispatch. The first step compiles and is left out of the timings.
    flops = run.utilisation.flops(state.params, run.frozen, batch, run.keys["step"])
    if step == run.first:
      run.line.say(run.utilisation.describe(flops))
      state, metrics, fault = _first_update(run, update, state, batch)
      clock = Clock()
    else:
      with clock.paused():
        run.profiler.before(step + 1)
      with jax.transfer_guard("disallow"):  # a host array among the arguments is a mistake
        state, metrics, fault = update(state, run.frozen, batch, run.keys["step"])
    step += 1

    # 4. Read the previous step's metrics: the device works on this step meanwhile.
    _read(run, pending, clock, clips)
    with clock.paused():
      run.profiler.after(step - 1)
    pending = (step, metrics, fault, flops)


def _first_update(run: _Run, update: Callable, state: TrainState, batch: Any) -> tuple:
  run.line.say("compiling the training step")
  clock = Clock()
  result = jax.block_until_ready(update(state, run.frozen, batch, run.keys["step"]))
  clock.step()
  run.line.say(f"compiled and did the first step in {clock.lap(1)['time/step_s']:.1f} s")
  run.line.started(int(result[0].step))
  run.best.check(result[1].keys() - {*TRAINER_METRICS} | {"loss"})
  return result


def _read(run: _Run, pending: tuple | None, clock: Clock, clips: int, ending: bool = False) -> None:
  """Waits for a step's metrics, raises if they are not finite, and logs where it is due."""
  if pending is None:
    return
  step, metrics, fault, flops = pending
  if message := run.readings.add(step, metrics, fault):
    run.line.say(message)
  if step > run.first + 1:  # the first step was timed by itself
    clock.step()
    run.utilisation.add(flops)
  if ending or not step % run.loop.log_every:
    _log(run, step, clock, clips)


def _log(run: _Run, step: int, clock: Clock, clips: int) -> None:
  means, times = run.readings.means(), clock.lap(clips)
  run.log.scalars(step, means | times | run.utilisation.rates(times))
  run.line.show(step, means.get("train/loss", float("nan")), times)
  if message := run.data_watch.add(step, times):
    run.line.say(message)


def _every(run: _Run) -> dict[str, int]:
  """What a person looks at while a run lasts, and after how many steps each."""
  every = {"validation": run.loop.validate_every, "samples": run.loop.sample_every}
  return every | {look.name: look.every for look in run.looks}


def _pauses(run: _Run, step: int) -> bool:
  every = (run.loop.save_every, run.loop.average_every, *_every(run).values())
  return any(_due(step, n) for n in every)


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _pause(
  run: _Run, state: TrainState, step: int, data: Iterator, ending: bool, stopping: bool
) -> None:
  """Saves, validates and samples, each where it is due."""
  due = [name for name, every in _every(run).items() if _due(step, every)]
  run.due.write(step, due)  # a run that ends before it is done goes on with it
  if state.averages and (step == run.loop.num_steps or _due(step, run.loop.average_every)):
    save_snapshot(run.checkpoints.folder.parent, step, state.averages)
  if ending or _due(step, run.loop.save_every):
    run.checkpoints.save(step, state, data)
  if not stopping:
    _look(run, state, step, data, due)


def _look(run: _Run, state: TrainState, step: int, data: Iterator, due: Sequence[str]) -> None:
  """Does what is due, until a stop is asked for; saves a checkpoint that is the best so far."""
  work = {"validation": _validate, "samples": _draw}
  work |= {look.name: functools.partial(_measure, look=look) for look in run.looks}
  for number, name in enumerate(due, 1):
    if run.stop.requested():
      return
    values = work[name](run, state, step)
    if values is None:
      return
    if message := run.best.missing(values):
      run.line.say(message)
    if run.best.improves(step, values):
      run.checkpoints.save(step, state, data)
      run.line.say(f"step {step}  the best checkpoint so far")
    run.due.write(step, due[number:])


def _validate(run: _Run, state: TrainState, step: int) -> dict[str, float] | None:
  """Logs means of the averaged weights' loss and metrics; None where a stop is asked for.

  The batches and their noise are the same every time.
  """
  evaluate = Jit(validation_step, static_argnames="loss", out_shardings=replicated(run.mesh))
  total, count = {}, 0
  for batch in itertools.islice(_validation_batches(run), run.loop.validate_batches):
    if count and run.stop.requested():
      return None
    key = jax.random.fold_in(run.keys["validation"], count)
    values = evaluate(state.ema, run.frozen, batch, key, state.step, loss=run.stage.loss)
    total = {name: total.get(name, 0.0) + float(v) for name, v in jax.device_get(values).items()}
    count += 1
  means = {f"validation/{name}": value / count for name, value in total.items()}
  run.log.scalars(step, means)
  run.line.say(f"step {step}  validation/loss {means['validation/loss']:.4f}")
  return means


def _draw(run: _Run, state: TrainState, step: int) -> dict[str, float]:
  batch = next(_validation_batches(run))
  videos = run.stage.sample(state.ema, run.frozen, batch, run.keys["sample"])
  run.log.videos(step, videos, run.loop.sample_fps)
  return {}


def _measure(run: _Run, state: TrainState, step: int, look: Look) -> dict[str, float]:
  values = dict(look.run(step, state.ema, run.frozen, run.log))
  if values:
    run.log.scalars(step, values)
  return values


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
  """State and frozen trees on the mesh, in the restore order of emu_jax.train.checkpoint."""
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


def _check(stage: Stage, optim: OptimConfig, loop: LoopConfig, validation: Callable | None) -> None:
  if loop.average_every and not optim.ema_lengths:
    raise InputError(
      f"LoopConfig: average_every={loop.average_every} needs optim.ema_lengths, such as 0.05 0.10"
    )
  for name in ("validate_every", "sample_every"):
    if getattr(loop, name) and validation is None:
      raise InputError(f"LoopConfig: {name}={getattr(loop, name)} needs validation data; 0 = never")
  if loop.sample_every and stage.sample is None:
    raise InputError(f"LoopConfig: sample_every={loop.sample_every}, but this stage has no samples")
