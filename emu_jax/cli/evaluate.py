"""The command `emu-jax evaluate`: a model of the moving shapes against its prompts."""

import dataclasses
import pathlib
from typing import Literal

from rich.console import Console

from emu_jax import media
from emu_jax.checkpoints.stored import Stored
from emu_jax.cli import options
from emu_jax.cli.checkpoint import Words
from emu_jax.cli.progress import counted
from emu_jax.errors import InputError
from emu_jax.evaluation import report
from emu_jax.evaluation.shapes_benchmark import TASK, check, measure
from emu_jax.model import loaded, outlined, task_of
from emu_jax.systems import fields


@dataclasses.dataclass(frozen=True)
class Measuring:
  """What is measured, and where the report goes."""

  out: pathlib.Path | None = None
  """.json or .md file for the report; it is printed in any case"""
  sheet: pathlib.Path | None = None
  """.png with the first 8 prompts' clips, generated above real"""
  num_prompts: int = 256
  """prompts, each sampled once"""
  batch_size: int = 32
  """clips sampled at a time"""
  split: Literal["validation", "test", "image_only"] = "test"
  """"validation": motions of looks that training has seen; "test": motions held out from it;
  "image_only": motions of looks that only pictures have shown"""


def run(found: Stored, words: Words) -> None:
  """Measures a model of the moving shapes against its prompts, by an oracle that reads pixels.

  Real clips of the same prompts are read beside the generated ones; every figure has its interval.
  """
  request = task_of(found.system, TASK, found.where).request
  table = [
    options.among(Measuring),
    *options.request_fields(request, without=["prompt", *fields.files(request)]),
    *options.model_fields(words),
    options.among(options.Loading),
  ]
  given = options.parsed("evaluate", table, words.rest, options.summary(run))
  what, given_here = given.measuring_, options.given_fields(request, given)
  if what.num_prompts < 1 or what.batch_size < 1:
    raise InputError(
      f"evaluate: num_prompts={what.num_prompts} and batch_size={what.batch_size} must be at least "
      "1"
    )
  if what.out is not None:
    media.check_output(what.out, report.ENDINGS)
  if what.sheet is not None:
    media.check_output(what.sheet, (".png",))
  loading, outline = given.loading_.load_options(), outlined(found)
  check(outline, outline.request(TASK, prompt="", **given_here))
  seen = measure(
    loaded(found, **loading),
    num_prompts=what.num_prompts,
    batch_size=what.batch_size,
    split=what.split,
    progress=lambda batches, total: counted(batches, "sampling", "batches", total),
    **given_here,
  )
  Console(width=120).print(report.table(seen.reports))
  if what.out is not None:
    report.save(what.out, seen.reports)
  if what.sheet is not None:
    both = [clip for pair in zip(seen.generated[:8], seen.real, strict=False) for clip in pair]
    captions = [f"{kind}: {c}" for c in seen.captions[:8] for kind in ("generated", "real")]
    media.save_picture(what.sheet, media.contact_sheet(both, captions, columns=8))
