"""What a network reads beside the noise: masks, known frames and text, for each branch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from emu_jax.diffusion.process import Process
from emu_jax.typing import Conditions, PerExample, Predict, Video


@dataclasses.dataclass(frozen=True)
class KnownFrames:
  """Which frames of a clip a model is given, and how much noise was added to them.

  First frame: (0,) of 8. Interpolation: every fourth of 37. Extension: the first 16 of 32.
  """

  num_frames: int
  positions: tuple[int, ...]
  max_noise: int = 0  # training adds noise up to this time index; 0 = none

  def __post_init__(self):
    if not self.positions or max(self.positions) >= self.num_frames or min(self.positions) < 0:
      raise ValueError(
        f"KnownFrames: positions={self.positions} do not lie in a clip of {self.num_frames} frames"
      )
    if len(set(self.positions)) < len(self.positions):
      raise ValueError(f"KnownFrames: positions={self.positions} name a frame twice")


def first_frame(num_frames: int) -> KnownFrames:
  """Text + image to video. Source: Emu Video, arXiv:2311.10709, sec. 3.2."""
  return KnownFrames(num_frames, (0,))


def every_fourth(num_keys: int = 8, *, max_noise: int = 250) -> KnownFrames:
  """Key frames with 3 new frames between two and 4 beyond each end: 8 keys -> 37 frames.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 (interpolation): keys at 4, 8, …, 32 of 37, with
    noise of t in {0..250} added to them in training.
  """
  positions = tuple(4 * (i + 1) for i in range(num_keys))
  return KnownFrames(4 * num_keys + 5, positions, max_noise)


def past_frames(num_past: int = 16, num_new: int = 16) -> KnownFrames:
  """Extension of a clip. Source: ours (systems: "small architectural modification", sec. 4.3)."""
  return KnownFrames(num_past + num_new, tuple(range(num_past)))


def concat_known(
  known: KnownFrames, latents: Float[Array, "B K H W C"], dropped: Bool[Array, "B"] | None = None
) -> Float[Array, "B T H W D"]:
  """[mask, latents of known frames, zeros elsewhere]: the channels beside x_t's.

  Where `dropped`, mask and latents are both zero: the model is then the direct text-to-video one.

  Source: Emu Video, arXiv:2311.10709, sec. 3.2 and eq. 1; the form of the drop is ours.
  """
  B, K, H, W, C = latents.shape
  if len(known.positions) != K:
    raise ValueError(
      f"concat_known: {K} frames given for {len(known.positions)} positions {known.positions}"
    )
  where = np.asarray(known.positions)
  marked = jnp.concatenate([jnp.ones((B, K, H, W, 1), latents.dtype), latents], axis=-1)
  concat = jnp.zeros((B, known.num_frames, H, W, C + 1), latents.dtype).at[:, where].set(marked)
  if dropped is None:
    return concat
  return jnp.where(dropped[:, None, None, None, None], 0.0, concat)


def keeping(
  predict: Predict, process: Process, known: KnownFrames, given: Float[Array, "B K H W C"]
) -> Predict:
  """`predict` with a denoiser that is right about the known frames: x_0 there is `given`.

  A sampler then ends with them as they are, and the network sees them at every step with the noise
  of that step and no other, as in training.

  Source: ours; what Video Diffusion Models (arXiv:2204.03458, sec. 3.1) call replacement, of the
    prediction in place of x_t: no noise is drawn for it and every solver is served.
  """
  where = np.asarray(known.positions)
  given = given.astype(jnp.float32)

  def kept(x_t: Video, t: PerExample) -> Video:
    right = process.output(given, x_t[:, where], t)
    return predict(x_t, t).at[:, where].set(right)

  return kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextFeatures:
  """A batch of prompts as each text encoder sees it; see `Conditions` for why loosely annotated."""

  texts: tuple[Any, ...]  # Text, one an encoder
  masks: tuple[Any, ...]  # TextMask or None, one a text
  # What else the image model reads of the prompt, as `Conditions.vectors`: SDXL's "pooled" [B, P]
  # and "micro" [B, 6].
  vectors: dict[str, Any] = dataclasses.field(default_factory=dict)


def text_conditions(
  text: TextFeatures, concat: Any = None, vectors: dict[str, Any] | None = None
) -> Conditions:
  """What a network reads of a batch of prompts, with what stands beside x_t and other vectors."""
  return Conditions(text.texts, text.masks, concat, text.vectors | (vectors or {}))


def image_branches(text: TextFeatures, empty: TextFeatures) -> tuple[Conditions, Conditions]:
  """The unconditional and the conditional branch of text-to-image guidance."""
  return text_conditions(empty), text_conditions(text)


def known_branches(
  text: TextFeatures,
  empty: TextFeatures,
  concat: Video,
  vectors: dict[str, Float[Array, "B"]] | None = None,
) -> tuple[Conditions, Conditions, Conditions]:
  """X(∅), X(I) and X(I, p) of a model that is given known frames, or the picture that it edits.

  Source: Emu Video, arXiv:2311.10709, eq. 1; InstructPix2Pix, arXiv:2211.09800, eq. 3.
  """
  return (
    text_conditions(empty, jnp.zeros_like(concat), vectors),
    text_conditions(empty, concat, vectors),
    text_conditions(text, concat, vectors),
  )
