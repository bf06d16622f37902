"""What a program makes, read off its jaxpr."""

import jax
from jax.extend import core


def largest(jaxpr) -> int:
  """Elements of the largest array that a program makes, inside its loops too."""
  return max((size for _, size in arrays(jaxpr)), default=0)


def arrays(jaxpr) -> list[tuple[tuple[int, ...], int]]:
  """Shape and number of elements of every array that a program makes, inside its loops too."""
  found = [(var.aval.shape, var.aval.size) for eqn in jaxpr.eqns for var in eqn.outvars]
  for eqn in jaxpr.eqns:
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(value):
        found += arrays(getattr(value, "jaxpr", value))
  return found


def _is_jaxpr(value) -> bool:
  return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
