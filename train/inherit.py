"""The trees that a run begins with: of another run, a release, public weights, or measured."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoints.run import latest_step, load_trees, origin_of, overlaid, tree_names
from emu_jax.checkpoints.stored import Stored, stored
from emu_jax.config import to_dict
from emu_jax.data.latent_records import Encoding
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.placement import global_batch, place
from emu_jax.systems.system import System, check_trees, tree_shapes
from emu_jax.train.checkpoint import Inherited, pin
from emu_jax.train.config import Experiment
from emu_jax.train.parts import Split, check_inherited, initial_trees
from emu_jax.typing import Params
from emu_jax.weights.model import described, load

# Fields of a network's configuration that change none of its weights.
SAME_WEIGHTS = ("dtype", "remat", "remat_keeps", "size", "num_frames")
# Of a text encoder which of its states a system reads is the system's own choice, too.
SAME_ENCODER = (
  *SAME_WEIGHTS,
  *("max_length", "penultimate", "final_norm", "use_padding_mask", "end_id"),
)


def source_of(experiment: Experiment) -> Stored | None:
  """The model that an experiment begins with, its weights not read; None where there is none.

  Raises: InputError where it is another model than the experiment's.
  """
  if not experiment.init_from:
    return None
  found = stored(experiment.init_from)
  if found.public:
    theirs, ours = found.system.networks, experiment.system.networks
    for name in theirs.keys() & ours.keys():
      check_same_config(ours[name], theirs[name], SAME_WEIGHTS, experiment.init_from, f"{name}: ")
  return found


def inherit(experiment: Experiment, source: Stored | None) -> tuple[Params, Inherited]:
  """Trees by name on the host, and which of them need not be stored again.

  What trains, and what a run or a release holds, is as it is stored; public weights that stay
  frozen are read in the precision of their network, in which they will lie.
  """
  trees: dict[str, Params] = {}
  trained = Split(experiment.system, experiment.part).trained_trees
  if source is not None:
    table = experiment.system.trees()
    for name in (n for n in source.names if n in table and table[n].released):
      dtypes = {dtype for _, dtype in table[name].dtypes}
      whole = len(dtypes) > 1 or name in trained or not source.public
      reading = {"dtype": None if whole else narrow(*dtypes), "host": True}
      trees |= source.load([name], reading)
    trees = {name: trees[name] for name in table if name in trees}
  origins = {}
  if source is not None and source.run is not None:
    found = {name: origin_of(source.run, name, tree, source.step) for name, tree in trees.items()}
    origins = {name: origin for name, origin in found.items() if origin is not None}
  for path, folder in public_trees(experiment).items():
    name, _, inner = path.partition("/")
    tree = load_network(experiment.system, path, folder, name in trained)
    trees[name] = overlaid(trees.get(name, {}), {inner: tree}) if inner else tree
    origins.pop(name, None)
  check_trees(experiment.system, trees, experiment.init_from or " ".join(experiment.init_trees))
  return trees, Inherited(origins, trees)


def narrow(dtype: str) -> str | None:
  """The precision in which public weights are read that lie in it; None as they are stored."""
  return None if dtype == "float32" else dtype


def found_shapes(experiment: Experiment, run_dir: pathlib.Path) -> Params:
  """Shapes of the trees that a run which continues began with; its own folder tells which."""
  table = experiment.system.trees()
  names = [name for name in tree_names(run_dir) if name in table]
  return {name: tree_shapes(experiment.system, name) for name in names}


def public_trees(experiment: Experiment) -> dict[str, str]:
  """Folder of a public network by the path of its tree, such as "text/0"."""
  return dict(text.split("=") for text in experiment.init_trees)


def check_public_trees(experiment: Experiment) -> None:
  """Raises InputError for a folder of `init_trees` that holds another network than the system's."""
  for path, folder in public_trees(experiment).items():
    check_network(experiment.system, path, folder)


def check_network(system: System, path: str, folder: str) -> Any:
  """The configuration of a system's network, which a folder of public weights agrees with."""
  table = system.trees()
  networks = {name: net for name, net in system.networks.items() if name.split("/")[0] in table}
  if path not in networks:
    raise InputError(
      f"--init_trees {path}={folder}: this system has no network {path!r}; it has "
      f"{', '.join(sorted(networks))}"
    )
  check_same_config(networks[path], described(folder)[1], SAME_ENCODER, folder, f"{path}: ")
  return networks[path]


def load_network(system: System, path: str, folder: str, trains: bool) -> Params:
  """A public network's weights: as stored where it trains, else in the precision it lies in."""
  config = check_network(system, path, folder)
  return load(folder, dtype=None if trains else narrow(config.dtype), host=True).params


def check_same_config(ours: Any, theirs: Any, free: tuple[str, ...], who: str, where: str) -> None:
  """Raises InputError that names the first field, but those of the names `free`, that differs."""
  ours, theirs = (
    {
      jax.tree_util.keystr(path, simple=True, separator="."): value
      for path, value in jax.tree_util.tree_leaves_with_path(
        to_dict(one), is_leaf=lambda value: value is None
      )
    }
    for one in (ours, theirs)
  )
  for name in sorted(ours.keys() | theirs.keys()):
    if ours.get(name) != theirs.get(name) and name.rpartition(".")[2] not in free:
      raise InputError(
        f"{who}: its {where}{name} is {theirs.get(name)!r}, the config's is {ours.get(name)!r}; "
        "use the config of this checkpoint, or change that field"
      )


def tell_of_rounded(experiment: Experiment, trees: Params) -> None:
  """Says on stderr which trees begin to train from numbers narrower than float32, and whence.

  A run keeps what does not train in its network's precision, and public weights may have no other.
  """
  named = {path.partition("/")[0]: folder for path, folder in public_trees(experiment).items()}
  for name, tree in initial_trees(experiment, trees).items():
    floats = (a.dtype for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating))
    for dtype in sorted({str(dtype) for dtype in floats if dtype.itemsize < 4}):
      print(
        f"tree {name!r} begins to train from {dtype} numbers of "
        f"{named.get(name, experiment.init_from)}; where float32 weights of it exist, begin with "
        "them by --init_from or --init_trees",
        file=sys.stderr,
      )


def measured(experiment: Experiment, trees: Params, data: Iterator, mesh: Mesh) -> Params:
  """Trees that are measured before the part trains, of the first batches; the data stays put."""
  part = experiment.definition
  missing = {name: one for name, one in part.measures.items() if name not in trees}
  if not missing:
    return {}
  if jax.process_index() == 0:
    print(f"{experiment.run_name}: measures {', '.join(missing)} of the data", file=sys.stderr)
  position = data.get_state()
  num = max(one.num_examples for one in missing.values()) // experiment.data.batch_size
  names = {name for one in missing.values() for name in one.reads if name in trees}
  read = place({name: trees[name] for name in sorted(names)}, mesh)
  programs = {name: Jit(one.one) for name, one in missing.items()}
  values: dict[str, list[Any]] = {name: [] for name in missing}
  with jax.set_mesh(mesh):
    for batch in itertools.islice(data, max(1, num)):  # one at a time: clips may be large
      placed = global_batch(batch, mesh)
      for name, program in programs.items():
        found = jax.device_get(program(read, placed))
        values[name].append(jax.tree.map(np.asarray, found))
  data.set_state(position)
  return {name: one.all(values[name]) for name, one in missing.items()}


@dataclasses.dataclass(frozen=True)
class Beginning:
  """What a run begins or continues with.

  Attributes:
    trees: by name: of a new run arrays on the host, of one that continues their shapes.
    inherited: what a new run keeps of them.
    fresh: whether it is a new one.
    folder: of the run.
  """

  trees: Params
  inherited: Inherited
  fresh: bool
  folder: pathlib.Path

  def read(self, names: Collection[str]) -> Params:
    """Arrays of some of the trees."""
    if self.fresh:
      return {name: self.trees[name] for name in names}
    return load_trees(self.folder, names)


def begin(experiment: Experiment, folder: pathlib.Path, encoding: Encoding | None) -> Beginning:
  """The trees of the runs before, or of the run's own folder where it continues.

  Raises: InputError where a tree is missing that the part builds on.
  """
  if latest_step(folder) is not None:
    return Beginning(found_shapes(experiment, folder), Inherited(), False, folder)
  source = source_of(experiment)
  named = {path.partition("/")[0] for path in public_trees(experiment)}
  check_inherited(experiment, (*(source.names if source else ()), *named), encoding)
  if source and source.run:
    pin(source.run, source.step)  # before it is read: its run may be alive, and keep newer ones
  trees, found = inherit(experiment, source)
  if jax.process_index() == 0:
    tell_of_rounded(experiment, trees)
  split = Split(experiment.system, experiment.part)
  whole = {n for n in split.trained_trees if not split.frozen({n: split.shapes[n]})}
  kept = Inherited(
    {name: origin for name, origin in found.origins.items() if name not in whole},
    {name: tree for name, tree in found.carried.items() if name not in split.trained_trees},
  )
  return Beginning(trees, kept, True, folder)
