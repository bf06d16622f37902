"""What each way of storing the frames of a record costs: bytes, loss, and time to read a few.

Clips of 10 s at 24 frames/s, one a file of a folder (or as many moving shapes, which are drawn);
a shorter file is played forth and back. Reading takes 8 frames at 4 frames/s from a random start
out of each, on one core. Columns are means over the clips; PSNR is that of the mean squared error.

  python -m benchmarks.record_codecs --clips FOLDER
"""

import argparse
import io
import itertools
import json
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator

import av
import numpy as np

from emu_jax.data import codecs, decode, shapes

FPS, SECONDS = 24, 10
TAKEN, TAKEN_FPS = 8, 4
LOSSY = ("jpeg80", "jpeg90", "jpeg95", "webp80", "webp90", "webp95")
GROUP = 6  # frames of a group of H.264
CRF = (17, 23)  # ours: about the PSNR of jpeg95, and about that of jpeg90
STARTS = 3  # reads of a clip

Encode = Callable[[np.ndarray], list[bytes]]
Decode = Callable[[list[bytes], np.ndarray], np.ndarray]


def each_alone(codec: str) -> tuple[Encode, Decode]:
  """A byte string a frame."""
  return (
    lambda clip: codecs.encode(clip, codec),
    lambda strings, rows: codecs.StoredFrames(strings, codecs.decode)[rows],
  )


def deflated() -> tuple[Encode, Decode]:
  """The layout before this one: raw frames as one string, inflated whole."""

  def read(strings, rows):
    raw, side = zlib.decompress(strings[0]), json.loads(strings[1])
    return np.frombuffer(raw, np.uint8).reshape(side)[rows]

  write = lambda clip: [zlib.compress(clip.tobytes()), json.dumps(clip.shape).encode()]
  return write, read


def groups(crf: int) -> tuple[Encode, Decode]:
  """Short groups of H.264, each decoded from its beginning."""

  def write(clip):
    return [h264(clip[i : i + GROUP], crf) for i in range(0, len(clip), GROUP)]

  def read(strings, rows):
    decoded = {group: inflated(strings[group]) for group in sorted(set(rows // GROUP))}
    return np.stack([decoded[row // GROUP][row % GROUP] for row in rows])

  return write, read


def h264(frames: np.ndarray, crf: int) -> bytes:
  """Frames as one group of pictures, 4:2:0, in the plainest container."""
  buffer = io.BytesIO()
  options = {"crf": str(crf), "preset": "medium", "bf": "0", "g": str(GROUP)}
  with av.open(buffer, "w", format="h264") as container:
    stream = container.add_stream("libx264", rate=FPS, options=options)
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
    stream.thread_count = 1
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  return buffer.getvalue()


def inflated(string: bytes) -> list[np.ndarray]:
  """The frames of a group."""
  with av.open(io.BytesIO(string), format="h264") as container:
    container.streams.video[0].thread_count = 1
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


WAYS = {
  "raw, deflated whole (before)": deflated,
  "lossless (WebP)": lambda: each_alone(codecs.LOSSLESS),
  **{name: (lambda name=name: each_alone(name)) for name in LOSSY},
  **{f"H.264 crf {crf}, groups of {GROUP}": (lambda crf=crf: groups(crf)) for crf in CRF},
}


def clips(folder: pathlib.Path | None, side: int, count: int) -> Iterator[np.ndarray]:
  """Clips [T, side, side, 3]."""
  num_frames = FPS * SECONDS
  if folder is None:
    for i in range(count):
      clip = shapes.draw(shapes.scene("videos", "train", i, 0), side)
      yield clip[forth_and_back(len(clip), num_frames)]
    return
  suffixes = (".mp4", ".mkv", ".mov", ".webm", ".avi")
  files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
  for file in files[:count]:
    line = decode.timeline(file)
    length = min(num_frames, decode.fitting_frames(line, min(FPS, line.fps)))
    frames = decode.frames_at(file, np.arange(length) / min(FPS, line.fps), (side, side), line)
    yield frames[forth_and_back(length, num_frames)]


def forth_and_back(length: int, count: int) -> np.ndarray:
  """Numbers of so many frames of a clip that has fewer."""
  round_trip = (
    itertools.chain(range(length), range(length - 2, 0, -1)) if length > 2 else range(length)
  )
  return np.array(list(itertools.islice(itertools.cycle(round_trip), count)))


def measured(way: tuple[Encode, Decode], made: list[np.ndarray]) -> dict:
  """Means over clips of what one way costs."""
  write, read = way
  rng, step = np.random.default_rng(0), FPS // TAKEN_FPS
  size = errors = spent = reading = 0.0
  for clip in made:
    began = time.process_time()
    strings = write(clip)
    spent += time.process_time() - began
    size += sum(map(len, strings))
    back = read(strings, np.arange(len(clip)))
    errors += float(np.mean((back.astype(np.float32) - clip) ** 2))
    for _ in range(STARTS):
      rows = rng.integers(len(clip) - TAKEN * step) + step * np.arange(TAKEN)
      began = time.process_time()
      read(strings, rows)
      reading += time.process_time() - began
  n = len(made)
  return {
    "MB a clip": size / n / 1e6,
    "PSNR, dB": 10 * math.log10(255**2 / (errors / n)) if errors else math.inf,
    "frames read a core second": n * STARTS * TAKEN / reading,
    "clips packed a core second": n / spent,
  }


def main() -> None:
  """Prints a table of Markdown a size."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--clips", type=pathlib.Path, help="folder of videos; default: moving shapes")
  parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512])
  parser.add_argument("--count", type=int, default=3, help="clips, at most")
  given = parser.parse_args()
  for side in given.sizes:
    made = list(clips(given.clips, side, given.count))
    print(f"\n{len(made)} clips of {side} px, {SECONDS} s at {FPS} frames/s\n")
    for i, (name, way) in enumerate(WAYS.items()):
      row = measured(way(), made)
      if not i:
        print(f"| stored as | {' | '.join(row)} |\n{'|---' * (len(row) + 1)}|")
      print(f"| {name} | {' | '.join(f'{value:.4g}' for value in row.values())} |", flush=True)


if __name__ == "__main__":
  main()
