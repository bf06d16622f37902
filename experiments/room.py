"""Do pictures leave their motion room? How far shapes that move as asked would leave the canvas.

  python -m experiments.room --checkpoint runs/shapes_64

Of pictures of held-out prompts, and of shapes put anywhere, which is chance; clips begin where
all of the way fits in.
"""

import dataclasses
import pathlib

import numpy as np
import tyro

from emu_jax.data import shapes
from emu_jax.evaluation import metrics, oracle
from emu_jax.evaluation.metrics import Clips
from emu_jax.model import SHIPPED, load
from emu_jax.parallel.compilation import enable_cache

BEYOND = (1, 4, 8)  # pixels


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Measures a model's pictures."""

  checkpoint: pathlib.Path = SHIPPED  # a run, a recipe's runs or a release
  num: int = 192
  split: str = "test"
  solver: str = "dpm++"
  steps: int = 10
  guidance: float | None = None  # of pictures; None: the model's own
  seed: int = 0


def main() -> None:
  """Draws, measures and prints."""
  a = tyro.cli(Arguments, prog="python -m experiments.room")
  enable_cache()
  model = load(a.checkpoint)
  config = model.system
  seconds = (config.num_frames - 1) / config.fps
  scenes = [shapes.scene("videos", a.split, i, a.seed) for i in range(a.num)]
  scale = config.image.guidance if a.guidance is None else a.guidance
  fields = {"solver": a.solver, "steps": a.steps, "seed": a.seed, "picture_guidance": float(scale)}
  captions = tuple(shapes.caption(scene) for scene in scenes)
  pictures = model.run("sample", prompt=captions, frames=1, **fields).frames
  truths = [dataclasses.asdict(scene) for scene in scenes]
  right = metrics.follows(oracle.read_clips(pictures, 1.0), truths, metrics.APPEARANCE)
  rng = np.random.default_rng(a.seed)
  placed = np.array([anywhere(scene, rng) for scene in scenes])
  ways = {"drawn": beyond(centres(pictures, scenes), scenes, seconds)}
  ways["anywhere"] = beyond(placed, scenes, seconds)
  print(f"appearance {formatted(metrics.proportion(right))}, guidance {scale:g}, n = {a.num}")
  for way, off in ways.items():
    off = off[np.isfinite(off)] * config.image.size[0]
    shares = (f"> {px} px {formatted(metrics.proportion(off > px))}" for px in BEYOND)
    print(f"{way}: {', '.join(shares)} (n = {len(off)})")


def formatted(share: metrics.Estimate) -> str:
  """In per cent, with its interval."""
  return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def centres(pictures: Clips, scenes: list[shapes.Scene]) -> np.ndarray:
  """Centres of the shapes' boxes [B, 2], x and y, shares of the canvas; NaN where none is read."""
  area = oracle.read_clips(pictures, 1.0).centroid_sides[:, 0]
  lower = [shapes.SIZES[s.size] / 6 if s.shape == "triangle" else 0.0 for s in scenes]
  return area - np.stack([np.zeros(len(scenes)), lower], axis=1)


def anywhere(scene: shapes.Scene, rng: np.random.Generator) -> np.ndarray:
  """A centre at which the shape itself lies on the canvas, all alike."""
  near = shapes.SIZES[scene.size] / 2
  return rng.uniform(near, 1 - near, 2)


def beyond(starts: np.ndarray, scenes: list[shapes.Scene], seconds: float) -> np.ndarray:
  """How far each shape's box lies outside at the end of its way, share of the canvas."""
  ends = starts + [
    np.array(shapes.DIRECTIONS[s.direction]) * shapes.SPEEDS[s.speed] * seconds for s in scenes
  ]
  near = np.array([[shapes.SIZES[s.size] / 2] for s in scenes])
  along = np.array([np.abs(shapes.DIRECTIONS[s.direction]) for s in scenes])
  return (np.maximum(np.maximum(near - ends, ends - (1 - near)), 0.0) * along).sum(axis=1)


if __name__ == "__main__":
  main()
