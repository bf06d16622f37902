"""The frozen encoders of a part, run over any number of clips and captions ahead of training.

There is one program for frames and one for captions, however long clips are. Every frame and every
caption is encoded by itself: what becomes of it does not depend on what else is in its batch, but
for the rounding of one program in place of another.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoints.run import digest
from emu_jax.data.batches import Source
from emu_jax.data.latent_records import Encoding, fields_of_captions
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import InputError
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.in_batches import in_batches
from emu_jax.parallel.placement import batch_sharding
from emu_jax.systems.first_stage import pixels
from emu_jax.systems.system import Part
from emu_jax.train.config import Experiment
from emu_jax.train.parts import encoded_fields
from emu_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class FrozenEncoders:
  """Clips and captions to the fields of records (emu_jax.data.latent_records).

  Attributes:
    trees: those that the part's encoders read, on the mesh.
    tokenizers: one a text encoder; none where captions are not encoded.
    dtype: of the stored numbers.
    batch_size: frames or captions at a time, a multiple of the mesh's devices.
  """

  part: Part
  trees: Params
  tokenizers: tuple[Tokenizer, ...]
  dtype: str
  batch_size: int
  mesh: Mesh

  def moments(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """[T, h, w, 2 C] of each clip, uint8 [T, H, W, 3]."""
    for made in in_batches(self._frames, (clip[:, None] for clip in clips), self.batch_size):
      self._check("latents", made)
      yield made[:, 0]

  def captions(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The fields of each caption; the beginning of one that is longer than an encoder takes."""
    if not self.tokenizers:
      return [{} for _ in texts]
    rows = []
    for text in in_batches(self._captions, [self._tokens(texts)], self.batch_size):
      rows += fields_of_captions(text.texts, text.masks, text.vectors, self.dtype)
    for name, value in (pair for row in rows for pair in row.items()):
      self._check(f"{name} of a caption", value)
    return rows

  def text_layout(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Of each text as the network sees it: its length, and whether padding is hidden from it."""
    if not self.tokenizers:
      return (), ()
    text = jax.eval_shape(self.part.encoders["captions"].apply, self.trees, self._tokens([""]))
    return tuple(t.shape[1] for t in text.texts), tuple(mask is not None for mask in text.masks)

  def _tokens(self, texts: Sequence[str]) -> tuple[tuple, tuple]:
    return tuple(zip(*(t(texts, overflow="truncate") for t in self.tokenizers), strict=True))

  @functools.cached_property
  def _frames(self) -> Callable:
    """One program for all records: a new one a shard would be traced anew each time."""
    return self._on_mesh(functools.partial(stored_moments, self.part, self.dtype))

  @functools.cached_property
  def _captions(self) -> Callable:
    return self._on_mesh(self.part.encoders["captions"].apply)

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


def stored_moments(part: Part, dtype: str, trees: Params, frames: jax.Array) -> jax.Array:
  """The stored form of uint8 frames [B, T, H, W, 3]: [B, T, h, w, 2 C]."""
  return part.encoders["frames"].apply(trees, pixels(frames)).astype(jnp.dtype(dtype))


def encoding_of(
  experiment: Experiment,
  fields: Sequence[str],
  trees: Params,
  tokenizers: Sequence[pathlib.Path],
  dtype: str,
) -> Encoding:
  """What this experiment's encoders make of records; no `lengths` and `masked` yet.

  Args:
    fields: which of "frames" and "captions" are encoded.
    trees: that their encoders read, by name.
    tokenizers: a folder a text encoder.
  """
  encoders = {name: experiment.definition.encoders[name] for name in fields}
  read = lambda name: {tree: trees[tree] for tree in encoders[name].trees}
  depends_on = {k: v for encoder in encoders.values() for k, v in encoder.depends_on.items()}
  text = ""
  if "captions" in encoders:
    text = digest({"trees": read("captions"), "tokenizers": [_files(path) for path in tokenizers]})
  size = experiment.definition.inputs.first.size
  return Encoding(size, depends_on, digest(read("frames")), text, dtype=dtype)


def check_encoding(
  experiment: Experiment, trees: Params, folder: pathlib.Path, sources: Sequence[Source]
) -> None:
  """Raises InputError where records were encoded by other encoders than those of the part.

  Args:
    trees: that the part's encoders read.
    folder: of the run, with its tokenizers.
  """
  found = sources[0].encoded.encoding  # the same of all
  fields = encoded_fields(experiment, found)
  number = len(experiment.definition.texts) if "captions" in fields else 0
  tokenizers = [folder / "tokenizers" / str(i) for i in range(number)]
  ours = encoding_of(experiment, fields, trees, tokenizers, found.dtype)
  where, remedy = (
    f"--data.sources {' '.join(experiment.data.sources)}",
    f"encode the clips again with `emu-train encode --stage {experiment.run_name}`, or begin with "
    "the run that encoded them",
  )
  for name, value in ours.model.items():
    if found.model.get(name) != value:
      raise InputError(
        f"{where}: was encoded with {name}={found.model.get(name)}, stage {experiment.run_name!r} "
        f"has {value}; {remedy}"
      )
  for name, what in (("autoencoder", "autoencoder"), ("text", "text encoders and tokenizers")):
    if getattr(ours, name) and getattr(ours, name) != getattr(found, name):
      raise InputError(
        f"{where}: was encoded by {what} of digest {getattr(found, name)}, stage "
        f"{experiment.run_name!r} begins with {getattr(ours, name)}; {remedy}"
      )


def _files(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The bytes of a folder's files."""
  return {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in sorted(folder.iterdir())}
