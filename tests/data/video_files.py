"""Small video files for tests; every frame carries its own number, to be read from its pixels."""

from fractions import Fraction

import av
import numpy as np


def numbered(i: int, height: int = 32, width: int = 32) -> np.ndarray:
  """Frame number i < 256: its high digit (base 16) as grey on the left, the low on the right."""
  frame = np.empty((height, width, 3), np.uint8)
  frame[:, : width // 2], frame[:, width // 2 :] = i // 16 * 16 + 8, i % 16 * 16 + 8
  return frame


def numbers(frames: np.ndarray) -> list[int]:
  """The numbers that `numbered` put into frames [T, H, W, 3]; greys may be off by up to 7."""
  quarter = frames.shape[2] // 4
  high = frames[:, :, :quarter].mean((1, 2, 3)) // 16
  low = frames[:, :, -quarter:].mean((1, 2, 3)) // 16
  return [int(h * 16 + l) for h, l in zip(high, low, strict=True)]


def write_video(path, frames, *, fps=8, times=None, codec="libx264", prepare=None, **options):
  """Writes uint8 [T, H, W, 3]; times: seconds of each frame, for a variable rate."""
  frames = list(frames)
  with av.open(str(path), "w", options=options) as container:
    coder = {"crf": "8", "g": "12", "bf": "2", "preset": "ultrafast"} if codec == "libx264" else {}
    stream = container.add_stream(codec, rate=fps, options=coder)
    stream.height, stream.width = frames[0].shape[:2] if frames else (32, 32)
    stream.pix_fmt = "yuv420p"
    if prepare:
      prepare(stream)
    container.start_encoding()  # a file without frames has its header nevertheless
    if times is not None:
      stream.codec_context.time_base = Fraction(1, 1000)
    for i, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
      if times is not None:
        frame.pts, frame.time_base = round(1000 * times[i]), Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def write_numbered(path, count, *, height=32, width=32, **options):
  return write_video(path, [numbered(i, height, width) for i in range(count)], **options)
