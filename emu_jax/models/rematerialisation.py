"""What a block keeps for its backward pass, and what it computes again."""

from typing import Literal

import flax.linen as nn
import jax

Keeps = Literal["nothing", "products"]


def products(primitive, *inputs, **parameters) -> bool:
  """Results of dense layers and convolutions: nearly all of a block's arithmetic.

  Not those of attention, whose logits are larger than all else, nor what is done number by number.
  """
  dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  convolution = primitive.name == "conv_general_dilated"
  return convolution or dense(primitive, *inputs, **parameters)


POLICIES = {"nothing": None, "products": products}


def recomputed(module: type[nn.Module], keeps: Keeps) -> type[nn.Module]:
  """The module, which in the backward pass is computed again but for what it `keeps`."""
  return nn.remat(module, policy=POLICIES[keeps])
