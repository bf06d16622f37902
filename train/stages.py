"""The stages of Emu Video as the trainer knows them: initial trees, loss and samples of each.

Trees pass from stage to stage: what one has trained, the next finds among its inherited trees.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emu_jax.conditioning import TextFeatures
from emu_jax.data.latent_records import Encoding
from emu_jax.errors import InputError
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.parallel.compilation import Jit
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
from emu_jax.systems.latent import (
  Posterior,
  decode_latents,
  encode_frames,
  latent_statistics,
  posterior_statistics,
)
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


def shown(batch: dict) -> Video | Posterior:
  """A batch's pixels in [-1, 1], or what was encoded of them ahead."""
  if "moments" in batch:
    return Posterior(*jnp.split(batch["moments"], 2, axis=-1))
  return pixels(batch)


def spared(experiment: Experiment, encoding: Encoding | None) -> tuple[str, ...]:
  """Trees that the step does without, since its data was encoded by them ahead."""
  if encoding is None:
    return ()
  return ("autoencoder", "text") if packs_text(experiment, encoding) else ("autoencoder",)


def packs_text(experiment: Experiment, encoding: Encoding | None) -> bool:
  """Whether the step takes features of captions from the data."""
  return bool(encoding and encoding.text) and not experiment.trains_text


def check_inherited(
  experiment: Experiment, inherited: Params, encoding: Encoding | None = None
) -> None:
  """Raises InputError where a tree is missing that the stage builds on."""
  needed = list(NEEDS[experiment.stage])
  if experiment.stage == "image" and not experiment.train_text:
    needed.append("text")
  spare = spared(experiment, encoding)
  missing = [name for name in needed if name not in inherited and name not in spare]
  if missing:
    raise InputError(
      f"stage {experiment.stage!r} needs the trees {missing}, which init_from="
      f"{experiment.init_from!r} does not hold; train the stages before it first"
    )


def build(
  experiment: Experiment,
  inherited: Params,
  some: dict,
  empty: tuple | dict,
  *,
  encoding: Encoding | None = None,
  aside: Params | None = None,
) -> Stage:
  """The stage of an experiment.

  Args:
    inherited: trees of the stages before, by name; those that encoded data spares may be missing.
    some: a batch from which the statistics of latents are taken where they are not inherited.
    empty: (tokens, masks) of the empty prompt, one example, or its features where captions are
      encoded ahead.
    encoding: of the data, where it is encoded ahead.
    aside: the trees that this spares, on the mesh, to draw samples with; without them there are
      none.
  """
  check_inherited(experiment, inherited, encoding)
  spare = spared(experiment, encoding)
  inherited = {name: tree for name, tree in inherited.items() if name != "discriminator"}
  if experiment.stage != "autoencoder" and "latents" not in inherited:
    inherited["latents"] = _measured(experiment, inherited, some)
  begin, loss, sample = _PARTS[experiment.stage]
  trained = jax.eval_shape(functools.partial(begin, experiment), jax.random.key(0))
  frozen = {n: tree for n, tree in inherited.items() if n not in trained and n not in spare}
  draw = Jit(functools.partial(sample, experiment, empty))
  draw = _with(draw, aside) if aside else draw
  return Stage(
    init=_Init(experiment, begin),
    frozen=frozen,
    loss=functools.partial(loss, experiment),
    sample=draw if aside or not spare else None,
  )


def _measured(experiment: Experiment, inherited: Params, some: dict) -> Params:
  """Statistics of the latents of a batch."""
  if "moments" in some:
    return jax.jit(posterior_statistics)(shown(some))
  measure = jax.jit(functools.partial(latent_statistics, experiment.model.image.autoencoder))
  return measure(inherited["autoencoder"], pixels(some))


def _with(draw: Callable, aside: Params) -> Callable:
  """Samples drawn with more trees than the step has, as arguments of the program."""
  return lambda ema, frozen, batch, key: draw(ema, {**frozen, **aside}, batch, key)


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
  judged = ("discriminator",) if experiment.objective.judged else ()
  names = {
    "autoencoder": ("autoencoder", *judged),
    "image": ("spatial", "text") if experiment.train_text else ("spatial",),
    "video": ("temporal", "spatial") if experiment.train_spatial else ("temporal",),
  }[experiment.stage]
  return {name: inherited[name] for name in names if name in inherited}


def features(experiment: Experiment, trees: Params, batch: dict) -> TextFeatures:
  """What the network is told of a batch's captions."""
  if "text" in batch:
    return _stored(batch["text"])
  return text_features(experiment.model.image, trees, batch["tokens"], batch["masks"])


def _stored(text: dict) -> TextFeatures:
  """Features encoded ahead, in float32."""
  floats = lambda a: jnp.asarray(a).astype(jnp.float32)
  return TextFeatures(
    jax.tree.map(floats, text["texts"]), text["masks"], jax.tree.map(floats, text["vectors"])
  )


def first(batch: dict, n: int) -> dict:
  """The first n examples of a batch."""
  return jax.tree.map(lambda a: a[:n], batch)


def without_text(
  experiment: Experiment, trees: Params, empty: tuple | dict, n: int
) -> TextFeatures:
  """Features of the empty prompt, n times."""
  empty = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a), n, axis=0), empty)
  if isinstance(empty, dict):
    return _stored(empty)
  return text_features(experiment.model.image, trees, *empty)


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
  image = experiment.model.image
  return image_loss(image, trees, shown(batch), text, key, **_drawn(experiment)), {}


def _drawn(experiment) -> dict:
  """How the noise of a training step is drawn."""
  return {"offset_noise": experiment.offset_noise, "times": experiment.times}


def _sample_image(experiment, empty, trained, frozen, batch, key):
  model, trees = experiment.model, {**frozen, **trained}
  batch = first(batch, experiment.num_samples)
  n = shown(batch).shape[0]
  text, none = features(experiment, trees, batch), without_text(experiment, trees, empty, n)
  scale, sampling = model.guidance.picture, experiment.sampling
  latents = sample_image(model.image, trees, text, none, key, scale, sampling=sampling)
  return {"image": decode_latents(model.image.autoencoder, trees, latents)}


def _begin_video(experiment, key):
  trees = {TREE[experiment.stage]: init_temporal(experiment.model, key)}
  if experiment.train_spatial:  # the loop goes on with the image model's own
    trees["spatial"] = init_spatial(experiment.model.image, jax.random.fold_in(key, 0))
  return trees


def _video_loss(experiment, trained, frozen, batch, key, step):
  trees = {**frozen, **trained}
  losses = video_loss(
    experiment.model,
    experiment.known,
    TREE[experiment.stage],
    trees,
    shown(batch),
    features(experiment, trees, batch),
    batch["image_dropped"],
    key,
    **_drawn(experiment),
  )
  return losses, {}


def _sample_video(experiment, empty, trained, frozen, batch, key):
  """The real clip beside the model's, which is given the real clip's known frames.

  Of a clip encoded ahead its reconstruction stands there.
  """
  model, trees, name = experiment.model, {**frozen, **trained}, TREE[experiment.stage]
  batch = first(batch, experiment.num_samples)
  clip, autoencoder = shown(batch), model.image.autoencoder
  text = features(experiment, trees, batch)
  none = without_text(experiment, trees, empty, clip.shape[0])
  known = jax.tree.map(lambda a: a[:, jnp.asarray(experiment.known.positions)], clip)
  given = encode_frames(autoencoder, trees, known)
  guidance = model.guidance.between if name == "interpolation" else model.guidance
  latents = sample_video(
    model, experiment.known, name, trees, given, text, none, key, guidance.scales,
    sampling=experiment.sampling,
  )  # fmt: skip
  decoded = decode_latents(autoencoder, trees, latents)
  real = clip
  if isinstance(clip, Posterior):
    real = decode_latents(autoencoder, trees, encode_frames(autoencoder, trees, clip))
  return {experiment.stage: jnp.concatenate([real, decoded], axis=3)}


_VIDEO = (_begin_video, _video_loss, _sample_video)
_PARTS = {
  "autoencoder": (_begin_autoencoder, _autoencoder_loss, _reconstruct),
  "image": (_begin_image, _image_loss, _sample_image),
  "video": _VIDEO,
  "interpolation": _VIDEO,
  "extension": _VIDEO,
}
