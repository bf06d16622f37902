"""What a network trains on, as it asks for it: the arrays of a batch and where they come from."""

import dataclasses
from collections.abc import Mapping

from flax.core import FrozenDict  # hashable, as configurations are


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """Frames of a clip and their rate. One frame is a picture, at any rate."""

  num_frames: int
  fps: float | tuple[float, ...]  # frames/s; of several the one of an example is drawn
  begins: int = 1  # a picture is the first of so many frames, of records that have as many

  def __post_init__(self):
    if self.num_frames < 1 or not self.rates or min(self.rates) <= 0:
      raise ValueError(
        f"ClipSpec: num_frames={self.num_frames} and fps={self.fps} must both be positive; "
        "a picture is 1 frame at any rate"
      )
    if self.begins < 1 or self.begins > 1 < self.num_frames:
      raise ValueError(
        f"ClipSpec: begins={self.begins} with num_frames={self.num_frames}; only a picture begins "
        "a clip, of 1 frame or more"
      )

  @property
  def rates(self) -> tuple[float, ...]:
    """Every rate that an example may have, frames/s."""
    return self.fps if isinstance(self.fps, tuple) else (self.fps,)


@dataclasses.dataclass(frozen=True)
class Frames:
  """One array of a batch, uint8 [B, T, H, W, 3], cut from an array of a record.

  All arrays of an example begin at the same second of their record.
  """

  clip: ClipSpec
  size: tuple[int, int]  # height and width, pixels; records of another size are resized
  array: str = "frames"  # of a record
  multiple: tuple[int, int] = (1, 1)  # of what height and width must be multiples, in every bucket


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The batch of one part of a system.

  A batch also has "tokens" and "masks" (tuples of [B, L], one a tokenizer), "fps" float32 [B] (the
  rate that was drawn) and "image_dropped" bool [B].
  """

  frames: Mapping[str, Frames]  # by their names in a batch; the first one's clip is drawn
  numbers: tuple[str, ...] = ()  # of records, float32 [B] in a batch under their own names

  def __post_init__(self):
    if not self.frames:
      raise ValueError("Inputs: no frames; name one array at least")
    object.__setattr__(self, "frames", FrozenDict(self.frames))

  @property
  def first(self) -> Frames:
    """The array whose clip is drawn; the others follow it."""
    return next(iter(self.frames.values()))


def clip_inputs(
  clip: ClipSpec,
  size: tuple[int, int],
  *,
  multiple: tuple[int, int] = (1, 1),
  numbers: tuple[str, ...] = (),
) -> Inputs:
  """Captioned clips or pictures alone, as "frames"."""
  return Inputs({"frames": Frames(clip, size, multiple=multiple)}, numbers)
