"""Arithmetic of a function by its products and convolutions, whatever a compiler makes of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

CHECKPOINTS = ("checkpoint", "remat", "remat2")


def count(function: Callable, *arguments: Any) -> int:
  """Operations (a product and a sum are two) of matrix products and convolutions.

  A scan counts as often as it runs, the branches of a condition as their largest, and a `while`
  whose rounds depend on values as one round. What is recomputed (`jax.checkpoint`) counts again.

  Args:
    arguments: arrays, or their shapes (`jax.ShapeDtypeStruct`).
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_gradient(loss: Callable, params: Any, *others: Any) -> int:
  """Operations of a scalar loss and its gradient by `params`, none of them a recomputation.

  Args:
    params: arrays or their shapes, as the other arguments.
  """
  kept = core.jaxpr_as_fun(without_recomputation(jax.make_jaxpr(loss)(params, *others)))
  scalar = lambda params, others: kept(*params, *others)[0]
  return count(jax.value_and_grad(scalar), jax.tree.leaves(params), jax.tree.leaves(others))


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(map(_equation, jaxpr.eqns))


def _equation(eqn: core.JaxprEqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * eqn.outvars[0].aval.size * inner
  if name == "conv_general_dilated":
    return _convolution(eqn)
  parts = [_count(part) for part in inner_jaxprs(params)]
  if name == "cond":
    return max(parts, default=0)
  return params.get("length", 1) * sum(parts) if name == "scan" else sum(parts)


def _convolution(eqn: core.JaxprEqn) -> int:
  """Each tap of the kernel at each result; zeros between dilated inputs are not worked on."""
  kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.size
  spec = eqn.params["dimension_numbers"].rhs_spec  # features out, features in, space ...
  taps = math.prod(kernel[axis] for axis in spec[1:])
  return 2 * out * taps // math.prod(eqn.params["lhs_dilation"])


def without_recomputation(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
  """The same function with no `jax.checkpoint` in it: its gradient computes everything once."""

  def run(*arguments):
    return _run(closed, arguments)

  return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals))


def _run(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
  known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
  known |= zip(closed.jaxpr.invars, arguments, strict=True)
  read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
  for eqn in closed.jaxpr.eqns:
    given, params = [read(atom) for atom in eqn.invars], eqn.params
    if eqn.primitive.name in CHECKPOINTS:
      results = _run(core.ClosedJaxpr(params["jaxpr"], ()), given)
    else:
      if not eqn.primitive.name.startswith("custom_"):  # whose derivatives are written out
        params = {name: _plain(value) for name, value in params.items()}
      with eqn.ctx.manager:  # a mesh, where the equation was traced under one
        results = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(params))
      results = results if eqn.primitive.multiple_results else [results]
    known |= zip(eqn.outvars, results, strict=True)
  return [read(atom) for atom in closed.jaxpr.outvars]


def _plain(value: Any) -> Any:
  """A parameter of an equation, the programs in it without recomputation."""
  if isinstance(value, core.ClosedJaxpr):
    return without_recomputation(value)
  if isinstance(value, tuple) and any(isinstance(part, core.ClosedJaxpr) for part in value):
    return tuple(map(_plain, value))
  return value


def inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """The programs inside an equation: bodies of loops, branches, functions that it calls."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part
