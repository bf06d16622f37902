"""Laws of the experiments' own reading of the sprite clips; no clips are needed."""

import itertools

import numpy as np
import pytest

from experiments.sprites import ATTRIBUTES, LOOK, Reader, caption, parse, unseen

SHORT = "a dark brown character walking to the right, green spiky hair, {}, {}, black background"
KNOWN = {
  "body": ("green orc", "dark brown character"),
  "hair": ("red bob", "blue bun"),
  "top": ("chainmail", "white shirt"),
  "bottom": ("red trousers", "brown skirt"),
  "background": ("black", "sky blue"),
  "action": ("walking", "casting a spell"),
  "direction": ("to the left", "facing away"),
}
EVERY = [dict(zip(KNOWN, words, strict=True)) for words in itertools.product(*KNOWN.values())]


def test_a_caption_says_what_it_was_made_of():
  for attributes in EVERY:
    assert parse(caption(attributes)) == attributes


@pytest.mark.parametrize("top", ["chainmail", "steel chestplate", "white feathers"])
def test_both_forms_of_caption_are_read(top):
  found = parse(SHORT.format(top, "steel trousers"))
  assert (found["body"], found["top"], found["bottom"]) == (
    "dark brown character", top, "steel trousers"
  )  # fmt: skip
  assert (found["action"], found["direction"]) == ("walking", "to the right")
  with pytest.raises(ValueError, match="not a caption"):
    parse("a cat")


def test_unseen_looks_are_in_no_clip():
  look = lambda a: tuple(a[name] for name in LOOK)
  hidden = {look(EVERY[0]), look(EVERY[-1])}
  seen = [a for a in EVERY if look(a) not in hidden]
  drawn = unseen(seen, 10, seed=0)
  assert {look(a) for a in drawn} == hidden
  assert len(drawn) == len(hidden)  # each once
  assert drawn == unseen(seen, 10, seed=0)
  assert all(a[name] in KNOWN[name] for a in drawn for name in ATTRIBUTES)


def test_the_reader_reads_clips_it_has_not_learned_from():
  """Figures made of four coloured bands, which move as their action and direction say."""
  rng = np.random.default_rng(0)
  levels = {word: 60 + 130 * i for name in LOOK for i, word in enumerate(KNOWN[name])}

  def clip(a):
    background = (0, 0, 0) if a["background"] == "black" else (110, 160, 210)
    frames = np.full((8, 64, 64, 3), background, np.uint8)
    for t, frame in enumerate(frames):
      shift = t if a["action"] == "walking" else 0
      left = 20 - shift if a["direction"] == "to the left" else 28 + shift
      for band, name in enumerate(LOOK):
        row = slice(10 + 10 * band, 20 + 10 * band)
        frame[row, left : left + 12] = (levels[a[name]], 250 - levels[a[name]], 40)
    return np.clip(frames + rng.normal(0, 4, frames.shape), 0, 255).astype(np.uint8)

  order = rng.permutation(len(EVERY))
  known, held_out = ([EVERY[i] for i in part] for part in np.split(order, [96]))
  reader = Reader(np.stack([clip(a) for a in known]), known)
  words = reader.read(np.stack([clip(a) for a in held_out]))
  for name in ATTRIBUTES:
    assert list(words[name]) == [a[name] for a in held_out], name
  words = reader.read(np.zeros((2, 8, 64, 64, 3), np.uint8))  # nothing to see is no error
  assert set(words) == set(ATTRIBUTES)
