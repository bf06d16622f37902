"""What the captions of the sprite clips say, and a reader that says what a clip shows.

The reader knows nothing of the networks under test. It learns from real training clips: action and
direction from the nearest silhouette, the background from its mean colour, each part of the look by
ridge regression on the pixels of the figure.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

Clips = UInt8[np.ndarray, "N T H W 3"]
LOOK = ("body", "hair", "top", "bottom")
ATTRIBUTES = (*LOOK, "background", "action", "direction")
DIRECTIONS = ("to the left", "to the right", "facing forward", "facing away")
FOREGROUND = 30  # of 255, the least difference from the background: its codec's noise is below
RIDGE = 1.0

_LONG = re.compile(
  r"an? (?P<body>.+) with (?P<hair>\w+ \w+) hair wearing (?:an? )?(?P<top>.+) and (?P<bottom>.+)"
  rf" is (?P<action>.+) (?P<direction>{'|'.join(DIRECTIONS)}) on an? (?P<background>.+) background"
)
_SHORT = re.compile(
  r"an? (?P<body>.+?(?: character|orc)) (?P<action>\w+.*?) "
  rf"(?P<direction>{'|'.join(DIRECTIONS)}), (?P<hair>\w+ \w+) hair, (?P<top>.+), (?P<bottom>.+), "
  r"(?P<background>.+) background"
)


def parse(caption: str) -> dict[str, str]:
  """Every attribute of a caption. Raises ValueError for a caption of another form."""
  match = _LONG.fullmatch(caption) or _SHORT.fullmatch(caption)
  if match is None:
    raise ValueError(f"{caption!r}: not a caption of the sprite clips")
  return match.groupdict()


def caption(attributes: dict[str, str]) -> str:
  """A caption of the longer form."""
  a = attributes
  worn = a["top"] if a["top"] in ("chainmail", "white feathers") else f"a {a['top']}"
  return (
    f"a {a['body']} with {a['hair']} hair wearing {worn} and {a['bottom']} is {a['action']} "
    f"{a['direction']} on a {a['background']} background"
  )


def unseen(seen: Sequence[dict[str, str]], num: int, seed: int) -> list[dict[str, str]]:
  """Drawn attributes whose look (body, hair, top and bottom together) no seen clip has."""
  values = {name: sorted({s[name] for s in seen}) for name in ATTRIBUTES}
  known = {tuple(s[name] for name in LOOK) for s in seen}
  looks = [x for x in itertools.product(*(values[name] for name in LOOK)) if x not in known]
  rng = np.random.default_rng(seed)
  drawn = []
  for i in rng.permutation(len(looks))[:num]:
    rest = {name: values[name][rng.integers(len(values[name]))] for name in ATTRIBUTES[len(LOOK) :]}
    drawn.append(dict(zip(LOOK, looks[i], strict=True)) | rest)
  return drawn


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the attributes of clips; learned from real ones."""

  clips: Clips
  truths: Sequence[dict[str, str]]

  def read(self, clips: Clips) -> dict[str, np.ndarray]:
    """The word of each attribute for each clip, by attribute."""
    background, silhouettes, figures = features(clips)
    known_background, known_silhouettes, known_figures = features(self.clips)
    nearest = np.argmin(distances(silhouettes, known_silhouettes), axis=1)
    words = {name: self.words(name)[nearest] for name in ("action", "direction")}
    scenes = np.unique(self.words("background"))
    colours = [known_background[self.words("background") == s].mean(axis=0) for s in scenes]
    words["background"] = scenes[np.argmin(distances(background, np.stack(colours)), axis=1)]
    for name in LOOK:
      words[name] = np.empty(len(clips), self.words(name).dtype)
      for direction in np.unique(words["direction"]):
        mine, theirs = words["direction"] == direction, self.words("direction") == direction
        words[name][mine] = ridge(known_figures[theirs], self.words(name)[theirs], figures[mine])
    return words

  def words(self, name: str) -> np.ndarray:
    """The attribute's true word in each known clip."""
    return np.array([truth[name] for truth in self.truths])


def features(clips: Clips) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Background colour [N, 3], silhouettes [N, D], and the mean picture of the figure [N, E]."""
  N, T, H, W, _ = clips.shape
  rows = np.concatenate([clips[:, :, :2], clips[:, :, -2:]], axis=2).reshape(N, -1, 3)
  background = np.median(rows, axis=1).astype(np.float32)
  pixels = clips.astype(np.float32)
  apart = np.abs(pixels - background[:, None, None, None]).max(axis=-1, keepdims=True)
  mask = (apart > FOREGROUND).astype(np.float32)
  silhouettes = mask.reshape(N, T, H // 4, 4, W // 4, 4).mean(axis=(3, 5)).reshape(N, -1)
  figure = (mask * pixels / 128).mean(axis=1)
  figure = figure.reshape(N, H // 2, 2, W // 2, 2, 3).mean(axis=(2, 4)).reshape(N, -1)
  return background, silhouettes, figure


def distances(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> np.ndarray:
  """Squared distances [N, M]."""
  return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T


def ridge(known: np.ndarray, words: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """The word of each asked row, by ridge regression from known rows onto which word they have."""
  classes, which = np.unique(words, return_inverse=True)
  target = np.eye(len(classes))[which]
  mean = known.mean(axis=0)
  known, queries = known - mean, queries - mean
  weights = np.linalg.solve(known @ known.T + RIDGE * np.eye(len(known)), target - target.mean(0))
  return classes[np.argmax((queries @ known.T) @ weights + target.mean(0), axis=1)]
