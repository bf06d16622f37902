"""Clips of which few move much, and the few that the published rule finds among them."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from emu_jax.data import records, shapes
from emu_jax.data.batches import open_source
from emu_jax.evaluation.metrics import block_motion
from experiments.artefact import Artefact
from experiments.recipe import packed

WINDOW = 6  # frames j .. j + 5 of the rule
EVERY = 4  # stored frames at 16 a second: scores are of clips at 4, as they train


def without_speed(caption: str) -> str:
  """The caption less the word for the speed: how much moves is for the clips to teach."""
  return " ".join(word for word in caption.split() if word not in shapes.SPEEDS)


class MixedClips(records.RecordBuilder):
  """Moving shapes of which a share `quick` is quick; captions do not say which."""

  def __init__(self, *, size: int, num: int, quick: float, **kwargs):
    self._counts = {"train": num, "validation": max(1, num // 10)}
    self._quick = quick
    super().__init__(size=size, **kwargs)

  def examples(self, split: str):
    """Records in the order of their numbers."""
    rng, count = np.random.default_rng([len(split), self._counts[split]]), self._counts[split]
    for index in range(count):
      one = quick_scene(split, index)
      if (
        rng.random() >= self._quick
      ):  # the slow path from the same start is a part of the quick one
        one = dataclasses.replace(one, speed="slowly")
      record = {"frames": shapes.draw(one, self.size), "fps": shapes.FPS}
      record |= {"caption": without_speed(shapes.caption(one)), "name": f"{split}/{index:06d}"}
      yield records.spread_key(index, count), record | {"truth": json.dumps(vars(one))}


def quick_scene(split: str, index: int) -> shapes.Scene:
  """The first quick scene at an index, under one seed after another."""
  scenes = (shapes.scene("videos", split, index, seed) for seed in itertools.count(1))
  return next(one for one in scenes if one.speed == "quickly")


class ChosenClips(records.RecordBuilder):
  """Some of the training clips of another folder, and all that it validates with."""

  def __init__(self, *, size: tuple[int, int], source: str, chosen: tuple[int, ...], **kwargs):
    self._source, self._chosen = source, chosen
    self.numbers = tuple(open_source(source, "train").numbers)
    super().__init__(size=size, **kwargs)

  def examples(self, split: str):
    """Copies, in order."""
    table = open_source(self._source, split).records
    rows = self._chosen if split == "train" else range(len(table))
    for place, row in enumerate(rows):
      record = table[int(row)]
      texts = {name: record[name].decode() for name in ("caption", "name", "truth")}
      yield records.spread_key(place, len(rows)), dict(record) | texts


def least_window(motion: Float[np.ndarray, "T"]) -> float:
  """The smallest sum of the motion of six frames that follow one another.

  Source: Emu Video, arXiv:2311.10709, sec. 3.3: min over j of the sum of frames j .. j + 5.
  """
  width = min(WINDOW, len(motion))
  return float(np.convolve(motion, np.ones(width), mode="valid").min())


def scores(folder: pathlib.Path) -> np.ndarray:
  """`least_window` of each training clip, its motion that of block matching at 4 frames/s."""
  table = open_source(folder, "train").records
  found = []
  for i in tqdm(range(len(table)), unit="clip", disable=None):
    clip = table[i]["frames"][::EVERY]
    vectors = block_motion(clip)[0]
    found.append(least_window(np.square(vectors, dtype=float).sum(axis=-1).mean(axis=(1, 2))))
  return np.array(found)


def mixture(size: int, num: int, quick: float) -> Artefact:
  """Records of `MixedClips`."""
  spec = {"size": size, "num": num, "quick": quick}
  make = lambda folders: lambda **kwargs: MixedClips(**spec, **kwargs)
  return packed("mixture", spec, (), make)


def selection(clips: Artefact, size: int, num: int, by: str, seed: int = 0) -> Artefact:
  """So many training clips of a mixture: those of the highest scores, or drawn at random."""

  def make(folders):
    if by == "motion":
      chosen = np.argsort(-scores(folders[0]), kind="stable")[:num]
    else:
      every = len(open_source(folders[0], "train").records)
      chosen = np.random.default_rng(seed).permutation(every)[:num]
    given = {"size": size, "source": str(folders[0]), "chosen": tuple(sorted(chosen.tolist()))}
    return lambda **kwargs: ChosenClips(**given, **kwargs)

  spec = {"num": num, "by": by} | ({"seed": seed} if by == "random" else {})
  return packed(f"chosen-{by}", spec, (clips,), make)
