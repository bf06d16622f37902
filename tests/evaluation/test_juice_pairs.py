"""Which clips of two folders are compared, and that a pair differs in its pixels alone."""

import io
import json
import pathlib

import av
import numpy as np
import PIL.Image
import pytest

from emu_jax import media
from emu_jax.errors import InputError
from emu_jax.evaluation.juice import pairs
from emu_jax.evaluation.juice.pairs import Clip, Setting, common, comparable, measured
from tests.data.video_files import numbered, numbers, write_numbered, write_video

FILE = pathlib.Path("some.mp4")


def decoded(data):
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames), float(stream.average_rate)


def compared(a, b):
  return [decoded(data) for data in comparable(measured(a), measured(b))]


def touched(folder, *names):
  folder.mkdir()
  for name in names:
    (folder / name).touch()
  return folder


def prompts(tmp_path, text, name="prompts.txt"):
  (tmp_path / name).write_text(text)
  return tmp_path / name


# Matching.


def test_clips_of_one_name_are_a_pair_whatever_their_format(tmp_path):
  a = touched(tmp_path / "a", "clip_10.mp4", "clip_9.mp4", "notes.txt", ".clip_1.mp4")
  b = touched(tmp_path / "b", "clip_9.gif", "clip_10.webm")
  found, matching = pairs.matched(a, b, prompts(tmp_path, "nine\n\n ten \n"))
  assert matching == "by name"
  assert [(p.prompt, p.a.name, p.b.name) for p in found] == [
    ("nine", "clip_9.mp4", "clip_9.gif"),
    ("ten", "clip_10.mp4", "clip_10.webm"),
  ]


def test_where_no_name_is_in_both_their_order_decides(tmp_path):
  a, b = touched(tmp_path / "a", "a2.mp4", "a10.mp4"), touched(tmp_path / "b", "0.mp4", "1.mp4")
  found, matching = pairs.matched(a, b, prompts(tmp_path, "one\ntwo"))
  assert matching == "by the order of their names, of which none is in both"
  assert [(p.a.name, p.b.name) for p in found] == [("a2.mp4", "0.mp4"), ("a10.mp4", "1.mp4")]


def test_prompts_may_name_their_clips(tmp_path):
  a, b = (touched(tmp_path / name, "x.mp4", "y.mp4") for name in "ab")
  rows = [{"file_name": "sub/y.gif", "text": "Y"}, {"file_name": "x.mp4", "text": "X", "seed": 1}]
  file = prompts(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
  assert [pair.prompt for pair in pairs.matched(a, b, file)[0]] == ["X", "Y"]


@pytest.mark.parametrize(
  ("of_a", "of_b", "text", "says"),
  [
    (["1.mp4"], ["1.mp4"], "one\ntwo", "holds 2 prompts for 1 clips; write a line for each"),
    (["1.mp4", "2.mp4"], ["1.mp4"], "x\ny", r"a/2\.mp4 has no clip of its name .* 1 others have"),
    (["1.mp4"], ["1.mp4", "2.gif", "3.gif"], "x", r"b/2\.gif, .*b/3\.gif has no clip"),
    (["1.mp4"], ["3.mp4", "2.mp4"], "x", "1 clips in .* and 2 in .*, no name in both"),
    (["1.mp4", "1.gif"], ["1.mp4"], "x", r"holds 1\.gif and 1\.mp4; keep one of each name"),
    (["1.avi"], ["1.mp4"], "x", r"a holds no clip \(\.mp4, \.webm, \.gif, \.webp\)"),
  ],
)
def test_folders_that_do_not_fit_together(tmp_path, of_a, of_b, text, says):
  a, b = touched(tmp_path / "a", *of_a), touched(tmp_path / "b", *of_b)
  with pytest.raises(InputError, match=says):
    pairs.matched(a, b, prompts(tmp_path, text))


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ('{"file_name": "1.mp4"}', "line 1 is not"),
    ('{"file_name": "1.mp4", "text": "a"}\nno', "line 2 is not"),
    ('{"file_name": "2.mp4", "text": "a"}', "has no text for 1; write a line for it"),
  ],
)
def test_prompts_that_cannot_be(tmp_path, text, says):
  a, b = touched(tmp_path / "a", "1.mp4"), touched(tmp_path / "b", "1.mp4")
  with pytest.raises(InputError, match=says):
    pairs.matched(a, b, prompts(tmp_path, text, "p.jsonl"))
  with pytest.raises(InputError, match=r"none\.txt cannot be read"):
    pairs.matched(a, b, tmp_path / "none.txt")
  with pytest.raises(InputError, match="none is not a folder"):
    pairs.matched(tmp_path / "none", b, tmp_path / "p.jsonl")


# What both are brought to.


def test_the_squarer_shape_the_smaller_size_the_lower_rate_the_shorter_time():
  wide = Clip(FILE, 360, 640, 24.0, 4.0)
  assert common(wide, Clip(FILE, 256, 256, 8.0, 2.0)) == Setting(256, 256, 8.0, 16)
  assert common(wide, Clip(FILE, 960, 1280, 30.0, 3.0)) == Setting(360, 480, 24.0, 72)
  assert common(wide, Clip(FILE, 640, 360, 24.0, 9.0)) == Setting(360, 360, 24.0, 96)
  still = Clip(FILE, 360, 640, np.inf, np.inf)
  assert common(wide, still) == Setting(360, 640, 24.0, 96)
  assert common(still, still).num_frames == 1


def test_equal_clips_keep_every_frame_and_pixel(tmp_path):
  """But for the enlargement and H.264's loss, which is less than what tells numbers apart."""
  write_numbered(tmp_path / "a.mp4", 9, fps=8)
  clip = np.stack([numbered(i + 100) for i in range(9)])
  media.save_video(tmp_path / "b.gif", clip, fps=8)
  (a, rate), (b, other) = compared(tmp_path / "a.mp4", tmp_path / "b.gif")
  assert a.shape == b.shape == (9, 256, 256, 3)
  assert rate == other == 8
  assert numbers(a) == list(range(9))
  assert numbers(b) == list(range(100, 109))


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_the_middle_of_the_longer_clip_at_the_rate_of_the_slower(tmp_path, ending):
  """48 frames in 3 s against 8 in 1 s: from 1 s to 2 s, every other frame."""
  write_numbered(tmp_path / "a.mp4", 8, fps=8)
  media.save_video(tmp_path / f"b{ending}", np.stack([numbered(i) for i in range(48)]), fps=16)
  (a, rate), (b, other) = compared(tmp_path / "a.mp4", tmp_path / f"b{ending}")
  assert rate == other == 8
  assert numbers(a) == list(range(8))
  assert numbers(b) == list(range(16, 32, 2))


@pytest.mark.parametrize("ending", [".mp4", ".webp"])
def test_frames_are_left_out_evenly(tmp_path, ending):
  """36 frames at 12 a second beside 8 at 8: the middle second has 12, of which every third goes."""
  write_numbered(tmp_path / "a.mp4", 8, fps=8)
  media.save_video(tmp_path / f"b{ending}", np.stack([numbered(i) for i in range(36)]), fps=12)
  _, (b, _) = compared(tmp_path / "a.mp4", tmp_path / f"b{ending}")
  assert numbers(b) == [12, 13, 15, 16, 18, 19, 21, 22]


def test_an_animation_that_stands_still_for_a_while_keeps_its_rate(tmp_path):
  """Gifs store equal neighbours once."""
  frame_numbers = [0, 0, 0, 1, 2, 3, 4, 5]
  media.save_video(tmp_path / "a.gif", np.stack([numbered(i) for i in frame_numbers]), fps=8)
  assert measured(tmp_path / "a.gif").fps == pytest.approx(8)
  write_numbered(tmp_path / "b.mp4", 8, fps=8)
  (a, rate), _ = compared(tmp_path / "a.gif", tmp_path / "b.mp4")
  assert (rate, numbers(a)) == (8, frame_numbers)


def test_a_still_is_shown_as_long_as_the_other_moves(tmp_path):
  media.save_video(tmp_path / "a.webp", numbered(7)[None], fps=1)
  write_numbered(tmp_path / "b.mp4", 6, fps=4)
  (a, rate), (b, _) = compared(tmp_path / "a.webp", tmp_path / "b.mp4")
  assert (numbers(a), numbers(b), rate) == ([7] * 6, list(range(6)), 4)


def grid(height, width):
  """White in the central square, black beside it."""
  frame = np.zeros((2, height, width, 3), np.uint8)
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  frame[:, top : top + side, left : left + side] = 255
  return frame


@pytest.mark.parametrize("ending", [".mp4", ".webp"])
def test_what_is_wider_loses_its_edges(tmp_path, ending):
  media.save_video(tmp_path / f"a{ending}", grid(64, 96), fps=4)
  write_video(tmp_path / "b.mp4", grid(48, 48), fps=4)
  for frames, _ in compared(tmp_path / f"a{ending}", tmp_path / "b.mp4"):
    assert frames.shape == (2, 240, 240, 3)  # 48, five times
    assert frames[:, :, 6:-6].min() > 240  # beside the coded edge


def test_a_clip_stored_on_its_side_is_measured_as_displayed(tmp_path):
  """White in the left half of what is stored, which is the lower half of what is displayed."""
  stored = np.zeros((2, 32, 64, 3), np.uint8)
  stored[:, :, :32] = 255
  turn = lambda stream: stream.set_display_rotation(90)
  write_video(tmp_path / "a.mp4", stored, fps=4, prepare=turn)
  write_video(tmp_path / "b.mp4", stored.swapaxes(1, 2), fps=4)
  a, b = measured(tmp_path / "a.mp4"), measured(tmp_path / "b.mp4")
  assert (a.height, a.width) == (b.height, b.width) == (64, 32)
  frames = pairs.fitted(a, common(a, b))
  assert frames.shape == (2, 64, 32, 3)
  assert frames[:, 36:].min() > 250
  assert frames[:, :28].max() < 5


def test_resizing_is_bilinear(tmp_path):
  """Against Pillow's own: a picture of 64 px beside one of 32."""
  noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
  media.save_video(tmp_path / "a.webp", noise, fps=1)
  frames = pairs.fitted(measured(tmp_path / "a.webp"), Setting(32, 32, 1.0, 1))
  bilinear = PIL.Image.Resampling.BILINEAR
  expected = np.asarray(PIL.Image.fromarray(noise[0]).resize((32, 32), bilinear))
  np.testing.assert_array_equal(frames[0], expected)


def test_a_file_that_is_no_clip_is_refused(tmp_path):
  for name in ("a.mp4", "a.gif"):
    (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match=rf"{name} (cannot be read|is no picture)"):
      measured(tmp_path / name)
