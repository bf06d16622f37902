"""The benchmark's two tasks in emu_jax; as a command, their memory in a process without PyTorch.

The training step is the trainer's own, the sampling run the system's own; only the loss is cut
short, from latents and text features instead of pixels and tokens.
"""

import dataclasses
import fnmatch
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.problem import Problem, inputs, memory_of
from emu_jax.conditioning import TextFeatures, concat_known, first_frame
from emu_jax.configs.sprites_64 import MODEL as SPRITES
from emu_jax.diffusion.process import Sampling as Discretisation
from emu_jax.diffusion.sampler import time_grid
from emu_jax.parallel.mesh import make_mesh
from emu_jax.systems.emu import init_spatial
from emu_jax.systems.emu_video import (
  TRAINED,
  EmuVideo,
  init_temporal,
  sample_video,
  video_network,
)
from emu_jax.train.optimiser import OptimConfig
from emu_jax.train.stage import Stage
from emu_jax.train.state import initial_state
from emu_jax.train.step import jitted_step
from emu_jax.trees import partition
from emu_jax.typing import Conditions, Params

OPTIM = OptimConfig(peak_lr=1e-4, warmup_steps=100, weight_decay=0.01, ema_decay=0.9999)


@dataclasses.dataclass(frozen=True)
class Case:
  """A size at which the two frameworks are compared."""

  model: EmuVideo = SPRITES
  optim: OptimConfig = OPTIM
  batch: int = 8
  sampled: int = 1
  num_steps: int = 25  # of a sampling run

  @property
  def discretisation(self) -> Discretisation:
    return Discretisation(num_steps=self.num_steps)

  def problem(self) -> Problem:
    """The same in numbers. Raises ValueError where the PyTorch side has no such thing."""
    unet, optim, schedule = self.model.unet, self.optim, self.model.process.schedule
    covered = (
      len(unet.context_dims) == 1
      and unet.mid_depth == unet.transformer_depth[-1] > 0
      and not (unet.num_classes or unet.num_tasks or unet.num_micro or unet.pooled_dim)
      and not (unet.temporal.attends_text or unet.temporal.noise_level)
      and unet.dtype == "float32"
      and optim.decay == "constant"
      and schedule.prediction == "v"
    )
    if not covered:
      raise ValueError(
        "Case: model is not one that benchmarks/torch_network.py builds; use one text context, "
        "mid_depth equal to the coarsest level's depth, no vector conditions, frames alone in the "
        "temporal layers, float32, a constant learning rate and v-prediction"
      )
    grid = time_grid(schedule.num_steps, self.num_steps, self.discretisation.spacing)
    return Problem(
      **{name: getattr(unet, name) for name in SAME},
      num_heads=tuple(unet.heads(C)[0] for C in unet.channels),
      context_dim=unet.context_dims[0],
      temporal_kernel=unet.temporal.kernel,
      temporal_layers=unet.temporal.num_layers,
      batch=self.batch,
      sampled=self.sampled,
      num_frames=self.model.num_frames,
      side=self.model.image.latent_shape(1)[2],
      text_length=self.model.image.text[0].max_length,
      **{name: getattr(optim, name) for name in SAME_OPTIM},
      alphas_cumprod=tuple(schedule.alphas_cumprod.tolist()),
      grid=tuple(grid.tolist()),
      image_scale=self.model.guidance.image,
      text_scale=self.model.guidance.text,
    )


SAME = (
  "in_channels", "concat_channels", "channels", "num_res_blocks", "transformer_depth", "mid_depth",
  "linear_projection", "norm_groups",
)  # fmt: skip
SAME_OPTIM = (
  "peak_lr", "warmup_steps", "weight_decay", "betas", "eps", "clip_norm", "ema_decay",
)  # fmt: skip


def small() -> Case:
  """The same structure, small enough to try the benchmark itself."""
  image = dataclasses.replace(
    SPRITES.image,
    size=(32, 32),  # 8x8 latents
    unet=dataclasses.replace(SPRITES.image.unet, channels=(32, 64), num_res_blocks=(1, 2),
                             transformer_depth=(0, 1)),
  )  # fmt: skip
  return Case(dataclasses.replace(SPRITES, image=image), batch=2, num_steps=5)


def weights(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
  """Every parameter of the video U-Net by path, drawn anew: none is zero, as some are at first."""
  spatial = drawn(functools.partial(init_spatial, case.model.image), seed)
  return spatial | drawn(functools.partial(init_temporal, case.model), seed + 1)


def drawn(init: Callable[[jax.Array], Params], seed: int) -> dict[str, np.ndarray]:
  """Parameters of the shapes that `init` makes, by path; nothing is compiled."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    if path.endswith("kernel"):
      return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))
    small = np.float32(0.1) * rng.standard_normal(shape, np.float32)
    return small + 1 if path.endswith("scale") else small

  leaves = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
  return {path: draw(path, leaf.shape) for path, leaf in leaves.items()}


def trees(flat: Mapping[str, np.ndarray]) -> dict[str, Params]:
  """{"spatial": …, "temporal": …} of weights by path, on the device."""
  return jax.tree.map(jnp.asarray, partition(unflatten_dict(dict(flat), sep="/"), TRAINED))


def trained(path: str) -> bool:
  """Whether a factorized model trains what lies under this path."""
  return next(tree for glob, tree in TRAINED if fnmatch.fnmatchcase(path, glob)) == "temporal"


@dataclasses.dataclass(frozen=True)
class LatentLoss:
  """`video_loss` from latents and text features on; hashable, as the trainer wants it."""

  model: EmuVideo

  def __call__(self, trainable, frozen, batch, key, step):
    net, latents = video_network(self.model, {**frozen, **trainable}), batch["latents"]
    known = first_frame(self.model.num_frames)
    concat = concat_known(known, latents[:, :1], batch["dropped"])
    conditions = Conditions((batch["text"],), (), concat)
    predict = lambda x_t, t: net(x_t, t, conditions)
    return self.model.process.loss(predict, latents, key), {}


class Training:
  """Training steps on one batch of latents that is in memory."""

  NUM_STEPS = 1_000_000  # of the run that these steps would belong to; without decay it is unused

  def __init__(self, case: Case, arrays: Mapping[str, np.ndarray], flat: Mapping[str, np.ndarray]):
    both = trees(flat)
    self.case, self.loss = case, LatentLoss(case.model)
    self.frozen = {"spatial": both["spatial"]}
    self.batch = {name: jnp.asarray(arrays[name]) for name in ("latents", "text", "dropped")}
    mesh = make_mesh(jax.devices()[:1])
    stage = Stage(init=lambda key: {"temporal": both["temporal"]}, frozen={}, loss=self.loss)
    self.state = initial_state(stage, case.optim, jax.random.key(0), mesh)
    self.update = jitted_step(self.loss, case.optim, self.NUM_STEPS, self.state)

  def __call__(self) -> float:
    """One step of the trainer; returns its loss when the new state is there."""
    self.state, metrics, fault = self.update(self.state, self.frozen, self.batch, seed_key())
    jax.block_until_ready(self.state)
    if fault >= 0:
      raise FloatingPointError(f"benchmark: loss {metrics['loss']} or its gradient is not finite")
    return float(metrics["loss"])

  def moments(self) -> dict[str, np.ndarray]:
    """AdamW's first moments by path: after one step, 1 - beta_1 times the clipped gradient."""
    moments = optax.tree_utils.tree_get(self.state.opt_state, "mu")["temporal"]
    return jax.device_get(flatten_dict(moments, sep="/"))

  def draws(self) -> tuple[np.ndarray, np.ndarray]:
    """(t, eps) of the next step: what the loss makes of a clip of zeros is sigma eps."""
    key = jax.random.fold_in(jax.random.fold_in(seed_key(), self.state.step), 0)
    seen = {}

    def spy(x_t, t):
      seen.update(x_t=x_t, t=t)
      return x_t

    process = self.case.model.process
    process.loss(spy, jnp.zeros_like(self.batch["latents"]), key)
    sigma = np.asarray(process.alpha_sigma(seen["t"])[1]).reshape(-1, 1, 1, 1, 1)
    return np.asarray(seen["t"], np.int64), np.asarray(seen["x_t"]) / sigma

  def predict(self, noise: np.ndarray) -> np.ndarray:
    """The network's output for a noise in place of x_t, at times spread over the schedule."""
    t = jnp.linspace(0, self.case.model.process.schedule.num_steps - 1, len(noise)).round()
    both = {**self.frozen, **self.state.params}
    arrays = jnp.asarray(noise), t, self.batch["text"], self.batch["latents"][:, :1]
    return np.asarray(predict(self.case, both, *arrays))


@functools.partial(jax.jit, static_argnums=0)
def predict(case, trees, x_t, t, text, given):
  """The video network of a case, given first frames' latents."""
  concat = concat_known(first_frame(case.model.num_frames), given)
  return video_network(case.model, trees)(x_t, t, Conditions((text,), (), concat))


@functools.partial(jax.jit, static_argnums=0)
def sample(case, trees, given, prompt, empty, key, image_scale, text_scale):
  """`sample_video` of a case: text features and a first frame's latents to a clip's latents."""
  text, none = (TextFeatures((features,), ()) for features in (prompt, empty))
  return sample_video(
    case.model, first_frame(case.model.num_frames), "temporal", trees, given, text, none, key,
    (image_scale, text_scale), sampling=case.discretisation,
  )  # fmt: skip


class Sampling:
  """A guided sampling run from a prompt and a first frame's latents."""

  def __init__(self, case: Case, arrays: Mapping[str, np.ndarray], flat: Mapping[str, np.ndarray]):
    model, self.case, self.trees = case.model, case, trees(flat)
    self.texts = tuple(TextFeatures((jnp.asarray(arrays[n]),), ()) for n in ("prompt", "empty"))
    self.given = jnp.asarray(arrays["given"])
    self.scales = jnp.float32(model.guidance.image), jnp.float32(model.guidance.text)

  def __call__(self, seed: int = 0) -> np.ndarray:
    """Latents `B T H W C`."""
    features = (text.texts[0] for text in self.texts)
    key = jax.random.key(seed)
    return np.asarray(sample(self.case, self.trees, self.given, *features, key, *self.scales))

  def noise(self, seed: int = 0) -> np.ndarray:
    """What `sample_video` begins with: drawn from the first of the three keys it makes."""
    shape = self.case.model.image.latent_shape(self.case.sampled, self.case.model.num_frames)
    return np.asarray(jax.random.normal(jax.random.split(jax.random.key(seed), 3)[0], shape))


def seed_key() -> jax.Array:
  """The run's key, made anew for every use of it."""
  return jax.random.key(0)


TASKS = {"training": Training, "sampling": Sampling}


def main() -> None:
  """Prints the high-water marks of the task that is the first argument, as JSON."""
  task, size, repeats = sys.argv[1:]
  case = small() if size == "small" else Case()
  make = lambda: TASKS[task](case, inputs(case.problem()), weights(case))
  print(json.dumps(memory_of(make, int(repeats))))


if __name__ == "__main__":
  main()
