"""The benchmark's two sides compute the same, at a tiny size; nothing here looks at a clock."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-reference.txt)")
pytest.importorskip("diffusers", reason="diffusers is not installed (requirements-reference.txt)")

from benchmarks import agreement as compared  # noqa: E402
from benchmarks import with_jax, with_torch  # noqa: E402
from benchmarks.problem import Problem, inputs  # noqa: E402
from benchmarks.report import report  # noqa: E402
from benchmarks.torch_network import torch_layout, torch_name  # noqa: E402
from emu_jax.models.temporal import TemporalConfig  # noqa: E402
from emu_jax.models.unet import UNetConfig  # noqa: E402
from emu_jax.systems.first_stage import KlAutoencoder  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
  """PyTorch's threads spin while they wait, which on a busy machine takes longer than this work."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


def tiny():
  """Two levels, one without attention, unlike in blocks; spatial transformers of two layers."""
  case = with_jax.small()
  image = dataclasses.replace(
    case.model.image,
    size=(32, 32),
    first_stage=KlAutoencoder(
      dataclasses.replace(case.model.image.first_stage.config, z_channels=4)
    ),
    text=(dataclasses.replace(case.model.image.text[0], width=8, max_length=5),),
    unet=UNetConfig(
      in_channels=4,
      out_channels=4,
      channels=(8, 16),
      num_res_blocks=(2, 1),
      transformer_depth=(0, 2),
      mid_depth=2,
      num_heads=0,
      head_dim=8,
      context_dims=(8,),
      linear_projection=True,
      norm_groups=4,
    ),
  )
  model = dataclasses.replace(
    case.model, image=image, temporal=TemporalConfig(num_layers=1), num_frames=4
  )
  optim = dataclasses.replace(
    with_jax.OPTIM, peak_lr=1e-2, warmup_steps=2, weight_decay=0.1, clip_norm=0.01
  )
  return with_jax.Case(model, optim, batch=2, num_steps=4)


@pytest.fixture(scope="module")
def figures():
  return compared.agreement(tiny(), num_steps=3, layout="contiguous")


def test_parameters_are_equally_many_in_all_and_of_those_that_train(figures):
  for ours, theirs in figures["parameters"].values():
    assert ours == theirs
  assert 0 < figures["parameters"]["trained"][0] < figures["parameters"]["all"][0]


def test_outputs_agree(figures):
  assert figures["output"] <= compared.TOLERANCE


def test_gradients_of_every_temporal_parameter_agree(figures):
  assert figures["gradient"] <= compared.TOLERANCE, figures["worst_gradient"]


def test_losses_of_successive_training_steps_agree(figures):
  ours, theirs = np.transpose(figures["losses"])
  np.testing.assert_allclose(theirs, ours, rtol=compared.LOSSES)
  # The updates are seen in the losses: at this learning rate they differ from step to step.
  assert np.unique(ours).size == 3


def test_guided_samples_agree(figures):
  assert figures["samples"] <= compared.TOLERANCE
  assert compared.disagreements(figures) == []


def test_updated_weights_and_averages_agree():
  case = tiny()
  problem, flat = case.problem(), with_jax.weights(case)
  arrays = inputs(problem)
  ours = with_jax.Training(case, arrays, flat)
  theirs = with_torch.Training(with_torch.Model(problem, flat, "channels_last"), arrays)
  compared.losses(ours, theirs, 3)
  names = list(theirs.model.parameters())
  for tree, found in ((ours.state.params, theirs.parameters), (ours.state.ema, theirs.ema)):
    found = dict(zip(names, found, strict=True))
    for path, array in with_jax.flatten_dict(tree["temporal"], sep="/").items():
      expected = torch_layout(np.asarray(array))
      name = torch_name(path, 2)
      other = found[name].detach().numpy().reshape(expected.shape)
      # Adam divides a gradient by its own size: one that is rounding alone moves a weight by up to
      # the learning rate either way. Here all but such ones agree.
      off = np.abs(other - expected) > 1e-4 * np.abs(expected).max()
      assert off.mean() < 0.01, path


def test_every_disagreement_is_named(figures):
  bad = figures | {"output": 1e-3, "gradient": float("nan"), "losses": [(1.0, 1.1)]}
  bad["parameters"] = {"all": (3, 4)}
  words = compared.disagreements(bad)
  assert len(words) == 4
  for part in ("parameters: 3 and 4", "output: 1.00e-03", "gradient: nan", "loss of step 0"):
    assert any(part in line for line in words)


def test_a_changed_weight_is_found():
  case = tiny()
  problem, flat = case.problem(), with_jax.weights(case)
  arrays, changed = inputs(problem), dict(flat)
  path = "up_0_res_2/temporal_conv_2/conv/kernel"
  changed[path] = changed[path] * np.float32(1.001)
  ours = with_jax.Training(case, arrays, flat)
  theirs = with_torch.Training(with_torch.Model(problem, changed, "contiguous"), arrays)
  assert compared.outputs(ours, theirs)["output"] > compared.TOLERANCE


def test_a_problem_survives_json():
  problem = tiny().problem()
  assert Problem.from_json(problem.to_json()) == problem


def test_what_the_torch_network_lacks_is_refused():
  case = tiny()
  temporal = dataclasses.replace(case.model.temporal, attends_text=True)
  case = dataclasses.replace(case, model=dataclasses.replace(case.model, temporal=temporal))
  with pytest.raises(ValueError, match="torch_network"):
    case.problem()


MEMORY = """
import json, numpy
from benchmarks.problem import memory_of
runs = iter([128, 64])  # MiB, freed again
print(json.dumps(memory_of(lambda: lambda: numpy.ones((next(runs), 2**17)).sum(), 1)))
"""


def test_memory_is_that_of_the_task():
  done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
  found = json.loads(done.stdout)
  # The kernel counts pages in lots, and numpy needs some memory of its own: a few MiB either way.
  assert abs(found["peak"] - found["loaded"] - 128) < 24
  if found["running"] is not None:
    assert abs(found["running"] - found["loaded"] - 64) < 24


def test_the_report_holds_every_number(figures):
  results = {
    "machine": {
      "date": "2000-01-01", "commit": "abc", "processor": "p", "cores": 2, "memory_GiB": 8,
      "busy_before": 0.2, "system": "s", "versions": {"jax": "1"}, "dtype": "float32",
    },
    "arguments": {"rounds": 2, "threads": 0, "small": True, "layout": "contiguous"},
    "configuration": tiny().problem().describe(),
    "clips": {"training": 8, "sampling": 1},
    "agreement": figures,
    "compile": "not tried",
    "times": {t: {"emu_jax": [1.0, 3.0], "torch": [4.0, 6.0]} for t in ("training", "sampling")},
    "memory": {"training": {"torch": {"loaded": 1.0, "running": None, "peak": 77.0}}},
    "loop": {"config": "c", "batch": 4, "steps": 9, "data_wait": 0.125, "step_s": 1.0,
             "clips_per_s": 4.0},
  }  # fmt: skip
  text = report(json.loads(json.dumps(results)))  # as it is read back
  # 1/4 and 3/6; 8 clips in the median of 1 and 3 seconds.
  for part in (
    "0.375 (0.25 to 0.5)",
    "| 4 |",
    "77",
    "unknown",
    "12.5%",
    "no measurement",
    "--rounds 2 --small",
  ):
    assert part in text
