"""The benchmark's two tasks in PyTorch; as a command, their memory in a process without JAX.

python -m benchmarks.with_torch training < problem.json
"""

import json
import sys
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.problem import Problem, inputs, memory_of
from benchmarks.torch_network import load, network, trained

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Model:
  """The network of a problem with weights, layout and, if asked for, torch.compile."""

  def __init__(
    self,
    problem: Problem,
    weights: Mapping[str, np.ndarray] | None = None,
    layout: str = "channels_last",
    compiled: bool = False,
  ):
    self.problem, self.layout = problem, LAYOUTS[layout]
    self.net = network(problem)
    if weights is not None:
      load(self.net, weights, len(problem.channels))
    self.net.to(memory_format=torch.preserve_format)
    for parameter in self.net.parameters():
      if parameter.ndim == 4:
        parameter.data = parameter.data.contiguous(memory_format=self.layout)
    self.call = torch.compile(self.net, dynamic=False) if compiled else self.net
    roots = (np.sqrt(problem.alphas_cumprod), np.sqrt(1 - np.array(problem.alphas_cumprod)))
    self.alpha, self.sigma = (torch.tensor(r, dtype=torch.float32) for r in roots)

  def parameters(self) -> dict[str, nn.Parameter]:
    """Those that train, by name."""
    return {name: p for name, p in self.net.named_parameters() if trained(name)}

  def __call__(self, x_t: Tensor, t: Tensor, text: Tensor, concat: Tensor) -> Tensor:
    """The prediction for clips `B T C H W`; diffusers wants a time and a text for every frame."""
    B, T = x_t.shape[:2]
    x = torch.cat([x_t, concat], dim=2).flatten(0, 1).contiguous(memory_format=self.layout)
    times, texts = t.repeat_interleave(T), text.repeat_interleave(T, dim=0)
    return self.call(x, times, texts, return_dict=False)[0].unflatten(0, (B, T))


class Training:
  """Training steps on one batch of latents that is in memory."""

  def __init__(self, model: Model, arrays: Mapping[str, np.ndarray]):
    p = self.problem = model.problem
    self.model, self.done = model, 0
    self.latents = clips(arrays["latents"])
    self.text = torch.from_numpy(arrays["text"])
    self.dropped = torch.from_numpy(arrays["dropped"])
    self.parameters = list(model.parameters().values())
    self.ema = [q.detach().clone() for q in self.parameters]
    groups = [
      {"params": [q for q in self.parameters if q.ndim > 1], "weight_decay": p.weight_decay},
      {"params": [q for q in self.parameters if q.ndim < 2], "weight_decay": 0.0},
    ]
    self.optimiser = torch.optim.AdamW(groups, betas=p.betas, eps=p.eps, fused=True)

  def loss(self, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error to v at the steps t [B], with the noise eps."""
    x_0 = self.latents
    alpha, sigma = (
      table[t].reshape(-1, 1, 1, 1, 1) for table in (self.model.alpha, self.model.sigma)
    )
    concat = known(x_0[:, :1], self.problem.num_frames)
    concat = torch.where(self.dropped.reshape(-1, 1, 1, 1, 1), 0.0, concat)
    output = self.model(alpha * x_0 + sigma * eps, t, self.text, concat)
    return (output - (alpha * eps - sigma * x_0)).square().mean()

  def __call__(self, t: Tensor | None = None, eps: Tensor | None = None) -> float:
    """One step: draws unless given, loss, gradient, clipping, AdamW, average; returns the loss."""
    p = self.problem
    if t is None:
      t = torch.randint(0, len(p.alphas_cumprod), (p.batch,))
      eps = torch.randn_like(self.latents)
    loss = self.loss(t, eps)
    self.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.parameters, p.clip_norm)
    for group in self.optimiser.param_groups:
      group["lr"] = p.peak_lr * min(1.0, (self.done + 1) / p.warmup_steps)
    self.optimiser.step()
    keep = min(p.ema_decay, (1 + self.done) / (10 + self.done))
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, self.parameters, 1 - keep)
    self.done += 1
    return loss.item()


class Sampling:
  """A guided sampling run from a prompt and a first frame's latents."""

  def __init__(self, model: Model, arrays: Mapping[str, np.ndarray]):
    p = self.problem = model.problem
    self.model = model
    prompt, empty = (torch.from_numpy(arrays[name]) for name in ("prompt", "empty"))
    concat = known(clips(arrays["given"]), p.num_frames)
    # Neither, image, image and text: the three branches of an example are neighbours.
    self.texts = torch.stack([empty, empty, prompt], dim=1).flatten(0, 1)
    self.concats = torch.stack([torch.zeros_like(concat), concat, concat], dim=1).flatten(0, 1)

  @torch.inference_mode()
  def __call__(self, noise: Tensor | None = None) -> Tensor:
    """Latents `B T C H W` by DDIM, from a noise that is drawn unless given."""
    p = self.problem
    shape = (p.sampled, p.num_frames, p.in_channels, p.side, p.side)
    x = torch.randn(shape) if noise is None else noise
    alphas = [self.model.alpha[t] for t in p.grid] + [torch.tensor(1.0)]
    sigmas = [self.model.sigma[t] for t in p.grid] + [torch.tensor(0.0)]
    for i, t in enumerate(p.grid):
      times = torch.full((3 * p.sampled,), t)
      outputs = self.model(x.repeat_interleave(3, dim=0), times, self.texts, self.concats)
      null, image, both = outputs.unflatten(0, (p.sampled, 3)).unbind(dim=1)
      v = null + p.image_scale * (image - null) + p.text_scale * (both - image)
      x_0, eps = alphas[i] * x - sigmas[i] * v, sigmas[i] * x + alphas[i] * v
      x = alphas[i + 1] * x_0 + sigmas[i + 1] * eps
    return x


def clips(array: np.ndarray) -> Tensor:
  """`B T H W C` -> `B T C H W`."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 2)))


def known(first: Tensor, num_frames: int) -> Tensor:
  """[mask, first frame's latents] at frame 0, zeros after it."""
  marked = torch.cat([torch.ones_like(first[:, :, :1]), first], dim=2)
  return torch.cat([marked, torch.zeros_like(marked).expand(-1, num_frames - 1, -1, -1, -1)], dim=1)


TASKS = {"training": Training, "sampling": Sampling}


def main() -> None:
  """Prints the high-water marks of the task that is the first argument, as JSON."""
  task, layout, threads, repeats = sys.argv[1:]
  torch.set_num_threads(int(threads))
  problem = Problem.from_json(sys.stdin.read())
  make = lambda: TASKS[task](Model(problem, layout=layout), inputs(problem))
  print(json.dumps(memory_of(make, int(repeats))))


if __name__ == "__main__":
  main()
