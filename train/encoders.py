"""The frozen encoders of a stage whose data was encoded ahead: checked, left out, and kept.

The step of such a stage has neither autoencoder nor text encoders. Its run keeps them in a folder
of their own, for those who sample from it and for the stages that follow.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from emu_jax.checkpoints.run import ENCODERS, latest_step
from emu_jax.config import to_dict
from emu_jax.data.batches import Source
from emu_jax.data.latent_records import Encoding
from emu_jax.errors import InputError
from emu_jax.parallel.placement import place
from emu_jax.typing import Params
from train.config import Experiment
from train.stages import packs_text, spared

# What an autoencoder computes does not depend on these.
HOW = ("strip", "remat")


def encoding_of(
  experiment: Experiment, trees: Params, tokenizers: Sequence[pathlib.Path], dtype: str
) -> Encoding:
  """What this experiment's encoders make of records; no `lengths` and `masked` yet.

  Args:
    trees: of the stages before, by name.
    tokenizers: a folder a text encoder; none where captions are not encoded.
  """
  image = experiment.model.image
  autoencoder = {k: v for k, v in to_dict(image.autoencoder).items() if k not in HOW}
  part: dict[str, Any] = {"autoencoder": autoencoder}
  text = ""
  if tokenizers:
    told = {name: getattr(image.unet, name) for name in ("context_dims", "pooled_dim", "num_micro")}
    part |= {"text": [to_dict(encoder) for encoder in image.text], "unet": told}
    text = digest({"text": trees["text"], "tokenizers": [_files(path) for path in tokenizers]})
  return Encoding(image.size, _flat(part), digest(trees["autoencoder"]), text, dtype=dtype)


def check_encoding(
  experiment: Experiment, trees: Params, folder: pathlib.Path, sources: Sequence[Source]
) -> None:
  """Raises InputError where records were encoded by other encoders than those of the stage.

  Args:
    folder: of the run, with its tokenizers.
  """
  found = sources[0].encoded.encoding  # the same of all
  told = packs_text(experiment, found)
  encoders = range(len(experiment.model.image.text)) if told else ()
  tokenizers = [folder / "tokenizers" / str(i) for i in encoders]
  own = encoding_of(experiment, trees, tokenizers, found.dtype)
  where, remedy = (
    f"--data.sources {' '.join(experiment.data.sources)}",
    f"encode the clips again with `emu-train encode --stage {experiment.stage}`, or begin with the "
    "run that encoded them",
  )
  for name, value in own.model.items():
    if found.model.get(name) != value:
      raise InputError(
        f"{where}: was encoded with model.image.{name}={found.model.get(name)}, stage "
        f"{experiment.stage!r} has {value}; {remedy}"
      )
  for name, part in (("autoencoder", "autoencoder"), ("text", "text encoders and tokenizers")):
    if getattr(own, name) and getattr(found, name) != getattr(own, name):
      raise InputError(
        f"{where}: was encoded by {part} of digest {getattr(found, name)}, stage "
        f"{experiment.stage!r} begins with {getattr(own, name)}; {remedy}"
      )


def spare_encoders(
  experiment: Experiment,
  trees: Params,
  folder: pathlib.Path,
  sources: Sequence[Source],
  mesh: Mesh,
) -> tuple[Params, Params]:
  """The trees that the step has, and on the mesh those that samples are drawn with beside them.

  The encoders that the data spares the step are checked against it and kept in the run's folder.
  """
  held = sources[0].encoded
  spare = spared(experiment, held and held.encoding)
  if not spare:
    return trees, {}
  check_encoding(experiment, trees, folder, sources)
  keep_encoders(folder, {name: trees[name] for name in spare})
  rest = {name: tree for name, tree in trees.items() if name not in spare}
  if not experiment.loop.sample_every:
    return rest, {}
  # Samples are drawn of the captions in the data: without text encoders, like the step.
  return rest, place({"autoencoder": trees["autoencoder"]}, mesh)


def keep_encoders(run_dir: pathlib.Path, encoders: Params) -> None:
  """Leaves them in the folder of a run, once; replaces those of a run without a checkpoint."""
  folder = pathlib.Path(run_dir).absolute() / ENCODERS
  if latest_step(run_dir) is None or not folder.is_dir():
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(folder, encoders, force=True)


def digest(tree: Any) -> str:
  """Of a tree of arrays: names, shapes, dtypes and bytes."""
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    total.update(array.reshape(-1).view(np.uint8))
  return total.hexdigest()[:16]


def _files(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The bytes of a folder's files."""
  return {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in sorted(folder.iterdir())}


def _flat(values: Any) -> dict[str, str]:
  """Dotted path and value of every leaf of a JSON value."""
  leaves = jax.tree_util.tree_leaves_with_path(values, is_leaf=lambda v: v is None)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): str(value) for path, value in leaves
  }
