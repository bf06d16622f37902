"""A timeline is that of the frames a decoder shows, in every container, for every damage."""

import math

import av
import numpy as np
import pytest
from video_files import numbered, numbers, write_numbered, write_video

from emu_jax.data import clip_files, decode
from emu_jax.data.metadata import Layout, Row
from emu_jax.data.timelines import Timeline, constant_rate
from emu_jax.errors import InputError


def remuxed(source, path, keep=lambda number, packet: True):
  """Copies the packets that `keep` admits."""
  with av.open(str(source)) as whole, av.open(str(path), "w") as part:
    stream = whole.streams.video[0]
    copy = part.add_stream_from_template(stream)
    for number, packet in enumerate(whole.demux(stream)):
      if packet.size and keep(number, packet):
        packet.stream = copy
        part.mux(packet)
  return path


def without(numbers_left, suffix):
  """A file that lacks some packets."""

  def make(folder):
    whole = write_numbered(folder / f"whole.{suffix}", 60)
    return remuxed(whole, folder / f"part.{suffix}", lambda i, _: i not in numbers_left)

  return make


def two_passes(folder):
  """VP8 whose encoder looks ahead: packets that are never shown."""
  greys = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 1))
  faces = greys.repeat(8, 1).repeat(8, 2).repeat(3, 3)
  # One pattern that becomes another: something for the encoder to gain by looking ahead.
  frames = [(faces[0] * (1 - i / 60) + faces[1] * (i / 60)).astype(np.uint8) for i in range(60)]
  lookahead = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}
  prepare = lambda stream: setattr(stream, "options", lookahead)
  return write_video(folder / "a.webm", frames, codec="libvpx", prepare=prepare)


def cover_first(folder):
  """A file whose first video stream is one picture."""
  path = folder / "cover.mkv"
  with av.open(str(path), "w") as container:
    streams = [container.add_stream(codec, rate=8) for codec in ("mjpeg", "mpeg4")]
    for stream, form in zip(streams, ("yuvj420p", "yuv420p"), strict=True):
      stream.width = stream.height = 32
      stream.pix_fmt = form
    for number in range(20):
      for stream in streams[number > 0 :]:
        frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
        container.mux(stream.encode(frame))
    for stream in streams:
      container.mux(stream.encode())
  return path


FILES = {
  "B-frames in AVI": lambda d: write_numbered(d / "a.avi", 60, fps=25),
  "a recording that begins between keyframes": without({0, 1, 2, 3, 4}, "ts"),
  "the same in Matroska": without({0, 1, 2, 3, 4}, "mkv"),
  "one lost packet": without({30}, "ts"),
  "one lost packet of an MP4": without({30}, "mp4"),
  "one group of pictures": without(set(range(12, 60)), "ts"),
  "hidden packets": two_passes,
  "a cover picture before the video": cover_first,
}


@pytest.mark.parametrize("name", FILES)
def test_counts_times_and_pixels_are_those_of_decoding_in_order(tmp_path, name):
  path = FILES[name](tmp_path)
  with av.open(str(path)) as container:
    frames = list(container.decode(container.streams.best("video")))
  line = decode.timeline(path)
  assert line.num_frames == len(frames)
  if name != "B-frames in AVI":  # whose timestamps the decoder makes up, out of order
    clock = np.array([frame.time for frame in frames])
    np.testing.assert_allclose(line.times, clock - clock[0], atol=1e-6)
    assert line.origin == pytest.approx(clock[0])
  got = decode.frames_at(path, line.times, (32, 32), line).astype(int)
  expected = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(int)
  # Below the step between two numbers; conversions that do not round are off by some levels.
  assert np.abs(got - expected).mean((1, 2, 3)).max() < 4
  late = decode.frames_at(path, line.times[-3:], (32, 32), line)
  np.testing.assert_array_equal(late, got[-3:])


def test_frames_in_avi_are_at_their_constant_rate(tmp_path):
  path = write_numbered(tmp_path / "a.avi", 60, fps=25)
  line = decode.timeline(path)
  assert line.fps == pytest.approx(25)
  assert numbers(decode.frames_at(path, np.arange(60) / 25, (32, 32), line)) == list(range(60))


def test_a_few_lost_frames_leave_the_rate():
  """Otherwise one hiccup of a recorder would halve it."""
  clock = np.delete(np.arange(200) / 30, [50, 120])
  assert constant_rate(clock) == pytest.approx(30)


@pytest.mark.parametrize("clock", [
  np.array([*np.arange(10) / 10, 9.9]),
  np.concatenate([np.arange(100) / 50, 2 + np.arange(20) / 10]),
  np.concatenate([[0], np.cumsum(np.random.default_rng(0).uniform(0.02, 0.3, 59))]),
  np.arange(6) * 15.0,
], ids=["a burst and a pause", "two rates", "a random rate", "slides"])  # fmt: skip
def test_at_a_files_rate_frames_hardly_repeat(clock):
  """The law by brute force, and that no lower rate would be as good."""
  line = Timeline.of(clock.tolist())
  grid = np.arange(decode.fitting_frames(line, line.fps)) / line.fps
  nearest = np.abs(grid[:, None] - line.times[None]).argmin(1)
  assert len(set(nearest)) >= 0.95 * len(nearest)
  assert line.fps >= 1 / np.diff(clock).max() - 1e-9


def test_declared_rates_hold_where_timestamps_bear_them_out():
  clock = (np.arange(100) / 24 * 1000).round() / 1000  # Matroska's clock ticks in ms
  assert constant_rate(clock, (24.0,)) == 24
  assert constant_rate(clock, (12.0,)) == pytest.approx(24, rel=1e-3)
  assert constant_rate(np.zeros(1), (0.0, 25.0)) == 25


PLAYLISTS = {
  "ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
  "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:7.5,\nreal.mp4\n#EXT-X-ENDLIST\n",
  "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_lists_of_other_files_are_refused(tmp_path, kind, suffix):
  write_numbered(tmp_path / "real.mp4", 8)
  (tmp_path / f"list.{suffix}").write_text(PLAYLISTS[kind])
  with pytest.raises(InputError, match="playlist"):
    decode.timeline(tmp_path / f"list.{suffix}")


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "50%d.mp4", "a b?.mp4"])
def test_any_name_is_a_files(tmp_path, monkeypatch, name):
  write_numbered(tmp_path / name, 8)
  monkeypatch.chdir(tmp_path)
  assert decode.timeline(name).num_frames == 8


def test_a_tag_that_is_not_utf8_does_not_matter(tmp_path):
  path = tmp_path / "a.mp4"
  write_numbered(path, 8)
  tagged = tmp_path / "tagged.mp4"
  with av.open(str(path)) as whole, av.open(str(tagged), "w") as copy:
    copy.metadata["title"] = "cafeQ"
    stream = copy.add_stream_from_template(whole.streams.video[0])
    for packet in whole.demux(video=0):
      if packet.size:
        packet.stream = stream
        copy.mux(packet)
  tagged.write_bytes(tagged.read_bytes().replace(b"cafeQ", b"cafe\xe9"))
  assert decode.timeline(tagged).num_frames == 8
  assert decode.shown_size(tagged) == (32, 32)


def test_frames_without_timestamps_are_refused(tmp_path):
  with pytest.raises(InputError, match="without timestamps; remux"):
    decode.timeline(write_numbered(tmp_path / "a.h264", 8))


def test_a_video_without_a_decoder_is_one_line(tmp_path):
  path = write_numbered(tmp_path / "a.mkv", 8)
  path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
  for read in (decode.timeline, decode.shown_size):
    with pytest.raises(InputError, match=r"a\.mkv needs a decoder"):
      read(path)


def test_a_timeline_serves_all_parts(tmp_path):
  """Parts are read without another pass over the file."""
  path = write_numbered(tmp_path / "a.avi", 60, fps=25)
  line = decode.timeline(path)
  parts = [decode.frames_at(path, line.times[i : i + 20], (32, 32), line) for i in (0, 20, 40)]
  assert numbers(np.concatenate(parts)) == list(range(60))
  assert math.isclose(line.span, 59 / 25)


@pytest.mark.parametrize("fps", [0.0, 0.05, 24.0])
@pytest.mark.parametrize("clock", [[0.0], np.arange(4) * 15.0], ids=["one frame", "slides"])
def test_files_of_few_frames_are_packed(tmp_path, clock, fps):
  write_video(tmp_path / "a.mkv", [numbered(i) for i in range(len(clock))], times=clock)
  row, options = Row("a.mkv", ("slides",)), clip_files.Options((32, 32), fps)
  made = list(clip_files.clip_records(tmp_path, row, options, Layout.of([row])))
  assert made
  assert [record for record in made if isinstance(record, str)] == []
