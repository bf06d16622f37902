"""Arithmetic of a function by its products and convolutions, whatever a compiler makes of it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count(function: Callable, *arguments: Any) -> int:
  """Operations (a product and a sum are two) of matrix products and convolutions.

  A scan counts as often as it runs, the branches of a condition as their largest, and a `while`
  whose rounds depend on values as one round. What is recomputed (`jax.checkpoint`) counts again.

  Args:
    arguments: arrays, or their shapes (`jax.ShapeDtypeStruct`).
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


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


def inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """The programs inside an equation: bodies of loops, branches, functions that it calls."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part
