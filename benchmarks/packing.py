"""What packing and reading records costs, on made clips: bytes, clips a second, time to begin.

The clips are H.264, 640 x 512, 10 s at 24 frames/s, of noise blurred and moved with a little grain,
so that decoding and compressing have work to do. For each size one line of JSON a runner says what
`emu-train prepare` takes, and one what reading batches of 8 frames at 4 frames/s of what it packed
takes on one core; a last one what the start of a run takes with many records: opening them, reading
2000 captions that tell how many are too long, and all of them, of which a tokenizer is learned.
Runners of Apache Beam (requirements-beam.txt) are left out where it is absent.

  python -m benchmarks.packing --clips 16 --sizes 64 256 512 --records 20000
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import av
import numpy as np
import PIL.Image

from emu_jax.data import codecs, records, shapes
from emu_jax.data.batches import batches, open_source
from emu_jax.data.inputs import ClipSpec, clip_inputs
from emu_jax.data.tokenizer import train_tokenizer

FRAMES, FPS, HEIGHT, WIDTH, MARGIN = 240, 24, 512, 640, 240
RUNNERS = {
  "local, 1 process": ["--workers", "1"],
  "local, 2 processes": ["--workers", "2"],
  "beam, 1 process": ["--runner", "beam", "--clips-per-shard", "8"],
  "beam, 2 processes": [
    *("--runner", "beam", "--clips-per-shard", "8", "--", "--runner=FnApiRunner"),
    *("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
  ],
}
CLIP = ClipSpec(8, 4.0)
READ, WARM = 20, 2  # batches, and those before that are not counted
BATCH = 8
CAPTIONS = 2000
VOCABULARY = 512


def make_clip(path: pathlib.Path, seed: int) -> None:
  """A window that glides over a blurred noise picture, with a little grain on each frame."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, ((HEIGHT + MARGIN) // 16, (WIDTH + MARGIN) // 16, 3), np.uint8)
  field = np.asarray(PIL.Image.fromarray(coarse).resize((WIDTH + MARGIN, HEIGHT + MARGIN)))
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    for i in range(FRAMES):
      window = field[i : i + HEIGHT, i : i + WIDTH].astype(np.int16)
      grain = rng.integers(-6, 7, window.shape, np.int16)
      pixels = np.clip(window + grain, 0, 255).astype(np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())


def packed(clips: pathlib.Path, out: pathlib.Path, size: int, options: list[str]) -> dict:
  """What packing takes of wall and processors, and what a second call, which only starts, takes."""
  command = [sys.executable, "-c", "from emu_jax.train.command import main; main()"]
  command += ["prepare", str(clips), "--out", str(out), "--size", str(size)]
  command += ["--validation-fraction", "0", *options]
  used = []
  for _ in range(2):
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    user = after.children_user - before.children_user
    used.append(user + after.children_system - before.children_system)
  report = json.loads((out / "report.json").read_text())
  return {
    "packing_seconds": report["seconds"],
    "clips_per_second": round(report["num_clips"] / report["seconds"], 3),
    "core_seconds": round(used[0], 2),
    "core_seconds_of_starting": round(used[1], 2),
    "clips_per_core_second": round(report["num_clips"] / (used[0] - used[1]), 3),
    "megabytes": round(sum(f.stat().st_size for f in out.iterdir()) / 1e6, 1),
  }


def reading(out: pathlib.Path, size: int) -> dict:
  """Examples of 8 frames that are read in a second of one core."""
  source = open_source(out, "train")
  data = batches(source, clip_inputs(CLIP, (size, size)), batch_size=BATCH, seed=0, threads=1)
  for _ in range(WARM):
    next(data)
  wall, cores = time.perf_counter(), time.process_time()
  for _ in range(READ):
    next(data)
  wall, cores = time.perf_counter() - wall, time.process_time() - cores
  data.close()
  examples = READ * BATCH
  return {
    "examples_per_second": round(examples / wall, 2),
    "examples_per_core_second": round(examples / cores, 2),
  }


class Copies(records.RecordBuilder):
  """One drawn clip under many captions."""

  splits = ("train",)

  def __init__(self, *, num_records: int, **kwargs):
    self._count = num_records
    super().__init__(**kwargs)

  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Records in the order of their numbers."""
    clip = shapes.draw(shapes.scene("videos", split, 0, 0), self.size)
    stored = codecs.StoredFrames(codecs.encode(clip, self.codec), codecs.decode)
    for i in range(self._count):
      caption = shapes.caption(shapes.scene("videos", split, i, 0))
      record = {"frames": stored, "fps": shapes.FPS, "caption": caption, "name": str(i)}
      yield records.spread_key(i, self._count), record | {"truth": ""}


def beginning(folder: pathlib.Path) -> dict:
  """Seconds that a run spends on the records before it reads a batch."""
  began = time.perf_counter()
  source = open_source(folder, "train")
  opened = time.perf_counter()
  num_records = len(source.captions)
  sampled = [source.captions[i] for i in range(0, num_records, max(1, num_records // CAPTIONS))]
  read = time.perf_counter()
  texts = list(source.captions)
  read_all = time.perf_counter()
  train_tokenizer(texts, folder / "tokenizer", VOCABULARY)
  return {
    "records": num_records,
    "seconds_to_open": round(opened - began, 4),
    f"seconds_for_{len(sampled)}_captions": round(read - opened, 4),
    "seconds_for_all_captions": round(read_all - read, 4),
    "seconds_to_learn_a_tokenizer": round(time.perf_counter() - read_all, 3),
  }


def main() -> None:
  """Prints a line of JSON a measurement."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--clips", type=int, default=16)
  parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512])
  parser.add_argument("--records", type=int, default=20_000)
  parser.add_argument("--options", nargs="*", default=[], help="further ones of emu-train prepare")
  given = parser.parse_args()
  beam = importlib.util.find_spec("apache_beam") is not None
  runners = {name: words for name, words in RUNNERS.items() if beam or "beam" not in words}
  with tempfile.TemporaryDirectory() as base:
    clips = pathlib.Path(base) / "clips"
    clips.mkdir()
    rows = [{"file_name": f"{i}.mp4", "text": f"clip {i}"} for i in range(given.clips)]
    for i, row in enumerate(rows):
      make_clip(clips / row["file_name"], i)
    (clips / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for size in given.sizes:
      for number, (name, words) in enumerate(runners.items()):
        out = pathlib.Path(base) / f"{size}-{number}"
        result = packed(clips, out, size, [*given.options, *words])
        print(json.dumps({"size": size, "runner": name, **result}), flush=True)
      print(json.dumps({"size": size, "reading": "batches", **reading(out, size)}), flush=True)
    if given.records:
      many = pathlib.Path(base) / "many"
      records.write(lambda **rest: Copies(size=64, num_records=given.records, **rest), many)
      print(json.dumps(beginning(many)), flush=True)


if __name__ == "__main__":
  main()
