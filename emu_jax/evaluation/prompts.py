"""Files and prompts that go together: names in their natural order, and a prompt for each."""

import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from emu_jax.errors import InputError

NAMED = 3  # at most, in a message


def natural_order(path: pathlib.Path) -> list[tuple]:
  """A key that orders names with numbers by value: clip_9 comes before clip_10."""
  parts = re.split(r"(\d+)", str(path))
  return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def read_prompts(path: pathlib.Path, stems: Sequence[str], who: str) -> list[str]:
  """A prompt for each file.

  Args:
    path: `.txt`, a line a prompt in the order of `stems`, or `.jsonl`, a line
      `{"file_name": …, "text": …}` for each of them, in any order.
    stems: names of files without their endings, in their natural order.
    who: the command that asks, for messages.

  Raises: InputError for another number of prompts, a name without one, or an unreadable file.
  """
  try:
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f"{who}: prompts {path} cannot be read ({error}); name a text file, a prompt a line"
    ) from error
  if path.suffix.lower() == ".jsonl":
    return _named_prompts(path, lines, stems, who)
  if len(lines) != len(stems):
    raise InputError(
      f"{who}: prompts {path} holds {len(lines)} prompts for {len(stems)} clips; write a line for "
      "each, in the order of their names"
    )
  return [line.strip() for line in lines]


def _named_prompts(
  path: pathlib.Path, lines: Iterable[str], stems: Sequence[str], who: str
) -> list[str]:
  texts = {}
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      name, text = row["file_name"], row["text"]
      texts[pathlib.Path(name).stem] = text.strip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f'{who}: prompts {path} line {number} is not {{"file_name": ..., "text": ...}}; correct it'
      ) from error
  if missing := [stem for stem in stems if not texts.get(stem)]:
    listed = ", ".join(missing[:NAMED]) + (" and others" if len(missing) > NAMED else "")
    raise InputError(f"{who}: prompts {path} has no text for {listed}; write a line for it")
  return [texts[stem] for stem in stems]
