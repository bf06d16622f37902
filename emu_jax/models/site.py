"""Places in a U-Net, and the names of the modules that stand there."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Site:
  """Where in a U-Net a module stands.

  Attributes:
    kind: of the module: "conv_in", the first convolution; "res", a residual block; "attention", a
      spatial transformer; "sample", the convolution that changes the resolution; "block", a
      residual block with the transformer behind it, or the former alone where there is no
      transformer; "conv", a convolution inside a residual block.
    side: the encoder, the middle, or the decoder.
    level: 0 is the finest; the middle has the coarsest.
    index: of the module among those of its kind at the level; a convolution's in its block, from 1.
  """

  kind: Literal["conv_in", "res", "attention", "sample", "block", "conv"]
  side: Literal["down", "mid", "up"]
  level: int
  index: int = 0

  @property
  def name(self) -> str:
    """Of the module, in the U-Net or, of a "conv", in its residual block."""
    level = self.side if self.side == "mid" else f"{self.side}_{self.level}"
    return {
      "conv_in": "conv_in",
      "conv": f"conv_{self.index}",
      "res": f"{level}_res_{self.index}",
      "sample": f"{level}_sample",
      "attention": "mid_attention" if self.side == "mid" else f"{level}_attention_{self.index}",
      "block": "mid" if self.side == "mid" else f"{level}_{self.index}",
    }[self.kind]
