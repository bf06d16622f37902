"""Names for the arrays that cross module boundaries, and the dtype policy.

Axis letters, everywhere in this project, in this order:

  B batch   T frames   H height   W width   C channels   L text tokens   D features

Videos are always `B T H W C`; an image is a video with T = 1.

dtypes: parameters, optimiser, EMA, schedules, noise, loss, normalisation statistics, softmax and
the sampler's state are float32. Operands of matmuls and convolutions follow a network's `dtype`
field (bfloat16 on accelerators); a network returns float32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

Video = Float[Array, "B T H W C"]  # pixels in [-1, 1], or latents with a standard deviation near 1
Text = Float[Array, "B L D"]  # features of one text encoder
TextMask = Bool[Array, "B L"]  # True where a token may be attended to
Tokens = Int[Array, "B L"]
PerExample = Float[Array, "B"]  # one scalar an example: time, loss, log-SNR
Params = Mapping[str, Any]  # a tree of arrays, as Flax makes them


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
  """Everything that a denoising network reads beside the noisy input and its time.

  First frame, every fourth frame, the last sixteen frames, a source image, a low-resolution clip
  and a depth map are all values of it; `emu_jax.conditioning` makes them.
  """

  # Annotated loosely, since a pytree's leaves may also be shapes, shardings or gradients.
  texts: tuple[Any, ...] = ()  # Text, one an encoder, in the order of a network's `context_dims`
  masks: tuple[Any, ...] = ()  # TextMask, one a text; None attends to every token
  concat: Any = None  # Video: channels beside x_t's own, mask and latents; None adds nothing
  # Vector conditions by name, each added to the time embedding: "class" and "task" int [B],
  # "noise_level" float [B], "micro" float [B, K].
  vectors: dict[str, Any] = dataclasses.field(default_factory=dict)
  # Video features to add to the encoder's states, finest first, and to the middle's, last; () adds
  # nothing. A ControlNet makes them at each step of x_t, t and `hint` (`models.net.controlled`).
  control: tuple[Any, ...] = ()
  hint: Any = None  # Video: the picture of each frame that a ControlNet reads, of any size


Network = Callable[[Video, PerExample, Conditions], Video]  # x_t, t, conditions -> raw prediction
Predict = Callable[[Video, PerExample], Video]  # a network whose conditions are bound
