"""Runs of `emu-train run` that are killed at random moments, and what becomes of them.

  python -m benchmarks.faults --kills 50 --out docs/results

A small autoencoder trains on the moving shapes and saves after every second step. Each run is
killed again and again, at moments drawn by `--seed`, until one of its starts reaches the end; it
saves so often that many kills fall into a save. Some are asked to stop instead (SIGTERM), some find
their newest checkpoint cut in half, some are started where no file may grow beyond a size at which
no checkpoint fits (what a full disk does to a writer). In the end every run must equal, bit for
bit, the one that nobody touched: parameters, optimiser, average, position of the data, and the
loss of every single step, which depends on the examples and on the noise that the step has seen.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

import jax

from benchmarks.basics import commit, say
from emu_jax.checkpoints.run import complete, load_numpy
from emu_jax.train import command

# Every run is a process of its own, forked from one that has imported the program and done nothing
# else: kills then fall into training and not into imports.
FORKS = multiprocessing.get_context("forkserver")
STEPS = 40
CONFIG = """
import dataclasses

from emu_jax.models.discriminator import PatchDiscriminatorConfig
from emu_jax.systems.autoencoder import AutoencoderObjective
from tests.tiny import MODEL
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig
from emu_jax.train.optimiser import OptimConfig

OBJECTIVE = AutoencoderObjective(
  discriminator=PatchDiscriminatorConfig(width=8, num_layers=1, norm_groups=4)
)
STAGES = (
  Experiment(
    system=dataclasses.replace(
      MODEL, image=dataclasses.replace(MODEL.image, objective=OBJECTIVE)
    ),
    part="autoencoder",
    data=DataConfig(sources=({clips!r},), batch_size=4),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, ema_decay=0.5),
    loop=LoopConfig(num_steps={steps}, log_every=1, save_every=2),
  ),
)
"""
FIRST_STEP = "compiled and did the first step"
LOOP_SECONDS = 2.0  # the longest time after the first step at which a run is killed
START_SECONDS = 4.0  # the longest after which one is killed that is still starting
STARTING = 0.15  # share of the kills that may come before the first step


@dataclasses.dataclass
class Campaign:
  """Where it happens, and what has happened so far."""

  folder: pathlib.Path
  draw: random.Random
  count: collections.Counter
  unreadable: list[str] = dataclasses.field(default_factory=list)

  def start(self, run_dir: pathlib.Path, file_bytes: int = -1) -> multiprocessing.Process:
    """Begins or continues a run, whose files may get so large; it speaks to <run_dir>.log."""
    words = ["run", "--config", str(self.folder / "config.py"), "--out", str(run_dir)]
    log(run_dir).write_text("")
    process = FORKS.Process(target=emu_train, args=(words, log(run_dir), file_bytes))
    process.start()
    return process

  def end(self, run_dir: pathlib.Path) -> int:
    """Lets a start come to its end; its exit code."""
    process = self.start(run_dir)
    process.join()
    return process.exitcode


def emu_train(words: list[str], output: pathlib.Path, file_bytes: int) -> None:
  """The command, in a process of its own."""
  with output.open("w") as file:
    for stream in (1, 2):
      os.dup2(file.fileno(), stream)
  resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
  command.main(words)


def log(run_dir: pathlib.Path) -> pathlib.Path:
  return run_dir.with_suffix(".log")


def wait_for(process: multiprocessing.Process, run_dir: pathlib.Path, text: str) -> bool:
  """Until the run has said something; False where it ended before."""
  while text not in log(run_dir).read_text():
    if not process.is_alive():
      return False
    time.sleep(0.002)
  return True


def steps(run_dir: pathlib.Path) -> list[pathlib.Path]:
  """Whole checkpoints, oldest first."""
  found = (run_dir / "autoencoder/checkpoints").glob("*")
  return sorted((p for p in found if p.name.isdigit() and complete(p)), key=lambda p: int(p.name))


def contents(checkpoint: pathlib.Path) -> dict:
  """Everything a checkpoint holds."""
  return {
    "state": load_numpy(checkpoint / "state"),
    "average": load_numpy(checkpoint / "ema"),
    "data": json.loads((checkpoint / "data" / "metadata").read_text()),
  }


def losses(run_dir: pathlib.Path) -> list[tuple[int, float]]:
  lines = (run_dir / "autoencoder/metrics.jsonl").read_text().splitlines()
  return [(line["step"], line["train/loss"]) for line in map(json.loads, lines)]


def hit(campaign: Campaign, run_dir: pathlib.Path) -> bool:
  """Starts a run and kills it, or asks it to stop; False where it reached its end before."""
  draw, process = campaign.draw, campaign.start(run_dir)
  if draw.random() < STARTING:
    time.sleep(draw.uniform(0, START_SECONDS))
    kind, number = "starting", signal.SIGKILL
  else:
    term = draw.random() < 0.15
    kind, number = ("asked", signal.SIGTERM) if term else ("running", signal.SIGKILL)
    wait_for(process, run_dir, FIRST_STEP)
    time.sleep(draw.uniform(0, LOOP_SECONDS))
  with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
    os.kill(process.pid, number)
  process.join()
  code = process.exitcode
  if code == 0 and "stopped at step" not in log(run_dir).read_text():
    return False
  campaign.count[kind] += 1
  if kind == "asked":
    campaign.count["stopped with exit code 143"] += code == 128 + signal.SIGTERM
  elif list((run_dir / "autoencoder/checkpoints").glob("*orbax-checkpoint-tmp*")):
    campaign.count["in a save"] += 1
  for checkpoint in steps(run_dir):
    campaign.count["checkpoints read"] += 1
    try:
      contents(checkpoint)
    except Exception as error:  # whatever it is, the checkpoint cannot be read: it is counted
      campaign.unreadable.append(f"{checkpoint}: {error}"[:300])
  return True


def cut_newest(campaign: Campaign, run_dir: pathlib.Path) -> None:
  """Halves the files of the newest checkpoint and sees a start take the one before."""
  whole = steps(run_dir)
  if len(whole) < 2:
    return
  for file in (whole[-1] / campaign.draw.choice(["state", "ema"])).rglob("d/*"):
    os.truncate(file, file.stat().st_size // 2)
  process = campaign.start(run_dir)
  wait_for(process, run_dir, FIRST_STEP)
  process.kill()
  process.join()
  campaign.count["cut"] += 1
  campaign.count["cut, continued"] += (
    f"continuing from step {whole[-2].name}" in log(run_dir).read_text()
  )


def fill_disk(campaign: Campaign, run_dir: pathlib.Path) -> None:
  """Starts the run where its checkpoints do not fit: it must say so in one line."""
  before = [p.name for p in steps(run_dir)]
  if not before:
    return
  files = (file for file in steps(run_dir)[-1].rglob("*") if file.is_file())
  limit = max(file.stat().st_size for file in files) // 2
  process = campaign.start(run_dir, limit)
  process.join()
  code = process.exitcode
  output = log(run_dir).read_text()
  campaign.count["full"] += 1
  # TensorStore may print more, of writes that were still under way.
  errors = [line for line in output.splitlines() if line.startswith("emu-train: error: ")]
  fine = code == 1 and len(errors) == 1 and "make room" in errors[0]
  campaign.count["full, told"] += fine
  campaign.count["full, kept"] += [p.name for p in steps(run_dir)] == before
  if not fine:
    say(f"full disk: exit code {code}: {output[-600:]}")


def differences(run_dir: pathlib.Path, expected: dict, expected_losses: list) -> list[str]:
  """What is not as in the run that nobody touched; each part compared bit for bit."""
  last = steps(run_dir)[-1]
  if int(last.name) != STEPS:
    return [f"ended at step {last.name}"]
  found, names = contents(last), []
  for part in ("state", "average"):
    same = jax.tree.map(
      lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), found[part], expected[part]
    )
    names += [] if all(jax.tree.leaves(same)) else [part]
  names += [] if found["data"] == expected["data"] else ["position of the data"]
  return names + ([] if losses(run_dir) == expected_losses else ["losses of the steps"])


def measured(kills: int, seed: int, folder: pathlib.Path) -> dict:
  campaign = Campaign(folder, random.Random(seed), collections.Counter())
  clips = ["prepare", "shapes", "--out", str(folder / "data"), "--size", "16"]
  words = [*clips, "--num-images", "8", "--num-clips", "40"]
  packing = FORKS.Process(target=emu_train, args=(words, folder / "data.log", -1))
  packing.start()
  packing.join()
  config = CONFIG.format(clips=str(folder / "data" / "videos"), steps=STEPS)
  (folder / "config.py").write_text(config)
  whole = folder / "whole"
  if campaign.end(whole):
    sys.exit(f"benchmark: the first run failed\n{log(whole).read_text()[-3000:]}")
  expected, expected_losses = contents(steps(whole)[-1]), losses(whole)
  count, differ, runs = campaign.count, [], 0
  while count["starting"] + count["running"] < kills:
    run_dir, hits = folder / f"run{runs}", 0
    while hit(campaign, run_dir):
      hits += 1
      killed = count["starting"] + count["running"]
      say(f"run {runs}: hit {hits}, {killed} killed, {count['in a save']} in a save")
      if hits == 2:
        (cut_newest if runs % 2 else fill_disk)(campaign, run_dir)
      if killed >= kills:
        if campaign.end(run_dir):
          sys.exit(f"benchmark: a start failed\n{log(run_dir).read_text()[-3000:]}")
        break
    differ += [f"run {runs}: {name}" for name in differences(run_dir, expected, expected_losses)]
    say(f"run {runs}: {hits} hits, {differ or 'all equal'}")
    shutil.rmtree(run_dir)
    runs += 1
  return {"runs": runs, "differ": differ, "unreadable": campaign.unreadable, **count}


def table(found: dict, kills: int, seed: int) -> str:
  """The figures as a section of a document."""
  get = lambda name: found.get(name, 0)
  rows = [
    ("runs of 40 steps, a save every 2", get("runs")),
    ("SIGKILLs", get("starting") + get("running")),
    ("of them before the first step of a start", get("starting")),
    ("of them while a checkpoint was being written", get("in a save")),
    ("SIGTERMs", get("asked")),
    ("of them saved and exited with 143", get("stopped with exit code 143")),
    ("newest checkpoint cut in half", get("cut")),
    ("of them continued from the one before", get("cut, continued")),
    ("starts without room for a checkpoint", get("full")),
    ("of them said so in a line and ended with exit code 1", get("full, told")),
    ("of them left every older checkpoint", get("full, kept")),
    ("checkpoints read after the hits", get("checkpoints read")),
    ("of them unreadable", len(found["unreadable"])),
    ("runs that differ from the untouched one in any bit", len(found["differ"])),
  ]
  lines = [f"| {name} | {value} |" for name, value in rows]
  lines += [f"\n- {text}" for text in [*found["differ"], *found["unreadable"]]]
  head = f"# Killed runs\n\n{__doc__.split(chr(10) * 2, 2)[2].strip()}\n\n"
  words = f"`python -m benchmarks.faults --kills {kills} --seed {seed} --out docs/results`, commit "
  return f"{head}{words}{commit()}:\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, at least")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, help="folder for faults.md")
  arguments = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"  # of the runs
  jax.config.update("jax_platforms", "cpu")
  FORKS.set_forkserver_preload(["emu_jax.train.command", "tests.tiny"])
  with tempfile.TemporaryDirectory() as folder:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(folder) / "cache")
    found = measured(arguments.kills, arguments.seed, pathlib.Path(folder))
  text = table(found, arguments.kills, arguments.seed)
  print(text)
  if arguments.out:
    (arguments.out / "faults.md").write_text(text)
  sys.exit(1 if found["differ"] or found["unreadable"] else 0)


if __name__ == "__main__":
  main()
