"""Reading a public checkpoint here and in PyTorch's libraries: seconds and peak memory.

  python -m benchmarks.weights_import --kind unet --rounds 3

A checkpoint of Stable Diffusion 1.5's U-Net (0.86 B parameters) or of T5-XL's encoder (1.22 B) is
written with random weights, then read in processes of their own, in alternated order.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from benchmarks.basics import spread
from emu_jax import weights
from emu_jax.models.text import t5_xl
from emu_jax.models.unet import UNetConfig
from emu_jax.weights.architectures import ARCHITECTURES

KINDS = {
  "unet": ("UNet2DConditionModel", UNetConfig(), "diffusers"),
  "t5": ("T5EncoderModel", t5_xl(), "transformers"),
}
OURS = """
import jax
from emu_jax import weights
began = clock()
jax.block_until_ready(weights.load(folder).params)
"""
THEIRS = """
import {library}, torch
began = clock()
model = {library}.{name}.from_pretrained(folder)
for p in model.parameters():
  p.sum()  # pages of a mapped file come when they are read
"""
PROGRAM = r"""
import json, re, sys, time
folder, clock = sys.argv[1], time.perf_counter
{body}
# Not ru_maxrss, which begins at what the process that started this one had.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 2**20
print(json.dumps([clock() - began, peak]))
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kind", choices=KINDS, default="unet")
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args()
  name, config, library = KINDS[arguments.kind]
  with tempfile.TemporaryDirectory() as base:
    folder = pathlib.Path(base) / "model"
    write(folder, name, config)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**30
    print(f"{name}: {size:.2f} GiB of float32")
    bodies = {"emu_jax": OURS, library: THEIRS.format(library=library, name=name)}
    found = {reader: [] for reader in bodies}
    for i in range(arguments.rounds):
      for reader in sorted(bodies, reverse=bool(i % 2)):
        found[reader].append(read(folder, bodies[reader]))
    for reader, pairs in found.items():
      seconds, peaks = zip(*pairs, strict=True)
      print(f"{reader:>12}: {spread(seconds)} s, peak of the process {max(peaks):.2f} GiB")


def write(folder: pathlib.Path, name: str, config) -> None:
  """A checkpoint of a config with random weights."""
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32) * 0.02
  weights.save(folder, config, jax.tree.map(draw, ARCHITECTURES[name].shapes(config)))


def read(folder: pathlib.Path, body: str) -> list[float]:
  """Seconds and peak GiB of a process that reads the folder."""
  command = [sys.executable, "-c", PROGRAM.format(body=body), str(folder)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
  main()
