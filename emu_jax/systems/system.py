"""The contract: what a system is to the trainer, to the sampler and to the command line.

A system is a frozen dataclass with a kind; its configuration is the system. It names the trees of
parameters that it is made of, the parts of it that can be trained, and the tasks that it can be
asked for. The trainer, the loaders, the planner and both commands know nothing else of it.
"""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from numpy.typing import NDArray

from emu_jax.data.inputs import Inputs
from emu_jax.errors import InputError
from emu_jax.trees import first_match, leaf_shapes
from emu_jax.typing import Params, PerExample, Video

Trees = Mapping[str, Params]  # by name: "autoencoder", "spatial", …
Batch = Mapping[str, Any]  # by name; emu_jax.data.inputs says which arrays
Arrays = dict[str, Any]  # what the steps of a task hand on, by name
Metrics = Mapping[str, ArrayLike]
FROZEN = 0.0


@dataclasses.dataclass(frozen=True)
class Tree:
  """A named tree of parameters.

  Attributes:
    init: key -> parameters. Its shapes are what checks, loaders and plans expect.
    dtypes: (glob over the path in the tree, dtype) in which it lies on the devices while it does
      not train: that of the network that reads it. The first glob that matches decides.
    released: whether a task may read it; a discriminator is needed by training alone.
  """

  init: Callable[[jax.Array], Params]
  dtypes: tuple[tuple[str, str], ...] = (("*", "float32"),)
  released: bool = True


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A frozen part of the loss that may be computed once, before training (`emu-train encode`).

  Attributes:
    trees: that it reads, and that a step on encoded records does without.
    apply: of frames, (trees, pixels [B, T, H, W, 3]) -> moments [B, T, h, w, 2 C]; of captions,
      (trees, (tokens, masks)) -> `TextFeatures`.
    depends_on: every value of the configuration that its results depend on, by dotted path.
  """

  trees: tuple[str, ...]
  apply: Callable[[Trees, Any], Any]
  depends_on: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Measure:
  """A tree that is measured before training, in batches on the mesh, and then frozen.

  Attributes:
    one: (trees, batch) -> statistics of one batch, compiled.
    all: statistics of every batch, as numpy arrays -> the tree.
    reads: trees that `one` needs, but for those that encoded data makes needless.
    num_examples: that are read for it.
  """

  one: Callable[[Trees, Batch], Any]
  all: Callable[[Sequence[Any]], Params]
  reads: tuple[str, ...] = ()
  num_examples: int = 512


@dataclasses.dataclass(frozen=True)
class Part:
  """One thing to train.

  Attributes:
    trains: (glob over "tree/path of a leaf", factor of the learning rate), 0 for frozen. The first
      glob that matches a leaf decides; every leaf of the trees that the part trains or reads must
      be covered. A tree may train in some of its leaves only.
    inputs: the arrays of a batch.
    loss: (trees, batch, key, step) -> losses [B], metrics. The step is needed by what sets in late.
    reads: trees that the loss or the samples need besides those that train.
    texts: encoders whose tokenizers a batch's captions go through.
    samples: (trees, batch, empty, key) -> videos in [-1, 1] by name, drawn while training; `empty`
      is what the batch says of text, for one empty prompt. None draws none.
    begins: tree -> the tree that it is copied from where no earlier run has left one.
    measures: trees that are measured where no earlier run has left them.
    encoders: of "frames" and "captions", where they may be encoded ahead.
  """

  trains: tuple[tuple[str, float], ...]
  inputs: Inputs
  loss: Callable[[Trees, Batch, jax.Array, jax.Array], tuple[PerExample, Metrics]]
  reads: tuple[str, ...] = ()
  texts: tuple[Any, ...] = ()
  samples: Callable[[Trees, Batch, Batch, jax.Array], Mapping[str, Video]] | None = None
  begins: Mapping[str, str] = dataclasses.field(default_factory=dict)
  measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
  encoders: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step:
  """One jitted program of a task.

  Attributes:
    says: what it does, for people who wait: "text -> image".
    program: (trees, arrays, static) -> arrays; a function of a module, since programs are kept by
      their identity. The arrays of all steps before are among its arguments.
    static: what the program's shape depends on; another value is another program.
    reads: the trees that it needs.
  """

  says: str
  program: Callable[[Trees, Arrays, Any], Arrays]
  static: Hashable = None
  reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """One thing that can be asked of a model.

  Attributes:
    request: a frozen dataclass: the options of a command, the keyword arguments of a method, their
      defaults, their help and their checks. Fields named `prompt` and `negative` are tokenised; a
      field `seed` gives every example a seed of its own.
    steps: (request, names of the trees that there are) -> programs, in order. The last one leaves
      "frames", uint8 [B, T, H, W, 3], and may leave "finite", bool [B], whether they were made of
      numbers. Raises InputError or ValueError for what cannot be had.
    arrays: request -> arrays beside those that every task has: pictures and clips as uint8
      [B or 1, T, H, W, 3], numbers as float32. It runs on the host, before any program, and does
      not read the seed, so that requests which differ in it alone share what is read. Every task
      has "seeds" uint32 [B, 2], one an example (`example_keys`); one with prompts "prompt" and
      "negative" (tokens, masks) and "blank" bool [B], whether the negative prompt is empty.
    fps: (request, names of the trees that there are) -> frames a second of the result.
    suffix: of the file that a command writes where nothing else is asked for.
    file: the name of that file, without its suffix; "": the task's.
  """

  request: type
  steps: Callable[[Any, Collection[str]], tuple[Step, ...]]
  arrays: Callable[[Any], Arrays]
  fps: Callable[[Any, Collection[str]], float]
  suffix: str = ".mp4"
  file: str = ""


def example_keys(arrays: Arrays) -> jax.Array:
  """A key an example, [B], of "seeds": what is drawn of it does not depend on its batch.

  It is JAX's key of that seed, which needs 64-bit integers for one from 2^32 on.
  """
  low, high = arrays["seeds"][:, 0], arrays["seeds"][:, 1]
  words = jax.random.key_data(jax.vmap(jax.random.key)(low))  # the first is 0: 32 bits are known
  return jax.random.wrap_key_data(words.at[:, 0].set(words[:, 0] ^ high))


def seed_halves(seeds: NDArray[np.uint64]) -> jax.Array:
  """The array "seeds" of a task, uint32 [B, 2]: the low and the high half of each."""
  return jnp.asarray(np.stack([seeds & 0xFFFFFFFF, seeds >> 32], axis=-1).astype(np.uint32))


class System(abc.ABC):
  """A model of a paper: its configuration, and what that means.

  A subclass is a frozen dataclass with a kind (emu_jax.config.kind).

  Attributes:
    pipelines: classes of diffusers' pipelines that `read_pipeline` understands, each with the
      names of the options that it needs for it.
  """

  pipelines: ClassVar[Mapping[str, tuple[str, ...]]] = {}

  @property
  def texts(self) -> tuple[Any, ...]:
    """Text encoders whose tokenizers belong to a model, in order."""
    return ()

  @property
  def networks(self) -> Mapping[str, Any]:
    """What public weights must agree with, by name.

    Configurations of networks by tree, "text/<i>" of each encoder, and what a network was trained
    with, such as "schedule".
    """
    return {}

  @abc.abstractmethod
  def trees(self) -> Mapping[str, Tree]:
    """Every tree of parameters by its name, in the order in which they are trained."""

  @abc.abstractmethod
  def parts(self) -> Mapping[str, Part]:
    """What can be trained, by name, in the order in which one builds on another."""

  @abc.abstractmethod
  def tasks(self) -> Mapping[str, Task]:
    """What can be asked of it, by the names of commands."""

  @classmethod
  def requests(cls) -> Mapping[str, type]:
    """Request classes of the tasks that its models have, for help where there is no model yet."""
    return {}

  @classmethod
  def upgraded(cls, values: dict[str, Any], version: int) -> dict[str, Any]:
    """The JSON of this configuration as an earlier version wrote it, in today's form."""
    return values

  @classmethod
  def read_pipeline(cls, folder: pathlib.Path, **options: Any) -> "Pipeline":
    """A folder of one of `pipelines`.

    Args:
      options: names of other folders that it takes, such as a motion adapter's.
    """
    raise TypeError(f"{cls.__name__} reads no pipelines; name none in `pipelines`")

  def write_pipeline(self, model: Any, folder: pathlib.Path, say: Callable[[str], None]) -> None:
    """Writes a model as a folder that diffusers reads."""
    raise ValueError(f"{type(self).__name__} has no form that diffusers reads")


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """What a folder of diffusers holds, before its weights are read.

  Attributes:
    load: (names of trees, options of `emu_jax.weights.load` that are its keyword arguments) -> the
      trees.
    names: of its trees.
    tokenizers: folders, one a text encoder.
  """

  system: System
  load: Callable[[Collection[str], Mapping[str, Any]], Trees]
  names: tuple[str, ...]
  tokenizers: tuple[pathlib.Path, ...] = ()


@functools.cache
def tree_shapes(system: System, name: str) -> Params:
  """Shapes and dtypes of one of a system's trees.

  Its `init` is traced once for equal systems, and once for all names of one `Tree`.
  """
  table = system.trees()
  first = next(other for other, tree in table.items() if tree is table[name])
  if first != name:
    return tree_shapes(system, first)
  return jax.eval_shape(table[name].init, jax.random.key(0))


def check_trees(system: System, trees: Trees, who: str) -> None:
  """Raises InputError, beginning with `who`, where a tree is not that of the system's network.

  Names and shapes are compared, tree by tree; trees that the system knows nothing of are let be.
  """
  table = system.trees()
  for name in (name for name in table if name in trees):
    got, want = leaf_shapes(trees[name]), leaf_shapes(tree_shapes(system, name))
    for leaf in sorted(got.keys() | want.keys()):
      if got.get(leaf) != want.get(leaf):
        raise InputError(
          f"{who}: holds the weights of another config: {name}/{leaf} is {got.get(leaf, 'absent')} "
          f"there and {want.get(leaf, 'absent')} by the config; use the config that made them"
        )


def trained_trees(system: System, part: Part) -> tuple[str, ...]:
  """Names of the trees of which at least one leaf trains."""
  shapes = {name: leaf_shapes(tree_shapes(system, name)) for name in part.reads}
  trains = lambda path: first_match(part.trains, path) > 0
  return tuple(n for n, leaves in shapes.items() if any(trains(f"{n}/{leaf}") for leaf in leaves))


def frozen_as_read(system: System, trees: Trees) -> dict[str, Params]:
  """Trees in the dtype in which they lie while they do not train: arrays, or shapes of them."""
  table = system.trees()
  return {name: _cast(table[name], tree) for name, tree in trees.items()}


def _cast(table: Tree, tree: Params) -> Params:
  def cast(path: str, leaf: Any) -> Any:
    dtype = jnp.dtype(first_match(table.dtypes, path))
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == dtype:
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaf.astype(dtype)

  flat = {path: cast(path, leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
  return unflatten_dict(flat, sep="/")
