"""Networks that published distances are defined by: their weights, read from a user's own file."""

import fnmatch
import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from emu_jax.errors import InputError
from emu_jax.typing import Params
from emu_jax.weights.files import Tensors
from emu_jax.weights.table import Row, Rule, by_tensor, rows, split, tensor_shape

EPSILON = 1e-3  # of TensorFlow's batch norms, which these networks were trained with
# Of a batch norm in PyTorch; its scale and bias go by their usual names.
STATISTICS: tuple[Rule, ...] = (("mean", "running_mean"), ("var", "running_var"))
COUNTERS = "*.num_batches_tracked"  # beside every batch norm; not a weight


class StoredBatchNorm(nn.Module):
  """Batch norm by the statistics of training, which are parameters here: nothing is updated."""

  @nn.compact
  def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    C, ones, zeros = (x.shape[-1],), nn.initializers.ones, nn.initializers.zeros
    mean, var = self.param("mean", zeros, C), self.param("var", ones, C)
    factor = self.param("scale", ones, C) * jax.lax.rsqrt(var + EPSILON)
    shift = self.param("bias", zeros, C) - mean * factor
    last = (1,) * (x.ndim - 1) + C
    return x * factor.reshape(last) + shift.reshape(last)


def bilinear(x: Float[Array, "... H W C"], size: int) -> Float[Array, "... S S C"]:
  """Bilinear interpolation to a square, half-pixel centres, never smoothed before a reduction.

  Without antialiasing, since the networks' published distances are of pictures reduced so.
  """
  shape = (*x.shape[:-3], size, size, x.shape[-1])
  return jax.image.resize(x, shape, "linear", antialias=False)


def shapes_of(module: nn.Module, *inputs: tuple[int, ...]) -> Params:
  """Shapes of a module's parameters for inputs of these shapes; nothing is computed."""
  zeros = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  return jax.eval_shape(module.init, jax.random.key(0), *zeros)["params"]


def table(shapes: Params, rules: Sequence[Rule] = ()) -> Mapping[str, tuple[Row, ...]]:
  """Our parameters by the public tensor that each of them is.

  Args:
    rules: names that are not the public ones, as emu_jax.weights.table takes them; the rest are.
  """
  parts = {part for leaf in flatten_dict(shapes) for part in leaf[:-1]}
  return by_tensor(rows(shapes, (*rules, *STATISTICS, *((part, part) for part in parts))))


def opened(path: str | pathlib.Path, name: str) -> Tensors:
  """The tensors of a file or folder. Raises: InputError, with the network's name, for none."""
  if not pathlib.Path(path).exists():
    raise InputError(
      f"weights: there is no {path}, to hold {name}; docs/metrics.md says where to have it from"
    )
  return Tensors(path)


def load(
  path: str | pathlib.Path,
  name: str,
  groups: Mapping[str, tuple[Row, ...]],
  ignored: Sequence[str] = (),
  widen: bool = False,
) -> Params:
  """Parameters out of a `.safetensors` file or a folder with one.

  Args:
    name: of the network, for messages.
    groups: our parameters by public tensor.
    ignored: globs of public tensors that the features do not need.
    widen: take float16 tensors too, as float32.
  Raises: InputError where a tensor is missing, unknown, of another shape or not float32.
  """
  tensors = opened(path, name)
  known = lambda key: any(fnmatch.fnmatchcase(key, glob) for glob in (COUNTERS, *ignored))
  here = [key for key in groups if key in tensors]
  found = {
    "tensors are missing": sorted(set(groups) - set(here)),
    "are unknown": sorted(key for key in set(tensors) - set(groups) if not known(key)),
    "have another shape": [
      f"{key} {tensors[key].shape} instead of {tensor_shape(groups[key])}"
      for key in here
      if tensors[key].shape != tensor_shape(groups[key])
    ],
    # Distances of features in less than float32 compare with no published one.
    "are not float32": [
      f"{key} of {tensors[key].dtype}"
      for key in here
      if tensors[key].dtype not in (("F32", "F16") if widen else ("F32",))
    ],
  }
  wrong = [
    f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
    for what, keys in found.items()
    if keys
  ]
  if wrong:
    raise InputError(
      f"weights: {path} is not {name}: {'; '.join(wrong)}; docs/metrics.md says which file it is"
    )
  leaves = {}
  for key, group in groups.items():
    leaves |= split(group, tensors.read(key).astype(np.float32))
  return unflatten_dict(leaves, sep="/")
