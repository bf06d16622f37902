"""The stages of Emu Video as the trainer knows them: initial trees, loss and samples of each.

Trees pass from stage to stage: what one has trained, the next finds among its inherited trees.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emu_jax.conditioning import TextFeatures
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.systems.emu import (
  autoencoder_loss,
  image_loss,
  init_autoencoder,
  init_spatial,
  init_text,
  sample_image,
  text_features,
)
from emu_jax.systems.emu_video import init_temporal, sample_video, video_loss
from emu_jax.systems.latent import decode_latents, encode_frames, latent_statistics
from emu_jax.typing import Params, Video
from train.config import Experiment
from train.stage import Stage

TREE = {"video": "temporal", "interpolation": "interpolation", "extension": "extension"}

# What each stage needs from the stages before it.
NEEDS = {
  "autoencoder": (),
  "image": ("autoencoder",),
  "video": ("autoencoder", "latents", "text", "spatial"),
  "interpolation": ("autoencoder", "latents", "text", "spatial", "temporal"),
  "extension": ("autoencoder", "latents", "text", "spatial", "temporal"),
}


def pixels(batch: dict) -> Video:
  """uint8 frames of a batch in [-1, 1]."""
  return batch["frames"].astype(jnp.float32) / 127.5 - 1


def check_inherited(experiment: Experiment, inherited: Params) -> None:
  """Raises InputError where a tree is missing that the stage builds on."""
  missing = [name for name in NEEDS[experiment.stage] if name not in inherited]
  if experiment.stage == "image" and not experiment.train_text and "text" not in inherited:
    missing.append("text")
  if missing:
    raise InputError(
      f"stage {experiment.stage!r} needs the trees {missing}, which init_from="
      f"{experiment.init_from!r} does not hold; train the stages before it first"
    )


def build(experiment: Experiment, inherited: Params, some: dict, empty: tuple) -> Stage:
  """The stage of an experiment.

  Args:
    inherited: trees of the stages before, by name.
    some: a batch from which the statistics of latents are taken where they are not inherited.
    empty: (tokens, masks) of the empty prompt, one example.
  """
  check_inherited(experiment, inherited)
  inherited = {name: tree for name, tree in inherited.items() if name != "discriminator"}
  if experiment.stage != "autoencoder" and "latents" not in inherited:
    measure = jax.jit(functools.partial(latent_statistics, experiment.model.image.autoencoder))
    inherited["latents"] = measure(inherited["autoencoder"], pixels(some))
  begin, loss, sample = _PARTS[experiment.stage]
  trained = jax.eval_shape(functools.partial(begin, experiment), jax.random.key(0))
  return Stage(
    init=_Init(experiment, begin),
    frozen={name: tree for name, tree in inherited.items() if name not in trained},
    loss=functools.partial(loss, experiment),
    sample=jax.jit(functools.partial(sample, experiment, empty)),
  )


@dataclasses.dataclass(frozen=True)
class _Init:
  """Hashable, so that the trainer may hand it to `jit` as a static argument."""

  experiment: Experiment
  begin: Callable

  def __call__(self, key: jax.Array) -> Params:
    return self.begin(self.experiment, key)


def initial_trees(experiment: Experiment, inherited: Params) -> Params:
  """Trees that the stage goes on with instead of its own: another run's, or F's for the others."""
  if experiment.stage in ("interpolation", "extension"):
    tree = TREE[experiment.stage]
    return {tree: inherited.get(tree, inherited["temporal"])}
  names = {
    "autoencoder": ("autoencoder", "discriminator"),
    "image": ("spatial", "text") if experiment.train_text else ("spatial",),
    "video": ("temporal",),
  }[experiment.stage]
  return {name: inherited[name] for name in names if name in inherited}


def features(experiment: Experiment, trees: Params, batch: dict) -> TextFeatures:
  return text_features(experiment.model.image, trees, batch["tokens"], batch["masks"])


def first(batch: dict, n: int) -> dict:
  """The first n examples of a batch."""
  return jax.tree.map(lambda a: a[:n], batch)


def without_text(experiment: Experiment, trees: Params, empty: tuple, n: int) -> TextFeatures:
  """Features of the empty prompt, n times."""
  tokens, masks = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a), n, axis=0), empty)
  return text_features(experiment.model.image, trees, tokens, masks)


def _begin_autoencoder(experiment, key):
  image = experiment.model.image
  return init_autoencoder(image.autoencoder, experiment.objective, image.size, key)


def _autoencoder_loss(experiment, trained, frozen, batch, key, step):
  config = experiment.model.image.autoencoder
  return autoencoder_loss(config, experiment.objective, trained, pixels(batch), key, step)


def _reconstruct(experiment, empty, trained, frozen, batch, key):
  frames = pixels(first(batch, experiment.num_samples))
  net = Autoencoder(experiment.model.image.autoencoder)
  decoded = net.apply({"params": trained["autoencoder"]}, frames)
  return {"reconstruction": jnp.concatenate([frames, decoded], axis=3)}


def _begin_image(experiment, key):
  key_spatial, key_text = jax.random.split(key)
  image = experiment.model.image
  trees = {"spatial": init_spatial(image, key_spatial)}
  return trees | ({"text": init_text(image, key_text)} if experiment.train_text else {})


def _image_loss(experiment, trained, frozen, batch, key, step):
  trees = {**frozen, **trained}
  text = features(experiment, trees, batch)
  noise = experiment.offset_noise
  image = experiment.model.image
  return image_loss(image, trees, pixels(batch), text, key, offset_noise=noise), {}


def _sample_image(experiment, empty, trained, frozen, batch, key):
  model, trees = experiment.model, {**frozen, **trained}
  batch = first(batch, experiment.num_samples)
  n = batch["frames"].shape[0]
  text, none = features(experiment, trees, batch), without_text(experiment, trees, empty, n)
  scale, sampling = model.guidance.picture, experiment.sampling
  latents = sample_image(model.image, trees, text, none, key, scale, sampling=sampling)
  return {"image": decode_latents(model.image.autoencoder, trees, latents)}


def _begin_video(experiment, key):
  return {TREE[experiment.stage]: init_temporal(experiment.model, key)}


def _video_loss(experiment, trained, frozen, batch, key, step):
  trees = {**frozen, **trained}
  losses = video_loss(
    experiment.model,
    experiment.known,
    TREE[experiment.stage],
    trees,
    pixels(batch),
    features(experiment, trees, batch),
    batch["image_dropped"],
    key,
    offset_noise=experiment.offset_noise,
  )
  return losses, {}


def _sample_video(experiment, empty, trained, frozen, batch, key):
  """The real clip beside the model's, which is given the real clip's known frames."""
  model, trees, name = experiment.model, {**frozen, **trained}, TREE[experiment.stage]
  batch = first(batch, experiment.num_samples)
  frames = pixels(batch)
  text = features(experiment, trees, batch)
  none = without_text(experiment, trees, empty, frames.shape[0])
  autoencoder = model.image.autoencoder
  given = encode_frames(autoencoder, trees, frames[:, jnp.asarray(experiment.known.positions)])
  scales = model.guidance.image, model.guidance.text
  latents = sample_video(
    model, experiment.known, name, trees, given, text, none, key, *scales,
    sampling=experiment.sampling,
  )  # fmt: skip
  decoded = decode_latents(autoencoder, trees, latents)
  return {experiment.stage: jnp.concatenate([frames, decoded], axis=3)}


_VIDEO = (_begin_video, _video_loss, _sample_video)
_PARTS = {
  "autoencoder": (_begin_autoencoder, _autoencoder_loss, _reconstruct),
  "image": (_begin_image, _image_loss, _sample_image),
  "video": _VIDEO,
  "interpolation": _VIDEO,
  "extension": _VIDEO,
}
