"""Laws of a run of several processes: real ones, on this machine, of one device each."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import tiny_run

from emu_jax.checkpoints.run import latest_step, load_numpy
from emu_jax.errors import InputError
from emu_jax.train.processes import join, launcher

STEPS = 12
# A mean over two or four parts rounds otherwise than one over eight examples. Where an example's
# gradients cancel, 1e-7 of them may be 1e-4 of their sum, and AdamW divides by its size: after 12
# updates of at most 1e-2 each, parameters may differ by 12 * 1e-2 * 1e-4.
ROUNDING = 1.2e-5


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start(count, run_dir, num_steps, seconds=0.0, by_slurm=False, fsdp=1, more=()):
  """The processes of one run; what they say goes to files beside it."""
  port, root = free_port(), pathlib.Path(__file__).parents[2]
  base = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
  base |= {"PYTHONPATH": str(root)}
  processes = []
  for i in range(count):
    words, environment = [f"127.0.0.1:{port}", str(count), str(i)], base
    if by_slurm:
      slurm = {
        "JOB_ID": "7",
        "STEP_NODELIST": "127.0.0.1",
        "NTASKS": count,
        "PROCID": i,
        "LOCALID": 0,
      }
      words, environment = [], base | {f"SLURM_{k}": str(v) for k, v in slurm.items()}
      environment["JAX_COORDINATOR_PORT"] = str(port)
    command = [sys.executable, tiny_run.__file__, str(run_dir), str(num_steps), str(seconds)]
    command = [*command, str(fsdp), *words, *more]
    with run_dir.with_suffix(f".{i}").open("w") as said:
      processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
  return processes


def wait(processes, run_dir, seconds=300):
  """Exit codes; a process that hangs fails the test, and none is left behind."""
  try:
    return [process.wait(seconds) for process in processes]
  finally:
    for process in processes:
      process.kill()
      print(said(run_dir, processes.index(process))[-2000:])


def said(run_dir, i):
  return run_dir.with_suffix(f".{i}").read_text()


def reaches(run_dir, number, processes):
  """Waits until a run has logged so many steps."""
  until = time.monotonic() + 300
  log = run_dir / "metrics.jsonl"
  while not log.exists() or log.read_text().count("\n") < number:
    assert all(process.poll() is None for process in processes), said(run_dir, 0)[-3000:]
    assert time.monotonic() < until
    time.sleep(0.05)


def last(run_dir):
  folder = run_dir / "checkpoints" / str(latest_step(run_dir))
  data = json.loads((folder / "data" / "metadata").read_text())
  return load_numpy(folder / "state"), load_numpy(folder / "ema"), data


def losses(run_dir):
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["train/loss"] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder):
  """The run in one process."""
  tiny_run.run(folder / "one", STEPS, batches=tiny_run.Clips())
  return folder / "one"


@pytest.fixture(scope="module")
def two(folder):
  assert wait(start(2, folder / "two", STEPS), folder / "two") == [0, 0]
  return folder / "two"


@pytest.fixture(scope="module")
def lost(folder):
  """The folder of a run of two processes as it was left when one of them was killed."""
  run_dir = folder / "lost"
  processes = start(2, run_dir, STEPS, seconds=0.3)
  with contextlib.ExitStack() as stack:
    stack.callback(wait, processes, run_dir)
    reaches(run_dir, 4, processes)
    processes[1].send_signal(signal.SIGKILL)
    code = processes[0].wait(60)
  assert code != 0
  assert 3 <= latest_step(run_dir) < STEPS
  return run_dir


def same_within_rounding(one, many):
  np.testing.assert_allclose(losses(one), losses(many), rtol=1e-5)
  (state, ema, data), (state_many, ema_many, data_many) = last(one), last(many)
  chex.assert_trees_all_close(state["params"], state_many["params"], atol=ROUNDING, rtol=0)
  chex.assert_trees_all_close(ema, ema_many, atol=ROUNDING, rtol=0)
  assert data == data_many


def test_two_processes_train_what_one_does(alone, two):
  same_within_rounding(alone, two)


def test_four_processes_that_slurm_starts_train_what_one_does(alone, folder):
  run_dir = folder / "four"
  assert wait(start(4, run_dir, STEPS, by_slurm=True), run_dir) == [0] * 4
  same_within_rounding(alone, run_dir)


def test_parameters_in_pieces_on_four_processes_go_on_in_other_pieces_on_two(alone, folder):
  run_dir = folder / "pieces"
  assert wait(start(4, run_dir, STEPS // 2, fsdp=4), run_dir) == [0] * 4
  assert wait(start(2, run_dir, STEPS, fsdp=2), run_dir) == [0] * 2
  assert f"continuing from step {STEPS // 2}" in said(run_dir, 0)
  same_within_rounding(alone, run_dir)


def test_a_lost_process_ends_the_others_in_one_line(lost):
  line = said(lost, 0).splitlines()[-1]
  assert "tiny_run: error: process 0 of 2 ends, probably since another one is lost: " in line
  assert "start all of them again: the run continues from its last checkpoint" in line
  assert "Traceback" not in said(lost, 0)


def test_a_run_that_lost_a_process_continues_bit_for_bit(lost, two):
  run_dir = shutil.copytree(lost, lost.with_name("again"))
  assert wait(start(2, run_dir, STEPS), run_dir) == [0, 0]
  assert "continuing from step" in said(run_dir, 0)
  assert losses(run_dir) == losses(two)
  jax.tree.map(np.testing.assert_array_equal, last(run_dir), last(two))


def test_one_process_continues_what_two_began(lost, alone):
  run_dir = shutil.copytree(lost, lost.with_name("fewer"))
  tiny_run.run(run_dir, STEPS, batches=tiny_run.Clips())
  same_within_rounding(alone, run_dir)


def test_ctrl_c_in_one_process_saves_and_ends_all(folder):
  run_dir = folder / "asked"
  processes = start(2, run_dir, 100_000, seconds=0.01)
  with contextlib.ExitStack() as stack:
    stack.callback(wait, processes, run_dir)
    reaches(run_dir, 4, processes)
    processes[1].send_signal(signal.SIGINT)
    assert [process.wait(300) for process in processes] == [143, 130]
  assert f"stopped at step {latest_step(run_dir)}; the same command continues" in said(run_dir, 0)


def test_sigterm_between_two_runs_stops_the_second_one(folder):
  """JAX's count of steps goes on, whereas the second run begins anew and has fewer."""
  run_dir = folder / "first"
  processes = start(2, run_dir, STEPS, more=("10", "-1"))
  with contextlib.ExitStack() as stack:
    stack.callback(wait, processes, run_dir)
    reaches(run_dir, STEPS, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert [process.wait(300) for process in processes] == [143, 143]
  assert latest_step(run_dir) == STEPS
  assert (latest_step(folder / "first_then") or 0) < 10


def test_what_one_process_refuses_ends_all_at_once_by_its_line(folder):
  """The others stand in a collective operation meanwhile, process 0 with the coordinator."""
  for refusing in (0, 1):
    run_dir = folder / f"refused{refusing}"
    processes = start(2, run_dir, 100_000, more=("0", str(refusing)))
    assert wait(processes, run_dir, 60) == [2, 2]
    for i in (0, 1):
      assert said(run_dir, i).splitlines()[-1] == (
        f"tiny_run: error: process {refusing} of 2 refuses: records are missing here; copy them"
      )
      assert "Traceback" not in said(run_dir, i)


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (("10.0.0.2", 2, 0), "the coordinator is HOST:PORT"),
    (("10.0.0.2:80", 2, 2), "numbered from 0 to the number of processes less 1"),
    (("10.0.0.2:80", 0, -1), "numbered from 0"),
    (("", 2, -1), "give all three, or none"),
    (("", 0, 1), "give all three, or none"),
  ],
)
def test_processes_that_are_told_too_little_are_refused(words, says):
  with pytest.raises(InputError, match=says):
    join(*words)


def test_launchers_are_told_by_their_environment():
  slurm = {"SLURM_STEP_NODELIST": "a,b", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
  assert launcher(slurm) == "Slurm"
  assert launcher(slurm | {"SLURM_NTASKS": "1"}) != "Slurm"
  assert launcher({"OMPI_COMM_WORLD_SIZE": "4"}) == "Open MPI"
  assert launcher({"JAX_PLATFORMS": "cpu"}) is None
