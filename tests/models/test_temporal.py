"""Laws of every configuration of temporal layers: on a mesh, and at the places of a U-Net."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from emu_jax.models.modelscope import ModelScopeConfig
from emu_jax.models.motion import MotionConfig
from emu_jax.models.site import Site
from emu_jax.models.temporal import Temporal, TemporalConfig
from emu_jax.models.unet import UNet, UNetConfig
from emu_jax.models.video_ldm import VideoLdmConfig
from emu_jax.parallel.activations import video_spec
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.train.planning import hlo

SMALL = UNetConfig(
  channels=(16, 32),
  num_res_blocks=(1, 1),
  transformer_depth=(2, 0),
  num_heads=0,
  head_dim=8,
  context_dims=(12,),
  norm_groups=8,
)
TEMPORAL = [
  TemporalConfig(),
  TemporalConfig(attends_text=True),
  VideoLdmConfig(),
  MotionConfig(num_heads=(2,)),
  ModelScopeConfig(in_heads=2),
]


def drawn(seed, tree):
  """Arrays of the shapes of a tree; none is at its initialisation."""
  rng = np.random.default_rng(seed)
  scale = lambda a: max(a.size / a.shape[-1], 1) ** -0.5
  return jax.tree.map(
    lambda a: jnp.asarray(rng.standard_normal(a.shape) * scale(a), jnp.float32), tree
  )


def inputs(config, shape):
  """Parameters, x_t, t and conditions."""
  x, t = jnp.zeros(shape), jnp.linspace(3.0, 700.0, shape[0])
  blank = config.blank(shape)
  shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), x, t, blank)["params"]
  return drawn(1, shapes), drawn(2, x), t, drawn(3, blank)


@pytest.mark.parametrize("temporal", TEMPORAL, ids=lambda t: f"{type(t).__name__}")
def test_temporal_layers_gather_no_clip_on_a_mesh(temporal):
  """Frames and pixels are exchanged all to all, and every output is that of one device."""
  config = dataclasses.replace(SMALL, temporal=temporal)
  params, x, t, conditions = inputs(config, (1, 4, 8, 6, 4))
  apply = jax.jit(lambda params, x: UNet(config).apply({"params": params}, x, t, conditions))
  expected = apply(params, x)
  mesh = make_mesh(jax.devices()[:4], MeshConfig(frames=4))
  with jax.set_mesh(mesh):
    placed = jax.device_put(x, NamedSharding(mesh, video_spec(mesh, x.shape, "frames")))
    compiled = apply.lower(params, placed).compile()
    found = compiled(params, placed)
  moved = hlo.read(compiled.as_text()).exchanges
  assert moved["all-to-all"].bytes > 0
  # What may be gathered is not of a clip: the statistics of a norm, the row that it starts from.
  gathered = moved["all-gather"].bytes if "all-gather" in moved else 0
  assert gathered < 0.02 * moved["all-to-all"].bytes, moved
  # Sums in another order, some thirty layers deep.
  np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))


@dataclasses.dataclass(frozen=True)
class FirstFrame(Temporal):
  """Every frame attends to the pixels of the first one."""

  def attention_source(self, site, h, T):
    frames = h.reshape(-1, T, *h.shape[1:])
    return jnp.broadcast_to(frames[:, :1], frames.shape).reshape(h.shape)


@dataclasses.dataclass(frozen=True)
class SameFrame(Temporal):
  """Every frame attends to itself, as without the hook."""

  def attention_source(self, site, h, T):
    return h


@pytest.mark.parametrize("tokens", [None, 10])  # all at once, and a frame at a time
def test_a_source_of_attention_is_what_all_frames_read(tokens, monkeypatch):
  if tokens:
    monkeypatch.setattr("emu_jax.models.attention.TOKENS", tokens)
  params, x, t, conditions = inputs(SMALL, (2, 3, 4, 6, 4))

  def output(temporal, x):
    net = UNet(dataclasses.replace(SMALL, temporal=temporal))
    return jax.jit(net.apply)({"params": params}, x, t, conditions)

  plain, same, first = (output(temporal, x) for temporal in (Temporal(), SameFrame(), FirstFrame()))
  np.testing.assert_array_equal(same, plain)
  # The first frame reads itself as ever; equal frames read equal pixels.
  np.testing.assert_allclose(first[:, 0], plain[:, 0], atol=1e-5)
  assert float(jnp.abs(first[:, 1] - plain[:, 1]).max()) > 1e-3
  still = jnp.repeat(x[:, :1], 3, axis=1)
  np.testing.assert_allclose(output(FirstFrame(), still), output(Temporal(), still), atol=1e-5)
  # Of other frames only the first is read.
  other = output(FirstFrame(), x.at[:, 1].add(1.0))
  np.testing.assert_allclose(other[:, [0, 2]], first[:, [0, 2]], atol=1e-5)
  other = output(FirstFrame(), x.at[:, 0].add(1.0))
  assert float(jnp.abs(other[:, 2] - first[:, 2]).max()) > 1e-3


def test_layers_that_attend_to_texts_alone_have_no_other_source():
  config = dataclasses.replace(SMALL, cross_only=(True, False), mid_depth=0)
  params, x, t, conditions = inputs(config, (1, 3, 4, 6, 4))
  outputs = [
    jax.jit(UNet(dataclasses.replace(config, temporal=temporal)).apply)(
      {"params": params}, x, t, conditions
    )
    for temporal in (Temporal(), FirstFrame())
  ]
  np.testing.assert_array_equal(*outputs)


def test_sites_have_the_names_of_the_parameters():
  """Every site that hooks see; by its name stands a module, or the hook makes one after it."""
  seen = []

  @dataclasses.dataclass(frozen=True)
  class Watching(Temporal):
    def after_conv(self, site, h, unet):
      seen.append(site)
      return h

    def after_res_block(self, site, h, embedding, unet):
      seen.append(site)
      return h

    def after_attention(self, site, h, contexts, unet):
      seen.append(site)
      return h

    def after_block(self, site, h, unet):
      seen.append(site)
      return h

  params, *_ = inputs(dataclasses.replace(SMALL, temporal=Watching()), (1, 1, 2, 2, 4))
  names = {site.name for site in seen if site.kind not in ("conv", "block")}
  assert names == set(params) - {"time", "norm_out", "conv_out"}
  assert {site.name for site in seen if site.kind == "conv"} == {"conv_1", "conv_2"}
  blocks = {"down_0_0", "down_1_0", "mid", "up_1_0", "up_1_1", "up_0_0", "up_0_1"}
  assert {site.name for site in seen if site.kind == "block"} == blocks
  assert Site("attention", "mid", 1) in seen
