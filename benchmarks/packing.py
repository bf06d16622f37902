"""Clips a second and core that `emu-train prepare` packs, by each runner, on made clips.

The clips are H.264, 320 x 240, 4 s at 24 frames/s, of noise blurred and moved, so that decoding and
compressing have work to do. Needs Apache Beam (requirements-beam.txt).

  python -m benchmarks.packing --clips 96
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import av
import numpy as np
import PIL.Image

FRAMES, FPS, HEIGHT, WIDTH, MARGIN = 96, 24, 240, 320, 96
RUNNERS = {
  "local, 1 process": ["--workers", "1"],
  "local, 2 processes": ["--workers", "2"],
  "beam, 1 process": ["--runner", "beam", "--clips-per-shard", "8"],
  "beam, 2 processes": [
    *("--runner", "beam", "--clips-per-shard", "8", "--", "--runner=FnApiRunner"),
    *("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
  ],
}


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


def measured(clips: pathlib.Path, out: pathlib.Path, size: int, options: list[str]) -> dict:
  """What packing takes of wall and processors, and what a second call, which only starts, takes."""
  command = [sys.executable, "-c", "from train.command import main; main()"]
  command += ["prepare", str(clips), "--out", str(out), "--size", str(size), *options]
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
    "core_seconds": round(used[0], 2),
    "core_seconds_of_starting": round(used[1], 2),
    "clips_per_core_second": round(report["num_clips"] / (used[0] - used[1]), 2),
    "megabytes": round(sum(f.stat().st_size for f in out.iterdir()) / 1e6, 1),
  }


def main() -> None:
  """Prints a line of JSON a runner."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--clips", type=int, default=96)
  parser.add_argument("--size", type=int, default=64)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as base:
    clips = pathlib.Path(base) / "clips"
    clips.mkdir()
    rows = [{"file_name": f"{i}.mp4", "text": f"clip {i}"} for i in range(given.clips)]
    for i, row in enumerate(rows):
      make_clip(clips / row["file_name"], i)
    (clips / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number, (name, options) in enumerate(RUNNERS.items()):
      result = measured(clips, pathlib.Path(base) / str(number), given.size, options)
      print(json.dumps({"runner": name, **result}), flush=True)


if __name__ == "__main__":
  main()
