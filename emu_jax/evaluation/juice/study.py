"""What raters are asked, and the key that says which side of a pair shows which model."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from emu_jax.errors import InputError

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")
KEY_FORMAT = "emu-jax juice key 1"


@dataclasses.dataclass(frozen=True)
class Reason:
  """Why a video is the better one; at least one is ticked with every choice."""

  name: str  # in files
  title: str  # for people
  explanation: str


@dataclasses.dataclass(frozen=True)
class Question:
  """One forced choice between the two videos of a pair."""

  name: str
  text: str
  reasons: tuple[Reason, ...]
  shows_prompt: bool


# Source: arXiv:2311.10709, JUICE: questions and reasons; the explanations are ours.
# ours: the prompt stands beside the second question only, so that it does not sway the first.
QUESTIONS = (
  Question(
    "quality",
    "Which video has better quality?",
    (
      Reason("sharpness", "Pixel sharpness", "Details are crisp, not blurred or noisy."),
      Reason("smoothness", "Motion smoothness", "Things move evenly, without jumps or flicker."),
      Reason("recognisable", "Recognisable objects or scenes", "You can tell what is shown."),
      Reason(
        "consistency", "Consistent objects or scenes", "They stay the same from start to end."
      ),
      Reason("motion", "Amount of motion", "Enough happens, and not too much."),
    ),
    shows_prompt=False,
  ),
  Question(
    "faithfulness",
    "Which video follows the prompt better?",
    (
      Reason("spatial", "Spatial text alignment", "It shows what the text names, as it says."),
      Reason(
        "temporal",
        "Temporal text alignment",
        "What the text says happens, in its order.",
      ),
    ),
    shows_prompt=True,
  ),
)


@dataclasses.dataclass(frozen=True)
class Item:
  """A pair in a study; `id` is what the page calls it."""

  id: str
  prompt: str
  a_side: Side
  a_file: str
  b_file: str


@dataclasses.dataclass(frozen=True)
class Key:
  """What raters must not know; the file that `write_key` leaves beside the page."""

  study: str  # the study's id
  a: str  # what A is called in reports: its folder
  b: str
  seed: int
  items: tuple[Item, ...]


def drawn_sides(num_items: int, seed: int) -> list[Side]:
  """The side of A in each pair: left in half of them, within one where their number is odd."""
  rng = np.random.default_rng([seed, 0])
  halves = np.arange(num_items) + rng.integers(2)  # which side has one more is drawn too
  return [SIDES[i % 2] for i in rng.permutation(halves)]


def drawn_order(num_items: int, seed: int) -> list[int]:
  """The order in which pairs are shown, independent of the sides."""
  return np.random.default_rng([seed, 1]).permutation(num_items).tolist()


def key_path(page: pathlib.Path) -> pathlib.Path:
  """Where the key of a page lies: beside its folder, so that it is not sent along."""
  return page.with_name(f"{page.name}.key.json")


def key_bytes(key: Key) -> bytes:
  """A key as its file holds it."""
  fields = {"format": KEY_FORMAT} | dataclasses.asdict(key)
  return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()


def read_key(path: pathlib.Path) -> Key:
  """The key of a study; InputError for a file that is none."""
  fields = read_object(path)
  if fields.pop("format", None) != KEY_FORMAT:
    raise InputError(
      f"juice: {path} is no key of a study; give the .key.json file beside the page's folder"
    )
  try:
    items = tuple(Item(**item) for item in fields.pop("items"))
    if len({item.id for item in items}) != len(items) or any(i.a_side not in SIDES for i in items):
      raise TypeError("a pair twice, or on no side")
    return Key(items=items, **fields)
  except (KeyError, TypeError) as error:
    raise InputError(f"juice: {path} is a damaged key ({error}); copy it again") from error


def read_object(path: pathlib.Path) -> dict:
  """A JSON object of a file; InputError where it is none."""
  try:
    values = json.loads(path.read_bytes())
  except OSError as error:
    raise InputError(f"juice: {path} cannot be read ({error.strerror}); name a file") from error
  except ValueError as error:
    raise InputError(f"juice: {path} is not JSON ({error}); copy it again") from error
  if not isinstance(values, dict):
    raise InputError(f"juice: {path} holds no JSON object; copy it again")
  return values


def tell(names: Sequence[str], most: int = 3) -> str:
  """Names in a message: the first few, and how many more there are."""
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest
