"""Files hold the colours, sizes and times they were given, whole or not at all."""

import io
import pathlib

import av
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFont

from emu_jax import media
from emu_jax.cli.output import enlarged
from emu_jax.errors import InputError

# Corners of the colour cube: where a wrong matrix, range or channel order shows most.
COLOURS = np.array(
  [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 192]], np.uint8
)


def flat_clip(num_frames=6, height=16, width=24):
  """A clip whose frame i is all COLOURS[i]: every codec must hold it."""
  return np.broadcast_to(COLOURS[:num_frames, None, None], (num_frames, height, width, 3)).copy()


def random_clip(num_frames=5, height=8, width=12, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def decoded(path):
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames), stream.average_rate


def pillow_frames(path):
  with Image.open(path) as image:
    frames, durations = [], []
    for i in range(image.n_frames):
      image.seek(i)
      frames.append(np.asarray(image.convert("RGB")))
      durations.append(image.info["duration"])
  return np.stack(frames), durations


def test_bytes_survive_the_way_to_floats_and_back():
  every = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
  floats = media.to_float(every)
  assert floats.dtype == np.float32
  assert (floats.min(), floats.max()) == (-1, 1)
  np.testing.assert_array_equal(media.to_uint8(floats), every)
  np.testing.assert_array_equal(media.to_uint8(jnp.asarray(floats)), every)
  np.testing.assert_array_equal(media.to_float(jnp.asarray(floats)), floats)


def test_what_networks_overshoot_is_clipped_and_nan_is_refused():
  overshot = np.array([[-3.0, 0.0, 1.5]], np.float32)
  np.testing.assert_array_equal(media.to_uint8(overshot), [[0, 128, 255]])
  with pytest.raises(ValueError, match="1 of 3 values are not finite"):
    media.to_uint8(np.array([[np.nan, 0.0, 0.0]], np.float32))


def test_mp4_holds_colours_frames_and_rate(tmp_path):
  frames, rate = decoded(media.save_video(tmp_path / "clip.mp4", flat_clip(), fps=16))
  # 8-bit limited-range YUV has steps of up to 255 / 219 * 1.86 RGB levels (the row of blue), and
  # the quantiser of crf 18 adds a little.
  np.testing.assert_allclose(frames.astype(int), flat_clip().astype(int), atol=5)
  assert rate == 16


def test_mp4_says_which_colours_it_holds(tmp_path):
  with av.open(str(media.save_video(tmp_path / "clip.mp4", flat_clip(), fps=8))) as container:
    context = container.streams.video[0].codec_context
    assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    assert context.pix_fmt == "yuv420p"


def test_mp4_pads_odd_sides_to_even_with_their_edge(tmp_path):
  clip = flat_clip(2, height=15, width=9)
  frames, _ = decoded(media.save_video(tmp_path / "odd.mp4", clip, fps=8))
  assert frames.shape == (2, 16, 10, 3)
  np.testing.assert_allclose(frames[:, -1, -1].astype(int), clip[:, 0, 0].astype(int), atol=5)


def test_mp4_keeps_fractional_rates(tmp_path):
  _, rate = decoded(media.save_video(tmp_path / "clip.mp4", flat_clip(), fps=24000 / 1001))
  assert (rate.numerator, rate.denominator) == (24000, 1001)


@pytest.mark.parametrize(("ending", "unit"), [(".gif", 10), (".webp", 1)])
def test_animations_are_exact_and_last_as_long_as_the_clip(tmp_path, ending, unit):
  clip = random_clip()  # 96 colours a frame: within a gif's 256
  path = media.save_video(tmp_path / f"clip{ending}", clip, fps=16)
  frames, durations = pillow_frames(path)
  np.testing.assert_array_equal(frames, clip)
  assert abs(sum(durations) - len(clip) * 1000 / 16) <= unit / 2
  with Image.open(path) as image:
    assert image.info["loop"] == 0


def test_gif_adapts_its_palette_to_each_frame():
  # 16 x 16 colours a frame, other ones in each: one palette for all could not hold them.
  clip = random_clip(3, height=16, width=16)
  with Image.open(io.BytesIO(media.gif_bytes(clip, fps=8))) as image:
    image.seek(2)
    error = np.abs(np.asarray(image.convert("RGB")).astype(int) - clip[2].astype(int))
  assert error.mean() < 1  # median cut may join a few of 256 cells


def test_png_of_a_picture_is_the_picture_and_of_a_clip_its_frames_in_rows(tmp_path):
  clip = random_clip(11)
  picture = np.asarray(Image.open(media.save_video(tmp_path / "a.png", clip[:1], fps=1)))
  np.testing.assert_array_equal(picture, clip[0])
  strip = np.asarray(Image.open(media.save_video(tmp_path / "b.png", clip, fps=1)))
  assert strip.shape == (2 * 8, 8 * 12, 3)
  np.testing.assert_array_equal(strip[8:, 24:36], clip[10])
  assert not strip[8:, 36:].any()


def test_save_picture_writes_the_picture(tmp_path):
  picture = random_clip(1)[0]
  path = media.save_picture(tmp_path / "a.png", picture)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("clip.avi", r"'\.avi' is not known; use one of \.mp4, \.gif, \.webp, \.png"),
    ("clip", "'' is not known"),
    ("missing/clip.mp4", "there is no folder .*missing; create it"),
    ("file/clip.mp4", "there is no folder .*file"),
    ("folder.mp4", "is a folder"),
    ("x" * 300 + ".mp4", "cannot be written in .*too long"),
  ],
)
def test_a_bad_output_is_refused_before_any_work(tmp_path, name, words):
  (tmp_path / "file").touch()
  (tmp_path / "folder.mp4").mkdir()
  with pytest.raises(InputError, match=words):
    media.check_output(tmp_path / name)
  assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.mp4"}


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="needs an unwritable folder")
def test_an_unwritable_folder_is_refused():
  with pytest.raises(InputError, match="cannot be written in folder /proc/self"):
    media.check_output("/proc/self/clip.mp4")


def test_a_file_is_replaced_whole_or_kept(tmp_path, monkeypatch):
  path = media.save_video(tmp_path / "clip.png", random_clip(1), fps=1)
  before = path.read_bytes()

  def full_disk(self, data):
    self.touch()
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
  with pytest.raises(InputError, match=r"clip\.png: could not be written \(No space left"):
    media.save_video(path, random_clip(1, seed=1), fps=1)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_other_kinds_of_output_are_checked_against_their_own_endings(tmp_path):
  assert media.check_output(tmp_path / "a.json", [".json", ".md"]) == tmp_path / "a.json"
  with pytest.raises(InputError, match=r"'\.mp4' is not known; use one of \.json, \.md"):
    media.check_output(tmp_path / "a.mp4", [".json", ".md"])


def test_no_frames_and_no_rate_are_refused(tmp_path):
  with pytest.raises(ValueError, match="would have 0 frames"):
    media.save_video(tmp_path / "a.mp4", random_clip()[:0], fps=8)
  with pytest.raises(InputError, match="fps=0 is not above 0"):
    media.save_video(tmp_path / "a.mp4", random_clip(), fps=0)
  assert not list(tmp_path.iterdir())


def test_contact_sheet_shows_first_and_last_frames_enlarged():
  clips = [random_clip(8, seed=seed) for seed in range(2)]
  sheet = media.contact_sheet(clips, ["one", "two"], columns=3, scale=2)

  def where(frame):
    big = frame.repeat(2, axis=0).repeat(2, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, big.shape)[..., 0, :, :, :]
    return np.argwhere((windows == big).all(axis=(-3, -2, -1)))

  (top_first,), (top_last,), (low_first,) = (
    where(frame) for frame in (clips[0][0], clips[0][7], clips[1][0])
  )
  assert top_first[0] == top_last[0] < low_first[0]
  assert top_first[1] == low_first[1] < top_last[1]
  assert not len(where(clips[0][1]))  # three of eight frames: the second is not among them


def test_contact_sheet_wraps_captions_and_draws_all_of_them():
  clip, words = (
    flat_clip(4)[3:4],
    "a small striped triangle moving slowly to the left on a brown ground",
  )
  short = media.contact_sheet([clip], ["a"], scale=4)
  long = media.contact_sheet([clip], [words], scale=4)
  assert long.shape[1] == short.shape[1]
  font = ImageFont.load_default(media.FONT_SIZE)
  for caption in (words, "unbreakable" * 9, ""):
    lines = media._wrapped(caption, font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == caption.replace(" ", "")
  # The clip is white here, so all dark pixels are ink; long captions lose no line at the bottom.
  ink = [np.flatnonzero((sheet.min(axis=-1) < 128).any(axis=1)) for sheet in (short, long)]
  assert len(ink[1]) > 2 * len(ink[0]) > 0
  assert ink[1].max() < long.shape[0] - media.MARGIN // 2


def test_the_larger_side_decides_how_far_a_clip_is_enlarged():
  sizes = [(16, 16), (16, 512), (512, 16), (64, 96), (256, 256)]
  assert [media.readable_scale(*size) for size in sizes] == [16, 1, 1, 2, 1]
  wide = np.zeros((1, 16, 512, 3), np.uint8)
  assert enlarged(wide, 0)[0].shape == wide.shape


def test_contact_sheet_enlarges_small_pictures_by_itself():
  assert media.contact_sheet([flat_clip()], ["a"]).shape[1] >= 4 * 24 * 4
  assert media.contact_sheet([flat_clip(2, 256, 256)], ["a"]).shape[1] < 2 * 256 + 20


def test_contact_sheet_refuses_what_does_not_fit_together():
  with pytest.raises(ValueError, match="1 clips, 2 captions and columns=4"):
    media.contact_sheet([flat_clip()], ["a", "b"])
  with pytest.raises(ValueError, match=r"heights and widths \[\(8, 12\), \(16, 24\)\]"):
    media.contact_sheet([flat_clip(), random_clip()], ["a", "b"])
  with pytest.raises(ValueError, match="0 frames"):
    media.contact_sheet([flat_clip()[:0]], ["a"])
