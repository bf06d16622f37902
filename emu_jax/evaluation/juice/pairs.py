"""Which clips of two folders belong together, and what makes a pair of them comparable.

A clip's place in its study is its file's name without the ending; names are ordered with numbers by
value, so that clip_9 comes before clip_10.
"""

import dataclasses
import math
import pathlib

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from emu_jax import media
from emu_jax.data import decode
from emu_jax.errors import InputError
from emu_jax.evaluation.juice.study import tell
from emu_jax.evaluation.prompts import natural_order, read_prompts

VIDEOS = (".mp4", ".webm")
ANIMATIONS = (".gif", ".webp")
ENDINGS = VIDEOS + ANIMATIONS  # what browsers play, and what emu-jax writes of clips
LEAST_DURATION = 20  # ms: browsers show animations' shorter frames, which mean "unset", for 100 ms
UNSET_DURATION = 100
GIF_UNIT = 0.01  # s, in which gifs tell durations
ROUNDING = 0.05  # frames: containers keep times in whole milliseconds, or coarser


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two clips of one prompt."""

  prompt: str
  a: pathlib.Path
  b: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Clip:
  """A file as it is displayed. A still has neither end nor rate of its own: both are infinite."""

  path: pathlib.Path
  height: int  # pixels, upright and square
  width: int
  fps: float
  seconds: float  # from the first frame to the end of the last


@dataclasses.dataclass(frozen=True)
class Setting:
  """What both clips of a pair are brought to."""

  height: int
  width: int
  fps: float
  num_frames: int


def matched(a: pathlib.Path, b: pathlib.Path, prompts: pathlib.Path) -> tuple[list[Pair], str]:
  """The pairs of two folders in the order of A's names, and how they were matched.

  By name where the folders share any: then each name must be in both. By order otherwise, for equal
  numbers of clips.

  Args:
    prompts: `.txt`, a line a prompt in the order of A's names, or `.jsonl`, a line
      `{"file_name": …, "text": …}` for each of A's names, in any order.

  Raises:
    InputError: a folder without clips, clips without a partner, another number of prompts.
  """
  of_a, of_b = _clips(a), _clips(b)
  if shared := of_a.keys() & of_b.keys():
    if alone := [str(clips[stem]) for clips in (of_a, of_b) for stem in clips.keys() - shared]:
      raise InputError(
        f"juice: {tell(sorted(alone))} has no clip of its name in the other folder, {len(shared)} "
        "others have; remove or rename it"
      )
    partners, matching = [of_b[stem] for stem in of_a], "by name"
  elif len(of_a) == len(of_b):
    partners, matching = (
      list(of_b.values()),
      "by the order of their names, of which none is in both",
    )
  else:
    raise InputError(
      f"juice: {len(of_a)} clips in {a} and {len(of_b)} in {b}, no name in both; name the clips of "
      "a prompt alike, or give equal numbers"
    )
  texts = read_prompts(prompts, list(of_a), "juice")
  return [Pair(*row) for row in zip(texts, of_a.values(), partners, strict=True)], matching


def _clips(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Files of a folder by their stems, in order."""
  if not folder.is_dir():
    raise InputError(f"juice: {folder} is not a folder; name one that holds clips")
  found: dict[str, pathlib.Path] = {}
  for path in sorted(folder.iterdir(), key=natural_order):
    if path.suffix.lower() not in ENDINGS or path.name.startswith("."):
      continue
    if path.stem in found:
      raise InputError(
        f"juice: {folder} holds {found[path.stem].name} and {path.name}; keep one of each name"
      )
    found[path.stem] = path
  if not found:
    raise InputError(f"juice: {folder} holds no clip ({', '.join(ENDINGS)}); name another folder")
  return found


def measured(path: pathlib.Path) -> Clip:
  """A clip's size, rate and length; InputError for a file that is none."""
  if path.suffix.lower() in ANIMATIONS:
    durations, height, width = _durations(path)
    num_frames, fps, seconds = len(durations), _rate(durations), np.sum(durations)
  else:
    line = decode.timeline(path)
    height, width = decode.shown_size(path)
    num_frames, fps, seconds = line.num_frames, line.fps, line.span + 1 / line.fps
  if num_frames == 1:
    fps = seconds = math.inf
  return Clip(path, height, width, float(fps), float(seconds))


def common(a: Clip, b: Clip) -> Setting:
  """What both can be brought to without inventing a pixel or a frame.

  The squarer of the two shapes (a square, if one is wide and one is tall), the smaller size in it,
  the lower rate, the shorter time.

  Source: arXiv:2311.10709, JUICE: equal aspect, size, frame rate and duration. Differs: which of
  the two is kept is not published.
  """
  _, ratio, _ = sorted((a.width / a.height, b.width / b.height, 1.0))
  height = min(min(c.height, c.width / ratio) for c in (a, b))
  fps, seconds = min(a.fps, b.fps), min(a.seconds, b.seconds)
  if math.isinf(seconds):
    fps, seconds = 1.0, 1.0
  num_frames = max(1, math.floor(seconds * fps + ROUNDING))
  return Setting(max(1, round(height)), max(1, round(height * ratio)), fps, num_frames)


def fitted(clip: Clip, setting: Setting) -> UInt8[np.ndarray, "T H W 3"]:
  """The clip in a setting: central crops in space and time, bilinear resizing.

  Each frame is the one that is displayed when its time begins.
  """
  times = np.zeros(setting.num_frames)
  if not math.isinf(clip.seconds):
    spare = clip.seconds - setting.num_frames / setting.fps
    # Counted in the clip's own frames, so that rounded timestamps never skip or repeat one.
    first = math.floor(max(0.0, spare / 2 * clip.fps) + ROUNDING)
    steps = np.arange(setting.num_frames) * clip.fps / setting.fps
    times = (first + np.floor(steps + ROUNDING)) / clip.fps
  if clip.path.suffix.lower() in ANIMATIONS:
    return _animation(clip, times, setting)
  line, smooth = decode.timeline(clip.path), PIL.Image.Resampling.BILINEAR
  nearest = np.minimum(times, line.span)
  size = (setting.height, setting.width)
  return decode.frames_at(clip.path, nearest, size, line, resampling=smooth)


def _animation(
  clip: Clip, times: Float[np.ndarray, "T"], setting: Setting
) -> UInt8[np.ndarray, "T H W 3"]:
  durations, *_ = _durations(clip.path)
  half = 0.0 if math.isinf(clip.fps) else 0.5 / clip.fps  # durations are rounded too
  numbers = np.searchsorted(np.cumsum(durations), times + half, side="right")
  numbers = np.minimum(numbers, len(durations) - 1)
  frames = {}
  with PIL.Image.open(clip.path) as image:
    for number in sorted(set(numbers.tolist())):
      image.seek(number)
      rgba = image.convert("RGBA")
      opaque = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
      frames[number] = decode.resized(
        opaque.convert("RGB"), 1.0, setting.height, setting.width, PIL.Image.Resampling.BILINEAR
      )
  return np.stack([frames[number] for number in numbers.tolist()])


def _durations(path: pathlib.Path) -> tuple[Float[np.ndarray, "N"], int, int]:
  """Seconds that each frame of a gif or webp is shown; its height and width."""
  try:
    with PIL.Image.open(path) as image:
      durations = []
      for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()
        opaque = image.info.get("duration", 0)
        durations.append(opaque if opaque >= LEAST_DURATION else UNSET_DURATION)
      return np.array(durations) / 1000, image.height, image.width
  except (OSError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
    raise InputError(
      f"juice: {path} is no picture that Pillow can read ({error}); make it again"
    ) from error


def _rate(durations: Float[np.ndarray, "N"]) -> float:
  """Frames a second of an animation, from the frames that are shown for one frame's time.

  Equal neighbours are stored as one frame that is shown longer, which says nothing of the rate.
  """
  single = np.mean(durations[durations < 1.5 * durations.min()])
  whole = max(1, round(1 / single))
  return float(whole if abs(1 / whole - single) < GIF_UNIT / 2 else 1 / single)


def comparable(a: Clip, b: Clip) -> tuple[bytes, bytes]:
  """Both clips of a pair as mp4 files that differ in their pixels alone.

  Small clips are enlarged, every pixel repeated, so that H.264 keeps their colours.
  """
  setting = common(a, b)
  scale = media.readable_scale(setting.height, setting.width)
  a_file, b_file = (
    media.mp4_bytes(media.enlarge(fitted(clip, setting), scale), setting.fps) for clip in (a, b)
  )
  return a_file, b_file
