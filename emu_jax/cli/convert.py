"""The command `emu-jax convert`: models from one form into another."""

import pathlib
from typing import Annotated

import tyro

from emu_jax.checkpoints.convert import Form, convert
from emu_jax.cli.options import Choice
from emu_jax.cli.progress import working


def convert_model(
  source: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
  target: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
  /,
  to: Form = "orbax",
  precision: Choice = "stored",
  widen: bool = False,
  ema_length: float | None = None,
) -> None:
  """Imports a diffusers folder (one model or a pipeline), or exports a model to one.

  Args:
    source: folder of a model, of a pipeline, or of a run of emu-train.
    target: new folder; it appears whole or not at all.
    to: orbax: our copy, which loads fastest; diffusers: safetensors that PyTorch's libraries read;
      safetensors: all parts of a run as one small folder, to be handed on and sampled from.
    precision: of the weights; stored: as they are.
    widen: take float16 weights, as float32.
    ema_length: of a run that was trained with --optim.ema-lengths: relative length of the average
      that its weights are taken of, such as 0.07; None: the one that its checkpoint holds.
  """
  with working() as say:
    convert(
      source,
      target,
      to,
      say,
      dtype=None if precision == "stored" else precision,
      widen=widen,
      ema_length=ema_length,
    )
  print(f"{target}: written")
