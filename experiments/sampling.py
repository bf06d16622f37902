"""Clips and pictures of prompts, the same prompts and the same noise in every arm of a seed."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emu_jax.data import shapes
from emu_jax.evaluation.metrics import Clips
from emu_jax.generation import Request, generate
from emu_jax.loading import load_pipeline
from emu_jax.pipeline import Pipeline
from emu_jax.systems.emu_video import Guidance
from experiments.recipe import Recipe

Draw = Callable[[Pipeline, Sequence[str], Request, np.ndarray | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Asked:
  """Prompts of a split of the moving shapes, and how clips of them are drawn."""

  split: str  # of `shapes.PROMPT_SPLITS`
  num: int
  batch_size: int
  request: Request
  moving: bool = True

  @property
  def scenes(self) -> list[shapes.Scene]:
    """What is asked for; it follows from the request's seed."""
    kind = "videos" if self.moving else "images"
    return [shapes.scene(kind, self.split, i, self.request.seed) for i in range(self.num)]

  @property
  def captions(self) -> list[str]:
    return [shapes.caption(scene) for scene in self.scenes]

  @property
  def truths(self) -> list[dict[str, Any]]:
    """The words of each prompt."""
    return [dataclasses.asdict(scene) for scene in self.scenes]

  @property
  def options(self) -> dict[str, Any]:
    """JSON values of all of it."""
    return dataclasses.asdict(self)


def asked(
  recipe: Recipe, split: str, seed: int, *, frames: int = 8, guidance: Guidance | None = None
) -> Asked:
  """The recipe's number of prompts, drawn its way."""
  request = Request(
    frames=frames,
    seed=seed,
    guidance=guidance or recipe.model.guidance,
    sampling=recipe.sampling,
  )
  return Asked(split, recipe.num_prompts, recipe.batch_size, request, moving=frames > 1)


def drawn(
  folder: pathlib.Path, asked: Asked, pictures: Clips | None = None, draw: Draw | None = None
) -> Clips:
  """A clip a prompt by the model of a run.

  Args:
    pictures: first frames to begin with, one a prompt; None: the model draws them.
    draw: in place of `generate`.
  """
  pipeline = load_pipeline(folder)
  return batched(lambda texts, request, given: (draw or _generate)(
    pipeline, texts, request, given
  ), asked, pictures)  # fmt: skip


def batched(
  draw: Callable[[Sequence[str], Request, Any], np.ndarray], asked: Asked, given: Any = None
) -> np.ndarray:
  """What `draw` gives for all prompts; the last batch is filled up, so that all have one shape."""
  captions, size, parts = asked.captions, asked.batch_size, []
  for start in range(0, len(captions), size):
    chosen = [min(i, len(captions) - 1) for i in range(start, start + size)]
    request = dataclasses.replace(asked.request, seed=asked.request.seed * 1000 + start)
    mine = None if given is None else given[np.array(chosen)]
    parts.append(draw([captions[i] for i in chosen], request, mine))
  return np.concatenate(parts)[: len(captions)]


def _generate(pipeline, texts, request, given):
  return generate(pipeline, texts, request, given)[0]


def real_clips(asked: Asked, size: int, fps: float, num_frames: int) -> Clips:
  """The drawn clips of the same prompts, from their first frame on."""
  chosen = np.arange(num_frames) * round(shapes.FPS / fps)
  return np.stack([shapes.draw(scene, size)[chosen] for scene in asked.scenes])


def other_clips(asked: Asked, size: int, fps: float, num_frames: int) -> Clips:
  """The drawn clips of four times as many other prompts, which distances are to."""
  more = dataclasses.replace(asked, num=5 * asked.num)
  return real_clips(more, size, fps, num_frames)[asked.num :]
