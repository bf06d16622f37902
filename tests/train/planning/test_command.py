"""A small stage planned for a topology that is not here, and what the command refuses."""

import importlib.util

import jax
import pytest

from tests.tiny_recipe import refusal
from train import command

CONFIG = """
from tests.tiny import MODEL
from train.config import DataConfig, Experiment
STAGES = (Experiment(stage="video", model=MODEL, data=DataConfig(batch_size=16)),)
"""
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-plan)"
)


@pytest.fixture
def config(tmp_path):
  (tmp_path / "tiny.py").write_text(CONFIG)
  return tmp_path / "tiny.py"


@needs_libtpu
def test_a_stage_is_planned(config, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  words = ["plan", "--config", str(config), "--topology", "v5e:2x2", "--fsdp", "2"]
  command.main(words)
  first = capsys.readouterr().out
  assert "video on 1 x v5e:2x2, data=2 fsdp=2, batch 16:" in first
  assert "fits: peak" in first
  assert "all-gather" in first
  assert "bound by" in first

  def never(self):
    raise AssertionError("a plan that was kept was compiled again")

  monkeypatch.setattr(jax.stages.Lowered, "compile", never)
  command.main(words)
  assert capsys.readouterr().out == first


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--topology", "v9:2x2"], "--topology v9:2x2"),
    (["--topology", "v5e-16"], "such as v5e:4x4"),
    (["--topology", "v5p:4x4"], "has 3 axes"),
    (["--topology", "v5e:2x2", "--slices", "0"], "--slices 0"),
    (["--topology", "v5e:2x2", "--stage", "image"], "choose of video"),
  ],
)
def test_bad_input_is_one_line(config, words, said, capsys):
  assert said in refusal(command.main, ["plan", "--config", config, *words], capsys)
