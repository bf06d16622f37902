"""Dot-product attention, in the form that suits the devices: every network's attention is `attend`.

The form is chosen while a program is traced, by the devices that it is for
(`parallel.activations.platform`) and by shapes. A choice inside the program
(`jax.lax.platform_dependent`) is none for cuDNN's form: its tracing asks the GPU itself, so that no
other machine could plan the program.

  CPU   head-major operands, q scaled in place of the logits, division after the second product: 2
        to 3 times as fast as `jax.nn.dot_product_attention` (docs/results/speed.md)
  GPU   cuDNN's fused attention where it takes the arrays, the form of XLA elsewhere
  TPU   the form of XLA, or Pallas's splash attention where a network asks for it

Run on CPUs alone so far: of cuDNN's form only the choice is tested, and of splash attention what
Pallas's interpreter computes.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.extend.backend import get_backend
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from emu_jax.parallel.activations import AXES, per_device, platform, spread_mesh

# "auto": as above; "plain": without fused kernels; "splash": that of TPUs, "auto" elsewhere.
Kernel = Literal["auto", "plain", "splash"]
Queries = Float[Array, "N Q H D"]
Keys = Float[Array, "N L H D"]

# Sequences of at least LONG tokens are processed one head at a time, in pieces of at most PIECE
# logits on a device: a few sequences, and at least ROWS queries of each while several sequences go
# together. All logits would pass through memory several times. A piece of 2**23 is 32 MB in float32
# and stays on a TPU's chip, which is expected to halve the time (docs/tpu_forms.md); one of 2**20
# stays in a CPU's cache.
LONG = 1024  # tokens, of queries and of keys
PIECE = {"cpu": 2**20, "gpu": 2**23, "tpu": 2**23}  # logits
ROWS = 256  # queries: fewer rows would leave a matrix unit idle

# Up to so many keys a CPU is as fast by the form of XLA, and faster with its gradient.
FEW = 8

# Tiles of fused attention are 64 or 128 tokens wide: shorter sequences would leave them empty.
FUSED_QUERIES, FUSED_KEYS = 256, 32
CUDNN_HEAD = 128  # features of the largest head that cuDNN takes on every GPU
LANES = 128  # of a TPU: splash attention takes heads and lengths in multiples of it


def attend(
  q: Queries,
  k: Keys,
  v: Keys,
  mask: Bool[Array, "_ _ _ L"] | None = None,
  *,
  lengths: Bool[Array, "N L"] | None = None,
  bias: Float[Array, "_ H Q L"] | None = None,
  scale: float | None = None,
  kernel: Kernel = "auto",
) -> Queries:
  """Softmax of scaled q k^T, times v, of every head; the same numbers in every form but rounding.

  Long sequences without a mask or bias go a piece of their logits at a time. On a mesh N is split
  over devices, and each takes a piece of its own sequences.

  Args:
    mask: of queries to keys, True where one may attend.
    lengths: of keys alone: True at a sequence's tokens, which come first, False at the padding
      behind them.
    bias: of the logits.
    scale: of the logits; None: D^-1/2.
  Source: arXiv:1706.03762, eq. 1; division last: FlashAttention, arXiv:2205.14135, sec. 3.1.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  here = platform()
  if kernel != "plain" and mask is None and bias is None:
    if here == "gpu" and _fits_cudnn(q, k):
      return _cudnn(q, k, v, lengths, scale)
    if here == "tpu" and kernel == "splash" and lengths is None and _fits_splash(q, k):
      return splash(q, k, v, scale)
  if lengths is not None:
    padding = lengths[:, None, None, :]
    mask = padding if mask is None else mask & padding
  head_major = here == "cpu" and k.shape[1] > FEW
  form = functools.partial(_head_major if head_major else _of_xla, scale=scale)
  if mask is not None or bias is not None or min(q.shape[1], k.shape[1]) < LONG:
    return form(q, k, v, mask, bias)
  return _in_pieces(form, q, k, v, PIECE[here])


def _of_xla(q, k, v, mask=None, bias=None, *, scale):
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)


def _head_major(q, k, v, mask=None, bias=None, *, scale):
  """The same for CPUs, whose products of strided operands and passes over logits are slow."""
  q, k, v = (rearrange(a, "N S H D -> N H S D") for a in (q * scale, k, v))
  wide = jnp.promote_types(v.dtype, jnp.float32)
  logits = jnp.einsum("NHQD,NHLD->NHQL", q, k, preferred_element_type=wide)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min / 2)
  # The result does not depend on what is subtracted, so that it has no gradient.
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  h = jnp.einsum("NHQL,NHLD->NHQD", weights.astype(v.dtype), v, preferred_element_type=wide)
  return rearrange(h / weights.sum(-1, keepdims=True), "N H Q D -> N Q H D").astype(v.dtype)


def _in_pieces(form: Callable, q: Queries, k: Keys, v: Keys, piece: int) -> Queries:
  """`form` of one head at a time, of so many sequences and queries that their logits fit."""
  (N, Q, _, _), L = q.shape, k.shape[1]
  here = per_device(N)
  groups = _divisor(here, here * min(Q, ROWS) * L, piece)
  pieces = _divisor(Q, here // groups * Q * L, piece)
  if N % groups:  # the mesh does not split N evenly
    groups = 1

  def group(inputs):
    """One head of some sequences: [n Q D], [n L D], [n L D] -> [n Q D]."""
    q, k, v = inputs
    parts = rearrange(q, "n (P q) D -> P n q 1 D", P=pieces)
    # Recomputed, or else the logits of all pieces would be kept for the backward pass.
    one = jax.checkpoint(lambda q: form(q, k[:, :, None], v[:, :, None]))
    return rearrange(jax.lax.map(one, parts), "P n q 1 D -> n (P q) D")

  # A group is every `groups`-th sequence, so that it lies on all devices.
  split = lambda a: rearrange(a, "(n g) S H D -> (H g) n S D", g=groups)
  h = jax.lax.map(group, (split(q), split(k), split(v)))
  return rearrange(h, "(H g) n Q D -> (n g) Q H D", g=groups)


def _divisor(n: int, logits: int, piece: int) -> int:
  """The smallest divisor of n that cuts so many logits into pieces that fit; or else n."""
  return next((d for d in range(1, n) if n % d == 0 and logits <= d * piece), n)


def _fits_cudnn(q: Queries, k: Keys) -> bool:
  """Whether cuDNN's fused attention takes the arrays, and this process can trace it."""
  (_, Q, _, D), L = q.shape, k.shape[1]
  fits = D % 8 == 0 and D <= CUDNN_HEAD and Q >= FUSED_QUERIES and L >= FUSED_KEYS
  half = q.dtype == k.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
  return fits and half and has_cudnn()


def has_cudnn() -> bool:
  """Whether this process has GPUs that run cuDNN's fused attention: NVIDIA's, from Ampere on."""
  if jax.default_backend() != "gpu" or "cuda" not in get_backend().platform_version:
    return False
  return tuple(map(int, jax.local_devices()[0].compute_capability.split("."))) >= (8, 0)


def _cudnn(q, k, v, lengths, scale):
  keys = None if lengths is None else lengths.sum(-1, dtype=jnp.int32)
  return jax.nn.dot_product_attention(
    q, k, v, scale=scale, key_value_seq_lengths=keys, implementation="cudnn"
  )


def _fits_splash(q: Queries, k: Keys) -> bool:
  (N, Q, _, _), L, mesh = q.shape, k.shape[1], spread_mesh()
  whole = mesh is None or N % mesh.size == 0
  return whole and min(Q, L) >= LONG and Q % LANES == 0 and L % LANES == 0


def splash(q: Queries, k: Keys, v: Keys, scale: float, *, interpret: bool = False) -> Queries:
  """Pallas's splash attention without a mask; on a mesh each device does its own sequences.

  Args:
    interpret: run it where there is no TPU, slowly.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention  # imports Pallas, which takes time

  (_, Q, H, D), L, mesh = q.shape, k.shape[1], spread_mesh()

  def of_device(q, k, v):
    every = splash_attention.MultiHeadMask([splash_attention.FullMask((Q, L))] * H)
    kernel = splash_attention.make_splash_mha_single_device(every, interpret=interpret)
    wide = [(0, 0)] * 3 + [(0, -D % LANES)]
    head_major = (
      rearrange(jnp.pad(a, wide), "N S H D -> N H S D") for a in ((q * scale).astype(q.dtype), k, v)
    )
    return rearrange(jax.vmap(kernel)(*head_major), "N H Q D -> N Q H D")[..., :D]

  if mesh is None:
    return of_device(q, k, v)
  spec = PartitionSpec(AXES)
  # Pallas does not say over which axes its results vary.
  apart = jax.shard_map(of_device, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
  return apart(q, k, v)
