"""A recipe of two stages that is ended by signals again and again, and what becomes of it.

  python -m experiments.kills --folder runs/kills --signals 200 --out docs/results

An autoencoder and an image model of a few numbers train on the moving shapes, one after the other,
as one command: in one process, or in two. Each start of the command receives a signal at a random
moment, SIGKILL or SIGTERM, and is given again, until one comes to its end before its signal does.
Moments are drawn over the whole of a start, after the first step of a stage, and around the last
save of the first stage: during that save, while the next stage loads and compiles.

In the end every recipe must equal, bit for bit, one that nobody touched: of both stages the
parameters, optimiser, average and position of the data, and the loss of every step. A start that
SIGTERM stopped must have saved the step that it names, and every exit code must be as
docs/pods.md has it. The same command goes on where it was ended itself.

benchmarks/faults.py does the same to one stage in one process, and cuts files and fills disks.
"""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import time

import jax
import tyro

from benchmarks.basics import commit, say
from benchmarks.faults import FIRST_STEP, FORKS, contents, emu_train
from emu_jax.checkpoints.run import latest_step

STEPS, SAVE_EVERY = 20, 4
STAGES = ("autoencoder", "image")
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
IMAGE = dataclasses.replace(MODEL.image, objective=OBJECTIVE, train_text=True)
COMMON = dict(
  data=DataConfig(sources=({clips!r},), batch_size=4),
  optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, ema_decay=0.5),
  loop=LoopConfig(
    num_steps={steps}, log_every=1, save_every={save_every}, validate_every=10, validate_batches=1
  ),
)
STAGES = tuple(
  Experiment(dataclasses.replace(MODEL, image=IMAGE), part, **COMMON) for part in {stages!r}
)
"""
MOMENTS = {  # what a start has said before the signal, and for how many seconds it may be late
  "anywhere": ("", 8.0),
  "in a stage": (FIRST_STEP, 1.0),
  "last save": (f"step {STEPS}/{STEPS} ", 0.3),
  "between stages": (f"step {STEPS}/{STEPS} ", 4.0),
}
KINDS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
PATIENCE = 60.0  # seconds in which the others of a process that has ended must end


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Ends a recipe by signals until so many have been sent."""

  folder: pathlib.Path
  """Of the runs and of what was seen; the same folder goes on."""
  signals: int = 200
  """To send in all, over all calls with this folder."""
  minutes: float = 60.0
  """After which this call ends, between two starts."""
  seed: int = 0
  """Of the moments."""
  out: pathlib.Path | None = None
  """Folder for kills.md, with all that was seen so far; None: it is printed alone."""


@dataclasses.dataclass(frozen=True)
class Campaign:
  """Where it happens; every start and every comparison is a line of `seen.jsonl`."""

  folder: pathlib.Path

  @property
  def log(self) -> pathlib.Path:
    return self.folder / "seen.jsonl"

  def seen(self) -> list[dict]:
    """What has happened so far."""
    lines = self.log.read_text().splitlines() if self.log.exists() else ()
    return [json.loads(line) for line in lines]

  def note(self, **values) -> None:
    with self.log.open("a") as file:
      file.write(json.dumps(values) + "\n")

  def start(self, runs: pathlib.Path, count: int) -> list[multiprocessing.Process]:
    """Begins or continues a recipe in so many processes, which speak to <runs>.<i>.log."""
    words = ["run", "--config", str(self.folder / "config.py"), "--out", str(runs)]
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
    started = []
    for i in range(count):
      said(runs, i).write_text("")
      more = [*together, "--process", str(i)] if count > 1 else []
      started.append(FORKS.Process(target=emu_train, args=([*words, *more], said(runs, i), -1)))
      started[-1].start()
    return started

  def whole(self, count: int) -> pathlib.Path:
    """The recipe that nobody touches, in so many processes."""
    runs = self.folder / f"whole{count}"
    if not (self.folder / f"whole{count}.done").exists():
      shutil.rmtree(runs, ignore_errors=True)
      codes, _ = ended(self.start(runs, count), 600.0)
      if any(codes):
        sys.exit(f"kills: the first recipe ended with {codes}\n{said(runs, 0).read_text()[-3000:]}")
      (self.folder / f"whole{count}.done").touch()
    return runs


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def said(runs: pathlib.Path, i: int) -> pathlib.Path:
  return runs.with_name(f"{runs.name}.{i}.log")


def ended(processes: list[multiprocessing.Process], patience: float) -> tuple[list[int], bool]:
  """Exit codes, as a shell has them, and whether one had to be killed that waited for others."""
  until = time.monotonic() + patience
  for process in processes:
    process.join(max(0.0, until - time.monotonic()))
  hung = [process for process in processes if process.is_alive()]
  for process in hung:
    process.kill()
    process.join()
  codes = [process.exitcode for process in processes]
  return [128 - code if code < 0 else code for code in codes], bool(hung)


def steps_of(runs: pathlib.Path) -> list[int]:
  """The newest checkpoint of each stage; 0 where there is none."""
  return [latest_step(runs / stage) or 0 for stage in STAGES]


def hit(campaign: Campaign, runs: pathlib.Path, count: int, draw: random.Random) -> bool:
  """Starts a recipe and sends it a signal; False where it came to its end before."""
  moment, kind = draw.choice([*MOMENTS]), draw.choice([*KINDS])
  victims = draw.choice([[0], [count - 1], range(count)]) if count > 1 else [0]
  text, late = MOMENTS[moment]
  before, processes = steps_of(runs), campaign.start(runs, count)
  while text not in said(runs, 0).read_text() and all(p.is_alive() for p in processes):
    time.sleep(0.002)
  time.sleep(draw.uniform(0, late))
  alive = all(process.is_alive() for process in processes)
  for i in victims:
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
      os.kill(processes[i].pid, KINDS[kind])
  codes, hung = ended(processes, PATIENCE if alive else 600.0)
  if not any(codes):
    return False
  texts = [said(runs, i).read_text() for i in range(count)]
  stopped = re.findall(r"stopped at step (\d+)", texts[0])
  now = steps_of(runs)
  saving = any(runs.glob("*/checkpoints/*orbax-checkpoint-tmp*"))
  campaign.note(
    event="signal", run=runs.name, processes=count, kind=kind, moment=moment, codes=codes,
    hung=hung, before=before, now=now, in_a_save=saving, victims=list(victims),
    kept=all(a >= b for a, b in zip(now, before, strict=True))
    and (not stopped or int(stopped[0]) in now),
    stopped=bool(stopped), tracebacks="Traceback" in "".join(texts),
    last_lines=[text.strip().rpartition("\n")[2][-200:] for text in texts],
  )  # fmt: skip
  return True


def losses(run: pathlib.Path) -> dict[int, float]:
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def differences(runs: pathlib.Path, whole: pathlib.Path) -> list[str]:
  """What is not as in the recipe that nobody touched; each part compared bit for bit."""
  names = []
  for stage in STAGES:
    at = [latest_step(folder / stage) for folder in (runs, whole)]
    if at[0] != at[1]:
      names.append(f"{stage}: ended at step {at[0]}")
      continue
    found, expected = (contents(f / stage / "checkpoints" / str(at[0])) for f in (runs, whole))
    bits = lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes()
    for part in ("state", "average"):
      same = jax.tree.leaves(jax.tree.map(bits, found[part], expected[part]))
      names += [] if all(same) else [f"{stage}: {part}"]
    names += [] if found["data"] == expected["data"] else [f"{stage}: position of the data"]
    names += [] if losses(runs / stage) == losses(whole / stage) else [f"{stage}: losses"]
    looks = [
      (f / stage / "metrics.jsonl").read_text().count("validation/loss") for f in (runs, whole)
    ]
    names += [] if looks[0] >= looks[1] else [f"{stage}: a validation is missing"]
  return names


def prepared(campaign: Campaign) -> None:
  """Packed clips and the config of the recipe."""
  data = campaign.folder / "data"
  if not data.is_dir():
    words = ["prepare", "shapes", "--out", str(data), "--size", "16"]
    words = [*words, "--num-images", "8", "--num-clips", "40"]
    packing = FORKS.Process(target=emu_train, args=(words, campaign.folder / "data.log", -1))
    packing.start()
    packing.join()
  text = CONFIG.format(
    clips=str(data / "videos"), steps=STEPS, save_every=SAVE_EVERY, stages=STAGES
  )
  (campaign.folder / "config.py").write_text(text)


def measured(a: Arguments, campaign: Campaign) -> bool:
  """Sends signals until they suffice or the time is over; True where they suffice."""
  until = time.monotonic() + 60 * a.minutes
  while True:
    seen = campaign.seen()
    signals = sum(line["event"] == "signal" for line in seen)
    done = sum(line["event"] == "end" for line in seen)
    count = 1 + done % 2
    runs = campaign.folder / f"run{done}"
    if time.monotonic() > until:
      return False
    draw = random.Random(f"{a.seed} {len(seen)}")
    if signals < a.signals and hit(campaign, runs, count, draw):
      last = campaign.seen()[-1]
      say(f"{signals + 1}: {last['kind']} {last['moment']}, {count} process(es): {last['codes']}")
      continue
    if not runs.exists():
      return True
    codes, hung = ended(campaign.start(runs, count), 600.0)  # all is done: it says so
    differ = differences(runs, campaign.whole(count))
    campaign.note(event="end", run=runs.name, processes=count, codes=codes, differ=differ)
    say(f"{runs.name}: {differ or 'equal'}, {codes}")
    if not differ:
      shutil.rmtree(runs)


def expected(line: dict) -> bool:
  """Whether the exit codes after a signal are those of docs/pods.md."""
  struck = {line["codes"][i] for i in line["victims"]}
  others = {code for i, code in enumerate(line["codes"]) if i not in line["victims"]}
  if line["kind"] == "SIGTERM":
    return {*line["codes"]} == {143}
  return struck == {137} and 0 not in others


def table(seen: list[dict], a: Arguments) -> str:
  """What was seen, as a page."""
  signals = [line for line in seen if line["event"] == "signal"]
  ends = [line for line in seen if line["event"] == "end"]
  rows = []
  for count in (1, 2):
    for kind in KINDS:
      chosen = [s for s in signals if s["processes"] == count and s["kind"] == kind]
      codes = collections.Counter(tuple(s["codes"]) for s in chosen)
      listed = ", ".join(f"{' and '.join(map(str, c))}: {n}" for c, n in sorted(codes.items()))
      numbers = [
        len(chosen), sum(s["moment"] in ("last save", "between stages") for s in chosen),
        sum(s["in_a_save"] for s in chosen), sum(s["stopped"] for s in chosen),
        sum(not s["kept"] for s in chosen), sum(s["hung"] for s in chosen),
        sum(not expected(s) for s in chosen),
      ]  # fmt: skip
      rows.append(f"| {count} | {kind} | {' | '.join(map(str, numbers))} | {listed} |")
  differ = [f"- {end['run']}: {', '.join(end['differ'])}" for end in ends if end["differ"]]
  odd = [f"- {s['run']}, {s['kind']} {s['moment']} to {s['victims']} of {s['processes']}: codes "
         f"{s['codes']}, last lines {s['last_lines']}"
         for s in signals
         if s["hung"] or s["tracebacks"] or not s["kept"] or not expected(s)]  # fmt: skip
  head = __doc__.split("\n\n", 2)[2].strip()
  return "\n".join([
    "# Recipes ended by signals", "", head, "",
    f"`python -m experiments.kills --folder FOLDER --signals {a.signals} --out docs/results`, "
    f"{os.cpu_count()} CPU cores, commit {commit()}: {len(signals)} signals, "
    f"{len(ends)} recipe(s) of 2 x {STEPS} steps brought to their end, "
    f"{sum(bool(e['differ']) for e in ends)} of which differ from the untouched one in any bit.",
    "",
    "| processes | signal | sent | around or after the last save of a stage | a save was cut short "
    "| stopped and saved | lost a step that was saved | others waited over a minute | other "
    "exit codes than documented | exit codes as a shell has them, of each process: how often |",
    "|---|---|---|---|---|---|---|---|---|---|", *rows, "", *differ, *odd, "",
  ])  # fmt: skip


def main(words: list[str] | None = None) -> None:
  """Goes on with a campaign; exit code 1 where anything was lost, 3 where it is not at its end."""
  a = tyro.cli(Arguments, prog="python -m experiments.kills", args=words)
  a.folder.mkdir(parents=True, exist_ok=True)
  os.environ["JAX_PLATFORMS"] = "cpu"  # of the runs
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(a.folder.absolute() / "cache")
  jax.config.update("jax_platforms", "cpu")
  FORKS.set_forkserver_preload(["emu_jax.train.command", "tests.tiny"])
  campaign = Campaign(a.folder.absolute())
  prepared(campaign)
  for count in (1, 2):
    campaign.whole(count)
  complete = measured(a, campaign)
  text = table(campaign.seen(), a)
  if a.out:
    (a.out / "kills.md").write_text(text)
  print(text)
  lost = any(line.get("differ") or line.get("kept") is False for line in campaign.seen())
  sys.exit(1 if lost else 0 if complete else 3)


if __name__ == "__main__":
  main()
