"""Plans every stage of the large configs on v5e, v5p and v6e, and prints the tables.

  python -m benchmarks.plan_all plans                # hours; what is in the folder stays
  python -m benchmarks.plan_all plans --memory-only  # what fits, without times
  python -m benchmarks.plan_all plans --only emu_video_4b3 v6e:16x16

Each plan is a process of its own. Options beside the config's own values stand in `PLANS`. A plan
of memory alone is made again where times are wanted.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from benchmarks import plan_table
from benchmarks.basics import root, say

VIDEO, IMAGE = "configs/emu_video_4b3.py", "configs/emu_2b7.py"
SD15, SD21 = "configs/emu_video_sd15_256.py", "configs/emu_video_sd21_512.py"
TWO = "--optim.accumulate 1"  # two clips a device at a time, where there is memory for them
ALL_KEPT = f"{TWO} --system.image.unet.remat False"
PRODUCTS = f"{TWO} --system.image.unet.remat_keeps products"
PIECES = "--mesh.fsdp 16"  # the configs on Stable Diffusion leave the mesh to the machine
ONE_CLIP = f"{PIECES} --optim.accumulate 3"  # of 37 frames at a time
# Config, stage, topology, options.
PLANS = (
  (VIDEO, "video_256", "v5e:4x4", "--data.batch_size 32"),
  (VIDEO, "video_256", "v5e:8x8", "--data.batch_size 128"),
  (VIDEO, "video_256", "v5e:16x16", ""),
  (VIDEO, "video_256", "v5p:8x8x4", ALL_KEPT),
  (VIDEO, "video_256", "v6e:16x16", TWO),
  (VIDEO, "video_512", "v5e:4x4", "--data.batch_size 32"),
  (VIDEO, "video_512", "v5e:8x8", "--data.batch_size 128"),
  (VIDEO, "video_512", "v5e:16x16", ""),
  (VIDEO, "video_512", "v5p:8x8x4", PRODUCTS),
  (VIDEO, "video_512", "v6e:16x16", TWO),
  (VIDEO, "video_512_16", "v5e:16x16", ""),
  (VIDEO, "video_512_16", "v5p:8x8x4", TWO),
  (VIDEO, "video_512_16", "v6e:16x16", ""),
  (VIDEO, "high_motion", "v5e:16x16", ""),
  (VIDEO, "high_motion", "v5p:8x8x4", ""),
  (VIDEO, "high_motion", "v6e:16x16", ""),
  (VIDEO, "interpolation", "v5e:8x16", ""),
  (VIDEO, "interpolation", "v5p:4x4x8", ""),
  (VIDEO, "interpolation", "v6e:8x16", ""),
  (IMAGE, "autoencoder", "v5e:16x16", ""),
  (IMAGE, "autoencoder", "v5p:8x8x4", ""),
  (IMAGE, "autoencoder", "v6e:16x16", ""),
  (IMAGE, "image_256", "v5e:16x16", ""),
  (IMAGE, "image_256", "v5p:8x8x4", ""),
  (IMAGE, "image_256", "v6e:16x16", ""),
  (IMAGE, "image_512", "v5e:16x16", ""),  # and image_offset, which is the same program
  (IMAGE, "image_512", "v5p:8x8x4", ""),
  (IMAGE, "image_512", "v6e:16x16", ""),
  (IMAGE, "quality", "v5e:8x8", ""),
  (IMAGE, "quality", "v5p:4x4x4", ""),
  (IMAGE, "quality", "v6e:8x8", ""),
  (SD15, "video", "v5e:16x16", PIECES),
  (SD15, "video", "v5p:8x8x4", PIECES),
  (SD15, "video", "v6e:16x16", PIECES),
  (SD15, "interpolation", "v5e:8x16", ONE_CLIP),
  (SD15, "interpolation", "v5p:4x4x8", PIECES),
  (SD15, "interpolation", "v6e:8x16", PIECES),
  (SD21, "video", "v5e:16x16", PIECES),
  (SD21, "video", "v5p:8x8x4", PIECES),
  (SD21, "video", "v6e:16x16", PIECES),
  (SD21, "interpolation", "v5e:8x16", ONE_CLIP),
  (SD21, "interpolation", "v5p:4x4x8", PIECES),
  (SD21, "interpolation", "v6e:8x16", ONE_CLIP),
)


def command(file: pathlib.Path, plan: tuple[str, ...], memory_only: bool) -> list[str]:
  """`emu-train plan` as a process of this interpreter."""
  config, stage, topology, options = plan
  run = [sys.executable, "-c", "from emu_jax.train.command import main; main()", "plan"]
  words = ["--config", config, "--stage", stage, "--topology", topology, "--json", str(file)]
  return [*run, *words, *options.split(), *["--memory_only"] * memory_only]


def planned(file: pathlib.Path, memory_only: bool) -> bool:
  """Whether the file holds as much as is wanted."""
  if not file.is_file():
    return False
  (plan,) = json.loads(file.read_text())
  return memory_only or "shortage" in plan or plan["seconds"] is not None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path, help="of the plans, a JSON file each")
  parser.add_argument("--memory-only", action="store_true", help="a third of the time, no times")
  parser.add_argument("--only", nargs="+", default=(), help="a config, stage, topology, or several")
  arguments = parser.parse_args()
  arguments.folder.mkdir(parents=True, exist_ok=True)
  done, failed = [], []
  for plan in PLANS:
    title = f"{pathlib.Path(plan[0]).stem} {plan[1]} {plan[2]}"
    file = arguments.folder.absolute() / f"{title.replace(':', '_').replace(' ', '_')}.json"
    wanted = set(arguments.only) <= set(title.split())
    if wanted and not planned(file, arguments.memory_only):
      say(title)
      if subprocess.run(command(file, plan, arguments.memory_only), cwd=root()).returncode:
        failed.append(title)
    if file.is_file():
      done += json.loads(file.read_text())
  print(plan_table.tables(done))
  if failed:
    sys.exit(f"plan_all: {len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
  main()
