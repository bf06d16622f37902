"""The model of a run while it trains, as `emu-jax` would find it at the next checkpoint."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping

from jax.sharding import Mesh

from emu_jax.checkpoints.run import overlaid
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.model import Model
from emu_jax.parallel.placement import place
from emu_jax.systems.system import System
from emu_jax.typing import Params


class Trees(Mapping[str, Params]):
  """Trees on the devices: those that the step has there as they are, others placed when asked for.

  What only a task reads lies on the host, and on the devices for as long as a program needs it.
  """

  def __init__(self, step: Mapping[str, Params], host: Mapping[str, Params], mesh: Mesh):
    self._step, self._host, self._mesh = step, host, mesh

  def __getitem__(self, name: str) -> Params:
    if name in self._step:
      return self._step[name]
    return place({name: self._host[name]}, self._mesh)[name]

  def __iter__(self) -> Iterator[str]:
    return iter({**self._step, **self._host})

  def __len__(self) -> int:
    return len({**self._step, **self._host})


@dataclasses.dataclass(frozen=True)
class LiveModel:
  """Makes the model of a run's averaged weights.

  Attributes:
    step_trees: names of the trees that the step holds.
    names: of all trees that the run has, from earlier runs as well.
    read: names -> arrays of trees that the step does without.
    where: the run's folder.
  """

  system: System
  tokenizers: tuple[Tokenizer, ...]
  step_trees: Collection[str]
  names: Collection[str]
  read: Callable[[Collection[str]], Params]
  where: pathlib.Path
  mesh: Mesh

  def outline(self) -> Model:
    """The model without its weights: it checks requests, and runs none."""
    table = self.system.trees()
    names = [n for n in table if table[n].released and n in {*self.names, *self.step_trees}]
    return Model(self.system, {n: {} for n in names}, self.tokenizers, str(self.where))

  def maker(self, names: Collection[str]) -> Callable[[Params, Params], Model]:
    """(averaged trainable, frozen) -> the model with these trees; no weights are copied.

    Those that the step does without are read once, here.
    """
    outline = self.outline()
    host = self.read(sorted({*names} - {*self.step_trees}))

    def made(ema: Params, frozen: Params) -> Model:
      both = overlaid(frozen, ema)
      step = {name: both[name] for name in outline.trees if name in both}
      trees = Trees(step, host, self.mesh)
      return dataclasses.replace(outline, trees=trees, mesh=self.mesh)

    return made


def complete_outline(system: System, where: str) -> Model:
  """A model of all trees that a system can have, without weights and tokenizers."""
  table = system.trees()
  return Model(system, {n: {} for n in table if table[n].released}, (), where)
