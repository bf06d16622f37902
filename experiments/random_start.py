"""A video model that does not begin as its image model: for comparison with one that does."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from emu_jax.config import from_dict
from emu_jax.data.records import staged
from emu_jax.run import load_ema
from emu_jax.systems.emu_video import EmuVideoConfig, init_temporal
from emu_jax.typing import Params
from experiments.artefact import Artefact
from train.checkpoint import save_frozen


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
    key, own = jax.random.split(key)
    new = draw(own, leaf.shape)
    if leaf.ndim == 3:  # over frames: kernel, in, out
      new = new.at[leaf.shape[0] // 2].add(-jnp.eye(*leaf.shape[1:]))
    leaves[path] = new
  return unflatten_dict(leaves)


def image_with_random_layers(image: Artefact, seed: int) -> Artefact:
  """The image model's run, with temporal layers beside it that a video stage goes on with."""

  def build(folder: pathlib.Path, parts: tuple[pathlib.Path, ...]) -> bool:
    if folder.is_dir():
      return True
    values, trees = load_ema(parts[0])
    config = from_dict(values["model"], EmuVideoConfig, str(parts[0]))
    key_new, key_draw = jax.random.split(jax.random.key(seed))
    temporal = redrawn(jax.jit(lambda key: init_temporal(config, key))(key_new), key_draw)
    frozen = {name: trees[name] for name in ("autoencoder", "latents")}
    with staged(folder) as partial:
      shutil.copytree(parts[0], partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
      save_frozen(partial, frozen | {"temporal": temporal})
    return True

  return Artefact("random-layers", {"seed": seed}, (image,), build)
