"""A task of a model as a command: one request to one file, or many to a folder."""

import dataclasses
import pathlib
from typing import Any

from emu_jax import media
from emu_jax.checkpoints.stored import Stored
from emu_jax.cli import many, options
from emu_jax.cli.checkpoint import Words
from emu_jax.cli.output import check, hint, write
from emu_jax.cli.progress import working
from emu_jax.errors import InputError
from emu_jax.model import loaded, outlined


def run(found: Stored, words: Words) -> None:
  """Runs a task of a model with the words behind its name.

  What a request asks for is checked before any weights are read.
  """
  name = words.command
  task = found.system.tasks()[name]
  file = task.file or name
  given = _parsed(task.request, words, pathlib.Path(file + task.suffix))
  output, fields = given.output_, options.given_fields(task.request, given)
  if output.samples < 1 or output.batch_size < 1:
    raise InputError(
      f"{name}: samples={output.samples} and batch_size={output.batch_size} must be at least 1"
    )
  several = output.prompts is not None or output.samples > 1
  given_only = {"--suffix": output.suffix, "--batch-size": output.batch_size}
  for option, value in given_only.items() if not several else ():
    if value != getattr(options.Output, option[2:].replace("-", "_")):
      raise InputError(
        f"{name}: {option} {value} is for many examples; give --prompts or --samples, or leave it"
        " out"
      )
  if output.enlarge < 0:
    raise InputError(f"enlarge={output.enlarge} is negative; 0 = as far as is good to look at")
  loading = given.loading_.load_options()
  if several:
    if output.out == pathlib.Path(file + task.suffix):
      output = dataclasses.replace(output, out=pathlib.Path(file))
    many.run(found, name, fields, output, loading, given.loading_.precision)
    return
  with working() as say:
    media.check_output(output.out)
    model = outlined(found)
    request = model.request(name, **fields)
    arrays = check(model, name, request, output.enlarge)
    hint(model, [request])
    say(f"loading {words.checkpoint}")
    model = loaded(found, **loading)
    clips = model.run_all(name, [request], arrays=arrays, progress=say)
    out = output.out
    if clips.frames.shape[1] == 1 and not any(w.split("=")[0] == "--out" for w in words.rest):
      out = out.with_suffix(".png")
    write(out, clips.frames[0], clips.fps, output.enlarge, say)


def helped(words: Words, request: type) -> None:
  """Prints the help of a task that the model at hand does not have."""
  _parsed(request, words, None)


def _parsed(request: type, words: Words, out: pathlib.Path | None) -> Any:
  table = [
    *options.request_fields(request),
    options.among(options.Output, options.Output(out=out)),
    *options.model_fields(words),
    options.among(options.Loading),
  ]
  return options.parsed(words.command, table, words.rest, options.summary(request))
