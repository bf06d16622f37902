"""Requests are checked before any weights are read; what comes of them is written to files."""

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from emu_jax import media
from emu_jax.cli.progress import Say
from emu_jax.errors import InputError
from emu_jax.model import Model
from emu_jax.systems.system import Arrays

LARGEST_SIDE = 4096  # pixels: H.264 of this side still plays everywhere


def check(model: Model, task: str, request: Any, enlarge: int) -> Arrays:
  """The arrays of a request, with which its programs begin; reads no weights.

  Raises: InputError for what it asks for and the model cannot do.
  """
  model.steps(task, request)
  arrays = model.arrays(task, [request])
  if enlarge > 1:
    largest = max(model.shape(task, request, arrays)[2:4])
    if enlarge * largest > LARGEST_SIDE:
      raise InputError(
        f"enlarge={enlarge} makes {enlarge * largest} pixels a side of the model's {largest}; stay "
        f"below {LARGEST_SIDE}"
      )
  return arrays


def hint(model: Model, requests: Iterable[Any]) -> None:
  """Says on stderr which words of the prompts the model never met; they draw anything at all."""
  words: dict[str, list[str]] = {}
  for request in requests:
    words |= model.unlearned(request)
  if words:
    nearest = "; ".join(f"{word!r}: {', '.join(near)}" for word, near in list(words.items())[:5])
    more = f"; and {len(words) - 5} more" if len(words) > 5 else ""
    print(
      f"hint: this model never met these words of the prompt; nearest that it knows are {nearest}"
      f"{more}",
      file=sys.stderr,
    )


def enlarged(frames: np.ndarray, enlarge: int) -> tuple[np.ndarray, int]:
  """Frames with each pixel repeated so that small videos can be seen, and how often it is."""
  scale = enlarge or media.readable_scale(*frames.shape[1:3])
  return media.enlarge(frames, scale), scale


def write(out: pathlib.Path, frames: np.ndarray, fps: float, enlarge: int, say: Say) -> None:
  """Saves frames, and prints what they are."""
  say(f"writing {out}")
  T, H, W, _ = frames.shape
  large, scale = enlarged(frames, enlarge)
  media.save_video(out, large, fps)
  length = f"{T} frames at {fps:g} a second ({T / fps:.3g} s)" if T > 1 else "1 frame"
  larger = f", shown {scale} times as large" if scale > 1 else ""
  print(f"{out}: {length} of {H}x{W} pixels{larger}")
