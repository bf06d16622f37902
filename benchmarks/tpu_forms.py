"""What the TPU compiler expects of one layer written in several ways; no TPU is needed.

  python -m benchmarks.tpu_forms                        # all tables, an hour on two cores
  python -m benchmarks.tpu_forms --only "gated"         # those whose title holds these words

Each form is compiled for one v5e chip with its backward pass, in bfloat16 at the sizes of Emu
Video's 256 pixel stage, one clip of 8 frames (or 512 pixels where a title says so). The figures are
the compiler's estimated cycles: nothing here was measured on a chip.
"""

import argparse
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from emu_jax.models.attention import GroupNorm, Products, gelu
from emu_jax.models.dot_product import attend
from emu_jax.models.site import Site
from emu_jax.models.spatial import SpatialTransformer
from emu_jax.models.temporal import TemporalTransformer
from emu_jax.models.unet import ResBlock
from emu_jax.parallel.mesh import make_mesh
from emu_jax.systems.emu_video import published_unet
from emu_jax.train.planning import flops, hlo, topologies

TOPOLOGY = "v5e:2x2"
HALF = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Form:
  """One way to write a layer: a function of the arrays of these shapes, of which it makes one."""

  name: str
  function: Callable
  shapes: tuple[Any, ...]
  trained: tuple[int, ...]  # which arguments have gradients
  plain: Callable | None = None  # whose arithmetic counts as the model's, where it is another's


def array(*shape: int, dtype: Any = HALF) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def spatial_attention() -> Iterator[tuple[str, list[Form]]]:
  """Self-attention among the pixels of 8 frames, 6 heads of 64."""
  plain = jax.nn.dot_product_attention

  def frame_by_frame(q, k, v):
    one = jax.checkpoint(lambda a: plain(*(x[None] for x in a))[0])
    return jax.lax.map(one, (q, k, v))

  def rows(pieces, q, k, v):
    one = jax.checkpoint(lambda q: plain(q, k, v))
    N, S, H, D = q.shape
    parts = jnp.moveaxis(q.reshape(N, pieces, S // pieces, H, D), 1, 0)
    return jnp.moveaxis(jax.lax.map(one, parts), 0, 1).reshape(q.shape)

  for pixels, forms in (
    (1024, {"all at once": plain, "frame by frame": frame_by_frame, "head by head": attend}),
    (4096, {"all at once": plain, "an eighth of the queries": functools.partial(rows, 8),
            "head by head": attend}),
  ):  # fmt: skip
    x = array(8, pixels, 6, 64)
    made = [Form(name, f, (x, x, x), (0, 1, 2), plain) for name, f in forms.items()]
    yield f"attention among {pixels} pixels", made


def temporal_attention() -> Iterator[tuple[str, list[Form]]]:
  """Among 8 frames at each of 1024 pixels, 6 heads of 64, with the products around it."""
  C, H = 384, 6

  def attention(core, fold, kernels, x):
    y = x.transpose(0, 2, 3, 1, 4).reshape(-1, fold * x.shape[1], C)
    q, k, v = ((y @ w.astype(HALF)).reshape(*y.shape[:-1], H, C // H) for w in kernels[:3])
    y = y + core(q, k, v).reshape(y.shape) @ kernels[3].astype(HALF)
    B, T, h, w, _ = x.shape
    return y.reshape(B, h, w, T, C).transpose(0, 3, 1, 2, 4)

  def folded(fold, q, k, v):
    pixel = jnp.arange(q.shape[1]) // (q.shape[1] // fold)
    same = (pixel[:, None] == pixel[None])[None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=same)

  def heads_in_sequence(q, k, v):
    N, T, _, D = q.shape
    head = jnp.arange(T * H) % H
    long = lambda a: a.reshape(N, T * H, 1, D)
    same = (head[:, None] == head[None])[None, None]
    return jax.nn.dot_product_attention(*map(long, (q, k, v)), mask=same).reshape(q.shape)

  plain = functools.partial(attention, jax.nn.dot_product_attention, 1)
  forms = {"a pixel a sequence": plain}
  for n in (4, 16, 32):
    core = functools.partial(folded, n)
    forms[f"{n} pixels a sequence, masked"] = functools.partial(attention, core, n)
  forms["heads in the sequence, masked"] = functools.partial(attention, heads_in_sequence, 1)
  shapes = ((array(C, C, dtype=jnp.float32),) * 4, array(1, 8, 32, 32, C))
  yield (
    "attention among 8 frames at 1024 pixels",
    [Form(name, f, shapes, (0, 1), plain) for name, f in forms.items()],
  )


def temporal_convolution() -> Iterator[tuple[str, list[Form]]]:
  """Over 8 frames at 1024 pixels, 384 channels, kernel 3; added to its input."""
  C = 384

  def conv1d(kernel, x):
    B, T, H, W, _ = x.shape
    h = x.transpose(0, 2, 3, 1, 4).reshape(-1, T, C)
    h = jax.lax.conv_general_dilated(
      h, kernel.astype(HALF), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    return x + h.reshape(B, H, W, T, C).transpose(0, 3, 1, 2, 4)

  def conv2d(kernel, x):
    h = jax.lax.conv_general_dilated(
      x.reshape(*x.shape[:2], -1, C), kernel.astype(HALF)[:, None], (1, 1), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return x + h.reshape(x.shape)

  def conv3d(kernel, x):
    kernel = kernel.astype(HALF)[:, None, None]
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return x + jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)

  def shifted(kernel, x):
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    return x + sum(padded[:, i : i + x.shape[1]] @ kernel[i].astype(HALF) for i in range(3))

  def joined(kernel, x):
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    three = jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(3)], axis=-1)
    return x + three @ kernel.astype(HALF).reshape(3 * C, C)

  forms = {
    "1-d, pixels in the batch": conv1d,
    "2-d (3, 1) over frames and pixels": conv2d,
    "3-d (3, 1, 1)": conv3d,
    "three shifted products": shifted,
    "one product of three frames joined": joined,
  }
  shapes = (array(3, C, C, dtype=jnp.float32), array(1, 8, 32, 32, C))
  yield (
    "convolution over 8 frames",
    [Form(name, f, shapes, (0, 1), conv1d) for name, f in forms.items()],
  )


def gated() -> Iterator[tuple[str, list[Form]]]:
  """GEGLU feed-forward network of 8192 tokens of 384 features."""
  D = 384

  def network(cut, activation, params, x):
    if cut:
      h, gate = Products(4 * D, 2, HALF).apply({"params": params["in"]}, x)
    else:
      h = x @ params["in"]["kernel"].astype(HALF) + params["in"]["bias"].astype(HALF)
      h, gate = jnp.split(h, 2, axis=-1)
    return x + (h * activation(gate)) @ params["out"].astype(HALF)

  exact = functools.partial(jax.nn.gelu, approximate=False)
  forms = {
    "product cut": (False, exact),
    "kernel cut": (True, exact),
    "kernel cut, GELU by erf in float32": (True, gelu),
    "kernel cut, GELU by tanh (another function)": (True, jax.nn.gelu),
  }
  plain = functools.partial(network, False, exact)
  for title, dtype, trained in (("frozen", HALF, (1,)), ("trained", jnp.float32, (0, 1))):
    inner = {"kernel": array(D, 8 * D, dtype=dtype), "bias": array(8 * D, dtype=dtype)}
    shapes = ({"in": inner, "out": array(4 * D, D, dtype=dtype)}, array(8, 1024, D))
    yield (
      f"gated network, {title}",
      [
        Form(name, functools.partial(network, *arguments), shapes, trained, plain)
        for name, arguments in forms.items()
      ],
    )


def group_norm() -> Iterator[tuple[str, list[Form]]]:
  """Group norm of 8 frames of 32 x 32 pixels and 384 channels, and SiLU."""
  x = array(1, 8, 32, 32, 384)
  params = {"group": {name: array(384, dtype=HALF) for name in ("scale", "bias")}}

  def ours(params, x):
    return jax.nn.silu(GroupNorm(32).apply({"params": params}, x)).astype(HALF)

  def two_passes(params, x):
    norm = nn.GroupNorm(32, reduction_axes=(-3, -2, -1), dtype=jnp.float32, use_fast_variance=False)
    return jax.nn.silu(norm.apply({"params": params["group"]}, x)).astype(HALF)

  def squares(params, x):
    wide = x.astype(jnp.float32).reshape(1, 8, 1024, 32, 12)
    mean = wide.mean((2, 4), keepdims=True)
    spread = jnp.square(wide).mean((2, 4), keepdims=True) - jnp.square(mean)
    h = ((wide - mean) * jax.lax.rsqrt(spread + 1e-5)).reshape(x.shape)
    wide = {name: a.astype(jnp.float32) for name, a in params["group"].items()}
    return jax.nn.silu(h * wide["scale"] + wide["bias"]).astype(HALF)

  yield (
    "group norm and SiLU",
    [
      Form("mean, then variance", two_passes, (params, x), (1,)),
      Form("deviations from a row's mean", ours, (params, x), (1,)),
      Form("mean of squares (loses digits)", squares, (params, x), (1,)),
    ],
  )


def blocks() -> Iterator[tuple[str, list[Form]]]:
  """The models' own blocks, and what they keep for the backward pass."""
  ways = {
    "all recomputed": {"remat": True},
    "products kept": {"remat": True, "remat_keeps": "products"},
    "all kept": {},
  }
  for pixels, C in ((32, 384), (16, 768), (8, 1536)):
    x, texts = array(1, 8, pixels, pixels, C), (array(1, 77, 768), array(1, 77, 2048))
    made = {"residual block": [], "spatial transformer": [], "temporal transformer": []}
    for name, options in ways.items():
      unet = published_unet(dtype="bfloat16", **options)
      heads = unet.heads(C)
      site = Site("attention", "down", 0)
      spatial = unet.recomputed(SpatialTransformer)(2, site, unet)
      temporal = unet.recomputed(TemporalTransformer)(*heads, 2, 32, HALF)
      modules = {
        "residual block": (
          unet.recomputed(ResBlock)(C, unet, Site("res", "down", 0)),
          (x, array(1, 1536)),
        ),
        "spatial transformer": (spatial, (x, texts, (None, None))),
        "temporal transformer": (temporal, (x, (None, None), (None, None))),
      }
      for kind, (module, inputs) in modules.items():
        made[kind].append(of_module(name, module, inputs))
    for kind, forms in made.items():
      stored = forms[-1].function  # arithmetic without recomputation
      counted = [dataclasses.replace(form, plain=stored) for form in forms]
      yield f"{kind}, {pixels} x {pixels} pixels, {C} channels", counted


def of_module(name: str, module: Any, inputs: tuple) -> Form:
  """A block whose layers over frames train and whose others are frozen in bfloat16."""
  params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  whole = isinstance(module, TemporalTransformer)  # also where it is recomputed
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  trains = [whole or "temporal_" in jax.tree_util.keystr(path) for path, _ in leaves]
  changed = [leaf for (_, leaf), train in zip(leaves, trains, strict=True) if train]
  fixed = [array(*leaf.shape) for (_, leaf), train in zip(leaves, trains, strict=True) if not train]

  def apply(changed, fixed, *inputs):
    changed, fixed = iter(changed), iter(fixed)
    tree = [next(changed if train else fixed) for train in trains]
    return module.apply({"params": structure.unflatten(tree)}, *inputs)

  return Form(name, apply, (changed, fixed, *inputs), (0, 2))


def measure(form: Form, device: Any) -> tuple[int, int]:
  """Operations of the model, and the cycles that the compiler expects, forwards and backwards."""

  def both(function):
    def run(shapes, cotangent):
      def apply(*changed):
        mixed = dict(enumerate(shapes)) | dict(zip(form.trained, changed, strict=True))
        return function(*mixed.values())

      out, back = jax.vjp(apply, *(shapes[i] for i in form.trained))
      return out, back(cotangent)

    return run

  out = jax.eval_shape(form.function, *form.shapes)
  work = flops.count(both(form.plain or form.function), form.shapes, out)
  here = SingleDeviceSharding(device)
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)
  with jax.set_mesh(make_mesh([device])):  # which decides how attention is computed
    lowered = jax.jit(both(form.function)).lower(*jax.tree.map(place, (form.shapes, out)))
  program = lowered.compile()
  return work, hlo.read(program.as_text()).cycles


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="words in the titles of the chosen tables")
  only = parser.parse_args().only
  jax.config.update("jax_platforms", "cpu")
  warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
  topology = topologies.parse(TOPOLOGY)
  device, peak = topologies.devices(topology)[0], 2 * topology.chip.multipliers
  for group in (gated, temporal_convolution, temporal_attention, spatial_attention, group_norm,
                blocks):  # fmt: skip
    for title, forms in group():
      if only not in title:
        continue
      print(f"\n{title}\n\n| form | GFLOP | thousand cycles | utilisation |\n|---|---|---|---|")
      for form in forms:
        work, cycles = measure(form, device)
        share = 100 * work / (cycles * peak)
        print(
          f"| {form.name} | {work / 1e9:.1f} | {cycles / 1e3:.0f} | {share:.1f} % |", flush=True
        )


if __name__ == "__main__":
  main()
