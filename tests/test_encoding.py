"""Frozen encoders in batches of one size: what comes out does not depend on the size."""

import jax
import numpy as np
import pytest

from emu_jax.data.latent_records import Encoding, collate_captions, fields_of_captions
from emu_jax.encoding import in_batches

SIZE = 4


@pytest.mark.parametrize("lengths", [(1,), (4,), (3, 9, 1, 1, 8), (2, 2), (13,), ()])
def test_rows_come_back_to_the_item_that_they_were_of(lengths):
  rng, seen = np.random.default_rng(0), []
  items = [{"a": rng.normal(size=(n, 2)), "b": rng.normal(size=n)} for n in lengths]

  def apply(batch):
    seen.append(len(batch["a"]))
    return {"sum": batch["a"].sum(axis=1) + batch["b"]}

  made = list(in_batches(apply, iter(items), SIZE))
  assert len(made) == len(items)
  for item, result in zip(items, made, strict=True):
    np.testing.assert_array_equal(result["sum"], item["a"].sum(axis=1) + item["b"])
  assert seen == [SIZE] * -(-sum(lengths) // SIZE)  # one shape, and no batch too many


def test_a_result_is_given_before_the_next_item_but_one_is_read():
  """Clips are large: no more of them is held than fills a batch."""
  read = []

  def items():
    for i in range(8):
      read.append(i)
      yield np.full((SIZE, 1), i)

  made = in_batches(lambda batch: batch, items(), SIZE)
  assert next(made)[0, 0] == 0
  assert read == [0]


def test_captions_come_back_with_zeros_where_the_network_does_not_look():
  rng = np.random.default_rng(0)
  texts = (rng.normal(size=(3, 5, 2)).astype("f4"), rng.normal(size=(3, 4, 3)).astype("f4"))
  own = np.array([[True, False, False, False], [True] * 4, [True, True, True, False]])
  vectors = {"pooled": rng.normal(size=(3, 6)).astype("f4")}
  rows = fields_of_captions(texts, (None, own), vectors, "float32")
  assert [len(row["text_1"]) for row in rows] == [1, 4, 3]
  found = collate_captions(rows, Encoding(8, {}, "", "x", (5, 4), (False, True)))
  hidden = texts[1] * own[..., None]
  want = {"texts": (texts[0], hidden), "masks": (None, own), "vectors": vectors}
  jax.tree.map(np.testing.assert_array_equal, found, want)
  assert found["masks"][0] is None


def test_a_mask_that_does_not_begin_with_the_text_is_refused():
  text = np.zeros((1, 3, 2))
  with pytest.raises(ValueError, match="does not begin with its tokens"):
    fields_of_captions((text,), (np.array([[True, False, True]]),), {}, "float32")
