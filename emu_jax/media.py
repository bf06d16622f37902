"""Frames to files and bytes: mp4, gif, webp, png, and contact sheets with captions.

Frames are `T H W 3`: uint8, or float in [-1, 1] as the networks make them. Every file is
encoded in memory and renamed into place, so its final name never holds half of it. All of this runs
on the host, in NumPy.
"""

import fractions
import io
import os
import pathlib
from collections.abc import Callable, Sequence

import av
import jax
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from emu_jax.errors import InputError

Frames = UInt8[np.ndarray, "T H W 3"] | Float[np.ndarray, "T H W 3"] | Float[jax.Array, "T H W 3"]
Picture = UInt8[np.ndarray, "height width 3"]
Pixels = UInt8[np.ndarray, "... 3"] | Float[np.ndarray, "... 3"] | Float[jax.Array, "... 3"]

CRF = 18  # H.264 quality of files that people look at: x264's "visually lossless"
STRIP_COLUMNS = 8  # frames across in the png of a clip
MARGIN = 6  # pixels around the pictures and captions of a contact sheet
FONT_SIZE = 13  # pixels; Pillow's own font is readable from about 12
SHEET_SIDE = 96  # contact sheets enlarge smaller pictures to about this
READABLE_SIDE = 256  # single videos are enlarged to at most this
LEAST_WIDTH = 160  # of a contact sheet: some words of caption a line


ENDINGS = (".mp4", ".gif", ".webp", ".png")  # of files that `save_video` writes


def to_uint8(pixels: Pixels) -> UInt8[np.ndarray, "... 3"]:
  """Pixels as bytes: [-1, 1] onto 0..255, rounded, clipped; uint8 is passed on as it is."""
  pixels = np.asarray(pixels)
  if pixels.dtype == np.uint8:
    return pixels
  pixels = pixels.astype(np.float32)
  if bad := int(np.sum(~np.isfinite(pixels))):
    raise ValueError(
      f"to_uint8: {bad} of {pixels.size} values are not finite; look for the step that made them"
    )
  return np.round(np.clip(pixels, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def to_float(pixels: Pixels) -> Float[np.ndarray, "... 3"]:
  """Pixels as float32 in [-1, 1]; `to_uint8` of the result is the input again."""
  if jax.numpy.issubdtype(pixels.dtype, np.floating):
    return np.asarray(pixels).astype(np.float32)
  return np.asarray(pixels).astype(np.float32) / 127.5 - 1


def enlarge(frames: Frames, scale: int) -> Shaped[np.ndarray, "T h w 3"]:
  """Every pixel repeated scale x scale times, so that small pictures keep their edges."""
  return np.asarray(frames).repeat(scale, axis=1).repeat(scale, axis=2)


def readable_scale(height: int, width: int) -> int:
  """Whole factor that brings a video of so many pixels to a size good to look at."""
  return max(1, READABLE_SIDE // max(height, width))


def save_video(path: str | pathlib.Path, frames: Frames, fps: float | int) -> pathlib.Path:
  """Writes a clip (or, with T = 1, a picture) in the format of the name's ending.

  .mp4 is H.264; .gif has 256 colours a frame; .webp is a lossless animation; .png is the picture,
  or the frames in rows of eight. gif and webp show frames for whole hundredths and thousandths of
  a second: `fps` holds on average.

  Args:
    fps: frames a second, above 0.

  Raises:
    InputError: what `check_output` refuses.
  """
  path = check_output(path)
  frames = to_uint8(frames)
  if not len(frames):
    raise ValueError(f"save_video: {path} would have 0 frames; it takes 1 or more")
  if not fps > 0:
    raise InputError(f"save_video: fps={fps} is not above 0; give the frames a second")
  write_whole(path, _ENCODERS[path.suffix.lower()](frames, fps))
  return path


def save_picture(path: str | pathlib.Path, picture: Picture) -> pathlib.Path:
  """Writes one picture, such as a contact sheet; the same endings as `save_video`."""
  return save_video(path, picture[None], fps=1)


def check_output(path: str | pathlib.Path, endings: Sequence[str] | None = None) -> pathlib.Path:
  """The path, if a file could be written there now; call it before an expensive run.

  Args:
    endings: that are allowed; None allows those of `save_video`.

  Raises:
    InputError: another ending, a missing or unwritable folder, a folder of that name.
  """
  path = pathlib.Path(path)
  endings = list(ENDINGS if endings is None else endings)
  if path.suffix.lower() not in endings:
    raise InputError(
      f"output {path}: the ending {path.suffix!r} is not known; use one of {', '.join(endings)}"
    )
  try:  # a real attempt: os.access sees neither read-only file systems nor names that are too long
    if path.is_dir():
      raise InputError(f"output {path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
      raise InputError(
        f"output {path}: there is no folder {path.parent}; create it or give another"
      )
    probe = _sibling(path)
    probe.touch(exist_ok=False)
    probe.unlink()
  except OSError as error:
    raise InputError(
      f"output {path}: cannot be written in folder {path.parent} ({error.strerror}); give another"
    ) from error
  return path


def write_whole(path: pathlib.Path, data: bytes) -> None:
  """Writes a file under another name and renames it: its own name never holds a part."""
  part = _sibling(path)
  try:
    part.write_bytes(data)
    os.replace(part, path)
  except OSError as error:
    raise InputError(
      f"output {path}: could not be written ({error.strerror}); free space or give another folder"
    ) from error
  finally:
    part.unlink(missing_ok=True)


def mp4_bytes(frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> bytes:
  """An H.264 file, every player's format: yuv420p, BT.709, tagged so. Odd sides grow by one pixel.

  4:2:0 halves the resolution of colour: enlarge pictures of a few dozen pixels first.
  """
  H, W = frames.shape[1:3]
  frames = np.pad(frames, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    rate = _rate(fps)
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
    # Untagged files are shown with the matrix that the player guesses from the height.
    context = stream.codec_context
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries = context.color_trc = 1  # BT.709
    for frame in frames:
      picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(_yuv(picture)))
    container.mux(stream.encode())
  return buffer.getvalue()


def gif_bytes(frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> bytes:
  """An endless gif with an adaptive palette a frame; equal neighbours are stored once."""
  pictures = [
    Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    for frame in frames
  ]
  return _animation(pictures, "GIF", duration=_durations(len(frames), fps, unit=10))


def webp_bytes(frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> bytes:
  """An endless lossless webp animation."""
  pictures = [Image.fromarray(frame) for frame in frames]
  return _animation(pictures, "WEBP", duration=_durations(len(frames), fps, unit=1), lossless=True)


def png_bytes(frames: UInt8[np.ndarray, "T H W 3"]) -> bytes:
  """One picture: the frame, or all frames in reading order, eight a row."""
  T, H, W, _ = frames.shape
  columns = min(T, STRIP_COLUMNS)
  rows = -(-T // columns)
  tiles = np.zeros((rows * columns, H, W, 3), np.uint8)
  tiles[:T] = frames
  strip = tiles.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)
  buffer = io.BytesIO()
  Image.fromarray(strip).save(buffer, "PNG")
  return buffer.getvalue()


def contact_sheet(
  clips: Sequence[Frames], captions: Sequence[str], columns: int = 4, scale: int | None = None
) -> Picture:
  """A picture of many clips: a row each, `columns` frames evenly from first to last, caption below.

  Args:
    clips: of one height and width; their lengths may differ.
    columns: frames across, at most; a shorter clip shows all it has.
    scale: whole factor of enlargement; None takes the one that brings the larger side to about 96.
  """
  if not clips or len(clips) != len(captions) or columns < 1:
    raise ValueError(
      f"contact_sheet: {len(clips)} clips, {len(captions)} captions and columns={columns};"
      " give at least one clip, a caption for each and one column or more"
    )
  if len(sizes := {tuple(clip.shape[1:3]) for clip in clips}) > 1:
    raise ValueError(f"contact_sheet: clips of heights and widths {sorted(sizes)}; resize to one")
  if any(not len(clip) for clip in clips):
    raise ValueError("contact_sheet: a clip has 0 frames; leave it out")
  scale = scale or max(1, round(SHEET_SIDE / max(clips[0].shape[1:3])))
  rows = [_row(to_uint8(clip), columns, scale) for clip in clips]
  width = max(LEAST_WIDTH, *(row.width for row in rows))
  font = ImageFont.load_default(FONT_SIZE)
  lines = ["\n".join(_wrapped(caption, font, width)) for caption in captions]
  return _stack(rows, lines, font, width)


def _row(clip: np.ndarray, columns: int, scale: int) -> Image.Image:
  chosen = np.round(np.linspace(0, len(clip) - 1, min(columns, len(clip)))).astype(int)
  frames = enlarge(clip[chosen], scale)
  gaps = np.full((len(frames), frames.shape[1], 2, 3), 255, np.uint8)
  frames = np.concatenate([frames, gaps], axis=2)
  return Image.fromarray(np.concatenate(list(frames), axis=1)[:, :-2])


def _wrapped(caption: str, font, width: int) -> list[str]:
  """The caption's lines, none wider than `width` pixels; a word that is too long is broken."""
  lines = [""]
  for word in caption.split():
    joined = f"{lines[-1]} {word}".strip()
    if font.getlength(joined) <= width:
      lines[-1] = joined
      continue
    if lines[-1]:
      lines.append("")
    for letter in word:
      if lines[-1] and font.getlength(lines[-1] + letter) > width:
        lines.append("")
      lines[-1] += letter
  return lines


def _stack(rows: Sequence[Image.Image], lines: Sequence[str], font, width: int) -> Picture:
  line_height = sum(font.getmetrics()) + 1
  heights = [
    row.height + MARGIN // 2 + line_height * (text.count("\n") + 1)
    for row, text in zip(rows, lines, strict=True)
  ]
  size = (width + 2 * MARGIN, sum(heights) + MARGIN * (len(rows) + 1))
  sheet = Image.new("RGB", size, "white")
  draw, top = ImageDraw.Draw(sheet), MARGIN
  for row, text, height in zip(rows, lines, heights, strict=True):
    sheet.paste(row, (MARGIN, top))
    for i, line in enumerate(text.split("\n")):
      draw.text((MARGIN, top + row.height + MARGIN // 2 + i * line_height), line, "black", font)
    top += height + MARGIN
  return np.array(sheet)


def _yuv(picture: av.VideoFrame) -> av.VideoFrame:
  return picture.reformat(
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    src_color_range=ColorRange.JPEG,
    dst_color_range=ColorRange.MPEG,
  )


def _rate(fps: float | int) -> fractions.Fraction:
  """The fraction nearest to fps that containers hold: 23.976 is 24000/1001."""
  return fractions.Fraction(fps).limit_denominator(1001)


def _durations(num_frames: int, fps: float | int, unit: int) -> list[int]:
  """Milliseconds a frame, in whole units, that add up to num_frames / fps within half a unit."""
  ends = np.round(np.arange(num_frames + 1) * 1000 / (fps * unit)).astype(int) * unit
  return np.maximum(np.diff(ends), unit).tolist()


def _animation(pictures: Sequence[Image.Image], kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  pictures[0].save(buffer, kind, save_all=True, append_images=list(pictures[1:]), loop=0, **options)
  return buffer.getvalue()


def _sibling(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.{os.getpid()}.part")


_ENCODERS: dict[str, Callable[[np.ndarray, float | int], bytes]] = {
  ".mp4": mp4_bytes,
  ".gif": gif_bytes,
  ".webp": webp_bytes,
  ".png": lambda frames, fps: png_bytes(frames),
}
