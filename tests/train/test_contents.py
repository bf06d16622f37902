"""A run's paths may move; what they lead to may not change under it."""

import json
import shutil

import numpy as np
import pytest

from emu_jax.data import index
from emu_jax.data.index import Entry
from emu_jax.errors import InputError
from emu_jax.train.checkpoint import EXEMPT, check_config
from emu_jax.train.contents import NOTE, digests, moved, note, records_digest

AS_IT_IS = lambda values, where: values


def records(folder, caption="a red circle", content=b"frames"):
  """What packed records are to a run that continues: an index, and files beside it."""
  folder.mkdir(parents=True)
  entry = Entry(1, 0.0, (8, 8), (caption,), "a.png", {})
  index.write(folder, {"train": [entry]}, arrays=["frames"], size=(8, 8))
  (folder / "clips-train.array_record-00000-of-00001").write_bytes(content)
  return folder


def checkpoint(run, step, written="now"):
  """The files by which a checkpoint is known to be whole."""
  folder = run / "checkpoints" / str(step)
  for part in ("state/_METADATA", "ema/_METADATA", "data/metadata"):
    (folder / part).parent.mkdir(parents=True, exist_ok=True)
    (folder / part).write_text("{}")
  (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"written": f"{written} {step}"}))
  return run


def config(sources=(), init_from="", init_trees=(), tokenizers=()):
  data = {"sources": [*map(str, sources)], "tokenizers": [*map(str, tokenizers)]}
  values = {"data": data, "init_from": str(init_from), "init_trees": [*map(str, init_trees)]}
  return json.dumps(values)


@pytest.fixture
def begun(tmp_path):
  """A run that began with records, a tokenizer and an earlier run, and has a checkpoint."""
  before = checkpoint(tmp_path / "before", 3, "earlier")
  (tmp_path / "tokenizer.json").write_text("{}")
  words = config([records(tmp_path / "clips")], before, ["text/0=nowhere"],
                 [tmp_path / "tokenizer.json"])  # fmt: skip
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(words)
  note(tmp_path / "run", words)
  return checkpoint(tmp_path / "run", 2)


def continues(run, words):
  """Whether a run goes on with a config, by the check that the command does first."""
  check_config(run, words, (*EXEMPT, *moved(run, words, AS_IT_IS)))


def values_of(run):
  values = json.loads((run / "config.json").read_text())
  data = values.pop("data")
  return values | data


def test_records_are_known_by_what_is_in_them(tmp_path):
  one = records(tmp_path / "one")
  assert records_digest(one) == records_digest(shutil.copytree(one, tmp_path / "two"))
  assert records_digest(one) != records_digest(records(tmp_path / "text", caption="a blue circle"))
  assert records_digest(one) != records_digest(records(tmp_path / "long", content=b"more frames"))


def test_all_of_it_may_move(begun, tmp_path):
  """Also where the earlier run trained on meanwhile, and where only the spelling is another."""
  given = values_of(begun)
  shutil.copytree(tmp_path / "clips", tmp_path / "copy" / "clips")
  shutil.copytree(tmp_path / "before", tmp_path / "copy" / "before")
  checkpoint(tmp_path / "copy" / "before", 9)
  shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy")
  there = config([tmp_path / "copy" / "clips"], tmp_path / "copy" / "before", ["text/0=gone"],
                 [tmp_path / "copy" / "tokenizer.json"])  # fmt: skip
  continues(begun, there)
  for name in ("before", "tokenizer.json"):  # what the run holds itself may be gone
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  continues(begun, config(**given))
  continues(begun, there)


@pytest.mark.parametrize("noted", [True, False])
def test_records_that_were_packed_anew_are_refused(begun, tmp_path, noted):
  """Under the same name where the run has noted what they were: an earlier version has not."""
  given = values_of(begun)
  if not noted:
    (begun / NOTE).unlink()
  other = records(tmp_path / "other", caption="a blue circle")
  with pytest.raises(InputError, match=r"began with other records than .*other holds"):
    continues(begun, config(**given | {"sources": [other]}))
  shutil.rmtree(tmp_path / "clips")
  with pytest.raises(InputError, match="other records"):
    continues(begun, config(**given | {"sources": [tmp_path / "nowhere"]}))
  records(tmp_path / "clips", caption="a blue circle")
  if noted:
    with pytest.raises(InputError, match=r"other records than .*clips holds"):
      continues(begun, config(**given))
  else:
    continues(begun, config(**given))


def test_another_run_or_more_of_anything_is_refused(begun, tmp_path):
  given = values_of(begun)
  other = checkpoint(tmp_path / "other", 3, "later")
  with pytest.raises(
    InputError, match=r"began with init_from=.*before, and .*other holds something"
  ):
    continues(begun, config(**given | {"init_from": other}))
  with pytest.raises(InputError, match=r"another config: data.sources.1 is 'absent' there"):
    continues(begun, config(**given | {"sources": [*given["sources"], tmp_path / "clips"]}))
  with pytest.raises(InputError, match=r"another config: init_trees.0 is 'text/0=nowhere' there"):
    continues(begun, config(**given | {"init_trees": ["text/1=nowhere"]}))


def test_an_array_file_counts_by_its_length_and_a_small_file_by_its_bytes(tmp_path):
  folder = tmp_path / "weights"
  folder.mkdir()
  np.save(folder / "large.npy", np.zeros(2**17))
  (folder / "config.json").write_text('{"width": 8}')
  (found,) = digests(folder)
  np.save(folder / "large.npy", np.ones(2**17))
  assert digests(folder) == (found,)
  (folder / "config.json").write_text('{"width": 9}')
  assert digests(folder) != (found,)
  assert digests(tmp_path / "nowhere") == ()
