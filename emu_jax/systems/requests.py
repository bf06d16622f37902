"""What requests have in common; a task's own request adds its fields.

A field's annotation says what a command makes of it, and its docstring is the command's help.
"""

import dataclasses
import math
import pathlib
from collections.abc import Collection
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro

from emu_jax.data.user_files import load_picture
from emu_jax.diffusion.process import Sampling, Solver
from emu_jax.errors import InputError
from emu_jax.systems.first_stage import FRAMES_AT_A_TIME


@dataclasses.dataclass(frozen=True)
class Word:
  """In a field's annotation: what a command, and a line of a file of requests, makes of it.

  Attributes:
    kind: `str` for a text, `pathlib.Path` for a file; in Python the field takes more.
  """

  kind: type


# A text, or one an example in Python.
Text = Annotated[str | tuple[str, ...], Word(str)]
# One that a command takes by position, and a method too.
Prompt = Annotated[Text, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
# A file, or in Python also uint8 frames [B or 1, T, H, W, 3] of the model's size.
Media = Annotated[Any, Word(pathlib.Path), tyro.conf.arg(metavar="FILE")]
SEEDS = 2**64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeded:
  """A request that draws noise."""

  seed: int = 0
  """of all noise, 0 or more; the same request with the same seed gives the same frames. Of several
  examples the first has this seed, the next one more, and so on"""

  def __post_init__(self):
    whole = isinstance(self.seed, int | np.integer)
    if not whole or not 0 <= self.seed < SEEDS:
      raise InputError(
        f"seed={self.seed!r} is no whole number from 0 to {SEEDS - 1}; give one that is"
      )
    for name, value in vars(self).items():
      if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}={value} is not a number; give one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(Seeded):
  """A request with a prompt."""

  prompt: Prompt
  """what to show"""
  negative: Text = ""
  """prompt that guidance leads away from"""
  steps: int = 50
  """network evaluations of each sampling run, 1 to the 1000 of the model's schedule"""
  solver: Solver | None = None
  """on a schedule of steps DDIM, or DPM-Solver++ (2M), which needs fewer steps; on other noise
  ddim, euler or heun; None: the model's usual one, ddim on a schedule"""
  rescale: float = 0.0
  """how far guided predictions are brought back to the spread of unguided ones, 0 to 1"""
  decode_chunk: int = FRAMES_AT_A_TIME
  """frames decoded at a time, of all examples together; fewer need less memory"""
  guidance_interval: tuple[float, float] | None = None
  """from and to which ratio of noise to signal predictions are guided, such as 0.3 6; other steps
  compute the prompt's alone, in a half or a third of the time; None: all are guided"""

  def __post_init__(self):
    super().__post_init__()
    if self.decode_chunk < 1:
      raise InputError(f"decode_chunk={self.decode_chunk} is below 1 frame; give 1 or more")
    if not 0 <= self.rescale <= 1:
      raise InputError(f"rescale={self.rescale} is not from 0 to 1; 0 = off")
    if self.guidance_interval is not None:
      low, high = self.guidance_interval
      if not 0 <= low < high:
        raise InputError(
          f"guidance_interval={low:g} {high:g} is none; give two ratios from 0 on, the lower first"
        )

  @property
  def sampling(self) -> Sampling:
    """How a sampling run goes, with guidance."""
    return Sampling(
      solver=self.solver,
      num_steps=self.steps,
      spacing=None,
      guidance_interval=self.guidance_interval,
    )


def guided_by(sampling: Sampling, *scales: float) -> Sampling:
  """`sampling`, of one branch where every scale is 1, which is no guidance."""
  return dataclasses.replace(sampling, guided=any(scale != 1 for scale in scales))


def refuse_without_effect(request: Any, names: Collection[str], reason: str) -> None:
  """Raises ValueError for a field that was set, of those that mean nothing to this request."""
  for field in dataclasses.fields(request):
    value = getattr(request, field.name)
    if field.name in names and value != field.default:
      raise ValueError(f"{field.name}={value!r} has no effect {reason}; leave it out")


def numbers(**values: float) -> dict[str, jnp.ndarray]:
  """Inputs of a program, not values of it: 3 and 3.0 are one program."""
  return {name: jnp.float32(value) for name, value in values.items()}


def pictures(given: Any, size: tuple[int, int], who: str) -> np.ndarray:
  """uint8 [B, 1, H, W, 3] of a file, or of the caller's own frames.

  Raises: InputError for frames of another size, and for clips.
  """
  if isinstance(given, str | pathlib.Path):
    return load_picture(given, size)[None]
  frames = frames_of_size(given, size, who)
  if frames.shape[1] != 1:
    raise InputError(f"{who}: {frames.shape[1]} frames were given; a picture is 1 frame")
  return frames


def frames_of_size(given: Any, size: tuple[int, int], who: str) -> np.ndarray:
  """The caller's own frames, checked.

  Raises: InputError for anything but uint8 [B, T, H, W, 3] of a size.
  """
  frames = np.asarray(given)
  if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] != 3:
    raise InputError(
      f"{who}: {frames.dtype} {list(frames.shape)} are no frames; give uint8 [B, T, H, W, 3]"
    )
  if frames.shape[2:4] != size:
    raise InputError(
      f"{who}: frames of {frames.shape[2]}x{frames.shape[3]} pixels; this model works at "
      f"{size[0]}x{size[1]}, so resize them"
    )
  return frames
