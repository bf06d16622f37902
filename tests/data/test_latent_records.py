"""Encoded records are read a frame at a time, by the index and batches of records of pixels."""

import numpy as np
import pytest

from emu_jax.data import latent_records, shards
from emu_jax.data.batches import batches, open_source
from emu_jax.data.inputs import ClipSpec, Frames, Inputs, clip_inputs
from emu_jax.data.latent_records import Encoded, Encoding
from emu_jax.errors import InputError

CLIP = ClipSpec(3, 4.0)
SIZES = [(16, 16), (16, 16), (8, 32), (16, 16), (8, 32), (16, 16)]
CAPTION = {"text_0": np.zeros((2, 4), np.float32), "vector_pooled": np.zeros(5, np.float32)}


def moments(i, dtype="float16"):
  """[T, h, w, 2 C] of record i, an eighth of its frames' size."""
  height, width = SIZES[i]
  shape = (10, height // 8, width // 8, 4)
  return (np.random.default_rng(i).normal(size=shape) + i).astype(dtype)


@pytest.fixture(params=["float16", "float32"])
def encoded(request, tmp_path):
  """Six records in two shards, of two shapes of frames, with captions and a number."""
  dtype = request.param
  features = latent_records.features(CAPTION, dtype, ("motion",))
  planned = [shards.Shard("train", number) for number in range(2)]

  def made(rows):
    for i in rows:
      facts = {"size": SIZES[i], "fps": 8.0, "caption": f"text {i}".encode(), "name": str(i)}
      facts |= {"truth": "", "numbers": {"motion": float(i)}, "frames": "not kept"}
      caption = {"text_0": np.full((i, 4), i, dtype), "vector_pooled": np.full(5, i, np.float32)}
      yield latent_records.packed(facts, moments(i, dtype)) | caption

  for shard, rows in zip(planned, ((0, 1, 2), (3, 4, 5)), strict=True):
    shards.write(shard, tmp_path, features, made(rows))
  info = shards.describe("encoded", "test", tmp_path, features, "latents of nothing")
  counts = shards.assemble(
    info, tmp_path, planned, arrays=("moments",), numbers=("motion",), size=(16, 16)
  )
  assert counts == {"train": 6}
  encoding = Encoding((16, 16), {}, "weights", "text", (6,), (True,), dtype)
  latent_records.write_encoding(tmp_path / "whole", Encoded(encoding, CAPTION))
  return tmp_path / "whole", dtype


def test_records_and_index_are_what_was_written(encoded):
  folder, dtype = encoded
  source = open_source(folder, "train")
  assert source.encoded.encoding.size == source.size == (16, 16)
  assert source.sizes.tolist() == [list(size) for size in SIZES]
  assert list(source.captions) == [f"text {i}" for i in range(6)]
  np.testing.assert_array_equal(source.numbers["motion"], np.arange(6))
  for i, record in enumerate(source.records):
    assert record["moments"][:].dtype == dtype
    np.testing.assert_array_equal(record["moments"], moments(i, dtype))
    assert record["text_0"].shape == (i, 4)


def test_frames_that_no_example_takes_are_not_read(encoded, monkeypatch):
  folder, dtype = encoded
  read, from_bytes = [], latent_records._from_bytes
  monkeypatch.setattr(
    latent_records, "_from_bytes", lambda *a, **k: read.append(1) or from_bytes(*a, **k)
  )
  data = batches(
    open_source(folder, "train"), clip_inputs(CLIP, (16, 16), numbers=("motion",)), batch_size=2,
    seed=0, repeat=False, threads=1,
  )  # fmt: skip
  taken = list(data)
  assert len(read) == 6 * CLIP.num_frames
  assert [batch["moments"].shape[2:4] for batch in taken].count((1, 4)) == 1  # shapes do not mix
  seen = []
  for batch in taken:
    for row, i in enumerate(batch["motion"].astype(int)):
      seen.append(i)
      whole = moments(i, dtype)
      starts = [s for s in range(6) if (whole[s] == batch["moments"][row, 0]).all()]
      np.testing.assert_array_equal(batch["moments"][row], whole[starts[0] :: 2][:3])
      np.testing.assert_array_equal(batch["text"]["texts"][0][row, :i], i)
      assert batch["text"]["masks"][0][row].sum() == i
  assert sorted(seen) == list(range(6))


def test_latents_of_another_size_or_of_several_arrays_are_refused(encoded):
  source = open_source(encoded[0], "train")
  with pytest.raises(InputError, match=r"packed at 16x16 .* takes 8x8; encode clips of that size"):
    batches(source, clip_inputs(CLIP, (8, 8)), batch_size=2, seed=0)
  both = {"frames": Frames(CLIP, (16, 16)), "low": Frames(CLIP, (16, 16))}
  with pytest.raises(InputError, match="holds latents of one array, frames, low are asked for"):
    batches(source, Inputs(both), batch_size=2, seed=0)
