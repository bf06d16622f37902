"""What a stage begins with: the trees of another model, and packed clips."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from emu_jax.checkpoints.release import is_release, load_release
from emu_jax.checkpoints.run import load_ema
from emu_jax.data.batches import Source, check_alike, open_source
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import InputError
from emu_jax.public import check_same, is_public, load_image_model, load_text
from emu_jax.typing import Params
from train.config import Experiment

STATISTICS_EXAMPLES = 512  # from which the spread of latents is measured


def inherit(experiment: Experiment) -> Params:
  """The trees that a stage begins with: of the run before it, or of public models.

  They are in the host's memory: no device holds more than its share of what is placed later.
  """
  folders, encoders = experiment.text_encoders, experiment.model.image.text
  public = {str(i): load_text(*pair) for i, pair in enumerate(zip(folders, encoders, strict=False))}
  return before(experiment) | ({"text": public} if public else {})


def before(experiment: Experiment) -> Params:
  """The trees of the run before, of a release, or of a public image model."""
  if not experiment.init_from:
    return {}
  if is_release(experiment.init_from):
    return load_release(experiment.init_from)[1]
  if not is_public(experiment.init_from):
    return load_ema(experiment.init_from)[1]
  image = experiment.model.image
  # What stays frozen needs no more digits than it is computed with.
  half = None if image.unet.dtype == "float32" else image.unet.dtype
  model = load_image_model(experiment.init_from, dtype=half, host=True)
  check_same(image, model, experiment.init_from)
  return model.trees


def opened(experiment: Experiment, split: str) -> list[Source]:
  """A split of each source, checked against the model."""
  size = experiment.model.image.size
  sources = [open_source(path, split) for path in experiment.data.sources]
  for path, source in zip(experiment.data.sources, sources, strict=True):
    if source.size != size:
      raise InputError(
        f"--data.sources {path}: was prepared at {source.size} pixels, the model works at {size}; "
        f"prepare it with --size {size}"
      )
    if source.encoded and experiment.stage == "autoencoder":
      raise InputError(
        f"--data.sources {path}: holds latents, and stage 'autoencoder' trains on pixels; name the "
        "clips that they were encoded from"
      )
  check_alike(sources)
  return sources


def data_options(experiment: Experiment, tokenizers: tuple[Tokenizer, ...]) -> dict:
  """What training and validation data have in common."""
  return {
    "spec": experiment.clips,
    "tokenizers": tokenizers,
    "batch_size": experiment.data.batch_size // jax.process_count(),
    "seed": experiment.loop.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }


def empty_prompt(tokenizers: tuple[Tokenizer, ...]) -> tuple[tuple, tuple]:
  """(tokens, masks) of the empty prompt, each one example an encoder."""
  return tuple(zip(*(t([""], overflow="error") for t in tokenizers), strict=True)) or ((), ())


def statistics_batch(experiment: Experiment, inherited: dict, data: Iterator) -> dict:
  """What the first batches show, where latents are still to be measured; the data stays put.

  They are those of all processes, in the order in which one process would read them.
  """
  if experiment.stage == "autoencoder" or "latents" in inherited:
    return {}
  position = data.get_state()
  count = max(1, STATISTICS_EXAMPLES // experiment.data.batch_size)
  some = list(itertools.islice(data, count))
  data.set_state(position)
  (name,) = {"frames", "moments"} & set(some[0])
  shown = np.stack([batch[name] for batch in some])
  if jax.process_count() > 1:
    every = multihost_utils.process_allgather(shown)  # [processes, batches, B, ...]
    shown = np.moveaxis(np.asarray(every), 0, 1)
  shown = shown.reshape(-1, *shown.shape[-4:])
  return {name: jnp.asarray(shown[:STATISTICS_EXAMPLES])}
