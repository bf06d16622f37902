"""Runs of the tiny model as the trainer leaves them, without training: what commands read."""

import functools
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from emu_jax.config import replaced, to_dict
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.systems.registry import VERSION
from tests.tiny import MODEL, trees

PROMPTS = ["a red circle", "a blue square"]
IMAGE = ("autoencoder", "latents", "text", "spatial")
# Of each part what trains in it, and what it reads besides.
PARTS = {
  "autoencoder": (("autoencoder",), ()),
  "image": (("spatial",), ("autoencoder", "latents", "text")),
  "video": (("temporal",), IMAGE),
  "interpolation": (("interpolation",), (*IMAGE, "temporal")),
  "extension": (("extension",), (*IMAGE, "temporal", "interpolation")),
}


@functools.cache
def runs(base: pathlib.Path) -> pathlib.Path:
  """The runs of the five parts, each begun with the one before, below a folder of the session."""
  folder, made, before = base / "tiny_runs", trees(), ""
  for name, (trained, frozen) in PARTS.items():
    config = replaced(MODEL, "fps", 16.0) if name == "extension" else MODEL
    values = {"system": to_dict(config), "part": name, "init_from": before}
    write_run(folder / name, values, *({n: made[n] for n in names} for names in (trained, frozen)))
    before = str(folder / name)
  return folder


def write_run(run: pathlib.Path, values: dict, trained: dict, frozen: dict) -> pathlib.Path:
  """A run whose newest checkpoint is of step 2."""
  checkpoint = run / "checkpoints" / "2"
  stored = {checkpoint / "ema": trained, checkpoint / "state": {"step": np.zeros(1)}}
  if frozen:
    stored[run / "frozen"] = frozen
  for path, tree in stored.items():
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, jax.tree.map(np.asarray, tree))
  (checkpoint / "data").mkdir()
  (checkpoint / "data" / "metadata").touch()
  (checkpoint / "_CHECKPOINT_METADATA").touch()
  (run / "config.json").write_text(json.dumps({"version": VERSION} | values))
  for i in range(len(MODEL.image.text)):
    train_tokenizer(PROMPTS, run / "tokenizers" / str(i), 300)
  return run


def refusal(main, words, capsys):
  """The one line with which a command refuses bad input; fails where there is more, or less."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as ended:
    main([str(word) for word in words])
  out, line = capsys.readouterr()
  assert ended.value.code == 2, line
  assert line.count("\n") == 1, line
  return line
