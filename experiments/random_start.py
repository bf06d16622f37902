"""A video model that does not begin as its image model: for comparison with one that does."""

import pathlib

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.checkpoints.release import write_release
from emu_jax.data.records import staged
from emu_jax.model import load
from emu_jax.systems.emu_video import init_temporal
from emu_jax.typing import Params
from experiments.artefact import Artefact
from experiments.recipe import release_config


def redrawn(temporal: Params, key: jax.Array) -> Params:
  """A new temporal tree with its zero kernels drawn like all others.

  Of a temporal convolution, stored as its difference from the identity, the whole kernel is drawn:
  the difference is a drawn kernel less the identity's. The kernel that reads known frames stays
  zero, since it is no part of what identity initialisation means.
  """
  leaves = flatten_dict(temporal)
  draw = jax.nn.initializers.lecun_normal()
  for path, leaf in leaves.items():
    if path[-1] != "kernel" or path[0] == "concat_in" or bool(jnp.any(leaf != 0)):
      continue
    key, leaf_key = jax.random.split(key)
    new = draw(leaf_key, leaf.shape)
    if leaf.ndim == 3:  # over frames: kernel, in, out
      new = new.at[leaf.shape[0] // 2].add(-jnp.eye(*leaf.shape[1:]))
    leaves[path] = new
  return unflatten_dict(leaves)


def image_with_random_layers(image: Artefact, seed: int) -> Artefact:
  """The image model, with temporal layers beside it that a video stage goes on with."""

  def build(folder: pathlib.Path, parts: tuple[pathlib.Path, ...]) -> bool:
    if folder.is_dir():
      return True
    model = load(parts[0])
    config = model.system
    key_new, key_draw = jax.random.split(jax.random.key(seed))
    temporal = redrawn(jax.jit(lambda key: init_temporal(config, key))(key_new), key_draw)
    trees = {**model.trees, "temporal": temporal}
    with staged(folder) as partial:
      write_release(partial, release_config(config), trees, model.tokenizer_folders)
    return True

  return Artefact("random-layers", {"seed": seed}, (image,), build)
