"""Models from folders: runs of emu-train and public pipelines, checked before they are used."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax import public
from emu_jax.checkpoints.release import is_release, load_release
from emu_jax.checkpoints.run import latest_step, load_ema, read_config
from emu_jax.config import from_dict
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.parallel.placement import place
from emu_jax.pipeline import MADE_BY, Animation, Pipeline
from emu_jax.systems.emu import init_spatial, init_text
from emu_jax.systems.emu_video import EmuVideoConfig, init_temporal
from emu_jax.systems.latent import TextConfig
from emu_jax.typing import Params
from emu_jax.weights.model import Precision


def furthest_stage(folder: str | pathlib.Path) -> pathlib.Path:
  """The folder itself if it is a run or a release; of several runs, that of the last stage.

  Of several runs of one stage it is the one that no other of them goes back to.
  """
  folder = pathlib.Path(folder)
  if latest_step(folder) is not None or is_release(folder) or not folder.is_dir():
    return folder
  runs = [run for run in sorted(folder.iterdir()) if run.is_dir() and latest_step(run) is not None]
  configs = {run.name: read_config(run) or {} for run in runs}

  def earlier(name: str) -> set[str]:
    """The runs that one began with, directly or not."""
    found = set()
    while (name := pathlib.Path(configs.get(name, {}).get("init_from", "")).name) not in found:
      found.add(name)
    return found

  for stage in reversed(MADE_BY.values()):
    chosen = [run for run in runs if configs[run.name].get("stage", run.name) == stage]
    before = set().union(*(earlier(run.name) for run in chosen))
    for run in chosen:
      if run.name not in before:
        return run
  return folder


def load_pipeline(
  folder: str | pathlib.Path,
  *,
  motion_adapter: str | pathlib.Path | None = None,
  dtype: Precision | None = None,
  widen: bool = False,
  mesh: Mesh | None = None,
) -> Pipeline | Animation:
  """A model that samples: of a run of emu-train, of a release, or of a public folder.

  Args:
    folder: a run, a folder of the runs of a recipe's stages, of which the last is taken, what
      `emu-jax convert --to safetensors` made of one, or a text-to-image or AnimateDiff pipeline of
      diffusers. Of runs the averaged weights are taken.
    motion_adapter: AnimateDiff's motion modules for a public text-to-image model.
    dtype: of matmuls, and of the weights of all networks; None: as the model is.
    widen: take float16 weights of a public folder as float32.
    mesh: of the devices that hold the weights in pieces and sample together; None: one device.
  Raises: InputError where the folder is none of these, or one of another version.
  """
  if public.is_public(folder):
    how = {"dtype": dtype, "widen": widen, "mesh": mesh}
    if motion_adapter is not None or public.is_animation(folder):
      model = public.load_animation(folder, motion_adapter, **how)
      kind, config = Animation, model.config
    else:
      model = public.load_image_model(folder, **how)
      kind, config = Pipeline, EmuVideoConfig(image=model.config)
    tokenizers = tuple(
      load_tokenizer(path, encoder.max_length)
      for path, encoder in zip(model.tokenizers, config.image.text, strict=True)
    )
    return kind(config, model.trees, tokenizers, str(folder), model.tokenizers, mesh)
  if motion_adapter is not None:
    raise InputError(
      f"{folder}: a motion adapter goes with a public text-to-image folder; a run of emu-train has "
      "temporal layers of its own"
    )
  folder = furthest_stage(folder)
  values, trees = load_release(folder) if is_release(folder) else load_ema(folder)
  if "model" not in values:
    raise InputError(f"{folder}: config.json has no 'model'; give the folder of a run of emu-train")
  config = from_dict(values["model"], EmuVideoConfig, str(folder / "config.json"))
  check_trees(config, trees, str(folder))
  tokenizers = load_tokenizers(config, folder) if "text" in trees else ()
  if dtype is not None:
    config = in_precision(config, dtype)
    trees = {
      name: tree if name == "latents" else jax.tree.map(lambda a: a.astype(dtype), tree)
      for name, tree in trees.items()
    }
  folders = tuple(folder / "tokenizers" / str(i) for i in range(len(tokenizers)))
  trees = jax.tree.map(jnp.asarray, trees) if mesh is None else place(trees, mesh)
  return Pipeline(config, trees, tokenizers, str(folder), folders, mesh)


def in_precision(config: EmuVideoConfig, dtype: Precision) -> EmuVideoConfig:
  """The same model with matmuls and convolutions in another precision."""
  change = functools.partial(dataclasses.replace, dtype=dtype)
  image = dataclasses.replace(
    config.image,
    autoencoder=change(config.image.autoencoder),
    text=tuple(map(change, config.image.text)),
    unet=change(config.image.unet),
  )
  return dataclasses.replace(config, image=image)


def load_tokenizers(config: EmuVideoConfig, folder: pathlib.Path) -> tuple[Tokenizer, ...]:
  """The tokenizers of a run, one a text encoder, none with ids that its encoder does not have."""
  loaded = []
  for i, encoder in enumerate(config.image.text):
    path = folder / "tokenizers" / str(i)
    loaded.append(load_tokenizer(path, encoder.max_length))
    check_tokenizer(loaded[-1], encoder, path)
  return tuple(loaded)


def check_tokenizer(tokenizer: Tokenizer, encoder: TextConfig, path: str | pathlib.Path) -> None:
  """Raises InputError for token ids that an encoder does not have."""
  if tokenizer.vocab_size > encoder.vocab_size:
    raise InputError(
      f"{path}: has {tokenizer.vocab_size} tokens, its text encoder vocab_size="
      f"{encoder.vocab_size}; use the tokenizer that the encoder was trained with"
    )


def check_trees(config: EmuVideoConfig, trees: Params, who: str) -> None:
  """Raises InputError, beginning with `who`, where a tree is not that of the config's network.

  Names and shapes are compared, tree by tree; trees that the config knows nothing of are let be.
  """
  for name in (name for name in MADE_BY if name in trees):
    got, want = leaf_shapes(trees[name]), expected_shapes(config, name)
    for leaf in sorted(got.keys() | want.keys()):
      if got.get(leaf) != want.get(leaf):
        raise InputError(
          f"{who}: holds the weights of another config: {name}/{leaf} is {got.get(leaf, 'absent')} "
          f"there and {want.get(leaf, 'absent')} by the config; use the config that made them"
        )


@functools.cache
def expected_shapes(config: EmuVideoConfig, name: str) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf of the tree `name`, by its path."""
  image = config.image
  if name in ("interpolation", "extension"):
    return expected_shapes(config, "temporal")
  if name == "latents":
    return dict.fromkeys(("shift", "scale"), (image.autoencoder.z_channels,))
  pixels = jnp.zeros((1, 1, image.size, image.size, 3))
  init = {
    "autoencoder": lambda key: Autoencoder(image.autoencoder).init(key, pixels)["params"],
    "text": functools.partial(init_text, image),
    "spatial": functools.partial(init_spatial, image),
    "temporal": functools.partial(init_temporal, config),
  }[name]
  return leaf_shapes(jax.eval_shape(init, jax.random.key(0)))


def leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf by its path, such as `mid/conv/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}
