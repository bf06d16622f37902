"""What is said of figures."""

import pytest

from emu_jax.train.planning import report, topologies
from emu_jax.train.planning.compiling import Measured


@pytest.mark.parametrize(("share", "blocks", "warned"), [(0.9, 1, 1), (0.9, 0, 0), (0.7, 1, 0)])
def test_a_sum_of_blocks_that_leaves_little_room_is_no_promise(share, blocks, warned):
  topology = topologies.parse("v5e:2x2")
  measured = Measured(arguments=0, peak=int(share * topology.chip.memory))
  found = report.figures(measured, topology, 1) | {"pieces": blocks * ["a block"]}
  lines = report.lines(found)
  assert lines[0].startswith("fits: peak ")
  assert sum("--whole is exact" in line for line in lines) == warned
