"""Any system in memory: what it can be asked for, each step one jitted program.

A program's shape (examples, frames, steps, solver) is static; prompts, seeds, scales and weights
are inputs, so that another prompt or seed compiles nothing.
"""

import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoints.stored import Stored, stored
from emu_jax.config import refused, replaced
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer, unlearned
from emu_jax.errors import InputError
from emu_jax.parallel.activations import platform
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.mesh import on
from emu_jax.parallel.placement import on_host, place
from emu_jax.systems.fields import fitted, positional, required
from emu_jax.systems.system import (
  Arrays,
  Step,
  System,
  Task,
  Trees,
  check_trees,
  frozen_as_read,
  seed_halves,
  trained_trees,
  tree_shapes,
)
from emu_jax.weights.model import Precision

SHIPPED = pathlib.Path(__file__).with_name("shipped") / "shapes_64"
Say = Callable[[str], None]
PROMPTS = ("prompt", "negative")  # fields of requests that are tokenised
PER_EXAMPLE = (*PROMPTS, "blank", "seeds")  # arrays with an entry an example, beside all media


class Clips(NamedTuple):
  """What a task gives."""

  frames: np.ndarray  # uint8 [B, T, H, W, 3]
  fps: float  # frames a second


@dataclasses.dataclass(frozen=True)
class Model:
  """A system with its weights and tokenizers; make one with `load`.

  Every task is a method too: `model.sample("a prompt", frames=8)` is
  `model.run("sample", prompt="a prompt", frames=8)`.
  """

  system: System
  trees: Trees
  tokenizers: tuple[Tokenizer, ...]
  where: str  # the folder it came from, for messages
  tokenizer_folders: tuple[pathlib.Path, ...] = ()
  mesh: Mesh | None = None  # that the trees lie on; None: one device

  @property
  def tasks(self) -> Mapping[str, Task]:
    """What can be asked of it, by name."""
    return self.system.tasks()

  def __getattr__(self, name: str) -> Callable[..., Clips]:
    if name.startswith("_") or "system" not in vars(self):  # of a copy that is being made, too
      raise AttributeError(f"{type(self).__name__} has no {name!r}")
    if name not in self.tasks:
      tasks = ", ".join(self.tasks)
      raise AttributeError(f"{type(self).__name__} has no {name!r}; its tasks are {tasks}")

    def run(*values: Any, **fields: Any) -> Clips:
      places = positional(self.tasks[name].request)
      if len(values) > len(places):
        raise InputError(f"{name}: {len(values)} values without a name; it takes {places}")
      return self.run(name, **dict(zip(places, values, strict=False)), **fields)

    return run

  def __dir__(self) -> list[str]:
    return [*super().__dir__(), *self.tasks]

  def run(self, task: str, /, *, progress: Say = lambda line: None, **fields: Any) -> Clips:
    """Frames for a request, of as many examples as it has prompts or pictures.

    Args:
      progress: called with the name of each step as it begins.
      fields: of the task's request.
    Raises: InputError for what the model cannot do, before any sampling.
    """
    return self.run_all(task, [self.request(task, **fields)], progress=progress)

  def run_all(
    self,
    task: str,
    requests: Sequence[Any],
    *,
    arrays: Arrays | None = None,
    progress: Say = lambda line: None,
  ) -> Clips:
    """Frames for requests of one program, in one batch; each has what it would have alone.

    Each draws its noise of its seed. Sums in float32 may round in another order than alone, where
    the compiler makes another program of another batch size.

    Args:
      arrays: of the requests, where `arrays` has made them already.
    Raises: InputError as `run`, and for requests that are not of one program; FloatingPointError
      for what a step made that is no number.
    """
    steps, *others = (self.steps(task, request) for request in requests)
    if different := [i for i, other in enumerate(others, 1) if other != steps]:
      raise InputError(
        f"{task}: request {different[0]} takes other programs than request 0 (length, size, steps "
        "and solver decide); run it in another batch"
      )
    arrays = dict(self.arrays(task, requests) if arrays is None else arrays)
    if jax.process_count() > 1:  # what one process alone holds goes beside no mesh of several
      arrays = jax.device_get(arrays)
    for step in steps:
      progress(step.says)
      trees = {name: self.trees[name] for name in step.reads}
      with on(self.mesh):
        made = program(step.program)(trees, arrays, static=step.static)
      require_finite(made, f"{task}, {step.says}", len(arrays["seeds"]))
      arrays |= jax.block_until_ready(made)
    return Clips(on_host(arrays["frames"]), self.fps(task, requests[0]))

  def fps(self, task: str, request: Any) -> float:
    """Frames a second of what a request gives."""
    return self.tasks[task].fps(request, set(self.trees))

  def shape(
    self, task: str, request: Any, arrays: Arrays | None = None
  ) -> tuple[int, int, int, int, int]:
    """B T H W C of what a request gives, without computing it; weights are not needed.

    Args:
      arrays: of the request, where `arrays` has made them already.
    """
    arrays = dict(self.arrays(task, [request]) if arrays is None else arrays)
    for step in self.steps(task, request):
      trees = {name: tree_shapes(self.system, name) for name in step.reads}
      arrays |= jax.eval_shape(functools.partial(step.program, static=step.static), trees, arrays)
    return arrays["frames"].shape

  def request(self, task: str, /, **fields: Any) -> Any:
    """A task's request.

    Raises: InputError for a task or a field that there is not, and for a value of another type.
    """
    kind = task_of(self.system, task, self.where).request
    known = [field.name for field in dataclasses.fields(kind)]
    if "progress" in known:
      raise InputError(
        f"{task}: its request has a field 'progress', which is an argument of every task; rename "
        "the field"
      )
    if unknown := [name for name in fields if name not in known]:
      raise InputError(f"{task}: has no field {unknown[0]!r}; it has {', '.join(known)}")
    if absent := [name for name in required(kind) if name not in fields]:
      raise InputError(f"{task}: needs {absent[0]!r}; give it")
    prompts = {name: texts(task, name, fields[name]) for name in PROMPTS if name in fields}
    hints, values = typing.get_type_hints(kind), {}
    for name in (name for name in fields if name not in prompts):
      with refused(f"{task}: {name}"):
        values[name] = fitted(fields[name], hints[name])
    try:
      return kind(**values | prompts)
    except ValueError as error:  # a request does not know the name of its task
      raise InputError(f"{task}: {error}") from error

  def steps(self, task: str, request: Any) -> tuple[Step, ...]:
    """The programs of a request, checked. Raises: InputError where weights are missing."""
    with refused(task):
      steps = self.tasks[task].steps(request, set(self.trees))
    self.require(*dict.fromkeys(name for step in steps for name in step.reads))
    return steps

  def require(self, *names: str) -> None:
    """Raises InputError where a tree that an operation needs was never trained.

    Of several the first one that a part of the system makes is named.
    """
    makers = {name: self._makers(name) for name in names if name not in self.trees}
    if makers:
      name = next((name for name, parts in makers.items() if parts), next(iter(makers)))
      maker = f"train its {makers[name][0]!r} part" if makers[name] else "give one that has them"
      raise InputError(f"{self.where}: the model has no {name!r} weights; {maker}, or ask for less")

  def _makers(self, name: str) -> list[str]:
    """The parts that measure or train a tree."""
    parts = self.system.parts().items()
    return [k for k, p in parts if name in p.measures or name in trained_trees(self.system, p)]

  def arrays(self, task: str, requests: Sequence[Any]) -> Arrays:
    """What the programs begin with; examples of several requests one after another.

    Files are read once for all requests that differ in their seed alone.

    Raises: InputError where a number that all examples share differs.
    """
    parts, made = [], {}
    for request in requests:
      fields = tuple(id(value) for name, value in vars(request).items() if name != "seed")
      if fields not in made:
        made[fields] = self._arrays(task, request)
      seeds = np.arange(len(made[fields]["seeds"]), dtype=np.uint64) + getattr(request, "seed", 0)
      parts.append(made[fields] | {"seeds": seed_halves(seeds)})
    if len(parts) == 1:
      return parts[0]
    joined = {}
    for name, first in parts[0].items():
      if name in PER_EXAMPLE or np.ndim(first) == 5:
        examples = (part[name] for part in parts)
        joined[name] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *examples)
        continue
      joined[name] = first
      if not all(np.array_equal(part[name], first) for part in parts):
        raise InputError(f"{task}: {name} differs between requests of one batch; give one value")
    return joined

  def _arrays(self, task: str, request: Any) -> Arrays:
    """What the programs begin with, of one request, whose seeds are still to be set."""
    with refused(task):
      arrays = self.tasks[task].arrays(request)
    words = {name: value for name in PROMPTS if (value := getattr(request, name, None)) is not None}
    lists = {name: (value,) if isinstance(value, str) else value for name, value in words.items()}
    media = {name for name, a in arrays.items() if np.ndim(a) == 5}
    sizes = {name: len(arrays[name]) for name in media}
    sizes |= {name: len(values) for name, values in lists.items()}
    several = {name: n for name, n in sizes.items() if n != 1}
    if len(set(several.values())) > 1:
      raise InputError(f"{task}: {several} examples do not go together; give one of each, or one")
    B = max(several.values(), default=1)
    arrays |= {name: jnp.asarray(np.repeat(arrays[name], B // len(arrays[name]), axis=0))
               for name in media}  # fmt: skip
    for name, values in lists.items():
      arrays[name] = self.tokens(list(values) * (B // len(values)))
    if "negative" in lists:
      blank = [not text for text in lists["negative"]]
      arrays["blank"] = jnp.asarray(blank * (B // len(blank)))
    return arrays | {"seeds": jnp.zeros((B, 2), jnp.uint32)}

  def unlearned(self, request: Any) -> dict[str, list[str]]:
    """Words of a request's texts that the model never met, each with the nearest that it did.

    Known of small tokenizers alone that were learned with the model.
    """
    given = [value for name in PROMPTS if (value := getattr(request, name, None))]
    every = [text for value in given for text in ([value] if isinstance(value, str) else value)]
    found: dict[str, list[str]] = {}
    for tokenizer, encoder in zip(self.tokenizers, self.system.texts, strict=False):
      for text in every:
        found |= unlearned(tokenizer, encoder.vocab_size, text)
    return found

  def tokens(self, prompts: Sequence[str]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Token ids and masks [B, L], one an encoder; InputError for a prompt that is too long."""
    if len(self.tokenizers) != len(self.system.texts):
      raise InputError(
        f"{self.where}: has {len(self.tokenizers)} tokenizers for {len(self.system.texts)} text "
        "encoders; copy its folder tokenizers/ from the original run"
      )
    pairs = [tokenizer(list(prompts), overflow="error") for tokenizer in self.tokenizers]
    return tuple(jnp.asarray(ids) for ids, _ in pairs), tuple(jnp.asarray(m) for _, m in pairs)


def require_finite(made: Arrays, who: str, examples: int) -> None:
  """Raises FloatingPointError, beginning with `who`, where a step's arrays hold no numbers.

  Of floats every value counts; of bytes, which cannot say it, the step's "finite", bool [B].
  """
  floats = [a for a in jax.tree.leaves(made) if jnp.issubdtype(a.dtype, jnp.floating)]
  flags = [made["finite"]] if "finite" in made else []
  if not all(map(bool, jax.device_get([*map(_all_finite, floats), *map(jnp.all, flags)]))):
    raise FloatingPointError(
      f"{who}: of {examples} examples some came out as NaN or infinity, and nothing of them is "
      "kept; try another precision (float32), fewer or smaller scales of guidance, or other weights"
    )


@jax.jit
def _all_finite(a: jax.Array) -> jax.Array:
  return jnp.isfinite(a).all()


@functools.cache
def program(function: Callable) -> Jit:
  """A step's function, compiled once for each static value and shape of its arrays."""
  return Jit(function, static_argnames="static")


def task_of(system: System, name: str, where: str) -> Task:
  """A system's task. Raises: InputError with the tasks that there are."""
  tasks = system.tasks()
  if name not in tasks:
    raise InputError(
      f"{where}: has no task {name!r}; this model's are {', '.join(tasks) or 'none'}"
    )
  return tasks[name]


def texts(task: str, name: str, given: Any) -> str | tuple[str, ...]:
  """One text, or one an example. Raises: InputError for anything else, and for none."""
  if isinstance(given, str):
    return given
  if not isinstance(given, Sequence) or not given or not all(isinstance(t, str) for t in given):
    raise InputError(f"{task}: {name}={given!r} is no text and no list of texts; give one")
  return tuple(given)


def load(
  where: str | pathlib.Path = SHIPPED,
  *,
  dtype: Precision | Literal["stored"] | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
  **options: Any,
) -> Model:
  """A model that samples.

  Args:
    where: a run of emu-train, a folder of the runs of a recipe, of which the last is taken, what
      `emu-jax convert --to safetensors` made of one, or a pipeline of diffusers. Of runs the
      averaged weights are taken.
    dtype: of matmuls, and of the weights of all networks; "stored": as the model is; None: bfloat16
      on GPUs and TPUs, as the model is on CPUs.
    widen: take float16 weights of a public folder as float32.
    mesh: of the devices that hold the weights in pieces and sample together; None: one device.
    options: further folders that a public pipeline takes, such as `motion_adapter`; of a run
      `ema_length`, the relative length of the average to take (emu_jax.checkpoints.averages).
  Raises: InputError where the folder is none of these, or one of another version.
  """
  return loaded(stored(where, **options), dtype=dtype, widen=widen, mesh=mesh)


def loaded(
  found: Stored,
  *,
  dtype: Precision | Literal["stored"] | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
) -> Model:
  """The model of what `stored` described; arguments as of `load`."""
  model = outlined(found)
  if dtype is None and _platform(mesh) != "cpu":
    dtype = "bfloat16"
  dtype = None if dtype == "stored" else dtype
  trees = dict(found.load(tuple(model.trees), {"dtype": dtype, "widen": widen, "mesh": mesh}))
  if not found.fits:
    check_trees(found.system, trees, found.where)
  system = found.system
  if dtype is not None:
    system = replaced(system, "dtype", dtype)
    trees = frozen_as_read(system, trees)
  if not found.public:
    trees = jax.tree.map(jnp.asarray, trees) if mesh is None else place(trees, mesh)
  return dataclasses.replace(model, system=system, trees=trees, mesh=mesh)


def _platform(mesh: Mesh | None) -> str:
  """Of the devices that a model will lie on."""
  return platform() if mesh is None else mesh.devices.flat[0].platform


def outlined(found: Stored) -> Model:
  """A model without its weights: it checks requests, and runs none."""
  table = found.system.trees()
  names = [name for name in found.names if name in table and table[name].released]
  # A model without text encoders yet, such as an autoencoder alone, has no tokenizers.
  folders = found.tokenizers if found.public or "text" in names else ()
  tokenizers = load_tokenizers(found.system.texts, folders)
  return Model(found.system, {name: {} for name in names}, tokenizers, found.where, folders)


def load_tokenizers(
  encoders: Sequence[Any], folders: Sequence[pathlib.Path]
) -> tuple[Tokenizer, ...]:
  """Tokenizers, one a text encoder, none with ids that its encoder does not have."""
  pairs = zip(encoders, folders, strict=True) if folders else ()
  return tuple(checked_tokenizer(folder, encoder) for encoder, folder in pairs)


def checked_tokenizer(folder: str | pathlib.Path, encoder: Any) -> Tokenizer:
  """A text encoder's tokenizer. Raises: InputError for token ids that the encoder does not have."""
  tokenizer = load_tokenizer(folder, encoder.max_length)
  if tokenizer.vocab_size > encoder.vocab_size:
    raise InputError(
      f"{folder}: has {tokenizer.vocab_size} tokens, its text encoder vocab_size="
      f"{encoder.vocab_size}; use the tokenizer that the encoder was trained with"
    )
  return tokenizer
