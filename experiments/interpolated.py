"""How right the frames are that a model adds to 8, beside repetition and blending; and the pulse.

  python -m experiments.interpolated

Keys are frames of drawn clips of motions that training has not seen; the oracle reads centroids.
A clip pulses where its colours change more at the frames that others were added to than elsewhere.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.basics import commit
from emu_jax.data import shapes
from emu_jax.evaluation import metrics, oracle
from emu_jax.evaluation.metrics import Clips
from emu_jax.model import SHIPPED, load
from emu_jax.parallel.compilation import enable_cache
from experiments.between_frames import (
  BETWEEN,
  KNOWN,
  OUTSIDE,
  blended,
  colour_steps,
  repeated,
)

FPS = 16.0  # of 37 frames
MODEL, MANY, BLENDED, REPEATED = "model", "model, all steps", "blending", "repetition"
WAYS = (MODEL, MANY, BLENDED, REPEATED)
REDRAWN, DRAWN = "interpolate, keys drawn anew", "drawn clips"
GENERATED, GENERATED_KEPT = "sample", "sample, keys kept"
COLOURED = (GENERATED, GENERATED_KEPT, MODEL, REDRAWN, DRAWN)
WHERE = {"between": BETWEEN, "outside": OUTSIDE, "added": (*BETWEEN, *OUTSIDE)}
MOST = 60.0  # dB, of frames that are equal or nearly so


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Measures a model's 8 -> 37 frames."""

  checkpoint: pathlib.Path = SHIPPED  # a run, a recipe's runs or a release
  out: pathlib.Path = pathlib.Path("docs/results")  # for interpolated.md and .json
  num: int = 64
  batch_size: int = 16
  solver: str = "dpm++"
  steps: int = 10  # of pictures and of 8 frames; the model has its own number for those between
  seed: int = 0


def main() -> None:
  """Draws, measures, writes the page and prints it."""
  a = tyro.cli(Arguments, prog="python -m experiments.interpolated")
  enable_cache()
  model = load(a.checkpoint)
  side, _ = model.system.image.size
  scenes = [shapes.scene("videos", "test", i, a.seed) for i in range(a.num)]
  captions = [shapes.caption(scene) for scene in scenes]
  real = np.stack([shapes.draw(scene, side)[: KNOWN.num_frames] for scene in scenes])
  keys = real[:, list(KNOWN.positions)]
  requests = {
    MODEL: ("interpolate", {}),
    MANY: ("interpolate", {"interpolation_steps": a.steps}),
    REDRAWN: ("interpolate", {"keep_keys": False}),
    GENERATED: ("sample", {"frames": 37}),
    GENERATED_KEPT: ("sample", {"frames": 37, "keep_keys": True}),
  }
  clips = {way: [] for way in requests}
  for start in tqdm(range(0, a.num, a.batch_size), desc="sampling", disable=None):
    rows = slice(start, start + a.batch_size)
    fields = {"solver": a.solver, "steps": a.steps, "seed": a.seed + start}
    fields["prompt"] = tuple(captions[rows])
    for way, (task, options) in requests.items():
      given = {"clip": keys[rows]} if task == "interpolate" else {}
      clips[way].append(model.run(task, **given, **fields, **options).frames)
  clips = {way: np.concatenate(parts) for way, parts in clips.items()}
  clips |= {BLENDED: blended(keys), REPEATED: repeated(keys), DRAWN: real}
  found = {way: errors(clips[way], real) for way in WAYS}
  found |= {f"colour, {way}": colour_changes(clips[way], scenes) for way in COLOURED}
  a.out.mkdir(parents=True, exist_ok=True)
  text = page(found, a)
  (a.out / "interpolated.md").write_text(text)
  values = {way: {k: vars(metrics.mean(v)) for k, v in of.items()} for way, of in found.items()}
  (a.out / "interpolated.json").write_text(json.dumps(values, indent=1) + "\n")
  print(text)


def psnrs(clips: Clips, others: Clips) -> np.ndarray:
  """Of each clip, in dB, at most `MOST`."""
  return np.array([min(metrics.psnr(x, y), MOST) for x, y in zip(clips, others, strict=True)])


def errors(clips: Clips, real: Clips) -> dict[str, np.ndarray]:
  """PSNR at given and at added frames, and how far the oracle sees the shape from its place.

  Distances are root mean squares over frames, in pixels; half a side where it sees no shape.
  """
  side = clips.shape[-2]
  placed = [oracle.read_clips(c, FPS).centroid_sides * side for c in (clips, real)]
  off = np.linalg.norm(placed[0] - placed[1], axis=-1)
  off = np.where(np.isfinite(off), off, side / 2)
  at = list(KNOWN.positions)
  found = {"given": psnrs(clips[:, at], real[:, at])}
  for name, where in WHERE.items():
    found[f"PSNR {name}"] = psnrs(clips[:, list(where)], real[:, list(where)])
    found[f"off {name}"] = np.sqrt(np.square(off[:, list(where)]).mean(axis=1))
  return found


def colour_changes(clips: Clips, scenes: Sequence[shapes.Scene]) -> dict[str, np.ndarray]:
  """Of each clip: steps of the shape's colour at keys and elsewhere (`colour_steps`)."""
  pairs = [colour_steps(c.astype(float), s) for c, s in zip(clips, scenes, strict=True)]
  at_keys, elsewhere = np.array(pairs).T
  seen = np.isfinite(at_keys) & np.isfinite(elsewhere)  # clips that show the colour asked for
  return {"at keys": at_keys[seen], "elsewhere": elsewhere[seen]}


def times_less(theirs: np.ndarray, ours: np.ndarray, num_resamples: int = 2000) -> metrics.Estimate:
  """Ratio of the means over the same clips, with a percentile-bootstrap interval over these."""
  n = len(ours)
  drawn = np.random.default_rng(0).integers(0, n, (num_resamples, n))
  low, high = np.quantile(theirs[drawn].mean(axis=1) / ours[drawn].mean(axis=1), (0.025, 0.975))
  return metrics.Estimate(float(theirs.mean() / ours.mean()), float(low), float(high), n)


def page(found: dict[str, dict[str, np.ndarray]], a: Arguments) -> str:
  """The table, and what it is of."""
  formatted = lambda v: f"{v.value:.2f} [{v.low:.2f}, {v.high:.2f}]"
  names = ["given", *(f"{what} {where}" for what in ("PSNR", "off") for where in WHERE)]
  lines = [
    "# 8 -> 37 frames\n",
    f"`python -m experiments.interpolated --num {a.num} --batch-size {a.batch_size} --steps "
    f"{a.steps}` at commit {commit()}; "
    f"jax {jax.__version__}; {a.num} clips of held-out motions, keys drawn; PSNR in dB, distances "
    "of the shape's centroid (root mean square, pixels) by the pixel oracle; means with bootstrap "
    "95 % intervals.\n",
    f"| way | given frames | {' | '.join(names[1:])} |",
    "|---" * (len(names) + 1) + "|",
  ]
  for way in (MODEL, MANY, BLENDED, REPEATED):
    cells = [formatted(metrics.mean(found[way][name])) for name in names]
    lines.append(f"| {way} | {' | '.join(cells)} |")
  less = formatted(times_less(found[BLENDED]["off added"], found[MODEL]["off added"]))
  lines += [
    f"\n'{MODEL}' adds frames by its own number of steps, '{MANY}' by as many as {a.solver} takes "
    f"for pictures and clips. In added frames the shape is {less} times less off than by "
    f"{BLENDED}.",
    "\n## Colour from frame to frame\n",
    "Steps of the shape's mean colour, in grey levels, that begin or end at one of the 8 frames "
    "that others are added to, and all others. Of clips that the model samples, and of those that "
    "it makes of drawn keys ('model': kept, they are exact and their neighbours are not).\n",
    "| clips | number | at keys | elsewhere | ratio |",
    "|---" * 5 + "|",
  ]
  for way in COLOURED:
    changes = found[f"colour, {way}"]
    cells = [formatted(metrics.mean(changes[name])) for name in ("at keys", "elsewhere")]
    ratio = formatted(times_less(changes["at keys"], changes["elsewhere"]))
    lines.append(f"| {way} | {len(changes['elsewhere'])} | {' | '.join(cells)} | {ratio} |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
