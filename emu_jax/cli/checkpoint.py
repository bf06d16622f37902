"""Which model a command is about: its folder is found among the words before they are parsed."""

import dataclasses
from collections.abc import Mapping, Sequence

from emu_jax.checkpoints.stored import Stored, stored
from emu_jax.errors import InputError
from emu_jax.model import SHIPPED
from emu_jax.systems import registry
from emu_jax.systems.system import System

CHECKPOINT = "checkpoint"


@dataclasses.dataclass(frozen=True)
class Words:
  """A command line, taken apart as far as it can be without knowing the model.

  Attributes:
    folders: the options that name the model: "checkpoint", and others that public folders take.
    command: the first word but options that name the model; "" where there is none.
    rest: the other words, without the command and the options that name the model.
    whole: the words without the command alone.
  """

  folders: Mapping[str, str]
  command: str
  rest: tuple[str, ...]
  whole: tuple[str, ...]

  @property
  def checkpoint(self) -> str:
    """The model's folder; the model that comes with the package where none was given."""
    return self.folders.get(CHECKPOINT, str(SHIPPED))

  @property
  def asks_for_help(self) -> bool:
    """Whether the words ask for help."""
    return any(word in ("-h", "--help") for word in self.whole)

  def described(self) -> Stored:
    """The model, of which no weights are read. Raises: InputError where there is none."""
    extra = {name: folder for name, folder in self.folders.items() if name != CHECKPOINT}
    return stored(self.checkpoint, **extra)


def taken_apart(words: Sequence[str]) -> Words:
  """Raises: InputError for an option of a command before it, and for a model's without a value."""
  folders, command, rest, whole = {}, "", [], []
  names, left = {CHECKPOINT, *folder_options()}, list(words)
  while left:
    word = left.pop(0)
    if word == "--":
      rest, whole, left = [*rest, word, *left], [*whole, word, *left], []
      continue
    name, equals, value = word.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    if not word.startswith("--") or name not in names:
      if not command and not word.startswith("-"):
        command = word
      elif not command and word not in ("-h", "--help"):
        option = word.split("=")[0]
        raise InputError(
          f"{option}: stands before the command; write emu-jax COMMAND {option} ..., which is the "
          "order of all options but those that name a model"
        )
      else:
        rest.append(word)
        whole.append(word)
      continue
    if not equals and (not left or left[0].startswith("--")):
      raise InputError(f"{word}: names no folder; give one behind it")
    folders[name] = value if equals else left.pop(0)
    whole += [f"--{name.replace('_', '-')}", folders[name]]
  return Words(folders, command, tuple(rest), tuple(whole))


def systems() -> dict[str, type[System]]:
  """Every system that can be imported, by name."""
  return {name: found for name, found in _imported().items() if isinstance(found, type)}


def broken() -> list[str]:
  """Why systems cannot be imported, a line each."""
  return [str(found) for found in _imported().values() if isinstance(found, InputError)]


def _imported() -> dict[str, type[System] | InputError]:
  found = {}
  for name in registry.names():
    try:
      found[name] = registry.system_class(name)
    except InputError as error:
      found[name] = error
  return found


def folder_options() -> dict[str, str]:
  """Options that name a folder beside the checkpoint, and which systems read it."""
  readers: dict[str, dict[str, None]] = {}
  for name, cls in systems().items():
    for option in (option for needed in cls.pipelines.values() for option in needed):
      readers.setdefault(option, {})[name] = None
  return {option: ", ".join(names) for option, names in readers.items()}


def others(task: str) -> dict[str, type]:
  """Request classes of a task, by the name of the system that has it."""
  requests = {name: cls.requests() for name, cls in systems().items()}
  return {name: found[task] for name, found in requests.items() if task in found}


def no_such_task(found: Stored, task: str, commands: Sequence[str]) -> InputError:
  """What to say where a model has no task of a name."""
  its = ", ".join(found.system.tasks()) or "none"
  having = others(task)
  if not having:
    reasons = "".join(f"; {reason}" for reason in broken())
    return InputError(
      f"{found.where}: has no task {task!r}; this model's are {its}, and other commands "
      f"{', '.join(commands)}{reasons}"
    )
  classes = [kind for name in having for kind in systems()[name].pipelines]
  public = f", or a public {' or '.join(classes)}" if classes else ""
  return InputError(
    f"{found.where}: has no task {task!r}; this model's are {its}. Give --checkpoint the folder of "
    f"a model that has it: a run of {' or '.join(having)}{public}"
  )
