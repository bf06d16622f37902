"""Clips and pictures of prompts, the same prompts and the same noise in every arm of a seed."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emu_jax.data import shapes
from emu_jax.evaluation.metrics import Clips
from emu_jax.model import Model, load
from experiments.recipe import Recipe

Fields = Mapping[str, Any]  # of a task's request, beside its prompts and pictures
# model, prompts, fields of the request, what is given to a prompt -> an array with a row a prompt
Draw = Callable[[Model, Sequence[str], Fields, np.ndarray | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Prompts of a split of the moving shapes, and how clips of them are drawn.

  Attributes:
    split: of `shapes.PROMPT_SPLITS`.
    seed: of the prompts and of all noise.
    fields: of the request.
    moving: whether the prompts are of clips.
  """

  split: str
  num: int
  batch_size: int
  seed: int
  fields: Fields
  moving: bool = True

  @property
  def scenes(self) -> list[shapes.Scene]:
    """What is asked for; it follows from the seed."""
    kind = "videos" if self.moving else "images"
    return [shapes.scene(kind, self.split, i, self.seed) for i in range(self.num)]

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

  def changed(self, **fields: Any) -> "Prompts":
    """The same prompts, with other fields of the request."""
    return dataclasses.replace(self, fields={**self.fields, **fields})


def recipe_prompts(
  recipe: Recipe, split: str, seed: int, *, frames: int = 8, **fields: Any
) -> Prompts:
  """The recipe's number of prompts, drawn its way; guidance is the model's own."""
  sampling = recipe.sampling
  given = {"frames": frames, "solver": sampling.solver, "steps": sampling.num_steps, **fields}
  return Prompts(split, recipe.num_prompts, recipe.batch_size, seed, given, moving=frames > 1)


def drawn(
  folder: pathlib.Path, prompts: Prompts, pictures: Clips | None = None, draw: Draw | None = None
) -> Clips:
  """A clip a prompt by the model of a run.

  Args:
    pictures: first frames to begin with, one a prompt; None: the model draws them.
    draw: in place of `sample`.
  """
  model = load(folder)
  return batched(lambda texts, fields, given: (draw or sample)(
    model, texts, fields, given
  ), prompts, pictures)  # fmt: skip


def batched(
  draw: Callable[[Sequence[str], Fields, Any], np.ndarray], prompts: Prompts, given: Any = None
) -> np.ndarray:
  """What `draw` gives for all prompts; the last batch is filled up, so that all have one shape."""
  captions, size, parts = prompts.captions, prompts.batch_size, []
  for start in range(0, len(captions), size):
    chosen = [min(i, len(captions) - 1) for i in range(start, start + size)]
    fields = {**prompts.fields, "seed": prompts.seed * 1000 + start}
    those = None if given is None else given[np.array(chosen)]
    parts.append(draw([captions[i] for i in chosen], fields, those))
  return np.concatenate(parts)[: len(captions)]


def sample(model: Model, texts: Sequence[str], fields: Fields, given: Clips | None) -> Clips:
  """Clips, or pictures, of prompts."""
  pictures = {} if given is None else {"image": given}
  return model.run("sample", prompt=tuple(texts), **pictures, **fields).frames


def real_clips(prompts: Prompts, size: int, fps: float, num_frames: int) -> Clips:
  """The drawn clips of the same prompts, from their first frame on."""
  chosen = np.arange(num_frames) * round(shapes.FPS / fps)
  return np.stack([shapes.draw(scene, size)[chosen] for scene in prompts.scenes])


def other_clips(prompts: Prompts, size: int, fps: float, num_frames: int) -> Clips:
  """The drawn clips of four times as many other prompts, which distances are to."""
  more = dataclasses.replace(prompts, num=5 * prompts.num)
  return real_clips(more, size, fps, num_frames)[prompts.num :]
