"""Stable Video Diffusion from nothing: its conditions, its guidance, and beside it Emu Video."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from emu_jax.configs import shapes_64, svd_shapes
from emu_jax.evaluation import oracle
from emu_jax.evaluation.metrics import Clips, Estimate
from emu_jax.model import Model
from emu_jax.systems.svd import StableVideo
from emu_jax.train.config import Experiment
from experiments.artefact import Artefact
from experiments.estimates import Values, over_seeds
from experiments.reading import clip_values, distance
from experiments.recipe import resized, seeded, shapes_records, short, stage, tiny, tiny_svd
from experiments.sampling import Fields, Prompts, drawn, other_clips, real_clips
from experiments.study import Cell, Criterion, Results, Size, Study, averages

SIDE = 32
NUM_RECORDS = {"tiny": 20, "default": 5000}
NUM_PROMPTS = {"tiny": 2, "default": 32}
FPS, FRAMES = 4.0, 8
# Of equal cost: a step of SVD took 0.84 times as long as one of Emu Video in the image part, and
# 1.37 times, side by side, in the clips' part.
NUM_STEPS = {
  "svd": {"image": 1500, "video": 1500},
  "emu_video": {"image": 1270, "video": 2050},
}
# Buckets of motion: of slow clips, one that no clip has, of quick clips.
BUCKETS = SLOW, BETWEEN, QUICK = 39, 78, 117
TWICE = "8 frames a second"
SVD, EMU_VIDEO = "SVD, each clip's bucket", "Emu Video"
GUIDANCE = {  # scales of the first and the last frame
  "grows from 1 to 3": (1.0, 3.0),
  "of 1": (1.0, 1.0),
  "of 2": (2.0, 2.0),
  "of 3": (3.0, 3.0),
}
GROWS, *CONSTANT = GUIDANCE
STRONG = CONSTANT[1:]  # 1 is no guidance
METRICS = ("appearance", "consistency", "off the picture", "FVD-o", "direction")


def bucket(motion: int) -> str:
  """The arm of all clips with one bucket."""
  return f"bucket {motion}"


def guidance(way: str) -> str:
  """The arm of quick clips with a way to guide."""
  return f"guidance {way}"


def stages() -> dict[str, dict[str, Experiment]]:
  """The parts of both systems, on the same pictures, with the same autoencoder."""
  of_emu = {experiment.run_name: experiment for experiment in shapes_64.STAGES}
  image = dataclasses.replace(of_emu["image"], system=resized(of_emu["image"].system, SIDE))
  return {
    "svd": {experiment.part: experiment for experiment in svd_shapes.STAGES},
    "emu_video": {"image": image, "video": of_emu["video_32"]},
  }


@dataclasses.dataclass(frozen=True)
class Runs:
  """What is trained: all but the clips' part is one for all seeds and, where it can be, systems."""

  size: Size

  def records(self, kind: str) -> Artefact:
    return shapes_records(kind, self.side, NUM_RECORDS[self.size])

  @property
  def side(self) -> int:
    """Pixels a side of the pictures, which are square."""
    (height, _) = self.part("svd", "image", 1).system.size
    return height

  def part(self, name: str, part: str, num_steps: int) -> Experiment:
    """A part of a system, of so many steps."""
    found = stages()[name][part]
    if self.size == "default":
      return short(found, num_steps)
    small = tiny_svd if isinstance(found.system, StableVideo) else tiny
    data = dataclasses.replace(found.data, batch_size=2)
    return short(dataclasses.replace(found, system=small(found.system), data=data), 2)

  def video(self, name: str, seed: int) -> Artefact:
    """The model of clips of a system."""
    pictures, clips = self.records("images"), self.records("videos")
    autoencoder = stage(self.part("svd", "autoencoder", 4000), (pictures, clips))
    steps = NUM_STEPS[name]
    image = stage(self.part(name, "image", steps["image"]), (pictures, clips), autoencoder)
    return stage(seeded(self.part(name, "video", steps["video"]), seed), (clips,), image)


def animate(model: Model, texts: Sequence[str], fields: Fields, given: Clips) -> Clips:
  """Clips of pictures, which is all that this system hears of a scene."""
  return model.run("animate", picture=given, **fields).frames


def prompts_of(size: Size, seed: int) -> Prompts:
  """Scenes of motions that training has seen."""
  fields = {"frames": FRAMES, "solver": "euler", "steps": 15}
  return Prompts("validation", NUM_PROMPTS[size], NUM_PROMPTS[size], seed, fields)


def moving(prompts: Prompts, motion: int, fps: float, way: str) -> Prompts:
  """The same with one bucket for all."""
  first, last = GUIDANCE[way]
  scales = {"first_guidance": first, "last_guidance": last}
  return prompts.changed(motion=float(motion), fps=fps, **scales)


def captioned(prompts: Prompts) -> Prompts:
  """The same for Emu Video."""
  return prompts.changed(solver="dpm++", steps=10)


def cells(size: Size, seed: int) -> dict[str, Cell]:
  runs, prompts = Runs(size), prompts_of(size, seed)
  svd, emu_video = runs.video("svd", seed), runs.video("emu_video", seed)

  def animated(motion: Sequence[int], fps: float = FPS, way: str = GROWS) -> Cell:
    each = [moving(prompts, m, fps, way) for m in motion]

    def measure(folders):
      real = real_clips(prompts, runs.side, fps, FRAMES)
      clips = [drawn(folders[0], one, pictures=real[:, :1], draw=animate) for one in each]
      quick = np.array([truth["speed"] == "quickly" for truth in prompts.truths])
      found = np.where(quick[:, None, None, None, None], clips[-1], clips[0])
      return values(found, prompts, fps, runs.side)

    return Cell((svd,), {"each": [one.options for one in each]}, measure)

  def with_text(folders):
    real = real_clips(prompts, runs.side, FPS, FRAMES)
    clips = drawn(folders[0], captioned(prompts), pictures=real[:, :1])
    return values(clips, prompts, FPS, runs.side)

  return {
    **{bucket(m): animated([m]) for m in BUCKETS},
    TWICE: animated([QUICK], fps=2 * FPS),
    **{guidance(way): animated([QUICK], way=way) for way in CONSTANT},
    SVD: animated([SLOW, QUICK]),
    EMU_VIDEO: Cell((emu_video,), captioned(prompts).options, with_text),
  }


def values(clips: Clips, prompts: Prompts, fps: float, side: int) -> Values:
  """What the oracle reads, how far the first frame is off the given one, and the distance.

  "pixels a frame" is NaN for clips in which the oracle does not find the object twice.
  """
  real = real_clips(prompts, side, fps, FRAMES)
  first = np.abs(clips[:, 0].astype(float) - real[:, 0]).mean(axis=(1, 2, 3)) / 255
  speed = oracle.read_clips(clips, fps).speed_sides * side / fps
  others = other_clips(prompts, side, fps, FRAMES)
  found = clip_values(clips, prompts.truths, fps) | distance(clips, others)
  return found | {"off the picture": first, "pixels a frame": speed}


def readable_mean(found: Values) -> float:
  """Pixels that the object moves from frame to frame, of the clips in which it is found twice."""
  readable = found["pixels a frame"][~np.isnan(found["pixels a frame"])]
  return float(readable.mean()) if len(readable) else math.nan


def moved(results: Results, a: str, b: str) -> Estimate:
  """By how many pixels a frame more the clips of one arm move than those of another."""
  found = [[readable_mean(values) for values in results.arms[arm]] for arm in (a, b)]
  return over_seeds([x - y for x, y in zip(*found, strict=True)])


def judge(results: Results) -> list[Criterion]:
  more = ((QUICK, BETWEEN), (BETWEEN, SLOW))
  return [
    *(
      Criterion(
        f"pixels a frame: bucket {high} less bucket {low}",
        moved(results, bucket(high), bucket(low)),
        least=0.0,
      )
      for high, low in more
    ),
    Criterion(
      "pixels a frame: 8 frames a second less 4", moved(results, TWICE, bucket(QUICK)), most=0.0
    ),
    *(
      Criterion(
        f"off the picture: guidance {GROWS} less {way}",
        results.difference(bucket(QUICK), guidance(way), "off the picture"),
        most=0.0,
      )
      for way in STRONG
    ),
  ]


def draw(axes, results: Results) -> None:
  arms = {"4 frames a second": [bucket(m) for m in BUCKETS], TWICE: [TWICE]}
  for i, (label, of_rate) in enumerate(arms.items()):
    buckets = BUCKETS[-len(of_rate) :]
    found = [results.figure(arm, readable_mean) for arm in of_rate]
    axes.plot(buckets, [e.value for e in found], "o-", color=f"C{i}", label=label)
    for motion, e in zip(buckets, found, strict=True):
      if np.isfinite(e.low):
        axes.plot([motion, motion], [e.low, e.high], color=f"C{i}", alpha=0.5)
  axes.set_xlabel("motion bucket")
  axes.set_ylabel("pixels a frame")
  axes.legend()


STUDY = Study(
  name="stable_video",
  title="Stable Video Diffusion from nothing, beside Emu Video",
  claim=(
    "What an image-to-video model hears of motion and rate decides how much moves, and guidance "
    "that grows over the frames keeps the first one as it is given (Stable Video Diffusion, "
    "arXiv:2311.15127, sec. 4.3 and app. D.3)."
  ),
  method=(
    "`configs/svd_shapes.py`, and `configs/shapes_64.py` at its half resolution, on 5000 pictures "
    "and 5000 clips of 32 pixels, 8 frames at 4 a second (Stable Video Diffusion: at 4 and 8): an "
    "autoencoder for both, an image model each, one for all seeds, and seed by seed a model of "
    "clips each, in steps of which both systems' image and clip parts cost the same time. Every "
    "clip begins with the first frame of a drawn one of a motion that training has seen. Stable "
    "Video Diffusion hears the rate and a bucket (39: slow clips, 117: quick ones, 78: none in "
    "training) and not the direction, which the picture leaves open; Emu Video reads the caption, "
    "which says all. 'pixels a frame' is how far the oracle sees the object move, where it finds "
    "it in two frames; 'off the picture' the mean absolute distance of the first frame from the "
    "given one, in units of white; FVD-o as in [multistage](multistage.md), of 32 clips to 128 "
    "others. Guidance is compared on clips of bucket 117."
  ),
  cells=cells,
  statistics={**averages(*METRICS), "pixels a frame": readable_mean},
  judge=judge,
  pairs=((SVD, EMU_VIDEO), *((bucket(QUICK), guidance(way)) for way in CONSTANT)),
  paired=METRICS,
  draw=draw,
)
