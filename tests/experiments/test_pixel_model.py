"""Pixel-space models: their data, what they are told, and what a perfect denoiser makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.diffusion.discrete import Discrete
from emu_jax.diffusion.process import Sampling
from emu_jax.diffusion.schedule import target
from experiments import pixel_model
from experiments.brightness import SCHEDULES
from experiments.pixel_model import CAPTIONS, PixelModel

SCHEDULE = SCHEDULES["zero SNR, v"]
SIDE = 8
MODELS = {
  "picture": PixelModel(SCHEDULE, SIDE, channels=(8,)),
  "captioned": PixelModel(SCHEDULE, SIDE, captioned=True, channels=(8,)),
  "direct": PixelModel(SCHEDULE, SIDE, 4, channels=(8,)),
  "factorized": PixelModel(SCHEDULE, SIDE, 4, told=True, channels=(8,)),
}


def seen(model, monkeypatch):
  """Training clips [B, T, h, w, C] and what is said of them [B, T, h, w, C]."""
  conditions = []
  monkeypatch.setattr(
    pixel_model, "network", lambda net, tree: lambda x, t, given: conditions.append(given)
  )

  def loss(process, predict, x_0, key):
    predict(x_0, None)
    return x_0

  monkeypatch.setattr(Discrete, "loss", loss)
  batch = {"example": np.arange(12)}
  clips, _ = model.loss({"net": {}}, {}, batch, jax.random.key(0), 0)
  return np.asarray(clips), conditions[0].concat


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_has_one_brightness_and_only_some_are_told_of_it(name, monkeypatch):
  clips, conditions = seen(MODELS[name], monkeypatch)
  assert clips.shape == (12, *MODELS[name].shape)
  of_each = clips.reshape(12, -1)
  np.testing.assert_array_equal(of_each.min(axis=1), of_each.max(axis=1))
  brightness = of_each[:, 0]
  if name == "picture":
    assert conditions is None
  elif name == "direct":
    assert not np.asarray(conditions).any()
  elif name == "factorized":
    first = np.asarray(conditions)[:, 0]
    assert (first[..., 0] == 1).all()  # the mask
    np.testing.assert_array_equal(first[..., 1:], clips[:, 0])
    assert not np.asarray(conditions)[:, 1:].any()
  else:
    for number, (low, high) in enumerate(CAPTIONS.values()):
      mine = brightness[number::3]
      assert ((mine >= low) & (mine <= high)).all()
      assert (len(set(mine)) == 1) == (low == high)
      one_hot = np.eye(3, dtype=np.float32)[number]
      np.testing.assert_array_equal(
        np.asarray(conditions)[number::3], np.broadcast_to(one_hot, (4, *conditions.shape[1:]))
      )
  assert len(set(brightness)) > 2


def test_a_denoiser_that_is_told_lands_on_what_was_asked(monkeypatch):
  """Each sample is given its own caption; v of a known x_0 is exact, and so is DDIM of it."""
  levels = np.array([low for low, _ in CAPTIONS.values()], np.float32)

  def exact(net, tree):
    wide = lambda a: a[:, None, None, None, None]

    def predict(x_t, t, conditions):
      x_0 = jnp.broadcast_to((conditions.concat @ levels)[..., None], x_t.shape)
      alpha, sigma = SCHEDULE(t)
      return target("v", x_0, (x_t - wide(alpha) * x_0) / wide(sigma), alpha, sigma)

    return predict

  monkeypatch.setattr(pixel_model, "network", exact)
  captions = np.array([0, 1, 1, 0])
  clips = pixel_model.sample(
    {}, jax.random.key(0), None, captions, model=MODELS["captioned"],
    sampling=Sampling(num_steps=5), num=4,
  )  # fmt: skip
  wanted = np.broadcast_to(levels[captions][:, None, None, None, None], clips.shape)
  np.testing.assert_allclose(clips, wanted, atol=1e-4)
