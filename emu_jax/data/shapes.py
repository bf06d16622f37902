"""Captioned moving shapes, drawn, never downloaded: the embedded default, with its ground truth.

One shape, of one of two sizes, moves straight at a constant speed on a plain background. The image
set holds every look; the video set holds half of the colours, three shapes and no stripes, so that
what a video model keeps of its image model can be measured on the rest. Of the video set every
colour and shape misses one direction, kept for the test split.

Pixels: x to the right and y down, the centre of pixel (0, 0) at (0, 0); RGB as listed, mixed
linearly where an edge crosses a pixel. Lengths are shares of the canvas' shorter side, so that one
vocabulary serves every size; places are shares of its width and height. Sizes are (height, width)
in pixels, or one number for a square.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from emu_jax.data import records
from emu_jax.data.index import Size
from emu_jax.data.motion import MOTION
from emu_jax.errors import InputError

Color = tuple[int, int, int]

COLOURS: dict[str, Color] = {
  "red": (240, 40, 40),
  "green": (40, 190, 60),
  "blue": (40, 90, 255),
  "yellow": (255, 230, 40),
  "magenta": (230, 40, 220),
  "cyan": (40, 220, 230),
  "orange": (255, 140, 0),
  "white": (255, 255, 255),
}
BACKGROUNDS: dict[str, Color] = {
  "black": (0, 0, 0),
  "grey": (80, 80, 80),
  "navy": (10, 14, 70),
  "brown": (84, 54, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")  # the triangle points up
TEXTURES = ("plain", "striped")
SIZES = {"small": 7 / 32, "large": 12 / 32}  # width and height, shares of the canvas
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y
SPEEDS = {"slowly": 2.5 / 32, "quickly": 7.5 / 32}  # canvases a second

STRIPE_SHADE = 0.55  # a dark stripe is this share of the colour
STRIPE_PERIOD = 4 / 32  # light and dark stripe together, horizontal, share of the canvas
MARGIN = 0.5 / 32  # kept between the shape and the canvas' edge
FPS, NUM_FRAMES = 16.0, 40  # of a stored clip: 2.5 s

VIDEO_COLOURS = ("red", "green", "blue", "yellow")
VIDEO_SHAPES = ("circle", "square", "triangle")
VIDEO_TEXTURES = ("plain",)

SUPERSAMPLING = 4  # samples an axis a pixel
SPLITS = ("train", "validation", "test")
PROMPT_SPLITS = (*SPLITS, "image_only")


@dataclasses.dataclass(frozen=True)
class Scene:
  """What a caption says of a clip, and where its shape's box begins: all that drawing needs."""

  colour: str
  shape: str
  size: str
  texture: str
  background: str
  direction: str | None  # None: a picture
  speed: str | None
  start: tuple[float, float]  # centre of the bounding box in the first frame, shares of the canvas


def held_out(colour: str, shape: str, direction: str) -> bool:
  """Whether this motion of this look is kept for the test split: one direction in four of each."""
  if colour not in VIDEO_COLOURS or shape not in VIDEO_SHAPES:
    return False
  places = VIDEO_COLOURS.index(colour) + VIDEO_SHAPES.index(shape)
  return (places + list(DIRECTIONS).index(direction)) % len(DIRECTIONS) == 0


def caption(scene: Scene) -> str:
  """The sentence of a scene; every attribute is one word of it."""
  look = f"a {scene.size} {scene.colour} "
  look += "striped " if scene.texture == "striped" else ""
  look += scene.shape
  if scene.direction is not None:
    look += f" moving {scene.direction} {scene.speed}"
  return f"{look} on a {scene.background} background"


def scene(kind: str, split: str, index: int, seed: int) -> Scene:
  """The scene at an index: a function of its arguments alone.

  Args:
    kind: "images" or "videos".
    split: one of `PROMPT_SPLITS`; "image_only" draws looks that no video has.
  """
  stream = [seed, ("images", "videos").index(kind), PROMPT_SPLITS.index(split), index]
  rng = np.random.default_rng(stream)
  looks, motions = _looks_and_motions(kind, split)
  colour, shape, texture, direction = looks[rng.integers(len(looks))]
  size, background = _pick(rng, SIZES), _pick(rng, BACKGROUNDS)
  speed = _pick(rng, SPEEDS) if motions else None
  fits = _fitting_starts(size, direction, speed)
  start = tuple(float(rng.uniform(low, high)) for low, high in fits)
  return Scene(colour, shape, size, texture, background, direction, speed, start)


@functools.cache
def _looks_and_motions(kind: str, split: str) -> tuple[list[tuple], bool]:
  """(colour, shape, texture, direction) of each scene a split may hold, and whether it moves."""
  looks = list(itertools.product(COLOURS, SHAPES, TEXTURES))
  moving = set(itertools.product(VIDEO_COLOURS, VIDEO_SHAPES, VIDEO_TEXTURES))
  if split == "image_only":
    looks = [look for look in looks if look not in moving]
  elif kind == "videos":
    looks = [look for look in looks if look in moving]
  if kind == "images":
    return [(*look, None) for look in looks], False
  scenes = [(*look, direction) for look in looks for direction in DIRECTIONS]
  if split != "image_only":
    kept = split == "test"
    scenes = [(c, s, x, d) for c, s, x, d in scenes if held_out(c, s, d) == kept]
  return scenes, True


def _pick(rng: np.random.Generator, words) -> str:
  return list(words)[rng.integers(len(words))]


def _fitting_starts(size: str, direction: str | None, speed: str | None) -> list[tuple]:
  """Along x and y, the lowest and highest first centre whose whole path stays on the canvas."""
  near = SIZES[size] / 2 + MARGIN
  seconds = (NUM_FRAMES - 1) / FPS
  ranges = []
  for step in DIRECTIONS[direction] if direction else (0, 0):
    travel = step * SPEEDS[speed] * seconds if step else 0.0
    ranges.append((near - min(travel, 0.0), 1 - near - max(travel, 0.0)))
  return ranges


def centres(scene: Scene, size: int | Size) -> Float[np.ndarray, "T 2"]:
  """Centre of the bounding box in each frame, x and y in pixels."""
  steps = np.arange(NUM_FRAMES if scene.direction else 1) / FPS
  moves = np.zeros((len(steps), 2))
  if scene.direction:
    moves = steps[:, None] * np.array([DIRECTIONS[scene.direction]]) * SPEEDS[scene.speed]
  height, width = records.both_sides(size)
  side = min(height, width)
  return (np.array([scene.start]) * [[width / side, height / side]] + moves) * side - 0.5


def centroids(scene: Scene, size: int | Size) -> Float[np.ndarray, "T 2"]:
  """Centre of the shape's area in each frame, x and y in pixels."""
  # A triangle's lies two thirds of the way down from its tip; the others' is that of their box.
  side = min(records.both_sides(size))
  lower = SIZES[scene.size] * side / 6 if scene.shape == "triangle" else 0.0
  return centres(scene, size) + np.array([[0.0, lower]])


def speed_percent(scene: Scene) -> float:
  """The number "motion" of a record: the shape's speed in percent of the shorter side a second.

  Of the shape alone; what `emu_jax.data.motion` measures of a user's clips is a mean over all of
  the picture. 0 for a picture.
  """
  return 100 * SPEEDS[scene.speed] if scene.speed else 0.0


def truth(scene: Scene, size: int | Size) -> dict:
  """The ground truth kept with a record: the words, and the centroid of each frame in pixels."""
  words = dataclasses.asdict(scene)
  del words["start"]
  return words | {"centroid": np.round(centroids(scene, size), 3).tolist()}


def draw(scene: Scene, size: int | Size) -> UInt8[np.ndarray, "T H W 3"]:
  """The frames of a scene: 40 of a clip at 16 frames/s, 1 of a picture."""
  height, width = records.both_sides(size)
  side = min(height, width)
  radius = SIZES[scene.size] * side / 2
  # Pixel i holds the samples around i.
  samples = ((np.arange(n * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5 for n in (width, height))
  # [T, samples along an axis], from the centre
  x, y = (s - c[:, None] for s, c in zip(samples, centres(scene, size).T, strict=True))
  inside = _inside(scene.shape, x[:, None, :] / radius, y[:, :, None] / radius)
  dark = np.zeros_like(y, bool)
  if scene.texture == "striped":
    dark = np.floor((y + radius) / (STRIPE_PERIOD * side / 2)) % 2 == 1
  lit, shaded = (_coverage(inside & rows[:, :, None]) for rows in (~dark, dark))
  background, colour = (
    np.array(c, float) for c in (BACKGROUNDS[scene.background], COLOURS[scene.colour])
  )
  frames = background + lit[..., None] * (colour - background)
  frames += shaded[..., None] * (STRIPE_SHADE * colour - background)
  return np.round(frames).astype(np.uint8)


def _inside(
  shape: str, x: Float[np.ndarray, "T 1 M"], y: Float[np.ndarray, "T N 1"]
) -> Bool[np.ndarray, "T N M"]:
  """Which samples lie in a shape whose box is [-1, 1] x [-1, 1]."""
  if shape == "circle":
    return x**2 + y**2 <= 1
  if shape == "square":
    return (np.abs(x) <= 1) & (np.abs(y) <= 1)
  if shape == "triangle":
    return (np.abs(x) <= (y + 1) / 2) & (y <= 1)
  third = 1 / 3  # the bars of the cross are a third of its width
  level, upright = (np.abs(x) <= 1) & (np.abs(y) <= third), (np.abs(x) <= third) & (np.abs(y) <= 1)
  return level | upright


def _coverage(samples: Bool[np.ndarray, "T N M"]) -> Float[np.ndarray, "T H W"]:
  """Share of each pixel's samples that is set, counted in bytes, rows first: that is quickest."""
  T, N, M = samples.shape
  k = SUPERSAMPLING
  rows = samples.reshape(T, N // k, k, M).sum(axis=2, dtype=np.uint8)
  return rows.reshape(T, N // k, M // k, k).sum(axis=3, dtype=np.uint8) / k**2


def prompts(split: str, n: int, seed: int, *, moving: bool = True) -> Iterator[tuple[str, dict]]:
  """Captions to evaluate with, and the words that they are made of.

  Args:
    split: "train" and "validation" give motions of looks that training has seen, "test" the motions
      held out from it, "image_only" motions of looks that only pictures have shown.
    moving: off gives captions of pictures.
  """
  if split not in PROMPT_SPLITS:
    raise InputError(f"prompts: split={split} is unknown; choose one of {', '.join(PROMPT_SPLITS)}")
  for index in range(n):
    one = scene("videos" if moving else "images", split, index, seed)
    words = dataclasses.asdict(one)
    del words["start"]
    yield caption(one), words


class MovingShapes(records.RecordBuilder):
  """Captioned moving shapes with their ground truth; drawn, not downloaded."""

  BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
    tfds.core.BuilderConfig(name="videos", description="one shape that moves, 2.5 s"),
    tfds.core.BuilderConfig(name="images", description="one shape of any look, one frame"),
  ]
  splits = SPLITS
  numbers = (MOTION,)

  def __init__(
    self, *, size: int | Size = 32, num_records: int = 2000, seed: int = 0, progress=None, **kwargs
  ):
    self._counts = split_sizes(num_records)
    self._seed, self._progress = seed, progress
    super().__init__(size=size, **kwargs)

  def examples(self, split: str) -> Iterator[tuple[int, dict]]:
    """Keys and records of a split, in the order of their indices."""
    kind, count = self.builder_config.name, self._counts[split]
    for index in range(count):
      one = scene(kind, split, index, self._seed)
      record = {"frames": draw(one, self.size), "fps": FPS if kind == "videos" else 0.0}
      record |= {"caption": caption(one), "name": f"{split}/{index:06d}"}
      record |= {"truth": json.dumps(truth(one, self.size))}
      record |= {"numbers": {MOTION: speed_percent(one)}}
      if self._progress is not None:
        self._progress.update()
      yield records.spread_key(index, count), record


def split_sizes(num_records: int) -> dict[str, int]:
  """Records a split for a training split of `num_records`: a tenth of it in each of the others."""
  tenth = max(1, num_records // 10) if num_records else 0
  return {"train": num_records, "validation": tenth, "test": tenth}


def prepare_shapes(
  out: str | pathlib.Path,
  *,
  size: int | Size = 32,
  num_images: int = 2000,
  num_clips: int = 2000,
  seed: int = 0,
  overwrite: bool = False,
  progress: bool = True,
) -> dict:
  """Writes `out/images` and `out/videos`; a rerun with the same arguments changes nothing.

  Validation and test hold a tenth as many records as training each.

  Returns:
    The report that `out/report.json` holds: arguments, number of records a set and split, seconds,
    and whether it was there already ("existing").
  """
  began = time.monotonic()
  size = records.both_sides(size)
  if min(size) < 16 or min(num_images, num_clips) < 1:
    raise InputError(
      f"prepare: shapes of size={min(size)} with {num_images=}, {num_clips=}: a side below 16 px "
      "shows no shape, and both sets need at least 1 record"
    )
  out = pathlib.Path(out)
  counts = {"images": num_images, "videos": num_clips}
  arguments = {"size": size, "num_images": num_images, "num_clips": num_clips, "seed": seed}
  earlier = records.finished(out, arguments, overwrite)
  if earlier is not None:
    return earlier | {"existing": True}
  total = sum(sum(split_sizes(count).values()) for count in counts.values())
  bar = tqdm(total=total, desc="drawing", unit="record", disable=not progress)
  with records.staged(out) as partial, bar:
    made = {}
    for kind, count in counts.items():
      options = {"config": kind, "size": size, "num_records": count, "seed": seed, "progress": bar}
      made[kind] = records.write(functools.partial(MovingShapes, **options), partial / kind)
    report = {"arguments": arguments, "num_records": made, "existing": False}
    report["seconds"] = round(time.monotonic() - began, 3)
    (partial / records.REPORT).write_text(json.dumps(report, indent=1))
  return report
