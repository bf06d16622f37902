"""Random inputs of a U-Net, for PyTorch's classes and for ours."""

import jax.numpy as jnp
import numpy as np

from emu_jax.typing import Conditions
from tests.weights.oracle import channels_last, torch


def unet_inputs(config, size, *, frames=None, batch=2, tokens=3, text_of_frames=False):
  """The same random inputs for both sides: PyTorch's keywords and our arguments.

  Args:
    frames: of a clip; None for pictures.
    text_of_frames: the class takes the text once a frame.
  """
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x = draw(batch, config.in_channels, *([frames] if frames else []), *size)
  text, t = draw(batch, tokens, config.cross_attention_dim), np.array([3, 871][:batch])
  repeats = frames if text_of_frames else 1
  theirs = {
    "sample": torch.tensor(x),
    "timestep": torch.tensor(t),
    "encoder_hidden_states": torch.tensor(text).repeat_interleave(repeats, 0),
  }
  vectors = {}
  if config.get("num_class_embeds"):
    vectors["class"] = rng.integers(0, config.num_class_embeds, batch)
    theirs["class_labels"] = torch.tensor(vectors["class"])
  if config.get("addition_embed_type"):
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    vectors["pooled"] = draw(batch, pooled)
    vectors["micro"] = rng.integers(0, 1024, (batch, 6)).astype(np.float32)
    theirs["added_cond_kwargs"] = {
      "text_embeds": torch.tensor(vectors["pooled"]),
      "time_ids": torch.tensor(vectors["micro"]),
    }
  video, n = channels_last(x), config.out_channels
  concat = video[..., n:] if config.in_channels > n else None
  vectors = {name: jnp.asarray(value) for name, value in vectors.items()}
  conditions = Conditions((jnp.asarray(text),), concat=concat, vectors=vectors)
  return theirs, (video[..., :n], jnp.asarray(t, jnp.float32), conditions)
