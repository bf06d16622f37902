"""Artefacts are made once, under names that follow from all that they are made of."""

import pytest

from experiments.artefact import Artefact, StoppedError, digest, made


def counting(calls, whole=lambda calls: True):
  """A builder that leaves a file with its parts' texts, and notes each call."""

  def build(folder, parts):
    calls.append(folder.name)
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("".join((part / "text").read_text() for part in parts) + "x")
    return whole(calls)

  return build


def test_a_name_follows_from_spec_and_parts_alone():
  make = lambda spec, *parts: Artefact("run", spec, parts, lambda folder, parts: True)
  one, other = make({"a": 1, "b": 2}), make({"b": 2, "a": 1})
  assert one.name == other.name
  names = {a.name for a in (one, make({"a": 1}), make({}, one), make({}, make({}, one)))}
  assert len(names) == 4
  assert Artefact("data", {"a": 1}, (), None).name.startswith("data-")
  assert digest({"x": [1, "y"]}) == digest({"x": [1, "y"]}) != digest({"x": [1, "z"]})


def test_parts_are_made_before_what_is_made_of_them(tmp_path):
  calls = []
  part = Artefact("part", 1, (), counting(calls))
  whole = Artefact("whole", 2, (part,), counting(calls))
  folder = made(whole, tmp_path / "runs")
  assert calls == [part.name, whole.name]
  assert folder == tmp_path / "runs" / whole.name
  assert (folder / "text").read_text() == "xx"


def test_what_was_stopped_stops_all_that_is_made_of_it(tmp_path):
  calls = []
  part = Artefact("part", 1, (), counting(calls, whole=lambda calls: len(calls) > 1))
  whole = Artefact("whole", 2, (part,), counting(calls))
  with pytest.raises(StoppedError, match="part-"):
    made(whole, tmp_path)
  assert made(whole, tmp_path).name == whole.name  # the second time it is whole
  assert calls == [part.name, part.name, whole.name]
