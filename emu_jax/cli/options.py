"""The options of a command, made of the fields of a request, and those that every command has."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import pathlib
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from emu_jax.cli.checkpoint import CHECKPOINT, Words, folder_options
from emu_jax.errors import InputError
from emu_jax.parallel.mesh import MeshConfig, sampling_mesh
from emu_jax.systems import fields

Choice = Literal["float32", "bfloat16", "stored"]


ABSENT = "\0"  # what a word is that was not given; no word of a command line can be this


@dataclasses.dataclass(frozen=True)
class Loading:
  """How a model is loaded."""

  precision: Choice | None = None
  """of the networks; stored: as the model is; None: bfloat16 on GPUs and TPUs, stored on CPUs"""
  widen: bool = False
  """take float16 weights of a public folder, as float32"""
  mesh: MeshConfig = MeshConfig(data=1)
  """devices that sample together, the first so many: prompts and branches of guidance over data,
  weights in pieces over fsdp, frames over frames if it divides their number; 0, for one axis: the
  rest"""

  def load_options(self) -> dict[str, Any]:
    """What `emu_jax.load` takes."""
    mesh = sampling_mesh(self.mesh)
    return {"dtype": self.precision, "widen": self.widen, "mesh": mesh}


@dataclasses.dataclass(frozen=True)
class Output:
  """Where to, and of how many examples."""

  out: pathlib.Path | None = None
  """file to write: .mp4, .gif, .webp, or .png with the frames side by side; of many examples the
  folder"""
  enlarge: int = 0
  """times that each pixel is repeated in the file; 0: up to some 256 pixels a side"""
  prompts: pathlib.Path | None = None
  """file of many requests: .txt with a prompt a line, or .jsonl with fields of the request a line,
  such as {"prompt": "..."}; files are relative to it. The same command continues what was begun"""
  samples: int = 1
  """of each prompt; of sample j of line i the seed is SEED + i SAMPLES + j, from 0 on"""
  batch_size: int = 8
  """of many examples, how many are made at a time; up to rounding what is made does not
  depend on it"""
  suffix: str | None = None
  """of the files of many examples; None: the task's"""


def request_fields(
  request: type, *, without: Sequence[str] = ()
) -> list[tuple[str, Any, dataclasses.Field]]:
  """Fields of a request as a command's: by position those that are, each with its help.

  None is required, since a file of many requests may have it; what was not given is `ABSENT` or,
  where it is no word, None.
  """
  hints = typing.get_type_hints(request, include_extras=True)
  table = {field.name: field for field in dataclasses.fields(request)}
  help_of, needed = fields.helps(request), fields.required(request)
  names = list(dict.fromkeys([*fields.positional(request), *table]))
  found = []
  for name in (name for name in names if name not in without):
    hint, default = hints[name], _default(table[name])
    marks = [m for m in fields.marks(hint) if not isinstance(m, fields.Word)]
    word = fields.word(hint)
    if word is not None:
      hint = word if default is not None else word | None
    about = {"help": help_of.get(name, "")}
    if name in needed:
      about["help_behavior_hint"] = "(required)"
      default = None if word is None else ABSENT
      hint = hint | None if word is None else str
    kind = Annotated[hint, *marks, tyro.conf.arg(**about)]
    found.append((name, kind, dataclasses.field(default=default)))
  return found


def _default(field: dataclasses.Field) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return None if field.default is dataclasses.MISSING else field.default


def model_fields(words: Words) -> list[tuple[str, Any, dataclasses.Field]]:
  """The options that name the model; they are taken out of the words before the others are read."""
  text = (
    "folder of a training run (RUN/best: its best checkpoint), of all the runs of a recipe, of a "
    "release or of a public pipeline; "
    "the default is the model that comes with the package"
  )
  table = [(CHECKPOINT, Annotated[pathlib.Path, tyro.conf.arg(help=text)], words.checkpoint)]
  for name, readers in folder_options().items():
    about = tyro.conf.arg(help=f"folder that goes with a public checkpoint, read by {readers}")
    table.append((name, Annotated[pathlib.Path | None, about], words.folders.get(name)))
  path = lambda value: None if value is None else pathlib.Path(value)
  return [(name, kind, dataclasses.field(default=path(value))) for name, kind, value in table]


def among(cls: type, default: Any = None) -> tuple[str, Any, dataclasses.Field]:
  """A dataclass whose options stand among a command's, as its field `<name of the class>_`."""
  field = dataclasses.field(default=cls() if default is None else default)
  return f"{cls.__name__.lower()}_", Annotated[cls, tyro.conf.arg(name="")], field


def parsed(
  command: str,
  table: Sequence[tuple[str, Any, dataclasses.Field]],
  words: Sequence[str],
  description: str,
) -> Any:
  """The options of a command line, as an object with a field a row of the table.

  Raises: as `read`.
  """
  names = [name for one in table for name in _flat(one[0], one[1])]
  if twice := [name for name in names if names.count(name) > 1]:
    raise InputError(
      f"{command}: its request has a field {twice[0]!r}, which is an option of every command; "
      "rename the field"
    )
  by_place = {name for name, kind, _ in table if tyro.conf.Positional in fields.marks(kind)}
  check_options(command, [name for name in names if name not in by_place], words)
  cls = dataclasses.make_dataclass(command, table, kw_only=True)
  return read(cls, f"emu-jax {command}", words, description=description)


def read(form: Any, prog: str, words: Sequence[str], **options: Any) -> Any:
  """What tyro makes of the words of a command.

  Args:
    form: a class to fill in; of a function the `deferred` one, since errors are caught here.
    options: of `tyro.cli`.
  Raises: InputError for what is not understood; SystemExit for help.
  """
  printed = io.StringIO()
  try:
    with contextlib.redirect_stderr(printed):
      return tyro.cli(form, prog=prog, args=list(words), **options)
  except SystemExit as ended:
    if not ended.code:
      raise
    raise InputError(_complaint(printed.getvalue())) from None


def deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
  """A function of the same arguments that returns the call, still to be made."""

  @functools.wraps(function)
  def call(*values: Any, **named: Any) -> Callable[[], None]:
    return functools.partial(function, *values, **named)

  return call


def _complaint(box: str) -> str:
  """What tyro prints in a box, as a line: what is wrong, what an option takes, where help is."""
  plain_text = re.sub(r"\x1b\[[0-9;]*m", "", box)
  lines = [line.strip("│| ") for line in plain_text.splitlines()[1:-1]]
  groups = itertools.groupby(lines, lambda line: bool(line.strip("─-")))  # rules stand between
  wrong, *others = [list(group) for is_text, group in groups if is_text]
  usage = [part[1] for part in others if part[0] == "Argument helptext:"]
  takes = f"; it takes {usage[0]}" if usage else ""
  where = re.sub(r"For full helptext, \w+:? ", "", " ".join(others[-1]))
  return f"{' '.join(wrong).removeprefix('Error parsing ').rstrip('.')}{takes}; see {where}"


def check_options(command: str, names: Sequence[str], words: Sequence[str]) -> None:
  """Raises InputError for an option that is none of the names."""
  options = [name.replace("_", "-") for name in names]
  for word in words:
    if word == "--":
      return
    option = word.split("=", 1)[0].removeprefix("--").replace("_", "-")
    positive = option.rpartition("no-")[2] if "no-" in option else option
    if not word.startswith("--") or option in ("help", *options) or positive in options:
      continue
    near = difflib.get_close_matches(option, options, 1)
    guess = f"did you mean --{near[0]}? " if near else ""
    listed = " ".join(f"--{name}" for name in options)
    raise InputError(f"{command}: has no option --{option}; {guess}it has {listed}")


def _flat(name: str, kind: Any) -> list[str]:
  """Names of the options that a field makes."""
  cls = kind.__origin__ if hasattr(kind, "__metadata__") else kind
  if not dataclasses.is_dataclass(cls):
    return [name]
  hints = typing.get_type_hints(cls, include_extras=True)
  inner = [n for f in dataclasses.fields(cls) for n in _flat(f.name, hints[f.name])]
  return inner if name.endswith("_") else [f"{name}.{n}" for n in inner]


def given_fields(request: type, options: Any) -> dict[str, Any]:
  """The values of a request's fields; without those that are required and were not given."""
  needed = fields.required(request)
  files = fields.files(request)
  found = {}
  for field in dataclasses.fields(request):
    if not hasattr(options, field.name):
      continue
    value = getattr(options, field.name)
    if field.name in needed and (value in (ABSENT, None)):
      continue
    found[field.name] = pathlib.Path(value) if field.name in files and value else value
  return found


def summary(of: Any) -> str:
  """The first paragraph of a docstring, in one line."""
  return " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split())


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """Values as JSON has them; paths become text."""
  return {name: str(v) if isinstance(v, pathlib.Path) else v for name, v in values.items()}
