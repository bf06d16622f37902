"""A part of a system as the trainer knows it: a `Stage` of its rules, its loss and its samples.

Trees pass from run to run: what one has trained, the next finds among its inherited trees.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.checkpoints.run import overlaid
from emu_jax.data.latent_records import Encoding
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.systems.system import (
  Part,
  System,
  frozen_as_read,
  trained_trees,
  tree_shapes,
)
from emu_jax.train.config import Experiment
from emu_jax.train.stage import Stage
from emu_jax.trees import first_match
from emu_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Split:
  """Which leaves of a part's trees train. Hashable, static under jit."""

  system: System
  name: str  # of the part

  @functools.cached_property
  def part(self) -> Part:
    """The part."""
    return self.system.parts()[self.name]

  @functools.cached_property
  def shapes(self) -> dict[str, Params]:
    """Of every tree that the part reads."""
    return {name: tree_shapes(self.system, name) for name in self.part.reads}

  def trains(self, path: str) -> bool:
    """Whether a leaf trains, by "tree/path"."""
    return first_match(self.part.trains, path) > 0

  @functools.cached_property
  def trained_trees(self) -> tuple[str, ...]:
    """Trees of which at least one leaf trains."""
    return trained_trees(self.system, self.part)

  def trained(self, trees: Mapping[str, Params]) -> dict[str, Params]:
    """The leaves that train, of some trees."""
    return self._chosen(trees, True)

  def frozen(self, trees: Mapping[str, Params]) -> dict[str, Params]:
    """The leaves that do not."""
    return self._chosen(trees, False)

  def _chosen(self, trees: Mapping[str, Params], trains: bool) -> dict[str, Params]:
    flat = {f"{name}/{path}": leaf for name, tree in trees.items()
            for path, leaf in flatten_dict(tree, sep="/").items()}  # fmt: skip
    kept = {path: leaf for path, leaf in flat.items() if self.trains(path) == trains}
    return unflatten_dict(kept, sep="/")

  def init(self, key: jax.Array) -> dict[str, Params]:
    """The leaves that train, as they begin from nothing: under jit the others cost nothing."""
    return self.trained({name: self.whole(name, key) for name in self.trained_trees})

  def whole(self, name: str, key: jax.Array) -> Params:
    """A tree as it begins from nothing; its draw depends on its name and not on the others."""
    tree = self.system.trees()[name]
    return tree.init(jax.random.fold_in(key, zlib.crc32(name.encode())))


@dataclasses.dataclass(frozen=True)
class PartLoss:
  """A part's loss of (trainable, frozen, batch, key, step).

  Equal where the part is, so that a second run in one process reuses the compiled step.
  """

  split: Split

  def __call__(self, trained: Params, frozen: Params, batch: Any, key, step):
    losses, metrics = self.split.part.loss(overlaid(frozen, trained), batch, key, step)
    return losses, dict(metrics)


def encoded_fields(experiment: Experiment, encoding: Encoding | None) -> tuple[str, ...]:
  """Which of "frames" and "captions" the step takes from the data as they were encoded ahead."""
  if encoding is None:
    return ()
  captions = encoding.text and "captions" in experiment.definition.encoders
  return ("frames", "captions") if captions else ("frames",)


def encoded_trees(experiment: Experiment, encoding: Encoding | None) -> tuple[str, ...]:
  """Trees that the step does without, since its data was encoded by them ahead."""
  encoders = experiment.definition.encoders
  fields = encoded_fields(experiment, encoding)
  return tuple(name for field in fields for name in encoders[field].trees)


def check_inherited(
  experiment: Experiment, names: tuple[str, ...], encoding: Encoding | None = None
) -> None:
  """Raises InputError where a tree is missing that the part builds on.

  Args:
    names: of the trees that there are.
  """
  split, part = Split(experiment.system, experiment.part), experiment.definition
  free = {*split.trained_trees, *part.measures, *encoded_trees(experiment, encoding)}
  needed = [name for name in part.reads if name not in free]
  needed += [part.begins[name] for name in split.trained_trees
             if name in part.begins and name not in names]  # fmt: skip
  if missing := [name for name in needed if name not in names]:
    raise InputError(
      f"part {experiment.part!r} needs the trees {missing}, which init_from="
      f"{experiment.init_from!r} does not hold; train the parts before it first"
    )


def build(
  experiment: Experiment,
  inherited: Params,
  empty: Mapping[str, Any],
  *,
  encoding: Encoding | None = None,
  sampling_trees: Params | None = None,
) -> Stage:
  """The stage of an experiment.

  Args:
    inherited: trees of the runs before and what was measured, by name; those that the step
      does without may be missing. Trees that the part does not read are left out.
    empty: what a batch says of text, for one empty prompt.
    encoding: of the data, where it is encoded ahead.
    sampling_trees: the trees that the step then does without, on the mesh, to draw samples with;
      without them none are drawn.
  """
  check_inherited(experiment, tuple(inherited), encoding)
  split, part = Split(experiment.system, experiment.part), experiment.definition
  unread = encoded_trees(experiment, encoding)
  whole = {name: inherited[name] for name in part.reads if name in inherited and name not in unread}
  new = {
    name: split.shapes[name]
    for name in split.trained_trees  # what of it does not train must begin somewhere, too
    if name not in whole and split.frozen({name: split.shapes[name]})
  }
  draw = part.samples and Jit(functools.partial(_drawn, part, empty, experiment.loop.num_samples))
  if draw and sampling_trees:
    draw = _with(draw, sampling_trees)
  return Stage(
    init=split.init,
    frozen=frozen_as_read(experiment.system, split.frozen(whole | new)),
    loss=PartLoss(split),
    sample=draw if draw and (sampling_trees or not unread) else None,
    rates=part.trains,
    init_frozen=functools.partial(_init_frozen, split, tuple(new)) if new else None,
  )


def _init_frozen(split: Split, names: tuple[str, ...], key: jax.Array) -> dict[str, Params]:
  """The leaves of trees that begin from nothing and do not train, of the draw of those that do."""
  whole = {name: split.whole(name, key) for name in names}
  return frozen_as_read(split.system, split.frozen(whole))


def _drawn(part, empty, num, trained, frozen, batch, key):
  batch = jax.tree.map(lambda a: a[:num], batch)
  return dict(part.samples(overlaid(frozen, trained), batch, empty, key))


def _with(draw: Callable, sampling_trees: Params) -> Callable:
  """Samples drawn with more trees than the step has, as arguments of the program."""
  return lambda ema, frozen, batch, key: draw(ema, {**frozen, **sampling_trees}, batch, key)


def initial_trees(experiment: Experiment, inherited: Params) -> Params:
  """Leaves that train and that an earlier run has left: of a tree, or of what it is copied from."""
  split, part = Split(experiment.system, experiment.part), experiment.definition
  sources = {
    name: name if name in inherited else part.begins.get(name, name) for name in split.trained_trees
  }
  found = {name: inherited[source] for name, source in sources.items() if source in inherited}
  return split.trained(found)
