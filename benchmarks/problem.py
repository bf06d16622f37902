"""What both frameworks compute, as plain numbers; imports neither of them.

A process that measures the memory of one framework must not load the other, so everything that
crosses over is numbers: a `Problem`, and numpy arrays made from it.
"""

import ctypes
import dataclasses
import gc
import json
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
  """A video U-Net, a training step of its temporal half and a guided sampling run."""

  # The network; names and meanings are those of emu_jax's UNetConfig and TemporalConfig.
  in_channels: int
  concat_channels: int
  channels: tuple[int, ...]
  num_res_blocks: tuple[int, ...]
  transformer_depth: tuple[int, ...]
  mid_depth: int
  num_heads: tuple[int, ...]  # of each level
  context_dim: int
  linear_projection: bool
  norm_groups: int
  temporal_kernel: int
  temporal_layers: int
  # The arrays.
  batch: int  # clips a training step
  sampled: int  # clips a sampling run
  num_frames: int
  side: int  # of the latents, height and width
  text_length: int
  # The update; names and meanings are those of OptimConfig, with decay "constant".
  peak_lr: float
  warmup_steps: int
  weight_decay: float
  betas: tuple[float, float]
  eps: float
  clip_norm: float
  ema_decay: float
  # The schedule, which predicts v, and the sampler.
  alphas_cumprod: tuple[float, ...]
  grid: tuple[int, ...]  # descending times of the sampling run
  image_scale: float
  text_scale: float

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, text: str) -> "Problem":
    values = json.loads(text).items()
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})

  def describe(self) -> str:
    """The configuration in one paragraph, for reports."""
    frames, side = self.num_frames, self.side
    levels = zip(self.channels, self.num_res_blocks, self.transformer_depth, strict=True)
    shape = "; ".join(f"{C} channels, {n} blocks, attention depth {d}" for C, n, d in levels)
    return (
      f"Video U-Net of {len(self.channels)} levels ({shape}), temporal convolutions over "
      f"{self.temporal_kernel} frames and temporal transformers of depth {self.temporal_layers} "
      f"after every spatial one; {self.text_length} text tokens of {self.context_dim} features; "
      f"clips of {frames} frames of {side}x{side}x{self.in_channels} latents, {self.batch} a "
      f"training step and {self.sampled} a sampling run of {len(self.grid)} DDIM steps with three "
      f"guidance branches; float32."
    )


def inputs(problem: Problem, seed: int = 0) -> dict[str, np.ndarray]:
  """Latents, texts and a starting noise, unit normal; the last example's image is withheld."""
  p, rng = problem, np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  frame = (p.side, p.side, p.in_channels)
  return {
    "latents": normal(p.batch, p.num_frames, *frame),
    "text": normal(p.batch, p.text_length, p.context_dim),
    "dropped": np.arange(p.batch) == p.batch - 1,
    "given": normal(p.sampled, 1, *frame),
    "prompt": normal(p.sampled, p.text_length, p.context_dim),
    "empty": normal(p.sampled, p.text_length, p.context_dim),
    "noise": normal(p.sampled, p.num_frames, *frame),
  }


class HighWater:
  """Largest resident set of this process, in MiB: VmHWM of /proc/self/status.

  Not getrusage's, which begins at the size of the process that started this one.
  """

  def peak(self) -> float:
    return _status("VmHWM")

  def now(self) -> float:
    return _status("VmRSS")

  def reset(self) -> bool:
    """Begins the high-water mark anew at the present size; False where the system forbids it."""
    try:
      pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
      return False
    return True


def memory_of(make: Any, repeats: int) -> dict[str, float | None]:
  """High-water marks of a task in this process, in MiB.

  Args:
    make: prepares the task and returns the function that does it once.

  Returns:
    "loaded": after imports; "peak": of everything, compilation included; "running": of `repeats`
    further runs, None where the mark cannot be reset.
  """
  mark = HighWater()
  values = {"loaded": mark.now()}
  run = make()
  run()
  peak = mark.peak()
  give_back()
  again = mark.reset()
  for _ in range(repeats):
    run()
  values["running"] = mark.peak() if again else None
  return values | {"peak": max(peak, mark.peak())}


def give_back() -> None:
  """Returns freed memory to the system; the C library keeps what a compiler has used, otherwise."""
  gc.collect()
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
  if trim:
    trim(0)


def _status(field: str) -> float:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{field}:"):
      return int(line.split()[1]) / 1024  # the kernel's kB are KiB
  raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux only")
