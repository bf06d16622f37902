"""Whether the two frameworks compute the same.

Compared are parameter counts, outputs, gradients, losses and samples. Every figure but
counts and losses is the largest absolute difference over the standard deviation of ours.
"""

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks import with_jax, with_torch
from benchmarks.problem import inputs
from benchmarks.torch_network import torch_layout, torch_name

TOLERANCE = 1e-4  # of a standard deviation: float32 rounding through a whole network
LOSSES = 1e-5  # relative, of means over many errors


def agreement(case: with_jax.Case, *, num_steps: int = 3, layout: str = "channels_last") -> dict:
  """All the figures for one case, by name.

  Args:
    num_steps: training steps; from the second on, losses contain what the updates before did.
  """
  problem = case.problem()
  arrays, flat = inputs(problem), with_jax.weights(case)
  ours = with_jax.Training(case, arrays, flat)
  theirs = with_torch.Training(with_torch.Model(problem, flat, layout), arrays)
  figures = counts(flat, theirs.model) | outputs(ours, theirs)
  pairs = losses(ours, theirs, 1)
  figures |= gradients(ours, theirs)
  figures |= {"losses": pairs + losses(ours, theirs, num_steps - 1)}
  # The updates above have changed the first model's weights.
  sampler = with_torch.Sampling(with_torch.Model(problem, flat, layout), arrays)
  return figures | samples(with_jax.Sampling(case, arrays, flat), sampler)


def disagreements(figures: Mapping) -> list[str]:
  """What is beyond its tolerance, in words; empty where all agree."""
  bad = [
    f"{name} parameters: {ours} and {theirs}"
    for name, (ours, theirs) in figures["parameters"].items()
    if ours != theirs
  ]
  for name in ("output", "gradient", "samples"):
    if not figures[name] <= TOLERANCE:
      bad.append(f"{name}: {figures[name]:.2e} of the standard deviation, above {TOLERANCE:.0e}")
  for step, (ours, theirs) in enumerate(figures["losses"]):
    if not abs(ours - theirs) <= LOSSES * abs(ours):
      bad.append(f"loss of step {step}: {ours:.8f} and {theirs:.8f}")
  return bad


def counts(flat: Mapping[str, np.ndarray], model: with_torch.Model) -> dict:
  """Numbers of parameters, (ours, theirs), in all and of those that train."""
  trained = [array for path, array in flat.items() if with_jax.trained(path)]
  return {
    "parameters": {
      "all": (sum(a.size for a in flat.values()), sum(p.numel() for p in model.net.parameters())),
      "trained": (
        sum(a.size for a in trained),
        sum(p.numel() for p in model.parameters().values()),
      ),
    }
  }


def outputs(ours: with_jax.Training, theirs: with_torch.Training) -> dict:
  """Of the network at times from one end of the schedule to the other."""
  noise = inputs(theirs.problem, seed=1)["latents"]
  prediction = ours.predict(noise)
  last = len(theirs.problem.alphas_cumprod) - 1
  t = torch.linspace(0, last, len(noise)).round()
  with torch.no_grad():
    concat = with_torch.known(theirs.latents[:, :1], theirs.problem.num_frames)
    other = theirs.model(with_torch.clips(noise), t, theirs.text, concat)
  return {"output": difference(prediction, channels_last(other))}


def gradients(ours: with_jax.Training, theirs: with_torch.Training) -> dict:
  """Of every trained parameter, each against its own standard deviation; the worst one counts.

  They are read, clipped, from AdamW's first moments after the first step.
  """
  levels, parameters = len(theirs.problem.channels), theirs.model.parameters()
  found = {}
  for path, moment in ours.moments().items():
    expected = torch_layout(moment)
    other = theirs.optimiser.state[parameters[torch_name(path, levels)]]["exp_avg"]
    found[path] = difference(expected, other.numpy().reshape(expected.shape))
  worst = max(found, key=found.get)
  return {"gradient": found[worst], "worst_gradient": worst}


def losses(ours: with_jax.Training, theirs: with_torch.Training, num_steps: int) -> list:
  """(ours, theirs) of successive training steps with the same draws."""
  found = []
  for _ in range(num_steps):
    t, eps = ours.draws()
    found.append((ours(), theirs(torch.from_numpy(t), with_torch.clips(eps))))
  return found


def samples(ours: with_jax.Sampling, theirs: with_torch.Sampling) -> dict:
  """Of a whole guided sampling run from the same noise."""
  other = theirs(with_torch.clips(ours.noise()))
  return {"samples": difference(ours(), channels_last(other))}


def channels_last(video: torch.Tensor) -> np.ndarray:
  """`B T C H W` -> `B T H W C`."""
  return video.movedim(2, -1).numpy()


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Largest absolute difference over the standard deviation of ours; shapes must be equal."""
  if ours.shape != theirs.shape:
    raise ValueError(f"benchmark: shapes {ours.shape} and {theirs.shape} differ")
  return float(np.abs(ours - theirs).max() / ours.std())
