"""Are looks that only pictures have shown kept by freezing the image model?"""

import dataclasses

import numpy as np

from experiments.reading import clip_values, distance, picture_values
from experiments.recipe import recipe, side
from experiments.sampling import drawn, other_clips, recipe_prompts
from experiments.study import Cell, Criterion, Results, Size, Study, averages

FROZEN, TUNED = "frozen", "tuned"
PROMPTS = {"tiny": 2, "default": 64}  # a cell
METRICS = ("appearance", "picture appearance", "colour", "shape", "direction", "FID-o")


def cells(size: Size, seed: int) -> dict[str, Cell]:
  r = dataclasses.replace(recipe(size), num_prompts=PROMPTS[size])
  given = r.stages["video_64"]
  clips, pictures = (
    recipe_prompts(r, "image_only", seed),
    recipe_prompts(r, "image_only", seed, frames=1),
  )
  options = {"clips": clips.options, "pictures": pictures.options}

  def measure(folders) -> dict[str, np.ndarray]:
    values = clip_values(drawn(folders[0], clips), clips.truths, r.model.fps)
    found = drawn(folders[0], pictures)
    others = other_clips(pictures, side(r.model), r.model.fps, num_frames=1)
    return values | picture_values(found, pictures.truths) | distance(found, others)

  tuned = dataclasses.replace(given.system, train_spatial=True)
  runs = {
    FROZEN: r.video(seed),
    TUNED: r.video(seed, change=dataclasses.replace(given, system=tuned)),
  }
  return {arm: Cell((run,), options, measure) for arm, run in runs.items()}


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion(f"{text}: frozen less tuned", results.difference(FROZEN, TUNED, metric), **bound)
    for text, metric, bound in (
      ("appearance of clips", "appearance", {"least": 0.0}),
      ("appearance of pictures", "picture appearance", {"least": 0.0}),
      ("FID-o of pictures", "FID-o", {"most": 0.0}),
    )
  ]


STUDY = Study(
  name="frozen",
  title="Frozen against tuned spatial layers on looks that no clip shows",
  claim=(
    "Freezing the image model keeps what only pictures have taught it (Emu Video, "
    "arXiv:2311.10709, sec. 3.2 and table 1)."
  ),
  method=(
    "The same video stage, with the spatial layers frozen and with them trained along. Prompts ask "
    "for colours, shapes and textures that no clip has: of clips by the whole system, and of "
    "pictures by the image model that the stage leaves. Appearance: the oracle reads colour, "
    "shape, size, texture and background as the caption says. FID-o is the Fréchet distance of the "
    "64 pictures to 256 real ones of other prompts for such looks, of features of a network that "
    "reads the words of drawn pictures (`emu_jax/evaluation/shape_features.py`). The first version "
    "had 32 prompts a seed and no distance."
  ),
  cells=cells,
  statistics=averages(*METRICS),
  judge=judge,
  pairs=((FROZEN, TUNED),),
  paired=METRICS,
  version=2,
)
