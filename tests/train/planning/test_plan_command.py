"""A small stage planned for topologies that are not here, and what the command refuses."""

import importlib.util
import json

import jax
import pytest

from emu_jax.errors import InputError
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train import command
from emu_jax.train.planning import search, topologies
from tests.tiny_recipe import refusal

# One level, whose blocks compile in less than a second each.
CONFIG = """
import dataclasses
from tests.tiny import MODEL
from emu_jax.diffusion.process import Sampling
from emu_jax.models.temporal import TemporalConfig
from emu_jax.train.config import DataConfig, Experiment
image = dataclasses.replace(
  MODEL.image,
  size=(16, 16),
  preview=Sampling(num_steps=7),
  text=MODEL.image.text[:1],
  unet=dataclasses.replace(
    MODEL.image.unet, channels=(8,), num_res_blocks=(1,), transformer_depth=(1,), mid_depth=0,
    head_dim=8, context_dims=(8,), layer_contexts=(0,), remat=True, dtype="bfloat16",
  ),
)
model = dataclasses.replace(MODEL, image=image, temporal=TemporalConfig(num_layers=1))
STAGES = (
  Experiment(model, "video", data=DataConfig(batch_size=16)),
)
"""
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-plan)"
)


@pytest.fixture
def config(tmp_path):
  (tmp_path / "tiny.py").write_text(CONFIG)
  return tmp_path / "tiny.py"


def planned(config, tmp_path, *words):
  """The JSON of a plan."""
  file = tmp_path / "plan.json"
  words = ["--topology", "v5e:2x2", "--mesh.fsdp", "2", *words, "--json", str(file)]
  command.main(["plan", "--config", str(config), *words])
  (found,) = json.loads(file.read_text())
  return found


@needs_libtpu
def test_the_blocks_of_a_step_add_up_to_the_whole(config, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  sum_of_blocks = planned(config, tmp_path)
  first = capsys.readouterr().out
  assert "video, training step, on 1 x v5e:2x2, data=2 fsdp=2 frames=1, batch 16:" in first
  assert "bound by" in first
  assert sum_of_blocks["fits"]
  whole = planned(config, tmp_path, "--whole")
  assert sum_of_blocks["model_flops"] == whole["model_flops"]
  assert sum(piece["model_flops"] for piece in sum_of_blocks["pieces"]) == whole["model_flops"]
  # What the compiler fuses across blocks, and copies between layouts that it chose for both sides.
  assert 0.6 < sum_of_blocks["seconds"] / whole["seconds"] < 1.6
  # The whole counts the padding of small arrays among its arguments; 8 channels are padded to 128,
  # so that the two peaks cannot be compared at this size.
  assert sum_of_blocks["arguments"] <= whole["arguments"]

  capsys.readouterr()

  def never(self):
    raise AssertionError("a plan that was kept was compiled again")

  monkeypatch.setattr(jax.stages.Lowered, "compile", never)
  planned(config, tmp_path)
  assert capsys.readouterr().out == first


@needs_libtpu
@pytest.mark.parametrize(("topology", "fsdp"), [("v5e:4x4", 2), ("v5p:2x2x4", 2), ("v5e:4x4", 16)])
def test_a_mesh_need_not_follow_the_axes_of_the_chips(topology, fsdp):
  devices = topologies.devices(topologies.parse(topology))
  mesh = make_mesh(devices, MeshConfig(fsdp=fsdp))
  assert mesh.devices.shape == (len(devices) // fsdp, fsdp, 1)
  assert set(mesh.devices.flat) == set(devices)


@needs_libtpu
def test_sampling_counts_every_step(config, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  found = planned(config, tmp_path, "--sample", "--memory_only")
  assert found["fits"]
  assert found["program"] == "sampling"
  calls = {piece["name"]: piece["calls"] for piece in found["pieces"]}
  assert calls["conv_in"] == 7
  assert calls["decoder/conv_out"] == 4  # of 4 clips on each device, 8 frames at a time
  assert sum(piece["model_flops"] for piece in found["pieces"]) == found["model_flops"]


def test_meshes_of_a_topology_are_all_of_its_products():
  found = search.candidates(16, 8)
  assert all(m.data * m.fsdp * m.frames == 16 for m in found)
  assert len(set(found)) == len(found) == 5 + 4 + 3 + 2
  assert found[0] == MeshConfig(16, 1, 1)


def test_the_short_list_has_the_fewest_frames_and_pieces():
  fits = [
    search.Candidate(mesh, 1) for mesh in search.candidates(256, 8) if mesh.fsdp * mesh.frames >= 8
  ]
  chosen = [candidate.mesh for candidate in search.short_list(fits)]
  assert chosen == [MeshConfig(256 // n, n, 1) for n in (8, 32, 128)]


def test_the_largest_batch_by_bytes():
  # 10 are taken; of 90, gradients of 30 are there after what 4 examples of 20 keep has gone.
  assert search.most_examples(100.0, 10, 30, 20.0) == 4
  assert search.most_examples(100.0, 10, 95, 20.0) == 0


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "7x:2x2x1"])
@needs_libtpu
def test_each_chip_has_a_topology(name):
  topology = topologies.parse(name)
  assert len(topologies.devices(topology)) == topology.num_devices


@needs_libtpu
def test_slices_are_apart_along_data_alone():
  devices = topologies.devices(topologies.parse("v5e:2x2", slices=2))
  mesh = make_mesh(devices, MeshConfig(fsdp=2, frames=2))
  of_slice = [{device.slice_index for device in part.flat} for part in mesh.devices]
  assert of_slice == [{0}, {1}]
  with pytest.raises(InputError, match="does not split over 2 slices"):
    make_mesh(devices, MeshConfig(fsdp=8))


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--topology", "v9:2x2"], "--topology v9:2x2"),
    (["--topology", "v5e:2x2", "--encoded", "--sample"], "--encoded: is for training on latents"),
    (["--topology", "v5e-16"], "such as v5e:4x4"),
    (["--topology", "v5p:4x4"], "has 3 axes"),
    (["--topology", "v5e:2x2", "--slices", "0"], "--slices 0"),
    (["--topology", "v5e:2x2", "--stage", "image"], "choose of video"),
    (["--topology", "v5e:2x2", "--search", "--whole"], "leave out --sample and --whole"),
    (["--topology", "v5e:2x2", "--json", "nowhere/plan.json"], "no folder nowhere"),
  ],
)
def test_bad_input_is_one_line(config, words, message, capsys):
  assert message in refusal(command.main, ["plan", "--config", config, *words], capsys)
