"""Plans as tables."""

import pathlib

import pytest

from benchmarks import plan_all, plan_table
from emu_jax.config import override
from emu_jax.train.config import load_stages
from emu_jax.train.planning import topologies

ROOT = pathlib.Path(__file__).resolve().parents[1]

PLAN = {
  "config": "small", "options": "", "stage": "video", "encoded": False, "topology": "v5e:4x4",
  "slices": 1, "batch": 32, "accumulate": 1,
  "mesh": {"data": 1, "fsdp": 16, "frames": 1}, "fits": True, "memory": 16 * 2**30,
  "peak": 8 * 2**30, "seconds": 0.25, "utilisation": 0.5, "bound": "products",
}  # fmt: skip


def test_a_plan_is_a_row():
  assert plan_table.row(PLAN) == (
    "small", "video", "v5e:4x4", "1 x 16 x 1", "32 / 1", "yes", "8.0 of 16.0", "0.250", "50 %",
    "products", "",
  )  # fmt: skip
  short = {**PLAN, "fits": False, "shortage": "17 G of 15.75 G"}
  assert plan_table.row(short)[5:] == ("no", "", "", "", "", "")
  assert plan_table.row(PLAN | {"seconds": None})[5:] == ("yes", "8.0 of 16.0", "", "", "", "")
  assert plan_table.row(PLAN | {"options": "--mesh.fsdp 4"})[-1] == "`--mesh.fsdp 4`"


def test_growing_slices_are_compared_where_each_device_has_as_many_examples():
  larger = PLAN | {"topology": "v5e:8x8", "batch": 128, "mesh": {**PLAN["mesh"], "data": 4}}
  plans = [PLAN, larger, larger | {"batch": 64}, PLAN | {"seconds": None}]
  head, rows = plan_table.weak_scaling(plans)
  assert head[4:] == ("16 devices", "64 devices")
  assert rows == [("small", "video", "v5e", "2", "0.250 s, 50 %", "0.250 s, 50 %")]
  assert plan_table.weak_scaling([PLAN])[1] == []


@pytest.mark.parametrize("config", [plan_all.VIDEO, plan_all.IMAGE, plan_all.SD15, plan_all.SD21])
def test_every_stage_is_planned_for_every_chip_and_splits_over_it(config):
  stages = {e.run_name: e for e in load_stages(str(ROOT / config))}
  planned = set()
  for _, stage, topology, options in (plan for plan in plan_all.PLANS if plan[0] == config):
    experiment = override(stages[stage], options.split())
    experiment.check_mesh(topologies.parse(topology).num_devices)
    planned.add((stage, topology.split(":")[0]))
  copies = {"image_offset"}  # the program of image_512
  assert planned == {(s, chip) for s in stages.keys() - copies for chip in ("v5e", "v5p", "v6e")}
