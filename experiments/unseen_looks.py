"""Does a model trained on the sprite clips draw looks that it has never seen, and make them move?

  python -m experiments.unseen_looks --checkpoint runs/sprites_64 --out docs/results

Prompts are drawn among the looks (body, hair, top, bottom) that no packed clip has, each with an
action, direction and background of its own; each is sampled once. The reader of
`experiments/sprites.py` says what the clips show; how well it reads real clips that it has not
learned from stands beside.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import tyro
from tqdm import tqdm

from emu_jax import media
from emu_jax.data.batches import open_source
from emu_jax.evaluation.metrics import proportion
from emu_jax.model import load
from emu_jax.parallel.compilation import enable_cache
from experiments.sprites import ATTRIBUTES, Reader, caption, parse, unseen


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Measures a model of the sprites on prompts whose looks are in no clip."""

  checkpoint: pathlib.Path = pathlib.Path("runs/sprites_64")  # folder of the recipe's runs
  data: pathlib.Path = pathlib.Path("data/sprites")  # the clips it was trained on, packed
  out: pathlib.Path = pathlib.Path("docs/results")  # for sprites.png, sprites.md and sprites.json
  num_prompts: int = 64
  batch_size: int = 8
  on_sheet: int = 8  # prompts on the sheet, the first ones
  steps: int = 50
  seed: int = 0


def main() -> None:
  """Samples, reads, and writes the sheet and the report."""
  arguments = tyro.cli(Arguments, prog="python -m experiments.unseen_looks")
  enable_cache()
  train, train_truths = clips(arguments.data, "train")
  held_out, held_out_truths = clips(arguments.data, "validation")
  prompts = unseen([*train_truths, *held_out_truths], arguments.num_prompts, arguments.seed)
  captions = [caption(p) for p in prompts]
  generated = sampled(arguments, captions)
  reader = Reader(train, train_truths)
  columns = {
    "generated": accuracies(reader, generated, prompts),
    "real, held out": accuracies(reader, held_out, held_out_truths),
  }
  arguments.out.mkdir(parents=True, exist_ok=True)
  (arguments.out / "sprites.md").write_text(text := table(columns))
  shares = {column: {k: vars(v) for k, v in found.items()} for column, found in columns.items()}
  (arguments.out / "sprites.json").write_text(
    json.dumps({"prompts": captions, "accuracy": shares}, indent=1) + "\n"
  )
  first_clips = list(generated[: arguments.on_sheet])
  sheet = media.contact_sheet(first_clips, captions[: arguments.on_sheet], columns=8)
  media.save_picture(arguments.out / "sprites.png", sheet)
  print(text)


def clips(folder: pathlib.Path, split: str) -> tuple[np.ndarray, list[dict[str, str]]]:
  """Every clip of a split, uint8 [B, T, H, W, 3], and what its caption says."""
  source = open_source(folder, split)
  frames = np.stack([record["frames"][:] for record in source.records])
  return frames, [parse(caption) for caption in source.captions]


def sampled(arguments: Arguments, captions: list[str]) -> np.ndarray:
  """A clip a caption, [B, 8, H, W, 3]; the last batch is filled up again, for one shape."""
  model = load(arguments.checkpoint)
  size, parts = arguments.batch_size, []
  for start in tqdm(range(0, len(captions), size), desc="sampling", file=sys.stderr, disable=None):
    texts = (captions[start:] + captions)[:size]
    fields = {"frames": 8, "seed": arguments.seed + start, "steps": arguments.steps}
    parts.append(model.run("sample", prompt=tuple(texts), **fields).frames)
  return np.concatenate(parts)[: len(captions)]


def accuracies(reader: Reader, videos: np.ndarray, truths: list[dict[str, str]]) -> dict:
  """Share of clips [B, T, H, W, 3] that show what was asked for, by attribute, and all seven."""
  words = reader.read(videos)
  hits = {n: words[n] == np.array([truth[n] for truth in truths]) for n in ATTRIBUTES}
  hits["action and direction"] = hits["action"] & hits["direction"]
  hits["all seven"] = np.logical_and.reduce([hits[name] for name in ATTRIBUTES])
  return {name: proportion(hit) for name, hit in hits.items()}


def table(columns: dict[str, dict]) -> str:
  """The accuracies as Markdown."""
  heads = [f"{name} ({next(iter(found.values())).n})" for name, found in columns.items()]
  lines = [f"| read right, 95 % interval | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
  for name in next(iter(columns.values())):
    cells = [found[name] for found in columns.values()]
    formatted = [f"{100 * c.value:.1f} % [{100 * c.low:.1f}, {100 * c.high:.1f}]" for c in cells]
    lines.append(f"| {name} | {' | '.join(formatted)} |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
