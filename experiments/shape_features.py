"""Trains the two networks whose features FID-o and FVD-o compare, and says how well they read.

  python -m experiments.shape_features

Both learn the words of drawn moving shapes (emu_jax/data/shapes.py) from every look and motion that
there is, held-out ones too: the features shall not favour a model for what it was trained on. The
scenes that accuracies are of are drawn apart. Nothing is added to the pictures, so that what spoils
a generated one moves its features.
"""

import dataclasses
import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
import tyro
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from emu_jax import media
from emu_jax.data import shapes
from emu_jax.evaluation import metrics, shape_features
from emu_jax.parallel.compilation import enable_cache
from emu_jax.typing import Params

NUM_FRAMES, EVERY = 8, 4  # 8 frames at 4 a second, as Emu Video has them
SEED_OF_HELD_OUT = 1_000_000  # added to the seed
QUIET = {"file": sys.stderr, "disable": None}
Words = dict[str, Int[np.ndarray, "N"]]


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Trains the networks of FID-o and FVD-o on drawn shapes: some 3 minutes on one core."""

  out: pathlib.Path = shape_features.WEIGHTS  # .safetensors file to write
  num_pictures: int = 6000
  num_clips: int = 1200
  picture_steps: int = 2500
  clip_steps: int = 1600
  held_out: int = 300  # pictures, and clips, that accuracies are of
  seed: int = 0


def main() -> None:
  """Trains both, writes their weights, prints what they read right."""
  arguments = tyro.cli(Arguments, prog="python -m experiments.shape_features")
  media.check_output(arguments.out, (".safetensors",))
  enable_cache()
  leaves, networks = {}, {}
  for kind, moving, num, batch, steps in (
    ("frames", False, arguments.num_pictures, 64, arguments.picture_steps),
    ("clips", True, arguments.num_clips, 16, arguments.clip_steps),
  ):
    began = time.process_time()  # of a busy machine's clock only this part is ours
    pixels, words = drawn(moving, num, arguments.seed)
    params = trained(moving, pixels, words, steps, batch, arguments.seed)
    params = params | {"white": whitening(moving, params, pixels[:1000])}
    print(f"{kind}: {time.process_time() - began:.0f} s of one core", flush=True)
    leaves |= {f"{kind}/{path}": leaf for path, leaf in flatten_dict(params, sep="/").items()}
    networks[kind] = moving, params
  media.write_whole(arguments.out, safetensors.numpy.save(jax.tree.map(np.asarray, leaves)))
  print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB", flush=True)
  for kind, (moving, params) in networks.items():
    for size in (32, 64):
      shares = accuracies(moving, params, arguments, size)
      print(f"{kind} held out, {size} px: {shares}", flush=True)


def drawn(
  moving: bool, num: int, seed: int, size: int = 32
) -> tuple[UInt8[np.ndarray, "N T H W 3"], Words]:
  """Scenes of every look and motion in turn, and the index of each attribute's word."""
  kind, splits = ("videos", ("train", "test", "image_only")) if moving else ("images", ("train",))
  scenes = [shapes.scene(kind, splits[i % len(splits)], i, seed) for i in range(num)]
  pixels = [shapes.draw(s, size) for s in tqdm(scenes, desc="drawing", **QUIET)]
  vocabulary = shape_features.LOOK | (shape_features.MOTION if moving else {})
  words = {a: np.array([w.index(getattr(s, a)) for s in scenes]) for a, w in vocabulary.items()}
  return np.stack(pixels), words


def trained(moving: bool, pixels: np.ndarray, words: Words, steps: int, batch: int, seed: int):
  """Parameters after so many steps of Adam under a cosine."""
  net = shape_features.reader(moving)
  rng = np.random.default_rng(seed)
  params = jax.jit(net.init)(jax.random.key(seed), clips(pixels[:1], rng))["params"]
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  state = tx.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, x, labels):
    loss, gradients = jax.value_and_grad(_loss, argnums=1)(net, params, x, labels)
    updates, state = tx.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss

  for _ in tqdm(range(steps), desc="training", **QUIET):  # a bar on a terminal only
    rows = rng.integers(len(pixels), size=batch)
    labels = {name: index[rows] for name, index in words.items()}
    params, state, _ = step(params, state, clips(pixels[rows], rng), labels)
  return params


def whitening(moving: bool, params: Params, pixels: np.ndarray) -> Params:
  """What makes the features of real shapes uncorrelated and of variance 1.

  Directions in which they hardly vary, below a thousandth of the mean variance, are not blown up.
  """
  net, rng = shape_features.reader(moving), np.random.default_rng(0)
  read = jax.jit(lambda x: net.apply({"params": params}, x)[0])
  x = np.concatenate([read(clips(part, rng)) for part in np.split(pixels, len(pixels) // 100)])
  values, vectors = np.linalg.eigh(np.cov(x.astype(np.float64), rowvar=False))
  scale = 1 / np.sqrt(np.maximum(values, 1e-3 * values.mean()))
  kernel = (vectors * scale) @ vectors.T
  return {"mean": x.mean(axis=0), "kernel": kernel.astype(np.float32)}


def _loss(net, params: Params, x: Float[Array, "B T H W 3"], labels: Words) -> Array:
  logits = net.apply({"params": params}, x)[1]
  losses = [
    optax.softmax_cross_entropy_with_integer_labels(logits[name], index).mean()
    for name, index in labels.items()
  ]
  return jnp.stack(losses).sum()


def clips(pixels: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "B T H W 3"]:
  """In [-1, 1]; of 40 frames 8, from a random one on."""
  if pixels.shape[1] > 1:
    start = rng.integers(pixels.shape[1] - (NUM_FRAMES - 1) * EVERY)
    pixels = pixels[:, start::EVERY][:, :NUM_FRAMES]
  return media.to_float(pixels)


def accuracies(moving: bool, params: Params, arguments: Arguments, size: int) -> str:
  """Share of scenes drawn apart of which each word is read right, with its 95 % interval."""
  seed, num = arguments.seed + SEED_OF_HELD_OUT, arguments.held_out
  pixels, words = drawn(moving, num, seed, size)
  net = shape_features.reader(moving)
  read = jax.jit(lambda x: net.apply({"params": params}, x)[1])
  rng, parts = np.random.default_rng(seed), []
  for start in range(0, num, 100):
    parts.append(jax.device_get(read(clips(pixels[start : start + 100], rng))))
  shares = []
  for name, index in words.items():
    hits = np.concatenate([part[name] for part in parts]).argmax(axis=-1) == index
    e = metrics.proportion(hits)
    shares.append(f"{name} {100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]")
  return ", ".join(shares) + f" ({num})"


if __name__ == "__main__":
  main()
