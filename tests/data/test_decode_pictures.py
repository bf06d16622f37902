"""Pictures and animations: every format's pixels, timing, turn and alpha, or one clear line."""

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest
from video_files import numbered, numbers

from emu_jax.data import clip_files, decode
from emu_jax.data.inputs import ClipSpec
from emu_jax.data.metadata import Layout, Row
from emu_jax.data.user_files import load_clip
from emu_jax.errors import InputError

SIDE = (32, 32)


def test_16_bits_give_their_high_8(tmp_path):
  ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
  PIL.Image.fromarray(ramp).save(tmp_path / "grey.png")
  PIL.Image.fromarray(ramp).save(tmp_path / "grey.tif")
  (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 65535\n" + ramp.astype(">u2").tobytes())
  colour = np.stack([ramp, ramp[::-1], ramp.T], -1)
  with av.open(str(tmp_path / "colour.png"), "w", format="image2") as container:
    stream = container.add_stream("png", rate=1)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb48be"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colour), format="rgb48le")
    container.mux(stream.encode(frame.reformat(format="rgb48be")))
    container.mux(stream.encode())
  for ending in ("png", "tif", "pgm"):
    got = decode.picture(tmp_path / f"grey.{ending}", SIDE)[0]
    np.testing.assert_array_equal(got, np.repeat((ramp >> 8)[..., None], 3, -1), ending)
  np.testing.assert_array_equal(decode.picture(tmp_path / "colour.png", SIDE)[0], colour >> 8)


def test_grey_whose_white_is_unknown_is_refused(tmp_path):
  PIL.Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "a.tif")
  with pytest.raises(InputError, match="32 bits"):
    decode.picture(tmp_path / "a.tif", SIDE)


def big_text(path):
  info = PIL.PngImagePlugin.PngInfo()
  info.add_text("workflow", "a" * 2_000_000, zip=True)
  PIL.Image.new("RGB", SIDE).save(path, pnginfo=info)


def short(path):
  PIL.Image.fromarray(numbered(7)).save(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_header(path):
  path.write_bytes(b"BM" + bytes(range(40)))


BAD = {"a.png": big_text, "b.bmp": short, "c.bmp": bad_header, "d.webp": bad_header, "e.gif": short}


@pytest.mark.parametrize("name", BAD)
def test_whatever_pillow_raises_is_one_line(tmp_path, name):
  BAD[name](tmp_path / name)
  with pytest.raises(InputError, match=name) as caught:
    decode.picture(tmp_path / name, SIDE)
  assert "\n" not in str(caught.value)


EXIF = b"Exif\0\0MM\0*\0\0\0\x08"


@pytest.mark.parametrize("entries", [
  b"\0\x01\x01\x12\0\x02\0\0\0\x09\0\0\xff\xff\0\0\0\0",  # the turn as text beyond the end
  b"\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\xff\xff\0\0\0\0",  # as a fraction beyond the end
  b"\0\xff\x01",  # entries that are missing
  b"",
], ids=["text", "fraction", "cut", "empty"])  # fmt: skip
def test_damaged_exif_costs_no_pixels(tmp_path, entries):
  PIL.Image.new("RGB", (32, 16), (200, 10, 10)).save(tmp_path / "a.jpg", exif=EXIF + entries)
  got = decode.picture(tmp_path / "a.jpg", (16, 16))
  assert np.abs(got.astype(int) - (200, 10, 10)).max() < 8
  assert decode.shown_size(tmp_path / "a.jpg") == (16, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpe", "jfif", "tiff", "avif", "webp", "png"])
def test_exif_turns_every_format(tmp_path, ending, orientation):
  """The oracle is Pillow's own function."""
  image = PIL.Image.fromarray(np.kron(np.array([[250, 150, 90], [40, 40, 200]], np.uint8),
                                      np.ones((16, 16), np.uint8))).convert("RGB")  # fmt: skip
  exif = image.getexif()
  exif[0x0112] = orientation
  path = tmp_path / f"a.{ending}"
  image.save(path, format="JPEG" if ending in ("jpe", "jfif") else None, exif=exif, quality=95)
  with PIL.Image.open(path) as opened:
    expected = np.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))
  size = decode.shown_size(path)
  assert size == expected.shape[:2]
  np.testing.assert_array_equal(decode.picture(path, size)[0], expected)
  np.testing.assert_array_equal(decode.frames_at(path, [0.0], size, decode.timeline(path))[0],
                                expected)  # fmt: skip


def animation(path, count=12, duration=80, **options):
  pictures = [PIL.Image.fromarray(numbered(i)) for i in range(count)]
  pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, **options)
  return path


ANIMATIONS = {"a.webp": {"lossless": True}, "a.gif": {}, "a.png": {}, "a.apng": {"format": "PNG"}}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animations_are_clips_with_their_own_timing(tmp_path, name):
  path = animation(tmp_path / name, **ANIMATIONS[name])
  assert not decode.is_picture(path)
  line = decode.timeline(path)
  assert (line.num_frames, line.fps) == (12, 12.5)
  assert line.span == pytest.approx(11 * 0.08)
  assert numbers(decode.frames_at(path, line.times, SIDE, line)) == list(range(12))
  assert numbers(load_clip(path, ClipSpec(4, 6.25), SIDE)) == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ANIMATIONS)
def test_frames_of_animations_last_as_they_say(tmp_path, name):
  durations = [100, 40, 300, 60, 500]
  path = animation(tmp_path / name, 5, durations, **ANIMATIONS[name])
  line = decode.timeline(path)
  np.testing.assert_allclose(line.times, [0, 0.1, 0.14, 0.44, 0.5])


def test_frames_without_a_duration_are_shown_as_browsers_do(tmp_path):
  assert decode.timeline(animation(tmp_path / "a.gif", 5, 0)).fps == 10


def test_a_picture_before_an_animation_is_not_of_it(tmp_path):
  pictures = [PIL.Image.fromarray(numbered(i)) for i in range(4)]
  pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100,
                   default_image=True)  # fmt: skip
  line = decode.timeline(tmp_path / "a.png")
  assert numbers(decode.frames_at(tmp_path / "a.png", line.times, SIDE, line)) == [1, 2, 3]


def test_pages_are_no_animation(tmp_path):
  assert decode.is_picture(animation(tmp_path / "a.tif"))


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animations_are_packed_whole(tmp_path, name):
  animation(tmp_path / name, **ANIMATIONS[name])
  row = Row(name, ("a caption",))
  made = list(clip_files.clip_records(tmp_path, row, clip_files.Options(SIDE), Layout.of([row])))
  assert [record for record in made if isinstance(record, str)] == []
  assert len(made) == 1
  assert made[0]["fps"] == 12.5


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 0)])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "still.png", "still.tif"])
def test_transparent_pixels_show_one_background(tmp_path, name, background):
  pixels = np.zeros((2, *SIDE, 4), np.uint8)
  left = np.tri(32, dtype=bool)  # not a rectangle: an encoder would store that without alpha
  pixels[0][left], pixels[1][~left] = (200, 0, 0, 255), (0, 0, 200, 255)
  first, *rest = [PIL.Image.fromarray(frame) for frame in pixels]
  path = tmp_path / name
  lossless = {"lossless": True} if name.endswith("webp") else {}
  animated = {} if "still" in name else {
    "save_all": True, "append_images": rest, "duration": 100, "disposal": 2}  # fmt: skip
  first.save(path, **animated, **lossless)
  line = decode.timeline(path)
  got = decode.frames_at(path, line.times, SIDE, line, background=background)
  expected = np.where(pixels[..., 3:] > 0, pixels[..., :3], background)
  np.testing.assert_array_equal(got, expected[: len(got)])
  assert len(got) == (1 if "still" in name else 2)
  np.testing.assert_array_equal(decode.picture(path, SIDE, background=background)[0], expected[0])
