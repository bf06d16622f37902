"""Models from one form into another: diffusers folders, our copies of them, and trained runs."""

import pathlib
from collections.abc import Callable
from typing import Literal

from emu_jax.checkpoints.release import write_release
from emu_jax.checkpoints.run import read_config
from emu_jax.checkpoints.stored import is_public, stored
from emu_jax.checkpoints.unrecognised import no_model
from emu_jax.config import refused, to_dict
from emu_jax.errors import InputError
from emu_jax.model import loaded
from emu_jax.systems.pipelines import INDEX
from emu_jax.systems.registry import VERSION
from emu_jax.weights import files
from emu_jax.weights.architectures import ARCHITECTURES
from emu_jax.weights.model import Precision, load, save, save_orbax

Form = Literal["orbax", "diffusers", "safetensors"]
Say = Callable[[str], None]
NEEDED = ("Scheduler", "Tokenizer", "TokenizerFast")  # of a pipeline, beside its networks
# Of no weight, but of pictures and of texts.
KEPT = ("sample_size", "bos_token_id", "pad_token_id")
WRITERS = {"orbax": save_orbax, "diffusers": save}


def convert(
  source: pathlib.Path,
  target: pathlib.Path,
  form: Form,
  say: Say,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
  ema_length: float | None = None,
) -> None:
  """Writes a model, or every model of a pipeline or of a run of emu-train, in another form.

  The target appears whole or not at all.

  Args:
    source: a folder with config.json and weights (one network), with model_index.json (a pipeline),
      or a run of emu-train or a release.
    dtype, widen: of the weights, as `emu_jax.weights.load` takes them.
    ema_length: of a run, the relative length of the average that its weights are taken of; None:
      the one that its checkpoint holds.
  Raises: InputError for a source that is none of these, a target that exists, or a model of which
    the form holds nothing.
  """
  if not source.is_dir():
    raise no_model(source)
  public, config = is_public(source), read_config(source)
  ours = not public and (config is None or not {"system", "model"}.isdisjoint(config))
  if form == "safetensors" and not ours:
    raise InputError(f"convert: {source} is no run of emu-train; --to orbax, or --to diffusers")
  if ours and form == "orbax":
    raise InputError(
      f"convert: {source} is a run of emu-train, Orbax already; --to diffusers, or safetensors"
    )
  if ema_length is not None and not ours:
    raise InputError(f"convert: ema_length={ema_length} is for runs of emu-train; leave it out")
  with files.staged(target) as partial:
    if ours:
      _ours(source, partial, form, say, dtype, ema_length)
    else:
      write = _pipeline if public else _model
      write(source, partial, form, say, {"dtype": dtype, "widen": widen})


def _model(source, target, form, say, reading) -> None:
  say(f"reading {source}")
  module, params = load(source, **reading)
  say(f"writing {target.name}")
  values = files.read_json(source / "config.json")
  also = {name: values[name] for name in KEPT if values.get(name) is not None}
  WRITERS[form](target, module.config, params, also=also)


def _pipeline(source, target, form, say, reading) -> None:
  index = files.read_json(source / INDEX)
  for name, value in index.items():
    if name.startswith("_") or not isinstance(value, list) or value[0] is None:
      continue
    if name in ("", ".", "..") or {"/", "\\"} & set(name):
      raise InputError(
        f"convert: {source / INDEX} names {name!r}, which is no folder in it; download it again"
      )
    kind = value[-1]
    if kind in ARCHITECTURES:
      _model(source / name, target / name, form, say, reading)
    elif (source / name / "config.json").is_file():
      say(f"leaving out {name}: a {kind} is not among the models that are read here")
      index[name] = [None, None]
    elif (source / name).is_dir():
      files.copy_texts(source / name, target / name)
    elif not kind.endswith(NEEDED):
      say(f"leaving out {name}: there is no such folder, and nothing needs it")
      index[name] = [None, None]
    else:
      raise InputError(f"convert: {source} has no folder {name}, which its {INDEX} names")
  files.write_json(target / INDEX, index)


def _ours(source, target, form, say, dtype, ema_length) -> None:
  """A trained model: the parts that diffusers has a form for, or all of it as a release."""
  found = stored(source, ema_length)
  model = loaded(found, dtype=dtype or "stored")
  if form == "diffusers":
    with refused("convert"):
      model.system.write_pipeline(model, target, say)
    return
  say(f"writing {', '.join(model.trees)}")
  config = {"version": VERSION, "system": to_dict(found.system)}  # in the precision of the run
  write_release(target, config, model.trees, model.tokenizer_folders)
