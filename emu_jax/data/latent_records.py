"""Records encoded ahead: what frozen encoders make of clips and captions, in place of pixels.

A record of `emu-train encode` holds, beside the facts (`records.FACTS`) of the record that it was
made of (emu_jax.data.records), `size` being that of the frames in pixels:

  moments     [T] byte strings, each float16 or float32 [h, w, 2 C]: the autoencoder's posterior
              of a frame, mean and log-variance along the channels. Not a sample of it: each step
              draws its own, so that a clip seen again differs, as with pixels. The log-variance
              and not the deviation, which may be smaller than float16 can tell.
  shape       int32 [3], h, w and 2 C
  text_<i>    the same dtype [L, D]: features of the caption by text encoder i; where the network
              attends to the text's own tokens alone, only theirs
  vector_<n>  float32 [K]: what else the image model is told of the caption

Without the last two, captions are encoded by the training step. Beside the records and their index
lie `encoding.json`, what they were encoded with, and `empty.npz`, the fields of the empty caption.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from emu_jax.config import from_dict, to_dict
from emu_jax.data import records

ENCODING, EMPTY = "encoding.json", "empty.npz"
MOMENTS = "moments"  # the one array of a record


@dataclasses.dataclass(frozen=True)
class Encoding:
  """What records were encoded with.

  Attributes:
    size: height and width in pixels that the frames were packed for.
    model: dotted path and value of every field of the model's config that the result depends on.
    autoencoder: digest of its weights.
    text: digest of the text encoders' weights and tokenizers; "" where captions are not encoded.
    lengths: tokens of each text as the network sees it, padding included.
    masked: whether the network attends to a text's own tokens alone, one a text.
    dtype: of the stored numbers.
  """

  size: tuple[int, int]
  model: dict[str, str]
  autoencoder: str
  text: str = ""
  lengths: tuple[int, ...] = ()
  masked: tuple[bool, ...] = ()
  dtype: Literal["float16", "float32"] = "float16"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """What a source of encoded records is known by."""

  encoding: Encoding
  empty: dict[str, np.ndarray]  # fields of the empty caption, as a record has them


def features(
  caption: Mapping[str, Any], dtype: str, numbers: Iterable[str] = (), captions: bool = False
) -> tfds.features.FeaturesDict:
  """The features of a record, as TFDS describes them.

  Args:
    caption: the fields of any caption.
    dtype: of the stored numbers.
    numbers: names of the records' numbers.
    captions: whether the records have several captions.
  """
  of_caption = {
    name: tfds.features.Tensor(
      shape=(None, *value.shape[1:]), dtype=np.dtype(dtype), encoding="bytes"
    )
    if name.startswith("text_")
    else tfds.features.Tensor(shape=value.shape, dtype=np.float32)
    for name, value in caption.items()
  }
  moments = {
    MOMENTS: tfds.features.Tensor(shape=(None,), dtype=np.object_),
    "shape": tfds.features.Tensor(shape=(3,), dtype=np.int32),
  }
  return tfds.features.FeaturesDict(records.facts(numbers, captions) | moments | of_caption)


def packed(record: Mapping[str, Any], moments: np.ndarray) -> dict[str, Any]:
  """A record as it is serialized: the facts of the one of pixels, and moments [T, h, w, 2 C]."""
  facts = {name: record[name] for name in records.FACTS if name in record}
  strings = [frame.tobytes() for frame in moments]
  return facts | {MOMENTS: strings, "shape": np.array(moments.shape[1:], np.int32)}


def decoder(record: Mapping[str, Any], dtype: str) -> Callable[[bytes], np.ndarray]:
  """What makes [h, w, 2 C] of the bytes of a frame of a record."""
  return functools.partial(_from_bytes, shape=tuple(record["shape"].tolist()), dtype=dtype)


def _from_bytes(string: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
  return np.frombuffer(string, dtype).reshape(shape)


def write_encoding(folder: pathlib.Path, encoded: Encoded) -> None:
  """Writes what `read_encoding` reads."""
  (folder / ENCODING).write_text(json.dumps(to_dict(encoded.encoding), indent=1))
  if encoded.empty:
    np.savez(folder / EMPTY, **encoded.empty)


def read_encoding(folder: pathlib.Path) -> Encoded | None:
  """What records were encoded with; None where they are pixels."""
  file = folder / ENCODING
  if not file.is_file():
    return None
  encoding = from_dict(json.loads(file.read_text()), Encoding, str(file))
  if not encoding.text:
    return Encoded(encoding, {})
  with np.load(folder / EMPTY) as empty:
    return Encoded(encoding, dict(empty))


def fields_of_captions(
  texts: Sequence[np.ndarray],
  masks: Sequence[np.ndarray | None],
  vectors: Mapping[str, np.ndarray],
  dtype: str,
) -> list[dict[str, np.ndarray]]:
  """The fields of each caption of a batch.

  Args:
    texts: [B, L, D] each; masks [B, L] that begin with the text's own tokens, or None; vectors
      [B, K].
  """
  rows = []
  for b in range(len(texts[0])):
    row = {}
    for i, (text, mask) in enumerate(zip(texts, masks, strict=True)):
      unpadded = len(text[b]) if mask is None else int(mask[b].sum())
      if mask is not None and not mask[b, :unpadded].all():
        raise ValueError(f"fields_of_captions: mask {i} of row {b} does not begin with its tokens")
      row[f"text_{i}"] = text[b, :unpadded].astype(dtype)
    rows.append(row | {f"vector_{name}": value[b] for name, value in vectors.items()})
  return rows


def caption_fields(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Those of a record's fields that say its caption to the network."""
  return {name: v for name, v in record.items() if name.startswith(("text_", "vector_"))}


def collate_captions(rows: Sequence[Mapping[str, np.ndarray]], encoding: Encoding) -> dict:
  """{"texts", "masks", "vectors"} of a batch of captions, as `TextFeatures` has them.

  Where the network attends to the text's own tokens alone, the others are zeros: it does not see
  them.
  """
  texts, masks = [], []
  for i, (length, masked) in enumerate(zip(encoding.lengths, encoding.masked, strict=True)):
    unpadded = [row[f"text_{i}"] for row in rows]
    text = np.zeros((len(rows), length, unpadded[0].shape[1]), unpadded[0].dtype)
    for b, features in enumerate(unpadded):
      text[b, : len(features)] = features
    texts.append(text)
    lengths = np.array([[len(features)] for features in unpadded])
    masks.append(np.arange(length)[None] < lengths if masked else None)
  names = [name for name in rows[0] if name.startswith("vector_")]
  vectors = {name.removeprefix("vector_"): np.stack([r[name] for r in rows]) for name in names}
  return {"texts": tuple(texts), "masks": tuple(masks), "vectors": vectors}
