"""What every script here says and asks: progress, the checkout, a median. Needs no package."""

import datetime
import pathlib
import platform
import statistics
import subprocess
import sys


def commit() -> str:
  """The checkout's commit, with a mark where files differ from it, other than pages of results."""
  git = lambda *words: subprocess.run(
    ["git", *words], capture_output=True, text=True, cwd=root()
  ).stdout.strip()
  changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs/results")
  return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def root() -> pathlib.Path:
  return pathlib.Path(__file__).resolve().parents[1]


def processor() -> str:
  """Its model, where the system tells it; else its kind, or ""."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
  models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return models[0] if models else platform.processor()


def say(text: str) -> None:
  print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def spread(values: list[float]) -> str:
  return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
