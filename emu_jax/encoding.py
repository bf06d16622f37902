"""The frozen encoders run over any number of clips and captions, in batches of one size.

So there is one program for frames and one for captions, however long clips are. Every frame and
every caption is encoded by itself: what becomes of it does not depend on what else is in its batch,
but for the rounding of one program in place of another.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.conditioning import TextFeatures
from emu_jax.data.latent_records import fields_of_captions
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.placement import batch_sharding
from emu_jax.systems.emu import EmuConfig, text_features
from emu_jax.systems.latent import posterior
from emu_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Clips and captions to the fields of records (emu_jax.data.latent_records).

  Attributes:
    trees: "autoencoder", and "text" where there are tokenizers, on the mesh.
    tokenizers: one a text encoder; none where captions are not encoded.
    dtype: of the stored numbers.
    batch_size: frames or captions at a time, a multiple of the mesh's devices.
  """

  config: EmuConfig
  trees: Params
  tokenizers: tuple[Tokenizer, ...]
  dtype: str
  batch_size: int
  mesh: Mesh

  def moments(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """[T, h, w, 2 C] of each clip, uint8 [T, H, W, 3]."""
    run = self._on_mesh(functools.partial(moments, self.config, self.dtype))
    for made in in_batches(run, (clip[:, None] for clip in clips), self.batch_size):
      self._check("latents", made)
      yield made[:, 0]

  def captions(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The fields of each caption; the beginning of one that is longer than an encoder takes."""
    if not self.tokenizers:
      return [{} for _ in texts]
    rows = []
    run = self._on_mesh(functools.partial(features, self.config))
    for text in in_batches(run, [self._tokens(texts)], self.batch_size):
      rows += fields_of_captions(text.texts, text.masks, text.vectors, self.dtype)
    for name, value in (pair for row in rows for pair in row.items()):
      self._check(f"{name} of a caption", value)
    return rows

  def latent_shape(self) -> tuple[int, int, int]:
    """h, w and 2 C of a frame's moments."""
    frames = jax.ShapeDtypeStruct((1, 1, self.config.size, self.config.size, 3), jnp.uint8)
    run = functools.partial(moments, self.config, self.dtype)
    return jax.eval_shape(run, self.trees, frames).shape[2:]

  def text_layout(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Of each text as the network sees it: its length, and whether padding is hidden from it."""
    if not self.tokenizers:
      return (), ()
    run = functools.partial(features, self.config)
    text = jax.eval_shape(run, self.trees, self._tokens([""]))
    return tuple(t.shape[1] for t in text.texts), tuple(mask is not None for mask in text.masks)

  def _tokens(self, texts: Sequence[str]) -> tuple[tuple, tuple]:
    return tuple(zip(*(t(texts, overflow="truncate") for t in self.tokenizers), strict=True))

  def _on_mesh(self, function: Callable) -> Callable:
    """A function of trees and a batch as one of the batch alone, a tree of host arrays."""
    run, sharding = Jit(function), batch_sharding(self.mesh)

    def call(batch):
      with jax.set_mesh(self.mesh):  # networks pin their activations to it
        return run(self.trees, jax.device_put(batch, sharding))

    return call

  def _check(self, what: str, made: np.ndarray) -> None:
    if not np.isfinite(made).all():
      raise InputError(
        f"encode: {what} exceed what {self.dtype} can hold; store them with --dtype float32"
        if self.dtype != "float32"
        else f"encode: {what} are not finite; see to the weights"
      )


def moments(config: EmuConfig, dtype: str, trees: Params, frames: jax.Array) -> jax.Array:
  """The stored form of uint8 frames [B, T, H, W, 3]: [B, T, h, w, 2 C]."""
  made = posterior(config.autoencoder, trees, frames.astype(jnp.float32) / 127.5 - 1)
  return jnp.concatenate([made.mean, made.log_var], axis=-1).astype(dtype)


def features(config: EmuConfig, trees: Params, batch: tuple) -> TextFeatures:
  """What the network is told of (tokens, masks)."""
  return text_features(config, trees, *batch)


def in_batches(apply: Callable[[Any], Any], stream: Iterable[Any], size: int) -> Iterator[Any]:
  """What `apply` gives for the rows of each tree of a stream, though it takes `size` at a time.

  Args:
    apply: a function of rows: a tree of arrays [size, ...] to one of arrays [size, ...].
    stream: trees of numpy arrays with one first axis each, as long as you like. The last batch is
      filled with its own last row.
  """
  lengths, rest, done = collections.deque(), None, []
  for item in itertools.chain(stream, [None]):
    if item is not None:
      lengths.append(_length(item))
      rest = item if rest is None else _join([rest, item])
    while rest is not None and (_length(rest) >= size or (item is None and _length(rest))):
      piece, rest = _rows(rest, 0, size), _rows(rest, size, None)
      own = _length(piece)
      made = apply(_filled(piece, size))
      done.append(made if own == size else _rows(made, 0, own))
    while lengths and sum(map(_length, done)) >= lengths[0]:
      whole, length = _join(done), lengths.popleft()
      done = [_rows(whole, length, None)]
      yield _rows(whole, 0, length)


def _length(tree: Any) -> int:
  return len(jax.tree.leaves(tree)[0])


def _rows(tree: Any, first: int, end: int | None) -> Any:
  return jax.tree.map(lambda a: a[first:end], tree)


def _join(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *a: np.concatenate(a), *trees)


def _filled(tree: Any, size: int) -> Any:
  missing = size - _length(tree)
  fill = lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) if missing else a
  return jax.tree.map(fill, tree)
