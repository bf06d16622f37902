"""Prompts to what a denoiser reads of them, by frozen or trained text encoders.

The tree "text" holds one tree an encoder, {"0": …, "1": …}.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from emu_jax.conditioning import TextFeatures
from emu_jax.models.text import ClipTextConfig, T5Config, text_encoder
from emu_jax.systems.system import Tree
from emu_jax.typing import Params

TextConfig = ClipTextConfig | T5Config


def text_tree(encoders: tuple[TextConfig, ...]) -> Tree:
  """The tree "text"."""
  dtypes = tuple((f"{i}/*", encoder.dtype) for i, encoder in enumerate(encoders))
  return Tree(functools.partial(init_text, encoders), dtypes)


def init_text(encoders: tuple[TextConfig, ...], key: jax.Array) -> Params:
  """Trees of the text encoders: {"0": …, "1": …}."""
  trees = {}
  for i, (encoder, k) in enumerate(
    zip(encoders, jax.random.split(key, len(encoders)), strict=True)
  ):
    tokens = jnp.zeros((1, encoder.max_length), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    trees[str(i)] = text_encoder(encoder).init(k, tokens, mask)["params"]
  return trees


def encode_text(
  encoders: tuple[TextConfig, ...],
  trees: Params,
  tokens: tuple[Int[Array, "B _"], ...],
  masks: tuple[Bool[Array, "B _"], ...],
  *,
  pooled: bool = False,
) -> TextFeatures:
  """Features of a batch of prompts, one array an encoder.

  The denoiser attends to every position of a CLIP text, padding included, as Stable Diffusion does,
  and to the real tokens of a T5 text, as Imagen does (arXiv:2205.11487, app. B).

  Args:
    pooled: the last encoder's pooled output too, as the vector condition "pooled".
  """
  if not len(encoders) == len(tokens) == len(masks):
    raise ValueError(
      f"encode_text: {len(tokens)} token arrays and {len(masks)} masks for {len(encoders)} encoders"
    )
  last, vectors, texts = len(encoders) - 1, {}, []
  for i, (config, ids, mask) in enumerate(zip(encoders, tokens, masks, strict=True)):
    encoder, params = text_encoder(config), {"params": trees["text"][str(i)]}
    if pooled and i == last:
      features, vectors["pooled"] = encoder.apply(params, ids, mask, method="features_and_pooled")
    else:
      features = encoder.apply(params, ids, mask)
    texts.append(features)
  seen = tuple(
    mask if config.architecture == "t5" else None
    for config, mask in zip(encoders, masks, strict=True)
  )
  return TextFeatures(tuple(texts), seen, vectors)


def pooled_dim(config: TextConfig) -> int:
  """Size of a text encoder's pooled output; 0 where it has none."""
  return config.projection_dim if config.architecture == "clip" else 0


def stored_features(text: Mapping[str, Any]) -> TextFeatures:
  """A batch's features that were encoded ahead, in float32."""
  floats = lambda a: jnp.asarray(a).astype(jnp.float32)
  return TextFeatures(
    jax.tree.map(floats, text["texts"]), text["masks"], jax.tree.map(floats, text["vectors"])
  )


def repeated(empty: Mapping[str, Any], n: int) -> dict[str, Any]:
  """What a batch says of text, for the empty prompt n times."""
  return jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a), n, axis=0), dict(empty))
