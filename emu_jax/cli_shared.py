"""What the sampling commands of `emu-jax` have in common: options, loading, writing, timing."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console

from emu_jax import media
from emu_jax.errors import InputError
from emu_jax.generation import Request
from emu_jax.loading import load_pipeline
from emu_jax.parallel.mesh import MeshConfig, sampling_mesh
from emu_jax.pipeline import Animation, Pipeline
from emu_jax.systems.emu_video import Guidance
from emu_jax.systems.latent import Sampling
from emu_jax.weights.model import Precision

SHIPPED = pathlib.Path(__file__).with_name("shipped") / "shapes_64"
LARGEST_SIDE = 4096  # pixels: H.264 of this side still plays everywhere
Say = Callable[[str], None]
Asked = Literal["float32", "bfloat16", "stored"]


def precision_of(asked: Asked) -> Precision | None:
  """A precision as the loaders take it."""
  return None if asked == "stored" else asked


@dataclasses.dataclass(frozen=True)
class Between:
  """How frames are added between others and around them."""

  seam: Literal["gapless", "published"] = "gapless"
  """how the two halves of 65 frames are joined: without a gap, or as the paper did"""
  keep_keys: bool = True
  """leave the frames that others are added to as they are; the paper draws them anew"""
  interpolation_steps: int | None = None
  """steps that add frames; None: the model's own, else those of the rest"""


@dataclasses.dataclass(frozen=True)
class Options:
  """What every sampling command takes."""

  checkpoint: pathlib.Path = SHIPPED
  """folder of a training run, of all the runs of a recipe, of a release or of a public pipeline;
  the default is the model that comes with the package"""
  seed: int = 0
  """of all noise, 0 or more; the same command with the same seed writes the same file"""
  steps: int = 50
  """network evaluations of each sampling run, 1 to the 1000 of the model's schedule"""
  solver: Literal["ddim", "dpm++"] = "ddim"
  """DDIM, or DPM-Solver++ (2M), which needs fewer steps"""
  image_guidance: float | None = None
  """how closely a video follows the frames it is given, 1 = no guidance; None: the model's own"""
  text_guidance: float | None = None
  """how strongly it follows the prompt, 1 = no guidance; None: the model's own"""
  rescale: float = 0.0
  """how far guided predictions are brought back to the spread of unguided ones, 0 to 1"""
  negative: str = ""
  """prompt that guidance leads away from"""
  precision: Asked = "stored"
  """of the networks; stored: as the model is"""
  widen: bool = False
  """take float16 weights of a public folder, as float32"""
  mesh: MeshConfig = MeshConfig(data=1)
  """devices that sample together, the first so many: prompts and branches of guidance over data,
  weights in pieces over fsdp, frames over frames if it divides their number; 0, for one axis: the
  rest"""

  def how(self) -> dict[str, Any]:
    """What the loaders take."""
    mesh = sampling_mesh(self.mesh)
    return {"dtype": precision_of(self.precision), "widen": self.widen, "mesh": mesh}

  def request(
    self,
    own: Guidance,
    frames: int,
    picture_guidance: float | None = None,
    between: Between = Between(),
  ) -> Request:
    """What to generate, with the model's own guidance wherever no scale was given."""
    given = {"image": self.image_guidance, "text": self.text_guidance, "picture": picture_guidance}
    given = {name: scale for name, scale in given.items() if scale is not None}
    if {"image", "text"} & given.keys():  # what is asked for goes before the model's own
      given["interpolation"] = None
    guidance = dataclasses.replace(own, **given)
    sampling = Sampling(solver=self.solver, num_steps=self.steps, rescale=self.rescale)
    return Request(frames, self.seed, self.negative, guidance, sampling, **vars(between))


Added = Annotated[Between, tyro.conf.arg(name="")]
Shared = Annotated[Options, tyro.conf.arg(name="")]  # its options stand among a command's own


def check_file(out: pathlib.Path, enlarge: int) -> None:
  """Raises InputError for a file that cannot be written, before there is anything to write."""
  media.check_output(out)
  if enlarge < 0:
    raise InputError(f"enlarge={enlarge} is negative; 0 = as far as is good to look at")


def opened(
  options: Options,
  out: pathlib.Path,
  enlarge: int,
  say: Say,
  motion_adapter: pathlib.Path | None = None,
) -> Pipeline | Animation:
  """What every sampling command begins with: cheap checks first, then the weights."""
  check_file(out, enlarge)
  options.request(Guidance(), 8)  # refuses its numbers
  say(f"loading {options.checkpoint}")
  pipeline = load_pipeline(options.checkpoint, motion_adapter=motion_adapter, **options.how())
  if enlarge * pipeline.config.image.size > LARGEST_SIDE:
    raise InputError(
      f"enlarge={enlarge} makes {enlarge * pipeline.config.image.size} pixels a side of the "
      f"model's {pipeline.config.image.size}; stay below {LARGEST_SIDE}"
    )
  return pipeline


def write(out: pathlib.Path, frames: np.ndarray, fps: float, enlarge: int, say: Say) -> None:
  """Saves frames, each pixel repeated so that small videos can be seen, and says what it saved."""
  say(f"writing {out}")
  T, H, W, _ = frames.shape
  scale = enlarge or media.readable_scale(H)
  media.save_video(out, media.enlarge(frames, scale), fps)
  length = f"{T} frames at {fps:g} a second ({T / fps:.3g} s)" if T > 1 else "1 frame"
  larger = f", shown {scale} times as large" if scale > 1 else ""
  print(f"{out}: {length} of {W}x{H} pixels{larger}")


@contextlib.contextmanager
def working() -> Iterator[Say]:
  """A function that is told each step as it begins; the end prints how long each one took.

  On a terminal a moving line says what is being done; elsewhere nothing moves.
  """
  steps, began = [], time.perf_counter()
  console = Console(stderr=True)
  with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

    def say(step: str) -> None:
      steps.append((step, time.perf_counter()))
      if status is not None:
        status.update(step)

    yield say
  ended = time.perf_counter()
  times = [t for _, t in steps[1:]] + [ended]
  parts = [f"{step} {end - start:.1f} s" for (step, start), end in zip(steps, times, strict=True)]
  print(f"{ended - began:.1f} s: {', '.join(parts)}")
