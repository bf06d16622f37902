"""The networks of FID and FVD against PyTorch modules written here from the published tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from emu_jax.errors import InputError
from emu_jax.evaluation import features, i3d, inception, published

torch = pytest.importorskip(
  "torch", reason="PyTorch is the oracle; make test REFERENCE=1 installs it"
)
nn, F = torch.nn, torch.nn.functional

# Largest error in standard deviations of a feature over the inputs, in float64: fifty layers make
# one some 1e4 times as large (in float32, 6e-8 became 6e-4), so 1e-16 at most 1e-12 and a little.
DEEP = 1e-10


class Conv(nn.Module):
  """Convolution, norm, ReLU, of pictures (names conv, bn) or of clips (conv3d, bn)."""

  def __init__(self, i, o, kernel=1, stride=1, padding=0, clips=False):
    super().__init__()
    self.clips = clips
    kind = nn.Conv3d if clips else nn.Conv2d
    layer = kind(i, o, kernel, stride, padding, bias=False)
    setattr(self, "conv3d" if clips else "conv", layer)
    self.bn = (nn.BatchNorm3d if clips else nn.BatchNorm2d)(o, eps=1e-3)

  def forward(self, x):
    layer = self.conv3d if self.clips else self.conv
    if self.clips:
      x = same_padded(x, layer.kernel_size, layer.stride)
    return F.relu(self.bn(layer(x)))


def same_padded(x, kernel, stride):
  """TensorFlow's SAME: what is missing, the smaller half in front."""
  pads = []
  for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
    missing = max((-(-size // s) - 1) * s + k - size, 0)
    pads += [missing // 2, missing - missing // 2]
  return F.pad(x, pads)


class Mixed(nn.Module):
  """An Inception block: `paths` are lists of layers by name, `pool` what the last branch does."""

  def __init__(self, i, paths, pool, pooled=None):
    super().__init__()
    self.paths, self.pool = [], pool
    for path in paths:
      width, names = i, []
      for step in path:
        several = step if isinstance(step, list) else [step]
        names.append([f"branch{name}" for name, *_ in several])
        for name, o, kernel, stride in several:
          sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
          padding = tuple(k // 2 for k in sides) if stride == 1 else 0
          self.add_module(f"branch{name}", Conv(width, o, kernel, stride, padding))
        width = step[1] if not isinstance(step, list) else None
      self.paths.append(names)
    if pooled:
      self.branch_pool = Conv(i, pooled)

  def forward(self, x):
    out = []
    for names in self.paths:
      h = [x]
      for several in names:
        h = [self.get_submodule(name)(h[0]) for name in several]
      out += h
    if self.pool == "mean":
      out.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
    elif self.pool == "max":
      out.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
    else:
      out.append(F.max_pool2d(x, 3, 2))
    return torch.cat(out, 1)


class TorchInception(nn.Module):
  """arXiv:1512.00567, table 1, in FID's form, with the names of torchvision."""

  def __init__(self, d=1):
    super().__init__()
    c = lambda n: n // d
    self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, c(32), 3, 2), Conv(c(32), c(32), 3)
    self.Conv2d_2b_3x3 = Conv(c(32), c(64), 3, 1, 1)
    self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(c(64), c(80)), Conv(c(80), c(192), 3)
    width = 192
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
      paths = [
        [("1x1", c(64), 1, 1)],
        [("5x5_1", c(48), 1, 1), ("5x5_2", c(64), 5, 1)],
        [("3x3dbl_1", c(64), 1, 1), ("3x3dbl_2", c(96), 3, 1), ("3x3dbl_3", c(96), 3, 1)],
      ]
      self.add_module(f"Mixed_{name}", Mixed(c(width), paths, "mean", c(pooled)))
      width = 224 + pooled
    double = [("3x3dbl_1", c(64), 1, 1), ("3x3dbl_2", c(96), 3, 1), ("3x3dbl_3", c(96), 3, 2)]
    self.Mixed_6a = Mixed(c(288), [[("3x3", c(384), 3, 2)], double], "halve")
    for name, n in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      flat, tall = (1, 7), (7, 1)
      paths = [
        [("1x1", c(192), 1, 1)],
        [("7x7_1", c(n), 1, 1), ("7x7_2", c(n), flat, 1), ("7x7_3", c(192), tall, 1)],
        [
          ("7x7dbl_1", c(n), 1, 1),
          ("7x7dbl_2", c(n), tall, 1),
          ("7x7dbl_3", c(n), flat, 1),
          ("7x7dbl_4", c(n), tall, 1),
          ("7x7dbl_5", c(192), flat, 1),
        ],
      ]
      self.add_module(f"Mixed_{name}", Mixed(c(768), paths, "mean", c(192)))
    seven = [
      ("7x7x3_1", c(192), 1, 1),
      ("7x7x3_2", c(192), (1, 7), 1),
      ("7x7x3_3", c(192), (7, 1), 1),
      ("7x7x3_4", c(192), 3, 2),
    ]
    three = [("3x3_1", c(192), 1, 1), ("3x3_2", c(320), 3, 2)]
    self.Mixed_7a = Mixed(c(768), [three, seven], "halve")
    for name, i, pool in (("7b", 1280, "mean"), ("7c", 2048, "max")):
      ends = lambda stem: [(f"{stem}a", c(384), (1, 3), 1), (f"{stem}b", c(384), (3, 1), 1)]
      paths = [
        [("1x1", c(320), 1, 1)],
        [("3x3_1", c(384), 1, 1), ends("3x3_2")],
        [("3x3dbl_1", c(448), 1, 1), ("3x3dbl_2", c(384), 3, 1), ends("3x3dbl_3")],
      ]
      self.add_module(f"Mixed_{name}", Mixed(c(i), paths, pool, c(192)))
    self.fc = nn.Linear(c(2048), inception.CLASSES)

  def forward(self, x):
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
      x = self.get_submodule(f"Mixed_{name}")(x)
    return x.mean((2, 3))


class Mixed3d(nn.Module):
  def __init__(self, i, n):
    super().__init__()
    unit = lambda a, b, kernel=1: Conv(a, b, kernel, clips=True)
    self.b0, self.b1a, self.b1b = unit(i, n[0]), unit(i, n[1]), unit(n[1], n[2], 3)
    self.b2a, self.b2b, self.b3b = unit(i, n[3]), unit(n[3], n[4], 3), unit(i, n[5])

  def forward(self, x):
    pooled = F.max_pool3d(same_padded(x, (3,) * 3, (1,) * 3), 3, 1)
    return torch.cat(
      [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1
    )


class Logits(nn.Module):
  def __init__(self, i, o):
    super().__init__()
    self.conv3d = nn.Conv3d(i, o, 1)


# arXiv:1705.07750, figure 3, with the channels of Inception-v1 (arXiv:1409.4842, table 1).
GOOGLENET = {
  "3b": (192, (64, 96, 128, 16, 32, 32)),
  "3c": (256, (128, 128, 192, 32, 96, 64)),
  "4b": (480, (192, 96, 208, 16, 48, 64)),
  "4c": (512, (160, 112, 224, 24, 64, 64)),
  "4d": (512, (128, 128, 256, 24, 64, 64)),
  "4e": (512, (112, 144, 288, 32, 64, 64)),
  "4f": (528, (256, 160, 320, 32, 128, 128)),
  "5b": (832, (256, 160, 320, 32, 128, 128)),
  "5c": (832, (384, 192, 384, 48, 128, 128)),
}


class TorchI3D(nn.Module):
  def __init__(self, d=1, classes=400):
    super().__init__()
    self.Conv3d_1a_7x7 = Conv(3, 64 // d, 7, 2, clips=True)
    self.Conv3d_2b_1x1 = Conv(64 // d, 64 // d, clips=True)
    self.Conv3d_2c_3x3 = Conv(64 // d, 192 // d, 3, clips=True)
    for name, (i, n) in GOOGLENET.items():
      self.add_module(f"Mixed_{name}", Mixed3d(i // d, [k // d for k in n]))
    self.logits = Logits(1024 // d, classes)

  def forward(self, x):
    pool = lambda x, k, s: F.max_pool3d(same_padded(x, k, s), k, s)
    x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
    x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
    for name in GOOGLENET:
      if name == "4b":
        x = pool(x, (3, 3, 3), (2, 2, 2))
      if name == "5b":
        x = pool(x, (2, 2, 2), (2, 2, 2))
      x = self.get_submodule(f"Mixed_{name}")(x)
    x = self.logits.conv3d(F.avg_pool3d(x, (2, 7, 7), 1))
    return x.mean((2, 3, 4))


def drawn(model, inputs, seed=0):
  """Every tensor anew, none with the value it begins with; what each norm takes out is nearly the
  inputs' own, or all inputs would come to look alike on their way through fifty layers."""
  g = torch.Generator().manual_seed(seed)
  noise = lambda like: torch.randn(like.shape, generator=g)
  norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(noise(p) * (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.2 * noise(p))
    for norm in norms:
      norm.weight.add_(1)
      norm.momentum = 1.0  # one pass, whose statistics are kept
    model.train()(inputs)
    for norm in norms:
      norm.running_mean.add_(0.1 * noise(norm.running_mean) * norm.running_var**0.5)
      norm.running_var.mul_(torch.exp(0.2 * noise(norm.running_var)))
  return model.eval()


def coarse(*shape):
  """Pixels in [-1, 1] that differ in more than noise: random values some 20 pixels wide."""
  rng = np.random.default_rng(0)
  *front, H, W, C = shape
  values = rng.uniform(-1, 1, (*front, H // 20 + 1, W // 20 + 1, C))
  fine = values.repeat(20, axis=-3).repeat(20, axis=-2)[..., :H, :W, :]
  return (0.8 * fine + 0.2 * rng.uniform(-1, 1, shape)).astype(np.float32)


def written(model, file, change=lambda tensors: tensors):
  tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  safetensors.numpy.save_file(change(tensors), file)
  return file


def assert_same(ours, theirs, tolerance):
  """Errors in spreads of each feature over the inputs: what all inputs have in common is no
  evidence."""
  ours, theirs = np.asarray(ours), theirs.numpy()
  assert ours.shape == theirs.shape
  spread = theirs.std(axis=0).mean()
  assert spread > 1e-2, "the oracle says the same of all inputs: nothing was compared"
  error = np.abs(ours - theirs).max() / spread
  assert error <= tolerance, f"off by {error:.2e} spreads"


def both_in_float64(model, theirs, network, params, ours):
  """Our output and PyTorch's of the same input."""
  with torch.no_grad():
    expected = model.double()(theirs.double())
  with jax.enable_x64(True):
    ours, params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (ours, params))
    return jax.jit(lambda p, x: network.apply({"params": p}, x))(params, ours), expected


def test_inception_is_pytorchs(tmp_path):
  """Neither side of the picture as long as the other, both leaving rests at the strides."""
  config = inception.InceptionConfig(divide=16)
  x = coarse(4, 107, 90, 3)
  theirs = torch.tensor(x).permute(0, 3, 1, 2)
  model = drawn(TorchInception(16), theirs)
  params = inception.load(written(model, tmp_path / "fid.safetensors"), config)
  assert_same(*both_in_float64(model, theirs, inception.InceptionV3(config), params, x), DEEP)


@pytest.mark.parametrize(("frames", "size"), [(9, (193, 224)), (17, (225, 193))])
def test_i3d_is_pytorchs(frames, size, tmp_path):
  """9 frames leave one logit, 17 and more than 224 pixels several, of which the mean is taken."""
  config = i3d.I3dConfig(divide=8, classes=11)
  x = coarse(2, frames, *size, 3)
  theirs = torch.tensor(x).permute(0, 4, 1, 2, 3)
  model = drawn(TorchI3D(8, 11), theirs)
  params = i3d.load(written(model, tmp_path / "fvd.safetensors"), config)
  assert_same(*both_in_float64(model, theirs, i3d.I3D(config), params, x), DEEP)


@pytest.mark.parametrize(("table", "model"), [(inception.table, TorchInception),
                                              (i3d.table, TorchI3D)])  # fmt: skip
def test_at_full_width_every_tensor_has_its_name_and_shape(table, model):
  with torch.device("meta"):
    tensors = model().state_dict()
  theirs = {
    name: tuple(tensor.shape)
    for name, tensor in tensors.items()
    if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
  }
  assert {name: row.public_shape for name, (row,) in table().items()} == theirs


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (64, 48), (400, 700)])
def test_pictures_are_resized_as_pytorch_does(size):
  x = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  expected = F.interpolate(
    torch.tensor(x).permute(0, 3, 1, 2), (299, 299), mode="bilinear", align_corners=False
  )
  got = published.bilinear(jnp.asarray(x), 299)
  # Weights of float32 positions up to 700: 700 * 6e-8, times a step of 2 between pixels.
  np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize(
  ("of", "network", "apply", "side"),
  [
    ("frames", inception.InceptionV3, inception.features, 299),
    ("clips", i3d.I3D, i3d.features, 224),
  ],
)
def test_pixels_come_to_the_networks_as_published(of, network, apply, side, monkeypatch):
  """0 and 255 as -1 and 1, and a square of the network's own size."""

  def seen(self, variables, x):
    flat = x.reshape(x.shape[0], -1)
    ends = [flat.min(axis=1), flat.max(axis=1)]
    sides = [jnp.full(x.shape[:1], n, jnp.float32) for n in x.shape[-3:-1]]
    return jnp.stack([*ends, *sides], axis=1)

  monkeypatch.setattr(network, "apply", seen)
  rows = []
  stream = features.Stream(
    features.Features(of, of, 4, {}, lambda params, x: apply(params, x)),
    1,
    lambda found, members: rows.append(found),
  )
  for index, level in enumerate((0, 255)):
    stream.take(np.full((9, 40, 50, 3), level, np.uint8), index)
  stream.finish()
  rows = np.concatenate(rows)
  # A pixel is a weighted mean of two and two, whose weights add up to 1 but for rounding.
  np.testing.assert_allclose(rows[0], [-1, -1, side, side], atol=1e-6)
  np.testing.assert_allclose(rows[-1], [1, 1, side, side], atol=1e-6)


def test_other_files_are_refused_in_one_line(tmp_path):
  config, model = inception.InceptionConfig(divide=16), TorchInception(16)
  file = tmp_path / "a.safetensors"

  def refused(change, words):
    written(model, file, change)
    with pytest.raises(InputError, match=words) as info:
      inception.load(file, config)
    assert "\n" not in str(info.value)

  first = "Conv2d_1a_3x3.conv.weight"
  refused(lambda t: {k: v for k, v in t.items() if k != first}, rf"1 tensors are missing \({first}")
  refused(lambda t: t | {"AuxLogits.fc.weight": t[first]}, "1 are unknown .AuxLogits.fc.weight")
  refused(lambda t: t | {first: t[first][:, :2]}, r"1 have another shape .*\(2, 2, 3, 3\) instead")
  refused(lambda t: t | {first: t[first].astype(np.float16)}, "1 are not float32 .* of F16")
  refused(lambda t: t | {"fc.weight": t["fc.weight"][:1000]}, "has 1000 logits and .* FID 1008")
  (tmp_path / "a.pth").write_bytes(b"")
  with pytest.raises(InputError, match="is a pickle"):
    inception.load(tmp_path / "a.pth", config)


def test_shapes_that_make_no_network_are_refused():
  with pytest.raises(ValueError, match="divide=3 is no divisor of 32"):
    inception.InceptionConfig(3)
  with pytest.raises(ValueError, match="divide=16 is no divisor of 8"):
    i3d.I3dConfig(16)
  short = dataclasses.replace(i3d.I3dConfig(), divide=8)
  with pytest.raises(ValueError, match="clips of 8 x 224 x 224 leave nothing for the last pool"):
    published.shapes_of(i3d.I3D(short), (1, 8, 224, 224, 3))
