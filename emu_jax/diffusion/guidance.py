"""Guidance: one network under several conditions becomes one better prediction.

The branches go through the network in one call, as one larger batch, and a `Combine` makes one
prediction of their outputs. Every combination here has weights that sum to 1, so it means the same
for epsilon, v and x_0. Scales may be traced: another scale is no other program.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float

from emu_jax.diffusion.process import Process, Sampling
from emu_jax.diffusion.schedule import per_example
from emu_jax.typing import Conditions, Network, PerExample, Predict, Video

Combine = Callable[[Sequence[Video]], Video]  # outputs, one a branch -> one prediction
Scale = float | int | Float[Array, ""] | Float[Array, "B"]  # one for all, or one an example


def guided(network: Network, conditions: tuple[Conditions, ...], combine: Combine) -> Predict:
  """`network` under each of `conditions`, in one call, combined.

  The branches of an example are neighbours in the larger batch, not blocks apart: a batch that is
  split over devices stays where it is.

  Args:
    conditions: one a branch, in the order that `combine` names; each for the whole batch.
  """
  n, together = len(conditions), interleaved(conditions)
  batches = {leaf.shape[0] for leaf in jax.tree.leaves(together)}

  def predict(x_t: Video, t: PerExample) -> Video:
    B = x_t.shape[0]
    if batches - {n * B}:
      raise ValueError(
        f"guided: conditions are for a batch of {sorted(b // n for b in batches)}, x_t for {B};"
        " give every condition the batch of x_t"
      )
    output = network(repeat(x_t, "B ... -> (B n) ...", n=n), repeat(t, "B -> (B n)", n=n), together)
    return combine(list(rearrange(output.astype(jnp.float32), "(B n) ... -> n B ...", n=n)))

  return predict


def led(
  network: Network,
  conditions: tuple[Conditions, ...],
  combine: Combine,
  process: Process,
  sampling: Sampling,
) -> Predict:
  """`guided` where `sampling` asks for it; elsewhere the last branch, the conditioned one, alone.

  Outside of `guidance_interval` the other branches are not computed: a step costs a half or a third
  there. The program holds the network twice then, and takes as much longer to compile.

  Source: arXiv:2404.07724, eq. 5; there sigma from 0.28 to 5.42 for latents of ImageNet.
  """
  alone = lambda x_t, t: network(x_t, t, conditions[-1]).astype(jnp.float32)
  if not sampling.guided:
    return alone
  everywhere = guided(network, conditions, combine)
  if sampling.guidance_interval is None:
    return everywhere
  low, high = sampling.guidance_interval

  def predict(x_t: Video, t: PerExample) -> Video:
    alpha, sigma = process.alpha_sigma(t[:1])  # of every example: a sampler has one time for all
    inside = (low * alpha < sigma) & (sigma <= high * alpha)  # alpha may be 0
    return jax.lax.cond(inside[0], everywhere, alone, x_t, t)

  return predict


def interleaved(conditions: tuple[Conditions, ...]) -> Conditions:
  """The conditions of n branches as those of one batch: example 0's n, then example 1's, ...

  A mask that only some branches have is all True in the others, which is what None means. Anything
  else that some branches have and others lack is an error: what stands for "none" (zeros, a learned
  vector) is the model's to say.

  Raises: ValueError naming the field and what each branch has there.
  """
  texts = _columns("texts", [c.texts for c in conditions])
  masks = _columns("masks", [c.masks or (None,) * len(c.texts) for c in conditions])
  if len(texts) != len(masks):
    raise ValueError(
      f"guided: {len(texts)} texts have {len(masks)} masks; give one a text, or none"
    )
  names = [sorted(c.vectors) for c in conditions]
  if any(n != names[0] for n in names):
    raise ValueError(f"guided: vectors differ between branches: {names}; name the same in each")
  return Conditions(
    texts=tuple(_interleave(f"texts[{i}]", column) for i, column in enumerate(texts)),
    masks=tuple(
      _interleave(f"masks[{i}]", _filled(*columns))
      for i, columns in enumerate(zip(masks, texts, strict=True))
    ),
    concat=_interleave("concat", [c.concat for c in conditions]),
    vectors={
      name: _interleave(f"vectors[{name!r}]", [c.vectors[name] for c in conditions])
      for name in names[0]
    },
    control=tuple(
      _interleave(f"control[{i}]", column)
      for i, column in enumerate(_columns("control features", [c.control for c in conditions]))
    ),
    hint=_interleave("hint", [c.hint for c in conditions]),
  )


def _columns(field: str, rows: Sequence[Sequence[Array | None]]) -> list[tuple]:
  """One tuple of branches a place (an encoder, a state), from one tuple of places a branch."""
  counts = [len(row) for row in rows]
  if len(set(counts)) > 1:
    raise ValueError(f"guided: branches have {counts} {field}; give each of them as many")
  return list(zip(*rows, strict=True))


def _filled(masks: Sequence[Array | None], texts: Sequence[Array]) -> Sequence[Array | None]:
  """Masks of one encoder; all None stays None, for which a network need not mask at all."""
  if all(mask is None for mask in masks):
    return masks
  return [
    jnp.ones(text.shape[:2], bool) if mask is None else mask
    for mask, text in zip(masks, texts, strict=True)
  ]


def _interleave(field: str, branches: Sequence[Array | None]) -> Array | None:
  if all(b is None for b in branches):
    return None
  shapes = [None if b is None else b.shape for b in branches]
  if len(set(shapes)) > 1:
    raise ValueError(
      f"guided: {field} differs between branches: {shapes}; give every branch the same shape"
      " (for a dropped image, zeros for both latents and mask)"
    )
  return rearrange(list(branches), "n B ... -> (B n) ...")


def text_guidance(scale: Scale) -> Combine:
  """Over (without text, with text): scale 0 is the first, 1 the second, more goes beyond it.

  Source: arXiv:2207.12598, eq. 6, with scale = w + 1.
  """

  def combine(outputs):
    uncond, text = outputs
    return uncond + _weight(scale, text) * (text - uncond)

  return combine


def emu_video_guidance(image_scale: Scale, text_scale: Scale) -> Combine:
  """Over (neither, image, image and text): X(0) + w_i (X(I) - X(0)) + w_p (X(I, p) - X(I)).

  X(0) is the network with the image's latents *and* mask zeroed, and no text.

  Source: Emu Video, arXiv:2311.10709, eq. 1; there w_i = 2, w_p = 7.5. InstructPix2Pix,
    arXiv:2211.09800, eq. 3, is the same.
  """

  def combine(outputs):
    null, image, both = outputs
    return (
      null
      + _weight(image_scale, both) * (image - null)
      + _weight(text_scale, both) * (both - image)
    )

  return combine


def frame_guidance(first: Scale, last: Scale) -> Combine:
  """`text_guidance` whose scale grows evenly from the first frame's to the last one's.

  The first frame of image to video is the given image, which needs no guidance; later frames do.

  Source: Stable Video Diffusion, arXiv:2311.15127, sec. 4.3; there 1.0 to 3.0.
  """

  def combine(outputs):
    uncond, image = outputs
    low, high = _weight(first, image), _weight(last, image)
    along = jnp.linspace(0.0, 1.0, image.shape[1]).reshape(1, -1, 1, 1, 1)
    return uncond + ((1 - along) * low + along * high) * (image - uncond)

  return combine


def rescale(combine: Combine, phi: Scale) -> Combine:
  """`combine`, brought the fraction phi of the way to the spread of its last branch alone.

  Large scales inflate the prediction's standard deviation (over T H W C, an example each) and
  overexpose; the last branch is the fully conditioned one.

  Source: arXiv:2305.08891, eq. 15 and 16; there phi = 0.7 with scale 7.5.
  """

  def rescaled(outputs):
    x = combine(outputs)
    ours, wanted = (jnp.std(y, axis=(1, 2, 3, 4)) for y in (x, outputs[-1]))
    # A constant prediction (a network whose last layer is still zero) has no spread to bring.
    factor = jnp.where(ours > 0, wanted / jnp.where(ours > 0, ours, 1), 1)
    return x + _weight(phi, x) * (per_example(factor, x) - 1) * x

  return rescaled


def _weight(scale: Scale, like: Video) -> Array:
  scale = jnp.asarray(scale, jnp.float32)
  return per_example(scale, like) if scale.ndim else scale
