"""`emu-jax`: the tasks of a model, and commands that are no tasks of one."""

import sys
import textwrap
from collections.abc import Mapping, Sequence

from emu_jax.cli import checkpoint, evaluate, failures, task
from emu_jax.cli.checkpoint import Words, taken_apart
from emu_jax.cli.convert import convert_model
from emu_jax.cli.juice import juice
from emu_jax.cli.metrics import measure_folders
from emu_jax.cli.options import deferred, read, summary
from emu_jax.parallel.compilation import enable_cache, quiet_libtpu

# Commands that read folders, not a model that is described first.
PLAIN = {"metrics": measure_folders, "convert": convert_model, "juice": juice}
OF_A_MODEL = {"evaluate": evaluate.run}
WIDTH = 100


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs a command line; bad input ends in one line and exit code 2."""
  enable_cache()
  quiet_libtpu()
  with failures.errors("emu-jax"):
    words = taken_apart(sys.argv[1:] if arguments is None else list(arguments))
    if words.command in PLAIN:
      run = read(deferred(PLAIN[words.command]), f"emu-jax {words.command}", words.whole)
      run()
    elif not words.command:
      print(overview(words))
      raise SystemExit(0 if words.asks_for_help else 2)
    else:
      _of_a_model(words)


def _of_a_model(words: Words) -> None:
  found = words.described()
  if words.command in OF_A_MODEL:
    OF_A_MODEL[words.command](found, words)
  elif words.command in found.system.tasks():
    task.run(found, words)
  else:
    elsewhere = checkpoint.others(words.command)
    if words.asks_for_help and elsewhere:
      task.helped(words, next(iter(elsewhere.values())))
    raise checkpoint.no_such_task(found, words.command, [*OF_A_MODEL, *PLAIN])


def overview(words: Words) -> str:
  """The help of `emu-jax`: the tasks of a model, those of others, and the other commands."""
  found = words.described()
  tasks = {name: one.request for name, one in found.system.tasks().items()}
  others = {
    f"{name} ({system})": request
    for system, cls in checkpoint.systems().items()
    for name, request in cls.requests().items()
    if name not in tasks
  }
  kind = type(found.system).__name__
  parts = [
    "usage: emu-jax COMMAND [--checkpoint FOLDER] ...; emu-jax COMMAND --help lists its options",
    _listed(f"tasks of {found.where} ({kind})", tasks),
    _listed("tasks of models of other systems, by --checkpoint FOLDER", others),
    _listed("other commands", OF_A_MODEL | PLAIN),
  ]
  return "\n\n".join([*(part for part in parts if part), *checkpoint.broken()])


def _listed(title: str, of: Mapping[str, object]) -> str:
  """A title, and below it names with their summaries; "" where there are none."""
  width = max((len(name) for name in of), default=0) + 4
  lines = [
    textwrap.fill(f"  {name}".ljust(width) + summary(one), WIDTH, subsequent_indent=" " * width)
    for name, one in of.items()
  ]
  return "\n".join([f"{title}:", *lines]) if of else ""
