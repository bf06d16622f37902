"""Frames are found by time, upright, square and antialiased; every bad file is one clear line."""

import av
import numpy as np
import PIL.Image
import pytest
from video_files import numbered, numbers, write_numbered, write_video

from emu_jax.data import decode, ffmpeg_files
from emu_jax.errors import InputError


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
  """200 frames at 25 fps, with B-frames, a keyframe every 12."""
  return write_numbered(tmp_path_factory.mktemp("long") / "long.mp4", 200, fps=25)


@pytest.mark.parametrize("start", [0.0, 1.3, 6.77])
@pytest.mark.parametrize("fps", [25.0, 8.0, 2.5])
def test_frames_are_the_nearest_in_time(long_clip, start, fps):
  line = decode.timeline(long_clip)
  num_frames = 1 + int((7.96 - start) * fps) // 2
  times = decode.sample_times(line.span, num_frames, fps, start)
  frames = decode.frames_at(long_clip, times, (16, 16), line)
  clock = np.arange(200) / 25
  # The earlier frame on a tie: argmin takes the first of equals, rounding to 1 us makes them equal.
  distance = np.round(np.abs(times[:, None] - clock[None]), 6)
  assert numbers(frames) == list(distance.argmin(1))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm"])
def test_a_constant_rate_file_gives_each_frame_once(tmp_path, suffix):
  codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
  path = write_numbered(tmp_path / f"a.{suffix}", 41, fps=30, codec=codec)
  line = decode.timeline(path)
  assert (line.num_frames, line.fps) == (41, 30)
  assert line.span == pytest.approx(40 / 30, abs=1e-3)  # Matroska's clock ticks in ms
  assert numbers(decode.frames_at(path, np.arange(41) / 30, (16, 16), line)) == list(range(41))


def test_variable_frame_rates_are_read_by_time(tmp_path):
  clock = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.3, 60)).round(3)
  path = write_video(tmp_path / "v.mkv", [numbered(i) for i in range(60)], times=clock)
  line = decode.timeline(path)
  times = decode.sample_times(line.span, 20, 3.0, np.random.default_rng(1))
  expected = np.abs(times[:, None] - (clock - clock[0])[None]).argmin(1)
  assert numbers(decode.frames_at(path, times, (16, 16), line)) == list(expected)


def test_reading_late_starts_at_the_keyframe_before(long_clip, monkeypatch):
  decoded, frames = [], ffmpeg_files.frames
  monkeypatch.setattr(
    ffmpeg_files, "frames", lambda *a: (decoded.append(one.time) or one for one in frames(*a))
  )
  line = decode.timeline(long_clip)
  assert numbers(decode.frames_at(long_clip, [7.0], (16, 16), line)) == [175]
  assert len(decoded) <= 12 + 1  # a group of pictures, and the frame that ends the search


def test_a_seek_that_lands_late_is_made_good(long_clip, monkeypatch):
  # Some indices point past the time asked for: what is asked for must be found nevertheless.
  late = lambda container, stream, since: (
    container.seek(int(6 / stream.time_base), stream=stream) or 1
  )
  monkeypatch.setattr(ffmpeg_files, "_seek", late)
  assert numbers(decode.frames_at(long_clip, [1.0], (16, 16), decode.timeline(long_clip))) == [25]


def test_the_start_is_uniform_over_what_fits():
  rng = np.random.default_rng(0)
  starts = np.array([decode.sample_times(5.0, 9, 4.0, rng)[0] for _ in range(4000)])
  assert starts.min() >= 0
  assert starts.max() <= 3.0
  # Uniform on [0, 3]: mean 1.5, standard error 3 / sqrt(12 * 4000) = 0.0137; the deciles likewise.
  assert abs(starts.mean() - 1.5) < 5 * 0.0137
  counts = np.histogram(starts, 10, (0, 3))[0]
  assert np.all(np.abs(counts - 400) < 5 * np.sqrt(4000 * 0.1 * 0.9))
  np.testing.assert_allclose(np.diff(decode.sample_times(5.0, 9, 4.0, rng)), 0.25)


def test_too_long_a_clip_quotes_both_lengths():
  with pytest.raises(ValueError, match=r"9 frames at 4 fps from 0 s take 2 s, there are 1\.5 s"):
    decode.sample_times(1.5, 9, 4.0)


def corners() -> np.ndarray:
  """A picture that no quarter turn and no mirroring maps to itself."""
  pixels = np.full((64, 64, 3), 40, np.uint8)
  pixels[:32, :32], pixels[:32, 32:] = 250, 150
  return pixels


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_and_mirroring_are_honoured(tmp_path, degrees, mirrored):
  turn = lambda stream: stream.set_display_rotation(degrees, hflip=mirrored)
  path = write_video(tmp_path / "r.mp4", [corners()] * 4, prepare=turn)
  frame = decode.frames_at(path, [0.25], (64, 64), decode.timeline(path))[0]
  expected = np.rot90(corners(), degrees // 90)  # PyAV's angle is counter-clockwise, as NumPy's
  expected = expected[:, ::-1] if mirrored else expected
  centres = (slice(16, None, 32), slice(16, None, 32))
  np.testing.assert_allclose(frame[centres], expected[centres].astype(int), atol=4)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_file_with_exif_is_read_upright(tmp_path, orientation):
  """PyAV refuses to list what frames with EXIF have: their turn is read without the list."""
  image = PIL.Image.fromarray(corners())
  exif = image.getexif()
  exif[0x0112] = orientation
  # An ending that Pillow is not asked for: FFmpeg reads it as a video of one frame.
  image.save(tmp_path / "a.jfif", format="JPEG", exif=exif, quality=95)
  line = decode.timeline(tmp_path / "a.jfif")
  frame = decode.frames_at(tmp_path / "a.jfif", [0.0], (64, 64), line)[0]
  expected = np.rot90(corners(), {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
  centres = (slice(16, None, 32), slice(16, None, 32))
  np.testing.assert_allclose(frame[centres], expected[centres].astype(int), atol=4)


def copied_cut(source, path, since):
  """What `ffmpeg -ss SINCE -c copy` makes: from the keyframe before, hidden by an edit list."""
  options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
  with av.open(str(source)) as whole, av.open(str(path), "w", options=options) as part:
    stream = whole.streams.video[0]
    copy, shift = part.add_stream_from_template(stream), round(since / stream.time_base)
    whole.seek(shift, stream=stream)
    for packet in whole.demux(stream):
      if packet.dts is not None:
        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
        part.mux(packet)
  return path


def test_a_cut_without_encoding_begins_where_it_is_shown(tmp_path):
  whole = write_numbered(tmp_path / "whole.mp4", 60, fps=8)  # a keyframe every 12
  path = copied_cut(whole, tmp_path / "cut.mp4", 2.5)
  line = decode.timeline(path)
  assert (line.num_frames, line.fps, line.span) == (40, 8, 39 / 8)
  assert numbers(decode.frames_at(path, np.arange(40) / 8, (16, 16), line)) == list(range(20, 60))
  assert numbers(decode.frames_at(path, [1.5], (16, 16), line)) == [32]


def test_the_central_square_is_kept(tmp_path):
  wide = np.zeros((32, 96, 3), np.uint8)
  wide[:, 32:64] = 255
  path = write_video(tmp_path / "wide.mp4", [wide] * 2, fps=8)
  line = decode.timeline(path)
  assert (
    decode.frames_at(path, [0.0], (32, 32), line)[:, :, 2:-2].min() > 250
  )  # beside the coded edge
  tall = write_video(tmp_path / "tall.mp4", [wide.swapaxes(0, 1)] * 2, fps=8)
  assert decode.frames_at(tall, [0.0], (32, 32), line)[:, 2:-2].min() > 250


def test_pixels_that_are_not_square_are_cropped_as_displayed(tmp_path):
  narrow = np.zeros((64, 32, 3), np.uint8)  # twice as wide as stored: displayed 64 x 64
  narrow[:16] = 255
  doubled = lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", 2)
  path = write_video(tmp_path / "sar.mp4", [narrow] * 2, prepare=doubled)
  frame = decode.frames_at(path, [0.0], (64, 64), decode.timeline(path))[0]
  assert frame[:14].min() > 240
  assert frame[20:].max() < 15


def test_shrinking_does_not_alias(tmp_path):
  checks = np.indices((96, 96)).sum(0) % 2 * 255
  PIL.Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
  # A checkerboard of single pixels averages to grey; picking pixels would leave black and white.
  assert (
    np.abs(decode.picture(tmp_path / "checks.png", (12, 12)).astype(int) - 128)[:, 1:-1, 1:-1].max()
    <= 3
  )


def test_pictures_are_upright_opaque_clips_of_one_frame(tmp_path):
  image = PIL.Image.fromarray(corners())
  exif = image.getexif()
  exif[0x0112] = 6  # "rotate 90 degrees clockwise to display"
  image.save(tmp_path / "turned.png", exif=exif)
  got = decode.picture(tmp_path / "turned.png", (64, 64))
  assert got.shape == (1, 64, 64, 3)
  np.testing.assert_array_equal(got[0], np.rot90(corners(), -1))
  PIL.Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
  assert (decode.picture(tmp_path / "clear.png", (8, 8)) == 255).all()  # nothing, on white paper


def cut(path, share):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  return path


def audio(path):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


BAD = {
  "missing": (lambda d: d / "none.mp4", "missing"),
  "a folder": (lambda d: d, "a folder"),
  "text": (lambda d: (d / "a.mp4").write_text("no video" * 99) and d / "a.mp4", "cannot be read"),
  "text file": (lambda d: (d / "a.txt").write_text("no video\n" * 99) and d / "a.txt", "no video"),
  "empty": (lambda d: (d / "a.mp4").write_bytes(b"") or d / "a.mp4", "cannot be read"),
  "cut MP4": (lambda d: cut(write_numbered(d / "a.mp4", 60), 0.6), "truncated"),
  "cut MP4 with its index in front": (
    lambda d: cut(write_numbered(d / "a.mp4", 60, movflags="faststart"), 0.6),
    "truncated",
  ),
  "cut Matroska": (lambda d: cut(write_numbered(d / "a.mkv", 60), 0.6), "truncated"),
  "sound": (lambda d: audio(d / "a.wav"), "no video stream"),
  "no frame": (lambda d: write_numbered(d / "a.mkv", 0), "End of file"),
  "no frame in MP4": (lambda d: write_numbered(d / "a.mp4", 0), "0 frames|no video stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_with_name_and_remedy(tmp_path, name):
  make, words = BAD[name]
  path = make(tmp_path)
  with pytest.raises(InputError, match=words) as caught:
    decode.timeline(path)
  message = str(caught.value)
  assert str(path) in message
  assert ";" in message
  assert "\n" not in message


def test_frames_that_the_header_promises_but_the_file_lacks(long_clip):
  line = decode.timeline(long_clip)
  with pytest.raises(InputError, match=r"no frame after 7\.96 s, 9 s was asked for"):
    decode.frames_at(long_clip, [7.0, 9.0], (16, 16), line)


def test_a_picture_that_is_none(tmp_path):
  (tmp_path / "a.png").write_text("nothing")
  with pytest.raises(InputError, match="no picture"):
    decode.picture(tmp_path / "a.png", (8, 8))
