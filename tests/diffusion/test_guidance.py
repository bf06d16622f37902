"""Guidance at its special scales is one of its branches; the branches go through in one call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.edm import Edm
from emu_jax.diffusion.flow import Flow
from emu_jax.diffusion.guidance import (
  emu_video_guidance,
  frame_guidance,
  guided,
  interleaved,
  led,
  rescale,
  text_guidance,
)
from emu_jax.diffusion.log_snr import LogSnr
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import Schedule, per_example
from emu_jax.typing import Conditions

SHAPE = (2, 3, 4, 4, 2)
ATOL = 4e-6  # sums of three unit normals times scales below 10, in float32


@pytest.fixture
def outputs(key):
  return list(jax.random.normal(key, (3, *SHAPE)))


def test_text_guidance_at_0_and_1(outputs):
  uncond, text = outputs[:2]
  np.testing.assert_array_equal(text_guidance(0.0)([uncond, text]), uncond)
  np.testing.assert_allclose(text_guidance(1.0)([uncond, text]), text, atol=ATOL)
  # 7.5: the conditional plus 6.5 times what the text changed (arXiv:2207.12598 with w = 6.5)
  wanted = 7.5 * text - 6.5 * uncond
  np.testing.assert_allclose(text_guidance(7.5)([uncond, text]), wanted, atol=ATOL)


def test_frame_guidance_is_each_frames_own_text_guidance(outputs):
  uncond, image = outputs[:2]
  combined = frame_guidance(1.0, 3.0)([uncond, image])
  for i, scale in enumerate((1.0, 2.0, 3.0)):
    wanted = text_guidance(scale)([uncond, image])
    np.testing.assert_allclose(combined[:, i], wanted[:, i], atol=ATOL)
  one = [output[:, :1] for output in (uncond, image)]  # a single frame has the first one's scale
  np.testing.assert_allclose(frame_guidance(1.0, 3.0)(one), one[1], atol=ATOL)
  scaled = frame_guidance(jnp.array([1.0, 2.0]), 3.0)([uncond, image])
  np.testing.assert_allclose(scaled[1], frame_guidance(2.0, 3.0)([uncond, image])[1], atol=ATOL)


def test_emu_video_guidance_at_its_corners(outputs):
  null, image, both = outputs
  np.testing.assert_allclose(emu_video_guidance(1.0, 1.0)(outputs), both, atol=ATOL)
  np.testing.assert_array_equal(emu_video_guidance(0.0, 0.0)(outputs), null)
  np.testing.assert_allclose(emu_video_guidance(1.0, 0.0)(outputs), image, atol=ATOL)


@pytest.mark.parametrize(("w_i", "w_p"), [(2.0, 7.5), (1.5, 7.0), (0.0, 3.0), (-1.0, 0.5)])
def test_emu_video_guidance_is_instruct_pix2pix(outputs, w_i, w_p):
  uncond, image, text = outputs
  wanted = uncond + w_p * (text - image) + w_i * (image - uncond)
  np.testing.assert_allclose(emu_video_guidance(w_i, w_p)(outputs), wanted, atol=ATOL)


def test_a_scale_may_be_each_examples_own(outputs):
  both = text_guidance(jnp.array([1.0, 3.0]))(outputs[:2])
  for i, scale in enumerate((1.0, 3.0)):
    np.testing.assert_allclose(both[i], text_guidance(scale)(outputs[:2])[i], atol=ATOL)


def test_rescale_brings_the_spread_of_the_last_branch(outputs):
  combine = emu_video_guidance(2.0, 7.5)
  plain = combine(outputs)
  np.testing.assert_array_equal(rescale(combine, 0.0)(outputs), plain)
  full = rescale(combine, 1.0)(outputs)
  std = lambda x: jnp.std(x, axis=(1, 2, 3, 4))
  np.testing.assert_allclose(std(full), std(outputs[-1]), rtol=1e-5)
  # An example each, over every other axis: all of an example is scaled by one number.
  ratio = full / plain
  np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:, :1, :1, :1, :1], SHAPE), rtol=1e-4)
  assert abs(ratio[0] - ratio[1]).min() > 1e-4
  half = rescale(combine, 0.5)(outputs)
  np.testing.assert_allclose(half, (plain + full) / 2, atol=ATOL)


def test_rescale_of_a_constant_prediction_is_itself():
  flat = [jnp.zeros(SHAPE)] * 2
  np.testing.assert_array_equal(rescale(text_guidance(7.5), 0.7)(flat), 0)


def conditions(key, *, mask=True, concat=True, vector=True, control=True):
  a, b, c, d = jax.random.split(key, 4)
  return Conditions(
    texts=(jax.random.normal(a, (2, 5, 3)), jax.random.normal(b, (2, 4, 6))),
    masks=(jnp.arange(10).reshape(2, 5) % 3 == 0, None) if mask else (),
    concat=jax.random.normal(c, (*SHAPE[:-1], 1)) if concat else None,
    vectors={"noise_level": jnp.array([3.0, 5.0])} if vector else {},
    control=(jnp.ones((*SHAPE[:-1], 1)), jax.random.normal(d, (2, 1, 1, 1, 1))) if control else (),
  )


def network(x_t, t, c):
  """Mixes everything that it is told, each example by itself, and only where a mask allows."""
  total = x_t * per_example(t, x_t)
  masks = c.masks or (None,) * len(c.texts)
  for text, mask in zip(c.texts, masks, strict=True):
    kept = text if mask is None else jnp.where(mask[..., None], text, 0.0)
    total += per_example(kept.sum((1, 2)), x_t)
  total += 0.0 if c.concat is None else c.concat
  total += sum(c.control)
  return total + sum(per_example(v, x_t) for v in c.vectors.values())


@pytest.mark.parametrize("masks", [(True, True, True), (False, True, False), (False,) * 3])
def test_one_call_on_all_branches_is_a_call_on_each(key, masks):
  calls = []

  def counted(x_t, t, c):
    calls.append(x_t.shape)
    return network(x_t, t, c)

  keys = jax.random.split(key, 4)
  branches = tuple(conditions(k, mask=m) for k, m in zip(keys[:3], masks, strict=True))
  x_t, t = jax.random.normal(keys[3], SHAPE), jnp.array([3.0, 8.0])
  combine = emu_video_guidance(2.0, 7.5)
  got = guided(counted, branches, combine)(x_t, t)
  assert calls == [(6, *SHAPE[1:])]
  # the sums of texts are up to 20 and weighted by up to 14
  wanted = combine([network(x_t, t, c) for c in branches])
  np.testing.assert_allclose(got, wanted, atol=14 * 50 * 2.0**-22)


def test_absent_everywhere_stays_absent(key):
  together = interleaved(
    (conditions(key, mask=False, concat=False, vector=False, control=False),) * 2
  )
  assert together.control == ()
  assert together.masks == (None, None)
  assert together.concat is None
  assert together.vectors == {}
  assert interleaved((Conditions(), Conditions())) == Conditions()


def test_a_missing_mask_is_true_everywhere(key):
  masked = conditions(key)
  together = interleaved((masked, conditions(jax.random.key(1), mask=False)))
  assert together.masks[1] is None
  np.testing.assert_array_equal(together.masks[0][0::2], masked.masks[0])
  np.testing.assert_array_equal(together.masks[0][1::2], True)


def test_branches_of_an_example_are_neighbours():
  a, b = conditions(jax.random.key(1)), conditions(jax.random.key(2))
  together = interleaved((a, b))
  np.testing.assert_array_equal(together.concat[0::2], a.concat)
  np.testing.assert_array_equal(together.concat[1::2], b.concat)


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"concat": None}, r"concat differs.*\(2, 3, 4, 4, 1\), None.*zeros"),
    ({"concat": jnp.zeros((2, 3, 4, 4, 5))}, r"concat differs.*\(2, 3, 4, 4, 5\)"),
    ({"texts": ()}, r"branches have \[2, 0\] texts"),
    ({"control": ()}, r"branches have \[2, 0\] control features"),
    ({"vectors": {}}, r"vectors differ.*\['noise_level'\], \[\]"),
    ({"texts": (jnp.zeros((2, 7, 3)), jnp.zeros((2, 4, 6)))}, r"texts\[0\].*\(2, 7, 3\)"),
  ],
)
def test_branches_that_do_not_match_do_not_start(key, other, message):
  a = conditions(key)
  same = {name: getattr(a, name) for name in ("texts", "concat", "vectors", "control")}
  fields = same | other
  with pytest.raises(ValueError, match=message):
    guided(network, (a, Conditions(**fields)), text_guidance(2.0))


def test_conditions_of_another_batch_do_not_start(key):
  predict = guided(network, (conditions(key),) * 2, text_guidance(2.0))
  with pytest.raises(ValueError, match=r"batch of \[2\], x_t for 3"):
    predict(jnp.zeros((3, *SHAPE[1:])), jnp.zeros(3))


def test_another_scale_is_no_other_program(outputs):
  @jax.jit
  def f(outputs, w_i, w_p, phi):
    return rescale(emu_video_guidance(w_i, w_p), phi)(outputs)

  for scale in (1.0, 2.0, 7.5):
    f(outputs, scale, scale, 0.1 * scale)
  assert f._cache_size() == 1


def pair():
  """Two branches that the network tells apart."""
  return tuple(Conditions(vectors={"v": jnp.full(2, value)}) for value in (0.1, 0.3))


ZERO_SNR = Discrete(Schedule(prediction="v", zero_terminal_snr=True))


@pytest.mark.parametrize("process", [Discrete(), ZERO_SNR, Edm(), Flow(), LogSnr()])
def test_guidance_may_be_confined_to_an_interval_of_noise(process):
  """Of sigma / alpha, whatever the process calls its levels; outside it is the last branch."""
  rng = np.random.default_rng(0)
  x_t = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
  combine, branches = text_guidance(7.5), pair()
  everywhere, alone = (
    led(network, branches, combine, process, Sampling(None, guided=guided))
    for guided in (True, False)
  )
  predict = led(network, branches, combine, process, Sampling(None, guidance_interval=(0.3, 5.0)))
  seen = set()
  for level in (-1.0, -0.2, 0.0, 0.3, 0.9, 100.0, 500.0, 999.0):
    t = jnp.full(2, level)
    alpha, sigma = (float(a[0]) for a in process.alpha_sigma(t))
    inside = 0.3 * alpha < sigma <= 5 * alpha
    seen.add(inside)
    wanted = (everywhere if inside else alone)(x_t, t)
    np.testing.assert_allclose(predict(x_t, t), wanted, rtol=1e-6)
    assert abs(everywhere(x_t, t) - alone(x_t, t)).min() > 0.1
  assert seen == {True, False}


@pytest.mark.parametrize(
  ("sampling", "guided_steps"),
  [
    (Sampling(num_steps=10), 10),
    (Sampling(num_steps=10, guided=False), 0),
    (Sampling(num_steps=10, guidance_interval=(0.5, 4.0)), None),
    (Sampling(num_steps=10, guided=False, guidance_interval=(0.5, 4.0)), 0),
  ],
)
def test_branches_are_computed_only_where_they_are_used(sampling, guided_steps):
  """As the program runs, and another scale is no other program."""
  process, batches = Discrete(), []

  def counted(x_t, t, c):
    jax.debug.callback(lambda t: batches.append(len(t)), t)
    return network(x_t, t, c) * 1e-3

  @jax.jit
  def run(noise, scale):
    predict = led(counted, pair(), text_guidance(scale), process, sampling)
    return process.sample(predict, noise, None, sampling)

  if guided_steps is None:
    alpha, sigma = process.alpha_sigma(jnp.arange(99.0, 1000.0, 100.0))
    guided_steps = int(((0.5 * alpha < sigma) & (sigma <= 4 * alpha)).sum())
    assert 0 < guided_steps < 10
  for scale in (3.0, 7.5):
    batches.clear()
    jax.block_until_ready(run(jnp.ones(SHAPE), scale))
    jax.effects_barrier()
    assert sorted(batches) == [2] * (10 - guided_steps) + [4] * guided_steps
  assert run._cache_size() == 1


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0)])
def test_an_interval_without_noise_levels_does_not_start(interval):
  with pytest.raises(ValueError, match=r"guidance_interval=.* lower one first"):
    Sampling(guidance_interval=interval)
