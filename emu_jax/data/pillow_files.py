"""Pictures and animations, through Pillow: opaque RGB, upright, with their own timing."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from emu_jax.data.timelines import Timeline
from emu_jax.errors import InputError

SUFFIXES = (
  ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png",
  ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")  # the frames of other formats are pages, or two eyes
Colour = tuple[int, int, int]
BACKGROUND: Colour = (255, 255, 255)  # ours: what lies behind transparent pixels, everywhere
ORIENTATION = 0x0112  # EXIF
TURNS = {
  2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
  5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
LEAST_DURATION, USUAL_DURATION = 11, 100  # ms: browsers show faster frames for 100 ms


def is_pillow_file(path: str | pathlib.Path) -> bool:
  """Whether a file's name is one of a picture or animation."""
  return pathlib.Path(path).suffix.lower() in SUFFIXES


def is_animated(path: str | pathlib.Path) -> bool:
  """Whether a picture's file has several frames to be shown one after another."""
  try:
    with PIL.Image.open(path) as image:
      return len(_numbers(image)) > 1
  except Exception:  # whoever reads it says what it is
    return False


def timeline(path: str | pathlib.Path) -> Timeline:
  """When the frames are shown; a picture has one, at 0 s. Decodes all frames."""
  with opened(path) as image:
    starts, now = [], 0
    for number in _numbers(image):
      starts.append(now / 1000)
      now += _duration(image, number)
    return Timeline.of(starts, (1000 * len(starts) / now,) if len(starts) > 1 else ())


def images(path: str | pathlib.Path, background: Colour = BACKGROUND) -> Iterator[PIL.Image.Image]:
  """The frames in order, as RGB, upright."""
  with opened(path) as image:
    turn = TURNS.get(_orientation(image))
    for number in _numbers(image):
      image.seek(number)
      rgb = flattened(image, background)
      yield rgb if turn is None else rgb.transpose(turn)


def shown_size(path: str | pathlib.Path) -> tuple[int, int]:
  """Height and width as displayed."""
  with opened(path) as image:
    return image.size if _orientation(image) > 4 else image.size[::-1]


def flattened(image: PIL.Image.Image, background: Colour = BACKGROUND) -> PIL.Image.Image:
  """Any picture as RGB of 8 bits: 16 bits give their high 8, transparent pixels the background.

  Raises:
    ValueError: grey of 32 bits, whose white is not known.
  """
  if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
    raise ValueError("its grey has 32 bits; store 8 or 16")
  if image.mode.startswith("I"):
    return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, background), image)
  return image.convert("RGB")


@contextlib.contextmanager
def opened(path: str | pathlib.Path) -> Iterator[PIL.Image.Image]:
  """A file, opened; whatever Pillow raises while it is read becomes one line."""
  try:
    with PIL.Image.open(path) as image:
      yield image
  except InputError:
    raise
  except Exception as error:  # Pillow's plugins raise what their parsers do: struct.error, KeyError
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"decode: {path} is no picture that Pillow can read ({first}); use a PNG or JPEG file"
    ) from error


def _numbers(image: PIL.Image.Image) -> range:
  """The numbers of the frames that are shown."""
  if image.format not in ANIMATED:
    return range(1)
  # An APNG's default image may be for viewers that know no animation, and not part of it.
  return range(int(getattr(image, "default_image", False)), getattr(image, "n_frames", 1))


def _duration(image: PIL.Image.Image, number: int) -> float:
  """Milliseconds for which a frame is shown."""
  image.seek(number)
  image.load()  # WebP says it only then
  duration = image.info.get("duration", 0)
  return float(duration if duration >= LEAST_DURATION else USUAL_DURATION)


def _orientation(image: PIL.Image.Image) -> int:
  if image.format == "TIFF":  # Pillow turns it while loading
    return 1
  try:
    return int(image.getexif().get(ORIENTATION, 1))
  except Exception:  # damaged EXIF: the pixels are good
    return 1
