"""A small study for tests: two folders of clips that can be told apart, and their prompts."""

import numpy as np

from emu_jax import media

PROMPTS = ("a ball rolls to the left", "a <b>dog</b> & a cat", "waves of “light”")


def write_folders(base, num_pairs=3, ending=".mp4"):
  """Folders `secret_a` (reddish clips) and `secret_b` (bluish ones), and `prompts.txt`."""
  for letter, channel in (("a", 0), ("b", 2)):
    folder = base / f"secret_{letter}"
    folder.mkdir(parents=True)
    for number in range(num_pairs):
      clip = np.full((8, 32, 48, 3), 40 * number, np.uint8)
      clip[..., channel] = 255
      clip[:, 8:16] = np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
      media.save_video(folder / f"shot_{number}{ending}", clip, fps=8)
  (base / "prompts.txt").write_text("\n".join(PROMPTS[:num_pairs]))
  return base


def words(base, *options):
  """The words of `emu-jax juice make` for them."""
  folders = ("--a", base / "secret_a", "--b", base / "secret_b")
  all_words = ("juice", "make", *folders, "--prompts", base / "prompts.txt", *options)
  return [str(word) for word in all_words]
