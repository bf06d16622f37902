"""A public architecture: how its config.json, network and tensors become ours and go back."""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.errors import InputError
from emu_jax.typing import Params
from emu_jax.weights.files import Stored
from emu_jax.weights.options import Options
from emu_jax.weights.table import Row, Rule, by_tensor, rows, tensor_shape

Groups = Mapping[str, tuple[Row, ...]]  # rows of our arrays, by the name of a public tensor


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One class of diffusers or transformers, and everything that depends on it."""

  name: str  # as `_class_name` or `architectures` says
  library: Literal["diffusers", "transformers"]
  config_type: type  # ours
  read: Callable[[Options], Any]  # config.json -> our config; must take every option
  write: Callable[[Any], dict[str, Any]]  # our config -> config.json, without the class
  module: Callable[[Any], nn.Module]  # of our config
  inputs: Callable[[Any], tuple]  # of our config: what `module.init` takes after the key
  rules: Callable[[Any], Sequence[Rule]]  # of our config
  levels: Callable[[Any], int] = lambda config: 0  # for `{-i}` in the rules
  fits: Callable[[Any], bool] = lambda config: True  # whether a config of ours has this form
  # Of our config and a parameter's path: whether the class holds it. Some hold a part of a network.
  selects: Callable[[Any, str], bool] = lambda config, path: True
  ignored: tuple[str, ...] = ()  # globs of public tensors that are not weights
  renamed: tuple[tuple[str, str], ...] = ()  # regular expressions: names of older files -> these

  @property
  def stem(self) -> str:
    """What the files of weights are called."""
    return "diffusion_pytorch_model" if self.library == "diffusers" else "model"

  def shapes(self, config: Any) -> Params:
    """Shapes of those of our parameters that the class holds; nothing is computed."""
    return unflatten_dict(self._leaves(config), sep="/")

  @functools.cache  # noqa: B019 (there are as many architectures as classes)
  def _leaves(self, config: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The same by path, traced once a config."""
    module, inputs = self.module(config), self.inputs(config)
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))["params"]
    leaves = flatten_dict(shapes, sep="/")
    return {path: leaf for path, leaf in leaves.items() if self.selects(config, path)}

  @functools.cache  # noqa: B019 (there are as many architectures as classes)
  def groups(self, config: Any) -> Groups:
    """The public tensors that a model of this config consists of."""
    return by_tensor(rows(self.shapes(config), self.rules(config), self.levels(config)))

  def paths(self, config: Any) -> set[str]:
    """Where in our tree the parameters that the class holds are."""
    return {row.path for group in self.groups(config).values() for row in group}

  def matching(
    self, groups: Groups, stored: Mapping[str, Stored], where: str
  ) -> dict[str, tuple[str, ...]]:
    """The stored names of each public tensor, after a strict comparison of names and shapes.

    A tensor that a library knows by two names may stand in a file under both.

    Raises: InputError that counts and names what is missing, unknown or of another shape.
    """
    names: dict[str, tuple[str, ...]] = {}
    for name in stored:
      if not any(fnmatch.fnmatchcase(name, glob) for glob in self.ignored):
        current = self._current(name)
        names[current] = (*names.get(current, ()), name)
    if any("lora" in name.lower() for name in names):
      raise InputError(
        f"weights: {where} is a LoRA, changes to a model and no model; merge it into one first"
      )
    missing = sorted(set(groups) - set(names))
    unknown = sorted(set(names) - set(groups))
    other = [
      f"{one} {stored[one].shape} instead of {tensor_shape(group)}"
      for name, group in groups.items()
      for one in names.get(name, ())
      if stored[one].shape != tensor_shape(group)
    ]
    found = [
      f"{len(lines)} {what}: {', '.join(lines[:3])}{', …' if len(lines) > 3 else ''}"
      for what, lines in (
        ("tensors are missing", missing),
        ("are unknown", unknown),
        ("have another shape", other),
      )
      if lines
    ]
    if found:
      raise InputError(
        f"weights: {where} does not hold the {self.name} that its config.json describes: "
        f"{'; '.join(found)}; give the weights and the config.json of one model"
      )
    return names

  def _current(self, name: str) -> str:
    for pattern, replacement in self.renamed:
      name = re.sub(pattern, replacement, name)
    return name
