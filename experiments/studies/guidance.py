"""Study 6: the two guidance scales as knobs of motion."""

import math

import numpy as np
from scipy import stats

from experiments.estimates import over_seeds
from experiments.reading import clip_values
from experiments.recipe import recipe, side
from experiments.sampling import drawn, real_clips, recipe_prompts
from experiments.study import Cell, Criterion, Results, Size, Study, averages

PROMPTS = 16  # a cell; all cells have the same ones
TEXT, IMAGE = (1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0)


def arm(text: float, image: float) -> str:
  return f"w_p {text:g}, w_i {image:g}"


def cells(size: Size, seed: int) -> dict[str, Cell]:
  r = recipe(size).fewer(PROMPTS)
  found = {}
  for text in TEXT:
    for image in IMAGE:
      wanted = recipe_prompts(r, "validation", seed, image_guidance=image, text_guidance=text)

      def measure(folders, wanted=wanted):
        real = real_clips(wanted, side(r.model), r.model.fps, 8)
        clips = drawn(folders[0], wanted, pictures=real[:, :1])
        first = np.abs(clips[:, 0].astype(float) - real[:, 0]).mean(axis=(1, 2, 3)) / 255
        return clip_values(clips, wanted.truths, r.model.fps) | {"off the picture": first}

      found[arm(text, image)] = Cell((r.video(seed),), wanted.options, measure)
  return found


def correlation(results: Results, along: str) -> list[float]:
  """Spearman's, of motion and a scale, one a seed: its mean over the values of the other scale.

  NaN where motion is everywhere the same.
  """
  seeds = range(len(results.arms[arm(TEXT[0], IMAGE[0])]))
  motion = lambda text, image, seed: results.arms[arm(text, image)][seed]["motion"].mean()
  found = []
  for seed in seeds:
    rows = np.array([[motion(text, image, seed) for text in TEXT] for image in IMAGE])
    scales, rows = (TEXT, rows) if along == "text" else (IMAGE, rows.T)
    varies = [row for row in rows if np.ptp(row)]
    each = [stats.spearmanr(scales, row).statistic for row in varies]
    found.append(float(np.mean(each)) if len(varies) == len(rows) else math.nan)
  return found


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion(
      "Spearman correlation of motion and w_p", over_seeds(correlation(results, "text")), least=0.0
    ),
    Criterion(
      "Spearman correlation of motion and w_i", over_seeds(correlation(results, "image")), most=0.0
    ),
  ]


def draw(axes, results: Results) -> None:
  for i, image in enumerate(IMAGE):
    found = [results.mean(arm(text, image), "motion") for text in TEXT]
    axes.plot(TEXT, [e.value for e in found], "o-", color=f"C{i}", label=f"w_i {image:g}")
    for text, e in zip(TEXT, found, strict=True):
      if np.isfinite(e.low):
        axes.plot([text, text], [e.low, e.high], color=f"C{i}", alpha=0.5)
  axes.set_xscale("log", base=2)
  axes.set_xlabel("w_p, scale of the text")
  axes.set_ylabel("motion score, px²/frame")
  axes.legend()


STUDY = Study(
  name="guidance",
  title="Guidance scales and motion",
  claim=(
    "More text guidance gives more motion, more image guidance less (Emu Video, arXiv:2311.10709, "
    "app. table 4)."
  ),
  method=(
    "One video model a seed, sampled with every pair of scales of eq. 1 from the first frames of "
    "drawn clips (motions that training has seen) with the same noise. The motion score is that of "
    "block matching, not the paper's. 'off the picture' is the mean absolute distance of the first "
    "frame from the given one, in units of white."
  ),
  cells=cells,
  statistics=averages("motion", "direction", "consistency", "off the picture"),
  judge=judge,
  draw=draw,
)
