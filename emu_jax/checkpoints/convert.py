"""Models from one form into another: diffusers folders, our copies of them, and trained runs."""

import pathlib
from collections.abc import Callable
from typing import Literal

from emu_jax import public
from emu_jax.checkpoints.release import copy_texts, write_json, write_release
from emu_jax.checkpoints.run import read_config
from emu_jax.errors import InputError
from emu_jax.loading import load_pipeline
from emu_jax.pipeline import MADE_BY, Pipeline
from emu_jax.weights import files
from emu_jax.weights.architectures import ARCHITECTURES
from emu_jax.weights.model import Precision, architecture_of, load, save, save_orbax

Form = Literal["orbax", "diffusers", "safetensors"]
Say = Callable[[str], None]
WRITERS = {"orbax": save_orbax, "diffusers": save}


def convert(
  source: pathlib.Path,
  target: pathlib.Path,
  form: Form,
  say: Say,
  *,
  dtype: Precision | None = None,
  widen: bool = False,
) -> None:
  """Writes a model, or every model of a pipeline or of a training run, in another form.

  The target appears whole or not at all.

  Args:
    source: a folder with config.json and weights (one model), with model_index.json (a pipeline),
      or a run of emu-train.
    dtype, widen: of the weights, as `emu_jax.weights.load` takes them.
  Raises: InputError for a source that is none of these, or a target that exists.
  """
  if not source.is_dir():
    raise InputError(f"convert: there is no folder {source}; give one that holds a model")
  ours = "model" in (read_config(source) or {}) or not (source / "config.json").is_file()
  if form == "safetensors" and (public.is_public(source) or not ours):
    raise InputError(f"convert: {source} is no run of emu-train; --to orbax, or --to diffusers")
  with files.staged(target) as partial:
    if public.is_public(source):
      _pipeline(source, partial, form, say, {"dtype": dtype, "widen": widen})
    elif ours:
      if form == "orbax":
        raise InputError(
          f"convert: {source} is a run of emu-train, Orbax already; --to diffusers, or safetensors"
        )
      if form == "diffusers":
        _run(load_pipeline(source), partial, say)
      else:
        _release(load_pipeline(source), partial, say, dtype)
    else:
      _model(source, partial, form, say, {"dtype": dtype, "widen": widen})


def _model(source, target, form, say, how) -> None:
  say(f"reading {source}")
  module, params = load(source, **how)
  say(f"writing {target.name}")
  size = files.read_json(source / "config.json").get("sample_size")  # of no weight, but of pictures
  also = {} if size is None else {"sample_size": size}
  WRITERS[form](target, module.config, params, also=also)


def _pipeline(source, target, form, say, how) -> None:
  index = files.read_json(source / public.INDEX)
  for name, value in index.items():
    if name.startswith("_") or not isinstance(value, list) or value[0] is None:
      continue
    kind = value[-1]
    if kind in ARCHITECTURES:
      _model(source / name, target / name, form, say, how)
    elif (source / name / "config.json").is_file():
      say(f"leaving out {name}: a {kind} is not among the models that are read here")
      index[name] = [None, None]
    elif (source / name).is_dir():
      copy_texts(source / name, target / name)
    else:
      raise InputError(f"convert: {source} has no folder {name}, which its {public.INDEX} names")
  write_json(target / public.INDEX, index)


def _run(pipeline: Pipeline, target: pathlib.Path, say: Say) -> None:
  """A trained image model as Stable Diffusion's parts, its temporal layers as a motion adapter."""
  config, trees = pipeline.config.image, pipeline.trees
  pipeline.require("autoencoder", "latents", "text", "spatial")
  index = {"_class_name": "StableDiffusionPipeline"}
  parts = {"vae": (public.with_statistics(config.autoencoder, trees["latents"]), "autoencoder")}
  parts |= {"unet": (config.unet, "spatial")}
  sizes = {"vae": config.size, "unet": config.size // config.autoencoder.downsample}
  for name, (own, tree) in parts.items():
    say(f"writing {name}")
    save(target / name, own, trees[tree], also={"sample_size": sizes[name]})
    index[name] = ["diffusers", architecture_of(own, trees[tree]).name]
  for i, own in enumerate(config.text):
    name = "text_encoder" if i == 0 else f"text_encoder_{i + 1}"
    say(f"writing {name}")
    save(target / name, own, trees["text"][str(i)])
    index[name] = ["transformers", architecture_of(own, trees["text"][str(i)]).name]
    words = name.replace("text_encoder", "tokenizer")
    copy_texts(pipeline.tokenizer_folders[i], target / words)
    index[words] = ["transformers", "PreTrainedTokenizerFast"]
  write_json(target / "scheduler" / "scheduler_config.json", public.scheduler(config.schedule))
  index["scheduler"] = ["diffusers", "DDIMScheduler"]
  write_json(target / public.INDEX, index)
  if "temporal" in trees:
    say("leaving out the temporal layers: Emu Video's have no public form")


def _release(pipeline: Pipeline, target: pathlib.Path, say: Say, dtype: Precision | None) -> None:
  """All that a trained model samples with, in one folder."""
  trees = {name: tree for name, tree in pipeline.trees.items() if name in MADE_BY}
  say(f"writing {', '.join(trees)}")
  write_release(target, pipeline.config, trees, pipeline.tokenizer_folders, dtype)
