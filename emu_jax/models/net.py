"""The interface of every denoising network, and networks made of parameters or of one another."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.linen as nn

from emu_jax.typing import Conditions, Network, Params, PerExample, Video

# Called as control(x_t, t, conditions): features for the states of a U-Net, as
# `Conditions.control` has them.
Control = Callable[[Video, PerExample, Conditions], tuple]


@runtime_checkable
class Net(Protocol):
  """The configuration of a denoising network: `UNetConfig`, `I2VGenConfig`, `DiTConfig`."""

  in_channels: int  # of x_t
  out_channels: int  # of the prediction
  dtype: str  # of matmuls and convolutions

  @property
  def multiple(self) -> tuple[int, int, int]:
    """Of what T, H and W of x_t must be multiples."""

  def module(self) -> nn.Module:
    """The network: applied to x_t, t and conditions it gives a raw prediction."""

  def blank(self, shape: tuple[int, ...]) -> Conditions:
    """Every condition that the network reads, zero, for x_t of a shape [B, T, H, W, C].

    Shapes and dtypes for `init`, for checks and for planning; a text's number of tokens is free.
    """


def network(net: Net, params: Params) -> Network:
  """The function of x_t, t and conditions that `net` is with these parameters."""
  module = net.module()
  return lambda x_t, t, conditions: module.apply({"params": params}, x_t, t, conditions)


def controlled(network: Network, control: Control) -> Network:
  """`network`, with the features that `control` makes of the same x_t, t and conditions.

  Source: ControlNet, arXiv:2302.05543, sec. 3.2. Under guidance each branch has its own features,
  since they depend on its text.
  """

  def predict(x_t: Video, t: PerExample, conditions: Conditions) -> Video:
    features = control(x_t, t, conditions)
    return network(x_t, t, dataclasses.replace(conditions, control=features))

  return predict
