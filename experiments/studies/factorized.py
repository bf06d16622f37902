"""Study 5: text -> picture -> clip against text -> clip, at equal cost."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.conditioning import text_conditions
from emu_jax.diffusion import noise
from emu_jax.diffusion.guidance import guided, text_guidance
from emu_jax.diffusion.process import Sampling
from emu_jax.evaluation.metrics import Clips
from emu_jax.model import Model
from emu_jax.parallel.compilation import Jit
from emu_jax.systems.emu import encode_prompts
from emu_jax.systems.emu_video import EmuVideo, vectors, video_network
from emu_jax.systems.first_stage import to_bytes
from emu_jax.systems.system import Arrays, Trees, example_keys
from experiments.reading import clip_values
from experiments.recipe import recipe
from experiments.sampling import Fields, drawn, recipe_prompts
from experiments.study import Cell, Criterion, Results, Size, Study, averages

SPLITS = {"looks of pictures only": "image_only", "looks of clips": "validation"}
SYSTEMS = ("factorized", "direct")


def arm(system: str, looks: str) -> str:
  return f"{system}, {looks}"


def cells(size: Size, seed: int) -> dict[str, Cell]:
  """Factorized: 2 S network calls for the picture and 3 S for the clip; direct: 2 of 5 S / 2."""
  r = recipe(size)
  given = r.stages["video_64"]
  data = dataclasses.replace(given.data, drop_text=0.0, drop_both=0.1, drop_image=0.9)
  direct_stage = dataclasses.replace(given, data=data)
  runs = {
    "factorized": r.video(seed),
    "direct": r.video(seed, change=direct_stage, after=r.low(data=data)),
  }
  found = {}
  for looks, split in SPLITS.items():
    for system, run in runs.items():
      wanted = recipe_prompts(r, split, seed)
      if system == "direct":
        wanted = wanted.changed(steps=5 * r.sampling.num_steps // 2)

      def measure(folders, wanted=wanted, draw=direct if system == "direct" else None):
        clips = drawn(folders[0], wanted, draw=draw)
        return clip_values(clips, wanted.truths, r.model.fps)

      found[arm(system, looks)] = Cell((run,), wanted.options, measure)
  return found


def direct(model: Model, texts: Sequence[str], fields: Fields, given: None) -> Clips:
  """Clips that no picture begins, with the noise that the task "sample" gives its clips."""
  request = model.request("sample", prompt=tuple(texts), **fields)
  arrays = model.arrays("sample", [request])
  made = _direct(model.trees, arrays, config=model.system, sampling=request.sampling)
  return np.asarray(made)


@functools.partial(Jit, static_argnames=("config", "sampling"))
def _direct(trees: Trees, arrays: Arrays, *, config: EmuVideo, sampling: Sampling) -> jax.Array:
  features = encode_prompts(trees, arrays, config.image)
  text, none = features["text"], features["empty"]
  _, key, _ = noise.split(example_keys(arrays), 3)  # as the steps of "sample"
  key_noise, _, key_steps = noise.split(key, 3)  # as `sample_video`
  shape = config.image.latent_shape(text.texts[0].shape[0], config.num_frames)
  withheld = jnp.zeros((*shape[:-1], shape[-1] + 1))
  level = vectors(config, jnp.zeros(shape[0]))
  branches = tuple(text_conditions(words, withheld, level) for words in (none, text))
  _, scale = arrays["video_scales"]
  predict = guided(video_network(config, trees), branches, text_guidance(scale))
  latents = config.process.sample(predict, noise.normal(key_noise, shape), key_steps, sampling)
  return to_bytes(config.image.first_stage.decode(trees, latents))


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion(
      f"{metric}, {looks}: factorized less direct",
      results.difference(arm("factorized", looks), arm("direct", looks), metric), least=0.0,
    )
    for looks in SPLITS
    for metric in ("joint", "consistency")
  ]  # fmt: skip


STUDY = Study(
  name="factorized",
  title="Factorized against direct generation",
  claim=(
    "Text -> picture -> clip gives better and more faithful clips than text -> clip (Emu Video, "
    "arXiv:2311.10709, table 1), most of all for looks that only pictures have shown."
  ),
  method=(
    "Both begin with the same image model, frozen, and train the same temporal layers for as many "
    "steps on the same clips, at half the resolution first; the direct model's picture and mask "
    "are always zero, in training and "
    "sampling. Sampling takes 5 S network calls of either: the factorized system's are 2 S for a "
    "picture and 3 S for a clip, the direct one's are all of clips, which is more arithmetic. "
    "Joint: the oracle reads all of look and motion as the caption says."
  ),
  cells=cells,
  statistics=averages("joint", "appearance", "direction", "consistency", "motion"),
  judge=judge,
  pairs=tuple((arm("factorized", looks), arm("direct", looks)) for looks in SPLITS),
  paired=("joint", "appearance", "direction", "consistency"),
)
