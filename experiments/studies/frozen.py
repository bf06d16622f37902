"""Are looks that only pictures have shown kept by freezing the image model?"""

import dataclasses

import numpy as np

from experiments.reading import clip_values, picture_values
from experiments.recipe import recipe
from experiments.sampling import asked, drawn
from experiments.study import Cell, Criterion, Results, Size, Study, averages

FROZEN, TUNED = "frozen", "tuned"
METRICS = ("appearance", "picture appearance", "colour", "shape", "direction")


def cells(size: Size, seed: int) -> dict[str, Cell]:
  r = recipe(size)
  given = r.stages["video_64"]
  clips, pictures = asked(r, "image_only", seed), asked(r, "image_only", seed, frames=1)
  options = {"clips": clips.options, "pictures": pictures.options}

  def measure(folders) -> dict[str, np.ndarray]:
    values = clip_values(drawn(folders[0], clips), clips.truths, r.model.fps)
    return values | picture_values(drawn(folders[0], pictures), pictures.truths)

  runs = {
    FROZEN: r.video(seed),
    TUNED: r.video(seed, change=dataclasses.replace(given, train_spatial=True)),
  }
  return {arm: Cell((run,), options, measure) for arm, run in runs.items()}


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion(text, results.difference(FROZEN, TUNED, metric), least=0.0)
    for text, metric in (
      ("appearance of clips: frozen less tuned", "appearance"),
      ("appearance of pictures: frozen less tuned", "picture appearance"),
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
    "shape, size, texture and background as the caption says."
  ),
  cells=cells,
  statistics=averages(*METRICS),
  judge=judge,
  pairs=((FROZEN, TUNED),),
  paired=METRICS,
)
