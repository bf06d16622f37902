"""Prompts and files are paired alike by whoever reads them: by name in natural order."""

import json

import PIL.Image
import pytest

from emu_jax.errors import InputError
from emu_jax.evaluation import clip_sets
from emu_jax.evaluation.juice import pairs

NAMES = ("clip_1", "clip_2", "clip_10", "clip_11")


@pytest.fixture
def clips(tmp_path):
  """Four animations, whose names sort otherwise as text."""
  folder = tmp_path / "clips"
  folder.mkdir()
  frames = [PIL.Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(4)]
  for name in NAMES:
    frames[0].save(folder / f"{name}.gif", save_all=True, append_images=frames[1:], duration=100)
  return folder


def by_metrics(clips, prompts):
  opened = clip_sets.open_set(clips, num_frames=2, fps=None, size=16)
  named = clip_sets.captioned(opened, prompts)
  return [(file.stem, text) for file, text in zip(named.files, named.captions, strict=True)]


def by_juice(clips, prompts):
  return [(pair.a.stem, pair.prompt) for pair in pairs.matched(clips, clips, prompts)[0]]


@pytest.mark.parametrize("with_metadata", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_metrics_and_juice_pair_prompts_alike(clips, tmp_path, kind, with_metadata):
  rows = [json.dumps({"file_name": f"{n}.gif", "text": f"of {n}"}) for n in reversed(NAMES)]
  if with_metadata:  # its order is not that of the names
    (clips / "metadata.jsonl").write_text("\n".join(rows))
  prompts = tmp_path / f"prompts.{kind}"
  lines = [f"of {name}" for name in NAMES] if kind == "txt" else rows
  prompts.write_text("\n".join(lines))
  expected = [(name, f"of {name}") for name in NAMES]
  assert by_metrics(clips, prompts) == by_juice(clips, prompts) == expected


@pytest.mark.parametrize("read", [by_metrics, by_juice])
def test_another_number_of_prompts_is_refused_by_both(clips, tmp_path, read):
  (tmp_path / "p.txt").write_text("one\ntwo\n")
  with pytest.raises(InputError, match="holds 2 prompts for 4 clips; write a line for each"):
    read(clips, tmp_path / "p.txt")
