"""Which mesh trains a stage at the least cost on a topology, and the largest batch that fits there.

First by bytes alone, which one trace tells for every mesh: arguments under their placement, and the
greater of what the backward pass keeps and of the gradients. What is left is a short list, which is
compiled; where the compiler's temporaries are too many the batch is halved.
"""

import dataclasses
from collections.abc import Sequence

from emu_jax.parallel.mesh import MeshConfig
from emu_jax.train.config import Experiment
from emu_jax.train.planning.blocks import Call

SHORT = 3  # meshes that are compiled
MOST = 64  # examples a device


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A mesh, and the examples that its devices may hold at most by bytes alone.

  Attributes:
    examples: of each group of devices along the frames axis.
  """

  mesh: MeshConfig
  examples: int


def candidates(num_devices: int, num_frames: int) -> list[MeshConfig]:
  """Meshes of so many devices: the frames axis shortest first, then the fsdp axis.

  Parameters in fewer pieces are gathered from fewer devices; frames over devices are exchanged at
  every layer across frames, which is only worth it where one example does not fit one device.
  """
  return [
    MeshConfig(num_devices // (fsdp * frames), fsdp, frames)
    for frames in _powers(num_devices)
    if num_frames % frames == 0
    for fsdp in _powers(num_devices // frames)
  ]


def short_list(fitting: Sequence[Candidate]) -> list[Candidate]:
  """A few of those of the shortest frames axis, from the least pieces on, four times as many each.

  Args:
    fitting: one at least.
  """
  frames = min(candidate.mesh.frames for candidate in fitting)
  same = [candidate for candidate in fitting if candidate.mesh.frames == frames]
  same.sort(key=lambda candidate: candidate.mesh.fsdp)
  chosen = [same[0]]
  for candidate in same[1:]:
    if candidate.mesh.fsdp >= 4 * chosen[-1].mesh.fsdp:
      chosen.append(candidate)
  return chosen[:SHORT]


def most_examples(memory: float, arguments: int, gradients: int, kept: float) -> int:
  """The largest power of two, up to MOST, of examples that fit by bytes alone; 0 where none does.

  Args:
    kept: bytes of one example that the backward pass needs, on one device.
  """
  fitting = [n for n in _powers(MOST) if arguments + max(gradients, n * kept) <= memory]
  return max(fitting, default=0)


def kept_bytes(calls: Sequence[Call]) -> int:
  """Bytes, over all devices, that rematerialised blocks keep: what they are given."""
  kept = {
    array.key: call.times * array.size
    for call in calls
    if call.differentiated
    for array in call.activations
    if not array.weight
  }
  return sum(kept.values())


def with_mesh(experiment: Experiment, mesh: MeshConfig, examples: int) -> Experiment:
  """The experiment with a batch of so many examples a group of devices, in one piece."""
  return dataclasses.replace(
    experiment,
    mesh=mesh,
    data=dataclasses.replace(experiment.data, batch_size=examples * mesh.data * mesh.fsdp),
    optim=dataclasses.replace(experiment.optim, accumulate=1),
  )


def _powers(limit: int) -> list[int]:
  """1, 2, 4, ... that divide `limit`."""
  return [2**i for i in range(limit.bit_length()) if limit % 2**i == 0]
