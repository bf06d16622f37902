"""Study 8: low resolution first against high resolution alone, at equal arithmetic."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from emu_jax.conditioning import TextFeatures, first_frame
from emu_jax.models.autoencoder import Autoencoder
from emu_jax.systems.emu import init_spatial
from emu_jax.systems.emu_video import EmuVideoConfig, init_temporal, video_loss
from experiments.reading import clip_values
from experiments.recipe import recipe, resized, short
from experiments.sampling import asked, drawn
from experiments.study import Cell, Criterion, Results, Size, Study, averages
from train.planning import flops

MULTI, SINGLE = "low, then high resolution", "high resolution alone"
LOW_SHARE = 0.8  # of the arithmetic; the paper's 256 px stage has about that


def cells(size: Size, seed: int) -> dict[str, Cell]:
  r = recipe(size)
  given = r.stages["video_64"]
  low = resized(r.model, r.model.image.size // 2)
  steps = given.loop.num_steps
  low_steps = round(LOW_SHARE * steps * step_flops(r.model) / step_flops(low))
  high_steps = max(1, round((1 - LOW_SHARE) * steps))
  first = r.video(
    seed,
    change=dataclasses.replace(short(given, low_steps), model=low, name="video_low"),
    after=r.image(),
  )
  wanted = asked(r, "validation", seed)

  def measure(folders):
    return clip_values(drawn(folders[0], wanted), wanted.truths, r.model.fps)

  runs = {
    MULTI: r.video(seed, change=short(given, high_steps), after=first),
    SINGLE: r.video(seed, after=r.image()),
  }
  return {arm: Cell((run,), wanted.options, measure) for arm, run in runs.items()}


@functools.cache
def step_flops(model: EmuVideoConfig) -> int:
  """Operations of products and convolutions in a video stage's step, of one clip."""
  image, known = model.image, first_frame(model.num_frames)
  side, C = image.size, image.autoencoder.z_channels
  frames = jnp.zeros((1, model.num_frames, side, side, 3))
  key = jax.random.key(0)
  trees = jax.eval_shape(
    lambda key: {
      "autoencoder": Autoencoder(image.autoencoder).init(key, frames[:, :1])["params"],
      "latents": {"shift": jnp.zeros(C), "scale": jnp.ones(C)},
      "spatial": init_spatial(image, key),
      "temporal": init_temporal(model, key),
    },
    key,
  )
  texts = tuple(jnp.zeros((1, t.max_length, t.width)) for t in image.text)
  text = TextFeatures(texts, (None,) * len(texts))

  def loss(temporal, others):
    dropped = jnp.zeros(1, bool)
    whole = {**others, "temporal": temporal}
    return video_loss(model, known, "temporal", whole, frames, text, dropped, key).mean()

  temporal = trees.pop("temporal")
  return flops.count(jax.grad(loss), temporal, trees)


def judge(results: Results) -> list[Criterion]:
  return [
    Criterion("joint: both less high alone", results.difference(MULTI, SINGLE, "joint"), least=0.0)
  ]


STUDY = Study(
  name="multistage",
  title="Multi-stage against single-stage training",
  claim=(
    "Most of training at a low resolution and the rest at a high one beats the high one alone for "
    "the same arithmetic (Emu Video, arXiv:2311.10709, table 1)."
  ),
  method=(
    "The same frozen image model; 80 % of the arithmetic of the video stage at half the side and "
    "20 % at the whole, or all of it at the whole. Arithmetic counts products and convolutions of "
    "the step (`train/planning/flops.py`). Both stages of the first arm have a learning rate that "
    "falls to zero. Prompts are of motions that training has seen. Fréchet distances are not "
    "measured."
  ),
  cells=cells,
  statistics=averages("joint", "appearance", "direction", "consistency", "motion"),
  judge=judge,
  pairs=((MULTI, SINGLE),),
  paired=("joint", "appearance", "direction", "consistency"),
)
