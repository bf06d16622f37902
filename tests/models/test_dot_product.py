"""Every form of attention gives the numbers of its definition, in pieces too; and the choice."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from emu_jax.models import dot_product
from emu_jax.models.dot_product import attend
from emu_jax.parallel.activations import AXES, platform
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.planning import topologies
from tests.models.jaxprs import arrays, largest


@pytest.fixture
def in_pieces(monkeypatch):
  """Attention that goes in pieces at sizes of a test."""
  monkeypatch.setattr(dot_product, "LONG", 8)
  monkeypatch.setattr(dot_product, "PIECE", dict.fromkeys(("cpu", "gpu", "tpu"), 80))
  monkeypatch.setattr(dot_product, "ROWS", 2)


def draw(*shape):
  return jax.random.normal(jax.random.key(sum(shape)), shape)


def by_definition(q, k, v, mask=None, bias=0.0, scale=None):
  """In float64."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  logits = np.einsum("nqhd,nlhd->nhql", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
  logits = logits + np.asarray(bias, np.float64)
  if mask is not None:
    logits = np.where(mask, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return np.einsum("nhql,nlhd->nqhd", weights / weights.sum(-1, keepdims=True), v)


def on_platform(name, devices=(1, 1, 1)):
  """A mesh of devices that this machine does not have."""
  return jax.sharding.use_abstract_mesh(
    AbstractMesh(devices, AXES, abstract_device=AbstractDevice(name, None, name))
  )


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("L", [7, 11])
@pytest.mark.parametrize("given", ["nothing", "mask", "lengths", "bias", "scale", "all"])
def test_every_form_is_the_definition(name, given, L, monkeypatch):
  """On the form of each platform, computed here; gradients are those of the other form."""
  monkeypatch.setattr(dot_product, "platform", lambda: name)
  q, k, v = draw(3, 6, 2, 5), draw(3, L, 2, 5), draw(3, L, 2, 5)
  lengths = jnp.arange(L)[None] < jnp.array([L, 3, 1])[:, None]
  every = {
    "mask": jnp.tril(jnp.ones((6, L), bool))[None, None],
    "lengths": lengths,
    "bias": draw(1, 2, 6, L),
    "scale": 1.5,
  }
  options = every if given == "all" else {n: every[n] for n in every if n == given}
  found, back = jax.vjp(lambda *a: attend(*a, **options), q, k, v)
  oracle = dict(options)
  if "lengths" in oracle:
    padding = oracle.pop("lengths")[:, None, None]
    oracle["mask"] = padding & oracle.get("mask", True)
  # Logits of up to 20 with their rounding of 20 * 2**-24 each, weights that sum to 1, v up to 3.
  np.testing.assert_allclose(found, by_definition(q, k, v, **oracle), atol=1e-5)
  scale = oracle.pop("scale", 5**-0.5)
  plain = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=scale, **oracle)
  for ours, theirs in zip(back(found), jax.vjp(plain, q, k, v)[1](found), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


@pytest.mark.parametrize("name", ["cpu", "tpu"])
def test_half_precision_has_float32_inside(name, monkeypatch):
  """Weights and results are rounded to bfloat16, and sums over 300 keys are not."""
  monkeypatch.setattr(dot_product, "platform", lambda: name)
  q, k, v = (draw(2, n, 2, 64).astype(jnp.bfloat16) for n in (5, 300, 300))
  found = attend(q, k, v)
  assert found.dtype == jnp.bfloat16
  # Weights, results and scaled logits of up to 4 rounded to 2**-9 of themselves.
  np.testing.assert_allclose(found.astype(float), by_definition(q, k, v), atol=0.02)


def test_pytorch_agrees():
  torch = pytest.importorskip("torch")
  q, k, v = draw(2, 9, 3, 8), draw(2, 11, 3, 8), draw(2, 11, 3, 8)
  theirs = [torch.tensor(np.asarray(a)).transpose(1, 2) for a in (q, k, v)]
  wanted = torch.nn.functional.scaled_dot_product_attention(*theirs).transpose(1, 2)
  np.testing.assert_allclose(attend(q, k, v), wanted, atol=2e-6)


def test_splash_attention_is_attention():
  """In Pallas's interpreter; heads of 40 are filled up to a TPU's 128 lanes. Gradients too."""
  arrays = [draw(2, n, 2, 40) for n in (128, 256, 256)]
  found, back = jax.vjp(lambda *a: dot_product.splash(*a, 40**-0.5, interpret=True), *arrays)
  wanted, oracle = jax.vjp(jax.nn.dot_product_attention, *arrays)
  np.testing.assert_allclose(found, wanted, atol=5e-6)
  for ours, theirs in zip(back(found), oracle(found), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_splash_attention_on_a_mesh_is_attention():
  """Every device takes its own sequences."""
  arrays = [draw(8, 128, 1, 8) for _ in "qkv"]
  with jax.set_mesh(make_mesh(jax.devices()[:4], MeshConfig(data=2, frames=2))):
    found = jax.jit(lambda *a: dot_product.splash(*a, 0.5, interpret=True))(*arrays)
  wanted = jax.nn.dot_product_attention(*arrays, scale=0.5)
  np.testing.assert_allclose(found, wanted, atol=5e-6)


HALF = jnp.bfloat16


@pytest.mark.parametrize(
  ("name", "shapes", "options", "chosen"),
  [
    ("gpu", ((2, 256, 8, 40), 77), {}, "cudnn"),
    ("gpu", ((2, 1024, 8, 128), 1024), {"lengths": jnp.ones((2, 1024), bool)}, "cudnn"),
    ("gpu", ((2, 1024, 8, 64), 1024), {"kernel": "splash"}, "cudnn"),
    ("gpu", ((2, 1024, 8, 64), 1024), {"kernel": "plain"}, None),
    ("gpu", ((2, 256, 8, 64), 256), {"mask": jnp.ones((1, 1, 256, 256), bool)}, None),
    ("gpu", ((2, 256, 8, 64), 256), {"bias": jnp.ones((1, 8, 256, 256))}, None),
    ("gpu", ((2, 256, 1, 512), 256), {}, None),  # the autoencoder's one head
    ("gpu", ((2, 256, 8, 36), 256), {}, None),
    ("gpu", ((512, 14, 8, 64), 14), {}, None),  # over frames: shorter than a tile
    ("tpu", ((2, 1024, 8, 64), 1024), {"kernel": "splash"}, "splash"),
    ("tpu", ((2, 1024, 8, 64), 1024), {}, None),
    ("tpu", ((2, 256, 8, 64), 256), {"kernel": "splash"}, None),
    ("tpu", ((2, 1040, 8, 64), 1040), {"kernel": "splash"}, None),
    ("cpu", ((2, 1024, 8, 64), 1024), {"kernel": "splash"}, None),
  ],
)
def test_fused_kernels_are_chosen_where_they_fit(name, shapes, options, chosen, monkeypatch):
  """The choice alone, without such devices; float32 never has cuDNN's."""
  calls = []

  def fused(kernel):
    return lambda q, *others: calls.append(kernel) or q

  monkeypatch.setattr(dot_product, "platform", lambda: name)
  monkeypatch.setattr(dot_product, "has_cudnn", lambda: True)
  monkeypatch.setattr(dot_product, "_cudnn", fused("cudnn"))
  monkeypatch.setattr(dot_product, "splash", fused("splash"))
  (N, Q, H, D), L = shapes
  q, k = (jax.ShapeDtypeStruct((N, n, H, D), HALF) for n in (Q, L))
  jax.eval_shape(lambda q, k: attend(q, k, k, **options), q, k)
  assert calls == ([chosen] if chosen else [])
  if name == "gpu":
    q, k = (jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (q, k))
    jax.eval_shape(lambda q, k: attend(q, k, k, **options), q, k)
    assert len(calls) == bool(chosen)


def test_lengths_reach_cudnn_as_numbers_of_keys(monkeypatch):
  given = {}
  monkeypatch.setattr(dot_product, "platform", lambda: "gpu")
  monkeypatch.setattr(dot_product, "has_cudnn", lambda: True)
  monkeypatch.setattr(
    jax.nn, "dot_product_attention", lambda q, *a, **options: given.update(options) or q
  )
  lengths = jnp.arange(77)[None] < jnp.array([77, 5])[:, None]
  attend(*(jnp.zeros((2, n, 1, 8), HALF) for n in (256, 77, 77)), lengths=lengths)
  np.testing.assert_array_equal(given.pop("key_value_seq_lengths"), [77, 5])
  assert given.pop("key_value_seq_lengths", None) is None
  assert given == {"scale": 8**-0.5, "implementation": "cudnn"}


def test_a_mesh_of_other_devices_has_their_form():
  """A plan is of what those devices will run, on whatever machine it is made; so is a GPU's."""
  q = jax.ShapeDtypeStruct((2, 256, 2, 8), HALF)
  texts = {}
  for name in ("cpu", "gpu", "tpu"):
    with on_platform(name):
      assert platform() == name
      texts[name] = str(jax.make_jaxpr(lambda q: attend(q, q, q))(q))
  assert texts["gpu"] == texts["tpu"]
  assert texts["cpu"] != texts["tpu"]
  assert platform() == "cpu"
  with jax.default_device(jax.devices("cpu")[0]):
    assert platform() == "cpu"


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-plan)"
)
def test_a_topology_of_tpus_has_the_form_of_tpus():
  mesh = make_mesh(topologies.devices(topologies.parse("v5e:2x2")), MeshConfig(data=4))
  with jax.set_mesh(mesh):
    assert platform() == "tpu"


@pytest.mark.parametrize(("Q", "L"), [(24, 10), (10, 24), (11, 50), (4, 24)])
def test_attention_in_pieces_is_attention(in_pieces, Q, L):
  """Of lengths that divide, that do not, and of one too short for pieces; gradients too."""
  q, k, v = draw(2, Q, 3, 5), draw(2, L, 3, 5), draw(2, L, 3, 5)

  found, back = jax.vjp(attend, q, k, v)
  wanted, oracle = jax.vjp(jax.nn.dot_product_attention, q, k, v)
  np.testing.assert_allclose(found, wanted, atol=2e-6)
  for ours, theirs in zip(back(found), oracle(found), strict=True):
    # Sums of up to 50 terms of up to 3, in another order: 50 * 3 * 2**-24.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_attention_in_pieces_never_holds_all_logits(in_pieces):
  """Nor those of one head: neither forwards nor, kept for it, backwards."""
  q, k = draw(2, 40, 3, 4), draw(2, 50, 3, 4)
  gradient = jax.make_jaxpr(jax.grad(lambda q, k: (attend(q, k, k) ** 2).sum(), argnums=(0, 1)))
  assert largest(gradient(q, k).jaxpr) <= 2 * 50 * 3 * 4  # k itself; one head's logits are 4000


@pytest.mark.parametrize("N", [1, 4, 6])
@pytest.mark.parametrize("rows", [1, 4])
def test_pieces_hold_logits_of_all_sequences_together(in_pieces, N, rows, monkeypatch):
  """PIECE bounds them, however many sequences there are, where one query's logits are fewer."""
  monkeypatch.setattr(dot_product, "ROWS", rows)
  q, k = draw(N, 24, 2, 3), draw(N, 10, 2, 3)
  jaxpr = jax.make_jaxpr(lambda q, k: attend(q, k, k))(q, k).jaxpr
  sizes = [size for shape, size in arrays(jaxpr) if shape[-1:] == (10,)]
  assert sizes
  assert max(sizes) <= dot_product.PIECE["cpu"]


def test_attention_in_pieces_on_a_mesh_is_attention(in_pieces):
  """Sequences over devices; of a number that they divide and of one that they do not."""
  mesh = make_mesh(jax.devices()[:4], MeshConfig(data=4))
  for N in (8, 6):
    q, k, v = draw(N, 24, 3, 5), draw(N, 10, 3, 5), draw(N, 10, 3, 5)
    expected = jax.jit(attend)(q, k, v)
    with jax.set_mesh(mesh):
      found = jax.jit(attend)(q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
