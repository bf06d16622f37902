"""Everything a resumed run needs, and nothing that is not an array."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax.errors import InputError
from emu_jax.parallel.placement import place, with_shardings
from emu_jax.train.optimiser import OptimConfig, optimiser
from emu_jax.train.stage import Stage
from emu_jax.typing import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The trainable half of a run; the frozen half never changes and is an argument of the step."""

  step: Any  # [] int32, updates done
  params: Params
  ema: Params  # the structure of params, float32
  opt_state: Any
  averages: Params = dataclasses.field(default_factory=dict)  # by relative length, each as `ema`


def leaf_names(tree: Any) -> list[str]:
  """`mid/temporal/kernel` for each leaf, in the order of `jax.tree.leaves`."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def check_same(who: str, got: Any, want: Any) -> None:
  """Raises InputError with both sides where two trees differ in names or shapes.

  Args:
    who: begins the message: where `got` comes from.
  """
  g, w = (dict(zip(leaf_names(t), map(jnp.shape, jax.tree.leaves(t)), strict=True))
          for t in (got, want))  # fmt: skip
  lines = [f"  - {n} {s} in the model, not in it" for n, s in w.items() if n not in g]
  lines += [f"  + {n} {s} in it, not in the model" for n, s in g.items() if n not in w]
  lines += [f"  ! {n} is {g[n]}, the model's is {s}" for n, s in w.items() if g.get(n, s) != s]
  if lines:
    listed = "\n".join(lines[:8] + [f"  ... {len(lines) - 8} more"] * (len(lines) > 8))
    raise InputError(
      f"{who}: its arrays are not this model's; use the config it was made with\n{listed}"
    )


def initial_state(
  stage: Stage,
  config: OptimConfig,
  key: jax.Array,
  mesh: Mesh,
  given: Params | None = None,
) -> TrainState:
  """The state before the first update, made in place: no device holds more than its share.

  Args:
    given: trees to begin from instead of `stage.init`'s, all of the trainable ones or some.
  """
  given = dict(given or {})
  check_given(stage, key, given)
  shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage, config, key, mesh))
  return jax.jit(_state, static_argnums=(0, 1), out_shardings=shardings)(
    stage.init, config, key, place(given, mesh)
  )


def abstract_state(stage: Stage, config: OptimConfig, key: jax.Array, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and placement of the state, without any array."""
  return with_shardings(jax.eval_shape(lambda key: _state(stage.init, config, key, {}), key), mesh)


def check_given(stage: Stage, key: jax.Array, given: Params) -> None:
  """Raises InputError unless every given tree is one that the stage trains, shape by shape."""
  trainable = jax.eval_shape(stage.init, key)
  for name, tree in given.items():
    if name not in trainable:
      raise InputError(
        f"initial trees: {name!r} does not train in this stage, only {sorted(trainable)} do"
      )
    check_same(f"initial tree {name!r}", tree, trainable[name])


def _state(init, config, key, given):
  trainable = init(key)
  cast = lambda new, old: jnp.asarray(new, old.dtype)
  params = {
    name: jax.tree.map(cast, given.get(name, tree), tree) for name, tree in trainable.items()
  }
  ema = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  averages = {str(length): ema for length in config.ema_lengths}
  return TrainState(jnp.zeros((), jnp.int32), params, ema, optimiser(config).init(params), averages)
