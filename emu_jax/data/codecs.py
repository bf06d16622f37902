"""Frames as byte strings, one each, so that a few of a clip are read without the rest of it.

  lossless  WebP without loss, at its quickest setting
  jpegNN    JPEG of quality NN from 1 to 100, colours at full resolution (4:4:4)
  webpNN    WebP of quality NN; colours at half resolution, as its format has them

Which one a string is stands in its first bytes. The default for clips is jpeg95, by the figures of
`benchmarks/record_codecs.py`: WebP and H.264 are smaller at one PSNR of large frames, but at 64
pixels a side half the colours' resolution costs 4 to 5 dB that no quality gives back, WebP takes
two to three times as long to decode, and of H.264 a whole group of frames is decoded for one. WebP
without loss is smaller and quicker than PNG, and smaller than raw frames deflated together.
"""

import functools
import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from emu_jax.errors import InputError

DEFAULT = "jpeg95"
LOSSLESS = "lossless"
FORMATS = ("JPEG", "WEBP")  # that are decoded; Pillow knows others that no packer writes


class StoredFrames(Sequence):
  """The frames of a record as byte strings; each is decoded when it is taken, and only then.

  Indexed by a number it gives one frame, by a slice or an array of numbers a stack of them.
  """

  def __init__(self, strings: Sequence[bytes], decode: Callable[[bytes], np.ndarray]):
    self.strings, self._decode = strings, decode

  def __len__(self) -> int:
    return len(self.strings)

  def __getitem__(self, chosen) -> np.ndarray:
    if isinstance(chosen, int | np.integer):
      return self._decode(self.strings[chosen])
    numbers = np.arange(len(self))[chosen]
    if not len(numbers):
      return self[0][None][:0]
    return np.stack([self._decode(self.strings[i]) for i in numbers])

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self[:], dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of all frames together; decodes the first."""
    return (len(self), *self[0].shape)


def check(codec: str) -> str:
  """The name of a codec, as it was given.

  Raises: InputError for a name that is none.
  """
  _encoder(codec)
  return codec


def encode(frames: UInt8[np.ndarray, "T H W 3"], codec: str) -> list[bytes]:
  """A byte string of each frame."""
  options = _encoder(codec)
  strings = []
  for frame in frames:
    into = io.BytesIO()
    PIL.Image.fromarray(frame).save(into, **options)
    strings.append(into.getvalue())
  return strings


def decode(string: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """One frame, whichever codec it was encoded by."""
  with PIL.Image.open(io.BytesIO(string), formats=FORMATS) as image:
    return np.asarray(image.convert("RGB"))


@functools.cache
def _encoder(codec: str) -> dict:
  """Pillow's options."""
  if codec == LOSSLESS:
    return {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
  found = re.fullmatch(r"(jpeg|webp)(\d{1,3})", codec)
  if not found or not 1 <= int(found[2]) <= 100:
    raise InputError(
      f"prepare: codec={codec!r} is unknown; choose lossless, or jpeg or webp with a quality of 1 "
      f"to 100, such as {DEFAULT}"
    )
  options = {"format": found[1].upper(), "quality": int(found[2])}
  return options | ({"subsampling": 0} if found[1] == "jpeg" else {"method": 4})
