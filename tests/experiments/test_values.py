"""Values are kept: a killed study measures what is missing, a finished one nothing."""

import json
import types

import numpy as np
import pytest

from experiments import values
from experiments.artefact import Artefact
from experiments.report import write
from experiments.study import Cell, Criterion, Study, averages
from experiments.values import measured


def study(calls, options=None, fail_at=None, version=1):
  """Two arms whose values say which seed they are of."""

  def cells(size, seed):
    def measure(folders, arm):
      if len(calls) == fail_at:
        raise KeyboardInterrupt
      calls.append((arm, seed))
      return {"score": [seed + (arm == "a") + 0.1 * i for i in range(4)]}

    part = Artefact(
      "part", {"seed": seed}, (), lambda folder, parts: folder.mkdir(exist_ok=True) or True
    )
    return {
      arm: Cell((part,), options or {}, lambda folders, arm=arm: measure(folders, arm))
      for arm in ("a", "b")
    }

  judge = lambda results: [Criterion("a less b", results.difference("a", "b", "score"), least=0.5)]
  return Study(
    name="toy", title="A toy", claim="a is above b.", method="Made up.", cells=cells,
    statistics=averages("score"), judge=judge, pairs=(("a", "b"),), paired=("score",),
    version=version,
  )  # fmt: skip


def test_nothing_is_measured_twice(tmp_path):
  calls = []
  with pytest.raises(KeyboardInterrupt):
    measured(study(calls, fail_at=3), "tiny", 2, tmp_path)
  assert calls == [("a", 0), ("b", 0), ("a", 1)]  # seed by seed
  results = measured(study(calls), "tiny", 2, tmp_path)
  assert calls[3:] == [("b", 1)]
  again = measured(study(calls), "tiny", 2, tmp_path)
  assert len(calls) == 4
  np.testing.assert_array_equal(again.arms["a"][1]["score"], results.arms["a"][1]["score"])
  np.testing.assert_allclose(results.arms["b"][1]["score"], [1, 1.1, 1.2, 1.3])


def test_what_is_asked_otherwise_is_measured_anew(tmp_path):
  calls = []
  measured(study(calls), "tiny", 1, tmp_path)
  measured(study(calls, options={"prompts": 8}), "tiny", 1, tmp_path)
  measured(study(calls, version=2), "tiny", 1, tmp_path)
  assert len(calls) == 6


def test_a_page_says_what_holds_and_how_it_came_about(tmp_path):
  one = study([])
  results = measured(one, "tiny", 3, tmp_path / "runs")
  command = {"command": "python -m experiments.run toy", "size": "tiny", "seeds": 3}
  criteria = write(one, results, tmp_path / "out", command)
  assert [criterion.verdict for criterion in criteria] == ["holds"]
  page = (tmp_path / "out" / "toy.md").read_text()
  for text in (
    "**The claim holds**",
    "a less b | at least 0.5 | 1 | holds",
    "python -m experiments.run toy",
  ):
    assert text in page
  assert "| a | b | score | 1 | 1 | 1 [0.7575, 1] of 12 |" in page
  document = json.loads((tmp_path / "out" / "toy.json").read_text())
  np.testing.assert_allclose(document["arms"]["a"]["score"]["seeds"], [1.15, 2.15, 3.15])
  assert document["setting"]["seeds"] == 3
  assert (tmp_path / "out" / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_says_where_every_kept_value_was_measured(tmp_path):
  one = study([])
  measured(one, "tiny", 2, tmp_path)
  kept = sorted((tmp_path / "values" / "toy").glob("*.json"))[0]
  document = json.loads(kept.read_text())
  here = document["origin"]
  kept.write_text(json.dumps(document | {"origin": "at commit abc on another machine"}))
  results = measured(one, "tiny", 2, tmp_path)
  assert results.origins == tuple(sorted({here, "at commit abc on another machine"}))
  command = {"command": "python -m experiments.run toy", "size": "tiny", "seeds": 2}
  write(one, results, tmp_path / "out", command)
  page = (tmp_path / "out" / "toy.md").read_text()
  assert all(origin in page for origin in results.origins)


def test_the_accelerator_is_said_where_there_is_one(monkeypatch):
  on_cpu = values.origin()
  accelerator = types.SimpleNamespace(platform="gpu", device_kind="Some GPU")
  monkeypatch.setattr(values.jax, "devices", lambda: [accelerator])
  assert values.origin() == on_cpu.replace(" on ", " on Some GPU, ", 1)
