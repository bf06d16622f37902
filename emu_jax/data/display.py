"""From a stored picture to one as it is displayed: cut to shape, resized, turned upright."""

import math

import av
import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL.Image import Resampling

Size = tuple[int, int]  # height and width, pixels
Matrix = tuple[int, int, int, int]  # a turn or mirroring of what is stored
UPRIGHT: Matrix = (1, 0, 0, 1)


def fitted(
  image: PIL.Image.Image,
  aspect: float,
  matrix: Matrix,
  size: Size,
  resampling: Resampling = Resampling.BICUBIC,
) -> UInt8[np.ndarray, "H W 3"]:
  """Central part of one frame, resized, then turned upright (the two commute)."""
  stored = size[::-1] if lies(matrix) else size
  return _upright(resized(image, aspect, *stored, resampling), matrix)


def resized(
  image: PIL.Image.Image,
  aspect: float,
  height: int,
  width: int,
  resampling: Resampling = Resampling.BICUBIC,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Box reduction, then an antialiased bicubic, of the largest central part of a shape.

  Args:
    aspect: width of a stored pixel over its height; the shape is that of what is displayed.
    resampling: another filter than the bicubic.
  Source: "box + bicubic resize, centre crop", Emu Video, arXiv:2311.10709, table 3.
  """
  # Of the part, in stored pixels, which need not be square.
  tall = min(image.width * aspect * height / width, image.height)
  wide = min(tall * width / height / aspect, image.width)  # rounding must not leave the picture
  left, top = (image.width - wide) / 2, (image.height - tall) / 2
  box = (left, top, left + wide, top + tall)
  return np.asarray(image.resize((width, height), resampling, box=box, reducing_gap=3.0))


def matrix(frame: av.VideoFrame) -> Matrix:
  """How a stored frame is to be displayed: x' = a x + c y, y' = b x + d y, as (a, b, c, d)."""
  try:
    stored = frame.side_data.get("DISPLAYMATRIX")
  except ValueError:  # PyAV does not know the kind of what else the frame has, such as EXIF
    return _turn(frame.rotation)
  if stored is None:
    return UPRIGHT
  a, b, _, c, d, *_ = np.frombuffer(bytes(stored), np.int32).tolist()
  return a, b, c, d


def _turn(degrees: int) -> Matrix:
  """The matrix of a turn by so many degrees against the clock."""
  cosine, sine = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
  return cosine, -sine, sine, cosine


def lies(matrix: Matrix) -> bool:
  """Whether a frame is stored on its side: a quarter turn displays it."""
  a, b, c, d = matrix
  return abs(a) + abs(d) < abs(b) + abs(c)


def _upright(pixels: UInt8[np.ndarray, "h w 3"], matrix: Matrix) -> UInt8[np.ndarray, "H W 3"]:
  """Applies a display matrix of quarter turns and mirrorings."""
  a, b, c, d = matrix
  if lies(matrix):
    pixels, a, d = pixels.swapaxes(0, 1), c, b
  return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
