"""One public model in and out: config.json with safetensors, or with our Orbax copy of them."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from emu_jax.config import check_kinds
from emu_jax.errors import InputError
from emu_jax.parallel.placement import leaf_sharding
from emu_jax.typing import Params
from emu_jax.weights import files
from emu_jax.weights.architecture import Architecture
from emu_jax.weights.architectures import ARCHITECTURES
from emu_jax.weights.arrays import load_numpy
from emu_jax.weights.options import Options
from emu_jax.weights.table import join, split, tensor_shape

Precision = Literal["float32", "bfloat16"]
# Tensors that are read and laid out at a time: copying them is most of the work.
THREADS = min(8, os.cpu_count() or 1)
PARAMS = "params"  # folder of our own copy of the weights, beside config.json
_HALF = "F16"
_SUPPORTED = ("F32", "BF16", _HALF)


class Loaded(NamedTuple):
  """A network and its weights: `module.apply({"params": params}, …)`."""

  module: nn.Module  # its configuration is `module.config`
  params: Params


def load(
  path: str | pathlib.Path,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
  host: bool = False,
) -> Loaded:
  """The network of a diffusers or transformers folder, or of a converted one, with its weights.

  Weights are read a few tensors at a time, so that the host never holds two copies.

  Args:
    dtype: of weights and matmuls; None keeps the weights as they are stored and computes in
      float32.
    widen: take float16 weights too, as float32. Without it they are refused: float16 has lost
      small numbers that no later precision brings back.
    mesh: where each array goes, by the rules of parallel.placement; None: JAX's first device.
    host: leave the arrays to numpy instead, for who places them later.
  Raises: InputError for anything but a whole checkpoint of a known class with known options.
  """
  path = pathlib.Path(path)
  architecture, config = described(path)
  if dtype is not None:
    config = dataclasses.replace(config, dtype=dtype)
  put = (lambda _, array: array) if host else functools.partial(_put, mesh)
  if (path / PARAMS).is_dir():
    leaves = flatten_dict(load_numpy(path / PARAMS), sep="/")
    _fitting(architecture, config, leaves, f"{path / PARAMS} holds other parameters than those")
    cast = lambda a: a if dtype is None else a.astype(dtype)
    params = unflatten_dict({p: put(p, cast(leaves.pop(p))) for p in list(leaves)}, sep="/")
  else:
    params = _read(architecture, config, path, dtype, widen, put)
  return Loaded(architecture.module(config), params)


def described(path: str | pathlib.Path) -> tuple[Architecture, Any]:
  """The architecture that a folder's config.json names, and our config of it."""
  values = files.read_json(pathlib.Path(path) / "config.json")
  where = f"weights: {pathlib.Path(path) / 'config.json'}"
  name = values.get("_class_name") or (values.get("architectures") or [None])[0]
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise InputError(
      f"{where}: _class_name={name!r} is not supported; choose a model of one of "
      f"{', '.join(ARCHITECTURES)}"
    )
  architecture = ARCHITECTURES[name]
  options = Options(values, where)
  with options.building():
    config = architecture.read(options)
    check_kinds(config)
  options.done()
  return architecture, config


def _put(mesh: Mesh | None, leaf: str, array: np.ndarray) -> jax.Array:
  return jax.device_put(array, mesh and leaf_sharding(leaf, array.shape, mesh))


def _read(architecture, config, path, dtype, widen, put) -> Params:
  tensors = files.Tensors(path)
  groups = architecture.groups(config)
  names = architecture.matching(groups, tensors, str(path))
  dtypes = {name: tensors[names[name][0]].dtype for name in groups}
  others = [name for name in groups if dtypes[name] not in _SUPPORTED]
  if others:
    dtype = dtypes[others[0]]
    raise InputError(
      f"weights: {path} holds tensors that are neither float32 nor bfloat16 ({len(others)}, "
      f"{others[0]} of {dtype} among them); take the float32 file"
    )
  halves = [name for name in groups if dtypes[name] == _HALF]
  if halves and not widen:
    raise InputError(
      f"weights: {path} holds float16 tensors ({len(halves)}, {halves[0]} among them), which have "
      "lost small numbers; take the float32 file, or say that they may be widened (--widen)"
    )

  def fetched(name):
    first, *same = names[name]
    array = tensors.read(first)
    for other in same:
      if not np.array_equal(array, tensors.read(other)):
        raise InputError(
          f"weights: {path} holds two different tensors, {first} and {other}, which are one in "
          f"{architecture.name}; choose another checkpoint"
        )
    if dtype is not None or array.dtype == np.float16:
      array = array.astype(dtype or np.float32)
    parts = split(groups[name], array)
    return {leaf: put(leaf, part) for leaf, part in parts.items()}

  leaves = {}
  with ThreadPoolExecutor(THREADS) as pool:
    for parts in pool.map(fetched, groups):
      leaves |= parts
  return unflatten_dict(leaves, sep="/")


def architecture_of(config: Any, params: Params) -> Architecture:
  """The public form of one of our configs; InputError where it has none.

  A class that holds a part of the network is taken where `params` are that part.
  """
  forms = [
    architecture
    for architecture in ARCHITECTURES.values()
    if type(config) is architecture.config_type and architecture.fits(config)
  ]
  if forms:
    paths = set(flatten_dict(params, sep="/"))
    return next((form for form in forms if form.paths(config) == paths), forms[0])
  raise InputError(
    f"weights: this {type(config).__name__} has no public form in {', '.join(ARCHITECTURES)}; "
    "keep it as a run of emu-train"
  )


def save(
  folder: str | pathlib.Path,
  config: Any,
  params: Params,
  *,
  also: Mapping[str, Any] = MappingProxyType({}),
  shard_bytes: int = files.SHARD_BYTES,
) -> None:
  """Writes a model as diffusers or transformers would: config.json and safetensors.

  The inverse of `load`, byte for byte in every tensor. Appears whole or not at all.

  Args:
    also: what config.json says beside the network, such as `sample_size`.
  """
  architecture = architecture_of(config, params)
  groups = architecture.groups(config)
  leaves = flatten_dict(params, sep="/")
  _fitting(architecture, config, leaves, "these parameters are not those")

  def nbytes(name):
    size = leaves[groups[name][0].path].dtype.itemsize
    return int(np.prod(tensor_shape(groups[name]))) * size

  def tensor(name):
    return join(groups[name], {row.path: np.asarray(leaves[row.path]) for row in groups[name]})

  with files.staged(folder) as partial:
    _write_config(partial, architecture, config, also)
    files.write(partial, architecture.stem, list(groups), tensor, nbytes, shard_bytes)


def save_orbax(
  folder: str | pathlib.Path,
  config: Any,
  params: Params,
  *,
  also: Mapping[str, Any] = MappingProxyType({}),
) -> None:
  """Writes a model as its public config.json and our own copy of the weights, for `load`."""
  architecture = architecture_of(config, params)
  leaves = flatten_dict(params, sep="/")
  _fitting(architecture, config, leaves, "these parameters are not those")
  with files.staged(folder) as partial:
    _write_config(partial, architecture, config, also)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save((partial / PARAMS).absolute(), jax.tree.map(jnp.asarray, params))


def _fitting(architecture: Architecture, config: Any, leaves: dict[str, Any], what: str) -> None:
  """Raises InputError, which begins with `what`, where leaves are not those of a config."""
  wanted = {row.path: row.shape for rows in architecture.groups(config).values() for row in rows}
  found = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  if found != wanted:
    different = sorted(set(found) ^ set(wanted)) or [
      f"{path} {found[path]} instead of {wanted[path]}"
      for path in found
      if found[path] != wanted[path]
    ]
    raise InputError(
      f"weights: {what} of this {type(config).__name__}: {len(different)} differ, "
      f"{', '.join(different[:3])}; give the configuration that they were made with"
    )


def _write_config(
  folder: pathlib.Path, architecture: Architecture, config: Any, also: Mapping[str, Any]
) -> None:
  named = (
    {"_class_name": architecture.name}
    if architecture.library == "diffusers"
    else {"architectures": [architecture.name]}
  )
  values = named | architecture.write(config) | dict(also)
  (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
