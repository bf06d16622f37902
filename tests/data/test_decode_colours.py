"""Colours of videos: rounded, of high range mapped, of interlaced fields joined, opaque."""

import av
import numpy as np
import pytest

from emu_jax import media
from emu_jax.data import decode, hdr

SIDE = (32, 32)
KR, KB = 0.2126, 0.0722  # BT.709


def write_planes(path, form, planes, *, codec="ffv1", count=3, rate=8, **tags):
  """A video of one stored colour: a value for each plane."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = 32, 32, form
    for name, value in tags.items():
      setattr(stream.codec_context, name, value)
    for _ in range(count):
      frame = av.VideoFrame(32, 32, form)
      for plane, value in zip(frame.planes, planes, strict=True):
        kind = np.uint16 if "10" in form else np.uint8
        plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
      for name, value in tags.items():
        setattr(frame, name, value)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def middle(path):
  """RGB of a video's second frame, in its middle."""
  line = decode.timeline(path)
  return decode.frames_at(path, line.times, SIDE, line)[1, 16, 16]


def test_colours_are_those_of_the_standard_rounded(tmp_path):
  """BT.709 in closed form; a conversion that truncates is dark by 1.4 levels on average."""
  rng, errors = np.random.default_rng(0), []
  for number in range(24):
    y, cb, cr = (int(v) for v in rng.integers((60, 100, 100), (190, 156, 156)))
    luma, blue, red = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = luma + 2 * (1 - KR) * red, luma + 2 * (1 - KB) * blue
    exact = 255 * np.array([r, (luma - KR * r - KB * b) / (1 - KR - KB), b])
    path = tmp_path / f"{number}.mkv"
    write_planes(path, "yuv420p", (y, cb, cr), colorspace=1, color_range=1)
    errors.append(middle(path) - np.clip(exact, 0, 255))
  # Half a level of rounding, and the fixed-point coefficients' 2^-13 of 255.
  assert np.abs(errors).max() <= 0.5 + 0.04


def test_the_way_through_our_mp4_darkens_nothing(tmp_path):
  rng, errors = np.random.default_rng(1), []
  for number in range(24):
    colour = rng.integers(60, 196, 3)
    frames = np.broadcast_to(colour.astype(np.uint8), (4, 64, 64, 3))
    errors.append(middle(media.save_video(tmp_path / f"{number}.mp4", frames, 8)) - colour)
  # Three planes and the result are rounded: a standard deviation of sqrt(1/12) each, which BT.709
  # scales by up to 1.16 (luma) and 2.12 (chroma): 0.76 a colour, 0.155 of the mean; five of those.
  # What truncates is dark by 1.4.
  assert np.abs(np.mean(errors, 0)).max() < 0.78


def signal_of(nits):
  """PQ by the inverse EOTF of BT.2100, table 4."""
  power = (nits / 10000) ** (2610 / 16384)
  return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


GREYS = {
  "PQ diffuse white": (hdr.PQ, signal_of(203), 255),
  "PQ highlight": (hdr.PQ, signal_of(1000), 255),
  "PQ 100 cd/m2": (hdr.PQ, signal_of(100), 255 * (100 / 203) ** (1 / 2.4)),
  "PQ black": (hdr.PQ, 0.0, 0),
  "HLG diffuse white": (hdr.HLG, 0.75, 255),  # BT.2408, table 1
  "HLG grey": (hdr.HLG, 0.38, 255 * (1000 * (0.38**2 / 3) ** 1.2 / 203) ** (1 / 2.4)),
}


@pytest.mark.parametrize("name", GREYS)
def test_high_dynamic_range_is_mapped_so_that_diffuse_white_is_white(tmp_path, name):
  transfer, signal, expected = GREYS[name]
  luma = round(64 + 876 * signal)
  tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
  path = write_planes(tmp_path / "a.mkv", "yuv444p10le", (luma, 512, 512), **tags)
  got = middle(path)
  # A step of 10 bits is at most 1.9 levels here; white lies a rounded step beside 203 cd/m2.
  assert np.abs(got.astype(float) - expected).max() <= 2


def test_colours_of_high_range_change_their_primaries():
  """BT.709's red, as BT.2020 and PQ, becomes red again."""
  red = np.linalg.solve(hdr.TO_709.astype(float), [100 / 203, 0, 0])
  codes = np.round(65535 * signal_of(203 * np.maximum(red, 1e-12))).astype(np.uint16)
  got = hdr.to_sdr(codes[None, None], hdr.PQ)[0, 0]
  assert got[0] == pytest.approx(255 * (100 / 203) ** (1 / 2.4), abs=1)
  assert got[1:].max() <= 12  # the matrix is published with four digits; gamma spreads black


ALPHA = {"a.webm": ("libvpx-vp9", "yuva420p"), "a.mov": ("qtrle", "argb"), "b.mov": ("png", "rgba")}


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 130, 0)])
@pytest.mark.parametrize("name", ALPHA)
def test_transparent_videos_show_the_background(tmp_path, name, background):
  codec, form = ALPHA[name]
  pixels = np.zeros((*SIDE, 4), np.uint8)
  pixels[:, :16], pixels[:, 16:] = (200, 0, 0, 255), (0, 0, 255, 0)  # a hidden colour
  with av.open(str(tmp_path / name), "w") as container:
    stream = container.add_stream(codec, rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, form
    for _ in range(4):
      frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=form)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  line = decode.timeline(tmp_path / name)
  got = decode.frames_at(tmp_path / name, line.times, SIDE, line, background=background)
  assert len(got) == 4
  assert np.abs(got[:, 16, 4].astype(int) - (200, 0, 0)).max() <= 4
  assert np.abs(got[:, 16, 28].astype(int) - background).max() <= 4


def test_interlaced_fields_are_joined_and_frames_keep_their_times(tmp_path):
  """A bar that moves between the fields of a frame leaves no comb; each frame is given once."""
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ilme+ildct"})
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    stream.bit_rate = 8_000_000
    for number in range(12):
      pixels = np.full((64, 64, 3), 40, np.uint8)
      pixels[1::2, 4 * number : 4 * number + 16] = 220
      pixels[::2, 4 * number + 2 : 4 * number + 18] = 220
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())
  with av.open(str(path)) as container:
    stored = list(container.decode(video=0))
  assert all(frame.interlaced_frame for frame in stored)
  line = decode.timeline(path)
  assert (line.num_frames, line.fps) == (12, 25)
  got = decode.frames_at(path, line.times, (64, 64), line).astype(int)
  comb = lambda frame: np.abs(frame[1:-1] - (frame[:-2] + frame[2:]) / 2).mean()
  combs = [comb(frame.to_ndarray(format="rgb24").astype(int)) for frame in stored]
  assert max(comb(frame) for frame in got[1:]) < 0.2 * min(combs)
  assert np.all(np.diff([frame[32, :, 0].argmax() for frame in got]) >= 0)
