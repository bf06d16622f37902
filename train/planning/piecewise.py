"""A step planned block by block: each distinct block compiled by itself, and all of them added up.

A whole compile of a full-size network needs tens of gigabytes and an hour; a block takes seconds.
What each figure comes from:

  time, collectives, bytes moved   the compiler, of each block, times its number of calls. A
    block is compiled for the same mesh, with the same placement of parameters and activations, and
    with its backward pass: forward, recomputation where it is rematerialised, gradients.
  between blocks   bytes alone: what is joined, doubled or cast there is written and read once, and
    once more in the backward pass.
  update   bytes alone: gradient, parameter, two moments and average are read, all but the gradient
    written, and gradients read once more for their norm.
  arguments   exact bytes of parameters, optimiser, average, frozen trees and batch under their
    placement, long rows padded to the chip's tiles.
  peak   arguments and the fullest moment of a walk forwards and back: what rematerialised blocks
    keep, gradients so far, and what the compiler says that the block at hand takes beside that.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.parallel.activations import video_spec
from emu_jax.parallel.compilation import Jit
from emu_jax.parallel.placement import leaf_spec
from emu_jax.train.planning import compiling, flops
from emu_jax.train.planning.blocks import Array, Call
from emu_jax.train.planning.compiling import Measured
from emu_jax.train.planning.topologies import Topology

LANES = 128


@dataclasses.dataclass(frozen=True)
class Piece:
  """A distinct block.

  Attributes:
    calls: how often a step calls it, or one that is equal.
    measured: of one call.
    flops: of one call over all devices, its gradients with it and no recomputation.
  """

  call: Call
  calls: int
  measured: Measured
  flops: int


def activation_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """Of an array between blocks: a video's as it is pinned there, others split along the batch.

  Videos stacked for the rounds of a loop lie as each of them does.
  """
  if len(shape) >= 5:
    *stack, _, _, _, _, _ = shape
    video = video_spec(mesh, shape[len(stack) :], "frames")
    return NamedSharding(mesh, PartitionSpec(*(None for _ in stack), *video))
  batch = video_spec(mesh, (*shape[:1], 1, 1, 1, 1), "frames")[0] if shape else None
  return NamedSharding(mesh, PartitionSpec(batch))


def weight_sharding(mesh: Mesh, path: str, array: Array) -> NamedSharding:
  """Of a parameter."""
  return NamedSharding(mesh, leaf_spec(path, array.shape, mesh.shape["fsdp"]))


def share(array: Any, sharding: NamedSharding) -> int:
  """Bytes of an array on one device.

  The last of three axes or more lies in rows of 128 numbers, the last one padded; of fewer axes, or
  where the last is shorter, the compiler chooses an order that pads little.
  """
  *shape, last = (1, *sharding.shard_shape(array.shape))
  if len(array.shape) > 2 and last > LANES:
    last = -(-last // LANES) * LANES
  return math.prod(shape) * last * array.dtype.itemsize


def tree_share(tree: Any) -> int:
  """Bytes on one device of a tree of shapes that have shardings."""
  return sum(share(leaf, leaf.sharding) for leaf in jax.tree.leaves(tree))


def lower(call: Call, mesh: Mesh) -> jax.stages.Lowered:
  """The program of a block: forward, or forward and backward with the cotangent an argument."""
  weights = [
    weight_sharding(mesh, path, array) for path, array in zip(call.paths, call.inputs, strict=False)
  ]
  placed = [*weights, *(activation_sharding(mesh, a.shape) for a in call.activations)]
  smooth = [activation_sharding(mesh, a.shape) for a in call.smooth_outputs]
  inputs = [_shape(a, s) for a, s in zip(call.inputs, placed, strict=True)]
  cotangents = [_shape(a, s) for a, s in zip(call.smooth_outputs, smooth, strict=True)]
  results = [activation_sharding(mesh, a.shape) for a in call.outputs]
  if call.differentiated:
    trained = zip(call.inputs, placed, strict=True)
    results = smooth, tuple(sharding for array, sharding in trained if array.trained)
  program = Jit(block_step(call, call.policy), out_shardings=results)
  with jax.set_mesh(mesh):  # blocks pin their activations to it
    return program.lower(inputs, cotangents)


def block_step(call: Call, policy: Any) -> Callable:
  """A function of a block's inputs and of its outputs' cotangents: outputs, and then gradients.

  Args:
    policy: as of `Call`; None recomputes nothing.
  """
  function = core.jaxpr_as_fun(call.jaxpr)
  if policy is not None:
    function = jax.checkpoint(function, policy=policy or None)
  trained = [i for i, array in enumerate(call.inputs) if array.trained]
  smooth = [i for i, array in enumerate(call.outputs) if array.trained]

  def step(inputs, cotangents):
    def smooth_of(*changed):
      mixed = dict(enumerate(inputs)) | dict(zip(trained, changed, strict=True))
      outputs = function(*mixed.values())
      return [outputs[i] for i in smooth]

    if not trained:
      return function(*inputs)
    outputs, back = jax.vjp(smooth_of, *(inputs[i] for i in trained))
    return outputs, back(cotangents)

  return step


def measure(
  calls: Sequence[Call],
  mesh: Mesh,
  topology: Topology,
  memory_only: bool,
  tell: Callable[[str], None],
  accumulate: int = 1,
) -> list[Piece]:
  """Compiles each distinct block. Calls of one block are one piece.

  Args:
    accumulate: micro-batches, of each of which `calls` is one.
  """
  distinct = collections.defaultdict(list)
  for call in calls:
    distinct[call.key].append(call)
  pieces = []
  for i, same in enumerate(distinct.values()):
    call, times = same[0], accumulate * sum(each.times for each in same)
    tell(f"block {i + 1} of {len(distinct)}: {call.kind} {call.name}, {times} calls")
    measured = compiling.compiled(lower(call, mesh), topology, memory_only)
    shapes = [
      [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
      for arrays in (call.inputs, call.smooth_outputs)
    ]
    kept = dataclasses.replace(call, jaxpr=flops.without_recomputation(call.jaxpr))
    pieces.append(Piece(call, times, measured, flops.count(block_step(kept, None), *shapes)))
  return pieces


def total(
  calls: Sequence[Call],
  pieces: Sequence[Piece],
  mesh: Mesh,
  topology: Topology,
  *,
  arguments: int,
  update: int = 0,
  sums: int = 0,
  accumulate: int = 1,
) -> Measured:
  """The sum of all pieces of a step.

  Args:
    arguments: bytes of the step's arguments on one device.
    update: bytes that the optimiser moves on one device.
    sums: bytes of the gradients' sum over micro-batches, which is there all the time.
    accumulate: as of `measure`.
  """
  of_key = {piece.call.key: piece.measured for piece in pieces}
  shortage = next((piece for piece in pieces if piece.measured.shortage), None)
  if shortage:
    words = f"{shortage.call.kind} {shortage.call.name} alone: {shortage.measured.shortage}"
    return Measured(arguments=arguments, shortage=words)
  size = lambda array: share(array, activation_sharding(mesh, array.shape))
  byte = topology.chip.clock / topology.chip.bandwidth  # cycles a byte to or from the memory
  moved_between = accumulate * between(calls, size) + update
  exchanges = collections.Counter()
  for piece in pieces:
    for kind, (count, volume) in piece.measured.exchanges.items():
      exchanges[kind] += piece.calls * complex(count, volume)
  cycles = [piece.measured.cycles for piece in pieces]
  known = None not in cycles
  spent = sum(p.calls * p.measured.cycles for p in pieces) if known else 0
  beside = sums + held_at_most(calls, of_key, size, mesh)
  return Measured(
    arguments=arguments,
    temporaries=beside,
    peak=arguments + beside,
    moved=float(sum(p.calls * p.measured.moved for p in pieces) + moved_between),
    cycles=int(spent + moved_between * byte) if known else None,
    products=sum(p.calls * p.measured.products for p in pieces) if known else None,
    exchanges={kind: (int(pair.real), int(pair.imag)) for kind, pair in exchanges.items()},
    unknown_loops=sum(p.calls * p.measured.unknown_loops for p in pieces),
  )


def between(calls: Sequence[Call], size: Callable[[Array], int]) -> int:
  """Bytes moved to make what blocks are given and no block gave."""
  made = {a.key: (a, c.times) for c in calls for a in c.activations if not (a.of_block or a.weight)}
  return sum(size(array) * times * (4 if array.trained else 2) for array, times in made.values())


def held_at_most(
  calls: Sequence[Call],
  measured: dict[str, Measured],
  size: Callable[[Array], int],
  mesh: Mesh,
) -> int:
  """Bytes beside the arguments at the fullest moment, forwards and backwards."""
  kept, fullest = {}, 0  # by array, or by the call where it keeps what it computed
  moments = []
  for i, call in enumerate(calls):
    now = measured[call.key]
    block_peak = max(0, now.peak - now.arguments)
    alive = {a.key: size(a) for a in (*call.alive, *call.activations) if not a.weight}
    fullest = max(fullest, sum((kept | alive).values()) + block_peak)
    if not call.differentiated:
      continue
    kept |= {a.key: call.times * size(a) for a in call.activations if not a.weight}
    if call.policy is None:
      kept[f"call {i}"] = call.times * now.temporaries
    elif call.policy:
      kept[f"call {i}"] = call.times * saved(call) // mesh.size
    gradients = sum(
      share(a, weight_sharding(mesh, path, a))
      for path, a in zip(call.paths, call.inputs, strict=False)
      if a.trained
    )
    moments.append((dict(kept), block_peak, sum(map(size, call.outputs)), gradients))
  so_far = 0
  for kept, block_peak, cotangents, gradients in reversed(moments):
    fullest = max(fullest, sum(kept.values()) + block_peak + cotangents + so_far)
    so_far += gradients
  return fullest


def saved(call: Call) -> int:
  """Bytes, over all devices, that a rematerialised block's policy keeps beside its inputs."""
  function = jax.checkpoint(core.jaxpr_as_fun(call.jaxpr), policy=call.policy)
  shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in call.inputs]
  back = jax.eval_shape(lambda *inputs: jax.vjp(function, *inputs)[1], *shapes)
  width = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  return max(0, width(back) - width(shapes))


def _shape(array: Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
