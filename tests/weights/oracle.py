"""PyTorch's own classes as oracles: every tensor drawn anew, outputs and gradients compared.

Default initialisation hides mistakes (zero projections, norm scales of one, mix factors of a half),
so nothing of it is kept.
"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from emu_jax import weights
from emu_jax.weights.model import described
from emu_jax.weights.table import join

torch = pytest.importorskip(
  "torch", reason="PyTorch is the oracle; make test REFERENCE=1 installs it"
)

OUTPUT = 1e-4  # largest error, in standard deviations of the oracle's output
GRADIENT = 1e-3  # error of a tensor's gradient, relative to its norm


def drawn_anew(model, seed: int = 0):
  """The model in float32, every tensor redrawn: none zero, norm scales off 1, outputs near 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
      noise = torch.randn(parameter.shape, generator=generator)
      # Vectors are norm scales, biases and mix factors: around 0.6, apart from 0 and 1.
      parameter.copy_(noise / fan_in**0.5 if fan_in else 0.6 + 0.2 * noise)
    for buffer in stored_buffers(model).values():
      buffer.copy_(torch.randn(buffer.shape, generator=generator))
  return model.float().eval()


def stored_buffers(model) -> dict:
  """What files hold beside the parameters: nothing trains it."""
  stored = model.state_dict()
  return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def reopened(model, folder: pathlib.Path, **kwargs) -> weights.Loaded:
  """What we read of what PyTorch's library wrote."""
  model.save_pretrained(folder, **kwargs)
  return weights.load(folder)


def channels_last(x) -> jax.Array:
  """[B, C, T, H, W] or [B, C, H, W] of PyTorch to [B, T, H, W, C]."""
  x = np.asarray(x.detach() if torch.is_tensor(x) else x)
  x = x[:, :, None] if x.ndim == 4 else x
  return jnp.asarray(x.transpose(0, 2, 3, 4, 1))


def assert_same_output(ours, theirs, tolerance: float = OUTPUT) -> None:
  """Equal shapes, and no error beyond `tolerance` standard deviations of the oracle's output."""
  ours = np.asarray(ours)
  theirs = np.asarray(theirs.detach() if torch.is_tensor(theirs) else theirs)
  assert ours.shape == theirs.shape
  assert theirs.std() > 1e-3, "the oracle's output is constant: nothing was compared"
  error = np.abs(ours - theirs).max() / theirs.std()
  assert error <= tolerance, f"off by {error:.2e} standard deviations"


def assert_same_function(
  loaded: weights.Loaded,
  folder: pathlib.Path,
  model,
  apply: Callable,
  expected,
  layout: Callable = channels_last,
  flat: Callable[[str], bool] = lambda name: False,
  gradients: bool = True,
) -> None:
  """The same output, and the same gradient of a random projection of it to every parameter.

  Weights drawn at random tell by the output alone which of them stands where. The program of the
  gradients takes three times as long to compile: one shape of a class has it (`gradients`).

  Args:
    apply: our parameters -> our output.
    expected: PyTorch's output of the same inputs, with its graph.
    layout: PyTorch's output as ours.
    flat: public names whose gradient is zero but for rounding, in both: a key's bias shifts every
      logit of a query alike.
  """
  architecture, config = described(folder)
  groups = architecture.groups(config)
  buffers = stored_buffers(model)
  assert sorted(groups) == sorted([*dict(model.named_parameters()), *buffers])
  if not gradients:
    assert_same_output(jax.jit(apply)(loaded.params), layout(expected.detach().numpy()))
    return
  direction = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  projection = layout(direction)

  def projected(params):
    output = apply(params)
    return jnp.sum(output * projection), output

  program = jax.jit(jax.grad(projected, has_aux=True))
  found, output = program(loaded.params)
  assert_same_output(output, layout(expected.detach().numpy()))

  model.zero_grad()
  (expected * torch.tensor(direction)).sum().backward()
  theirs = {name: p.grad for name, p in model.named_parameters()}
  ours = flatten_dict(found, sep="/")
  largest = max(np.linalg.norm(gradient) for gradient in theirs.values() if gradient is not None)
  for name, group in groups.items():
    if name in buffers:
      assert not any(ours[row.path].any() for row in group), f"{name} would be trained"
      continue
    gradient = theirs[name]
    assert gradient is not None, f"{name} has no gradient in PyTorch"
    norm = np.linalg.norm(gradient)
    joined = join(group, {row.path: np.asarray(ours[row.path]) for row in group})
    if flat(name):
      assert max(norm, np.linalg.norm(joined)) <= OUTPUT * largest, f"{name} is not flat"
      continue
    assert norm > 0, f"{name} has no influence: nothing was compared"
    error = np.linalg.norm(joined - gradient.numpy()) / norm
    assert error <= GRADIENT, f"gradient of {name} off by {error:.2e} of its norm"


def assert_round_trip(
  loaded: weights.Loaded, folder: pathlib.Path, out: pathlib.Path, kind
) -> None:
  """Exported again: the same names and bytes, and PyTorch's own class reads it."""
  weights.save(out, loaded.module.config, loaded.params)
  before, after = (_tensors(where) for where in (folder, out))
  assert sorted(before) == sorted(after)
  for name, array in before.items():
    assert array.dtype == after[name].dtype
    assert array.tobytes() == after[name].tobytes(), name
  again, info = kind.from_pretrained(out, output_loading_info=True)
  assert not info["missing_keys"], info
  assert not info["unexpected_keys"], info
  first = kind.from_pretrained(folder)
  for (name, a), (other, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
    assert name == other
    assert torch.equal(a, b), name


def _tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    found |= safetensors.numpy.load_file(file)
  return found
