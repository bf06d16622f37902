"""The blocks of networks in a traced function: what each computes, how often, what is kept of it.

A block is a module that one of `NETWORKS` calls: a residual block, a transformer, a layer of a text
encoder. While a function is traced each block becomes an equation of its own; the equations are
then read in order, as JAX's differentiation would read them: what depends on a trained parameter is
differentiated, and nothing else is.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend import core

from emu_jax.models.autoencoder import Autoencoder, Decoder, Encoder
from emu_jax.models.discriminator import PatchDiscriminator
from emu_jax.models.text import ClipText, T5Encoder
from emu_jax.models.unet import UNet
from emu_jax.train.planning.flops import CHECKPOINTS, inner_jaxprs

NETWORKS = (UNet, Autoencoder, Encoder, Decoder, PatchDiscriminator, ClipText, T5Encoder)
PREFIX = "block "  # of the name of a block's equation; its number follows


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of the traced function.

  Attributes:
    key: another one for every array; equal keys are one array in memory.
    trained: it depends on what trains, so that it has a gradient.
    weight: an argument of the function, which lies in memory before and after.
    of_block: a block made it, and nothing has changed it since.
  """

  key: int
  shape: tuple[int, ...]
  dtype: Any
  trained: bool = False
  weight: bool = False
  of_block: bool = False

  @property
  def size(self) -> int:
    """Bytes of all of it."""
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Call:
  """A block, called once or in a loop.

  Attributes:
    kind: class of the module.
    name: path in its network.
    jaxpr: what it computes; parameters first, then activations.
    paths: of the parameters.
    inputs: arrays that it is given, parameters first.
    outputs: arrays that it gives.
    times: how often it is called.
    policy: of `jax.checkpoint`, () where it is recomputed whole, None where it is not recomputed.
    alive: arrays, beside its inputs, that are read after it too.
  """

  kind: str
  name: str
  jaxpr: core.ClosedJaxpr
  paths: tuple[str, ...]
  inputs: tuple[Array, ...]
  outputs: tuple[Array, ...]
  times: int
  policy: Any
  alive: tuple[Array, ...]

  @property
  def activations(self) -> tuple[Array, ...]:
    return self.inputs[len(self.paths) :]

  @property
  def smooth_outputs(self) -> tuple[Array, ...]:
    """Those with cotangents."""
    return tuple(array for array in self.outputs if array.trained)

  @property
  def differentiated(self) -> bool:
    return any(array.trained for array in self.inputs)

  @property
  def key(self) -> str:
    """Equal for calls that compile to equal programs."""
    trained = tuple(array.trained for array in self.inputs)
    return repr((str(self.jaxpr), self.paths, trained, self.policy))


def trace(function: Callable, trained: Any, *arguments: Any) -> list[Call]:
  """The calls of blocks in `function(trained, *arguments)`, in their order.

  Args:
    trained: shapes of what `function` would be differentiated for; None for nothing.
    arguments: shapes of everything else.
  """
  modules = []
  with nn.intercept_methods(_cutter(modules)):
    closed = jax.make_jaxpr(function)(trained, *arguments)
  reader = _Reader(modules)
  num_trained = len(jax.tree.leaves(trained))
  arrays = [
    reader.array(var.aval, trained=i < num_trained and _is_float(var.aval), weight=True)
    for i, var in enumerate(closed.jaxpr.invars)
  ]
  reader.read(closed.jaxpr, arrays, times=1, policy=None, around=())
  return reader.calls


def _cutter(modules: list[tuple[str, str, tuple[str, ...]]]) -> Callable:
  """An interceptor that makes each block an equation of its own; `modules` says what they are."""
  inside = False

  def intercept(method, args, kwargs, context):
    nonlocal inside
    module = context.module
    cut = context.method_name == "__call__" and not isinstance(module, NETWORKS)
    leaves = jax.tree.leaves((args, kwargs))
    if inside or not cut or not all(isinstance(a, jax.Array | np.ndarray) for a in leaves):
      return method(*args, **kwargs)
    free = module.clone(parent=None, name=None)
    variables = module.variables

    def block(variables, args, kwargs):
      return free.apply(variables, *args, **kwargs)

    block.__name__ = f"{PREFIX}{len(modules)}"
    flat = jax.tree_util.tree_leaves_with_path(variables.get("params", {}))
    paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat)
    modules.append((type(module).__name__, "/".join(module.path), paths))
    inside = True
    try:
      return jax.jit(block)({"params": variables.get("params", {})}, args, kwargs)
    finally:
      inside = False

  return intercept


class _Reader:
  """Reads equations in order and gathers the calls."""

  def __init__(self, modules):
    self.modules, self.calls, self.keys = modules, [], itertools.count()

  def array(self, aval, **marks) -> Array:
    return Array(next(self.keys), getattr(aval, "shape", ()), getattr(aval, "dtype", None), **marks)

  def read(self, jaxpr, arrays, times, policy, around) -> list[Array]:
    """Arrays that a jaxpr gives for the arrays it is given.

    Args:
      times: how often it runs.
      policy: as of `Call`, of what is around it.
      around: arrays that are read after it.
    """
    known = dict(zip(jaxpr.invars, arrays, strict=True))
    known |= {var: self.array(var.aval, weight=True) for var in jaxpr.constvars}
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in _vars(eqn.invars)}
    last |= dict.fromkeys(_vars(jaxpr.outvars), len(jaxpr.eqns))
    look = lambda atom: self.array(atom.aval) if isinstance(atom, core.Literal) else known[atom]
    for i, eqn in enumerate(jaxpr.eqns):
      given = [look(atom) for atom in eqn.invars]
      if not any(var in last for var in eqn.outvars):
        continue  # its results are not used, and the compiler leaves it out
      later = [known[var] for var, at in last.items() if at > i and var in known]
      results = self.equation(eqn, given, times, policy, (*around, *later))
      known |= dict(zip(eqn.outvars, results, strict=True))
    return [look(atom) for atom in jaxpr.outvars]

  def equation(self, eqn, given, times, policy, around) -> list[Array]:
    name, params = eqn.primitive.name, eqn.params
    trained = any(array.trained for array in given)
    if str(params.get("name", "")).startswith(PREFIX):
      return self.block(eqn, given, times, policy, around)
    if name == "stop_gradient":
      trained = False
    inner = params["body_jaxpr"].jaxpr if name == "while" else next(inner_jaxprs(params), None)
    if inner is None:
      return [self.array(v.aval, trained=trained and _is_float(v.aval)) for v in eqn.outvars]
    if name == "scan":
      times *= params["length"]
    if name == "while" or len(inner.invars) != len(given):  # or a choice of branches
      given = [self.array(v.aval, trained=trained and _is_float(v.aval)) for v in inner.invars]
    if name == "scan":  # each round is given what the one before it made
      start = params["num_consts"]
      stop = start + params["num_carry"]
      carry = inner.invars[start:stop]
      again = [self.array(v.aval, trained=trained and _is_float(v.aval)) for v in carry]
      whole, rows = given[stop:], inner.invars[stop:]  # a round reads one row of each
      rows = [
        self.array(v.aval, trained=a.trained, weight=a.weight)
        for v, a in zip(rows, whole, strict=True)
      ]
      given, around = [*given[:start], *again, *rows], (*around, *whole)
    if name in CHECKPOINTS:
      policy = params["policy"] or ()
    results = self.read(inner, given, times, policy, around)
    if name in ("scan", "while", "cond") or len(results) != len(eqn.outvars):
      return [self.array(v.aval, trained=trained and _is_float(v.aval)) for v in eqn.outvars]
    return results

  def block(self, eqn, given, times, policy, around) -> list[Array]:
    kind, name, paths = self.modules[int(eqn.params["name"].removeprefix(PREFIX))]
    trained = any(array.trained for array in given)
    outputs = [
      self.array(var.aval, trained=trained and _is_float(var.aval), of_block=True)
      for var in eqn.outvars
    ]
    unique = {array.key: array for array in around if not array.weight}
    for array in given:
      unique.pop(array.key, None)
    alive = tuple(unique.values())
    self.calls.append(
      Call(kind, name, eqn.params["jaxpr"], paths, tuple(given), tuple(outputs), times, policy,
           alive)
    )  # fmt: skip
    return outputs


def _vars(atoms: Iterable[Any]) -> list[Any]:
  return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _is_float(aval: Any) -> bool:
  return jax.numpy.issubdtype(getattr(aval, "dtype", np.int32), np.floating)
