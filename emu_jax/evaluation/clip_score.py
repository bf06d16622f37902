"""How well clips follow their texts and stay what they were, as CLIP sees it.

All are cosines of CLIP's embeddings times 100, one a clip:

  TC, text consistency    of the text and each frame, their mean; of a picture: CLIP similarity
  FC, frame consistency   of each frame and the one before it, their mean
  IC, image consistency   of each frame after the first and the first, their mean

Source: CLIP, arXiv:2103.00020; the three of Emu Video, arXiv:2311.10709, table 6 (there by
  ViT-B/32). CLIPScore (Hessel et al., arXiv:2104.08718, eq. 1) is TC / 40, or 0 if negative.
FC and IC are best of clips in which nothing happens: read them beside a motion score.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emu_jax import weights
from emu_jax.data.tokenizer import Tokenizer, load_tokenizer
from emu_jax.errors import InputError
from emu_jax.evaluation import published
from emu_jax.evaluation.features import Features
from emu_jax.models.text import ClipText, ClipTextConfig
from emu_jax.models.vision import ClipVision, ClipVisionConfig, clip_pixels
from emu_jax.typing import Params, TextMask, Tokens
from emu_jax.weights import text, vision
from emu_jax.weights.files import read_json
from emu_jax.weights.options import Options

# Score -> its title in a report.
TITLES = {
  "text_consistency": "text consistency TC, CLIP x 100",
  "frame_consistency": "frame consistency FC, CLIP x 100",
  "image_consistency": "image consistency IC, CLIP x 100",
}
TEXTS_AT_ONCE = 64
PARTS = ("text_encoder", "image_encoder", "tokenizer")
# Of a CLIPModel's file: what belongs to one encoder, and to neither.
TEXT_TENSORS, IMAGE_TENSORS = ("text_model.*", "text_projection.*"), ("vision_*", "visual_*")
OTHER_TENSORS = ("logit_scale", "*embeddings.position_ids")
# What transformers wrote into configs until version 4: how to generate text, and bookkeeping.
GENERATION = (
  "id2label",
  "label2id",
  "length_penalty",
  "max_length",
  "num_beam_groups",
  "num_beams",
  "num_return_sequences",
  "pruned_heads",
  "repetition_penalty",
  "temperature",
  "tie_word_embeddings",
  "top_k",
  "top_p",
  "typical_p",
)


@dataclasses.dataclass(frozen=True)
class ClipModel:
  """CLIP in memory."""

  tokenizer: Tokenizer
  text: ClipTextConfig
  text_params: Params
  frames: Features  # unit vectors of frames


def load(folder: str | pathlib.Path, *, widen: bool = False) -> ClipModel:
  """CLIP of a folder: a CLIPModel of transformers with its tokenizer, or `PARTS` as diffusers has.

  Args:
    widen: take float16 weights too, as float32.
  Raises: InputError for any other folder, and where the encoders embed in different spaces.
  """
  folder = pathlib.Path(folder)
  if (folder / PARTS[0]).is_dir():
    encoders = [weights.load(folder / part, widen=widen) for part in PARTS[:2]]
    (text_config, text_params), (image_config, image_params) = (
      (module.config, params) for module, params in encoders
    )
    tokens = folder / PARTS[2]
  else:
    text_config, image_config = _configs(folder)
    name = "the CLIPModel of its config.json (of float32, or of float16 with --widen)"
    groups = text.CLIP_TEXT_PROJECTED.groups(text_config)
    text_params = published.load(folder, name, groups, (*IMAGE_TENSORS, *OTHER_TENSORS), widen)
    groups = vision.ARCHITECTURE.groups(image_config)
    image_params = published.load(folder, name, groups, (*TEXT_TENSORS, *OTHER_TENSORS), widen)
    tokens = folder
  if not isinstance(text_config, ClipTextConfig) or not isinstance(image_config, ClipVisionConfig):
    raise InputError(f"clip: {folder} does not hold CLIP's two encoders; give a folder of CLIP")
  dims = text_config.projection_dim, image_config.projection_dim
  if dims[0] != dims[1]:
    raise InputError(
      f"clip: {folder} embeds texts in {dims[0]} and pictures in {dims[1]} dimensions; give both "
      "encoders of one CLIP, with their projections"
    )
  apply = functools.partial(_embedded, image_config)
  frames = Features("CLIP", "frames", dims[1], image_params, apply)
  return ClipModel(load_tokenizer(tokens, text_config.max_length), text_config, text_params, frames)


def _configs(folder: pathlib.Path) -> tuple[ClipTextConfig, ClipVisionConfig]:
  where = f"clip: {folder / 'config.json'}"
  values = read_json(folder / "config.json")
  nested = [values.get(name) for name in ("text_config", "vision_config")]
  if "CLIPModel" not in (values.get("architectures") or []) or None in nested:
    raise InputError(
      f"{where} is of no CLIPModel; give a folder of one, or one with {', '.join(PARTS)}"
    )
  configs = []
  for options, architecture in zip(
    nested, (text.CLIP_TEXT_PROJECTED, vision.ARCHITECTURE), strict=True
  ):
    # The whole model's size of embeddings decides, as in transformers.
    shared = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
    o = Options(options | shared, where)
    o.ignore(*GENERATION)
    try:
      configs.append(architecture.read(o))
    except (TypeError, ValueError) as error:
      raise InputError(f"{where}: {error}; choose another checkpoint") from error
    o.done()
  return tuple(configs)


def _embedded(
  config: ClipVisionConfig, params: Params, pixels: Float[Array, "B H W 3"]
) -> Float[Array, "B P"]:
  images = clip_pixels(pixels, config.image_size)
  return _unit(ClipVision(config).apply({"params": params}, images))


def _unit(x: Float[Array, "B P"]) -> Float[Array, "B P"]:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def text_embeddings(clip: ClipModel, captions: Sequence[str]) -> Float[np.ndarray, "B P"]:
  """Unit vectors of captions; what is longer than CLIP reads is cut, as usual for this score."""
  tokens, mask = clip.tokenizer(captions, overflow="truncate")
  filling = np.resize(np.arange(len(captions)), -(-len(captions) // TEXTS_AT_ONCE) * TEXTS_AT_ONCE)
  parts = [
    _texts(clip.text, clip.text_params, tokens[rows], mask[rows])
    for rows in filling.reshape(-1, TEXTS_AT_ONCE)
  ]
  return np.concatenate([np.asarray(part) for part in parts])[: len(captions)]


@functools.partial(jax.jit, static_argnums=0)
def _texts(
  config: ClipTextConfig, params: Params, tokens: Tokens, mask: TextMask
) -> Float[Array, "B P"]:
  net = ClipText(config)
  return _unit(net.apply({"params": params}, tokens, mask, method="features_and_pooled")[1])


class Scores:
  """The scores of clips whose frames' embeddings come in order, as a `Stream` hands them on.

  Args:
    num_frames: of every clip.
    captions: embeddings of the clips' texts; None: there are none, and no TC.
  """

  def __init__(self, num_frames: int, captions: Float[np.ndarray, "B P"] | None = None):
    self._num_frames, self._captions = num_frames, captions
    self._carried, self._done = None, 0
    self._scores: dict[str, list] = {}

  def add(self, rows: Float[np.ndarray, "N P"], members: Int[np.ndarray, "N"]) -> None:
    """Takes embeddings of frames."""
    if self._carried is not None:
      rows = np.concatenate([self._carried, rows])
    whole = len(rows) // self._num_frames
    clips, self._carried = np.split(rows, [whole * self._num_frames])
    clips = clips.reshape(whole, self._num_frames, rows.shape[1]).astype(np.float64)
    found = {}
    if self._captions is not None:
      captions = self._captions[self._done : self._done + whole]
      found["text_consistency"] = np.einsum("btp,bp->bt", clips, captions)
    if self._num_frames > 1:
      found["frame_consistency"] = np.einsum("btp,btp->bt", clips[:, 1:], clips[:, :-1])
      found["image_consistency"] = np.einsum("btp,bp->bt", clips[:, 1:], clips[:, 0])
    for name, cosines in found.items():
      self._scores.setdefault(name, []).append(100 * cosines.mean(axis=1))
    self._done += whole

  def scores(self) -> dict[str, Float[np.ndarray, "B"]]:
    """A value a clip, keyed as in a report."""
    return {name: np.concatenate(parts) for name, parts in self._scores.items()}
