"""Videos through PyAV: their true timeline, and their frames as RGB in order.

The truth is what the decoder gives out. MP4 and Matroska store the presentation time of every
frame, so their timeline is read without decoding; where anything there is out of order, and in all
other containers, the file is decoded once for it.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

import av
import numpy as np
import PIL.Image
from av.filter import Graph
from av.video.reformatter import Interpolation

from emu_jax.data import display, hdr
from emu_jax.data.pillow_files import BACKGROUND, Colour, flattened
from emu_jax.data.timelines import Timeline
from emu_jax.errors import InputError

# Containers that store a presentation time for each frame.
TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
HIDDEN = ("vp8", "vp9")  # codecs with packets of their own for frames that are never shown
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave alpha out
# Lists of other files, patterns of names, and text drawn as a terminal's screen: nobody's clip.
REFUSED = ("concat", "dash", "hls", "image2", "image2pipe", "imf", "tty", "webm_dash_manifest")
ROUNDED = (
  Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND  # else each conversion darkens by about one level
  | Interpolation.FULL_CHR_H_INT
  | Interpolation.FULL_CHR_H_INP
)


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame that is shown."""

  time: float  # s after the file's first
  stored: av.VideoFrame
  aspect: float  # width of a stored pixel over its height

  @property
  def matrix(self) -> display.Matrix:
    return display.matrix(self.stored)


@contextlib.contextmanager
def opened(path: str | pathlib.Path) -> Iterator[tuple]:
  """The container and its best video stream; whatever PyAV raises becomes one line.

  Raises:
    InputError: no video, a playlist, no decoder, damage.
  """
  allowed = ",".join(sorted(av.formats_available.difference(REFUSED)))
  options = {"format_whitelist": allowed}
  try:
    # The prefix keeps a colon in a name from being taken for a protocol.
    with av.open(f"file:{path}", container_options=options, metadata_errors="ignore") as container:
      stream = container.streams.best("video")
      if stream is None:
        raise InputError(f"decode: {path} has no video stream; remove it or its line of metadata")
      if stream.codec_context is None:
        raise InputError(
          f"decode: {path} needs a decoder that FFmpeg has not; convert it to H.264 in MP4"
        )
      yield container, stream
  except InputError:
    raise
  except Exception as error:  # UnicodeDecodeError, ValueError and others besides av.FFmpegError
    cause = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    raise InputError(
      f"decode: {path} cannot be read as video ({cause}): it is truncated, damaged, a playlist or "
      "no video; copy it again or remove it"
    ) from error


def timeline(path: str | pathlib.Path) -> Timeline:
  """When the decoder's frames are shown.

  Raises:
    InputError: as of `opened`; no frame; frames without timestamps; or an end more than 0.25 s,
      2.5 frames and 2 % before the one that the header declares.
  """
  stamps, clock, first, reach = [], [], None, 0.0
  with opened(path) as (container, stream):
    rates = [float(rate or 0) for rate in (stream.average_rate, stream.guessed_rate)]
    declared = _declared_seconds(stream)
    trusted = container.format.name in TIMED and stream.codec_context.name not in HIDDEN
    for packet in container.demux(stream):
      stamp = packet.dts if packet.pts is None else packet.pts
      if not packet.size or stamp is None:
        trusted &= not packet.size  # the flushing packet at the end is empty
        continue
      time = float(stamp * packet.time_base)
      reach = max(reach, time + float((packet.duration or 0) * packet.time_base))
      if first is None:
        first, trusted = time, trusted and packet.is_keyframe
      # Frames before the first keyframe may need what is missing.
      trusted &= packet.pts is not None and not packet.is_corrupt and time >= first
      if not packet.is_discard:  # hidden by an edit list: decoded for others, never shown
        stamps.append(time)
        clock.append(time if packet.dts is None else float(packet.dts * packet.time_base))
  if trusted and stamps and len(set(stamps)) == len(stamps):
    line = Timeline.of(stamps, rates)
  else:
    line = _decoded_timeline(path, rates, clock)
  end = reach - min(first or 0.0, 0.0)
  frame = line.span / (line.num_frames - 1) if line.num_frames > 1 else 1 / line.fps
  # ours: headers count the last frame's time differently.
  if end < declared - max(0.25, 2.5 * frame, 0.02 * declared):
    raise InputError(
      f"decode: {path} is truncated: its header declares {declared:g} s, its frames end at "
      f"{end:g} s ({line.num_frames} frames); copy it again or remove it"
    )
  return line


def frames(path: str | pathlib.Path, line: Timeline, since: float, threads: int) -> Iterator[Frame]:
  """Frames from the keyframe before `since` (s after the first) on, deinterlaced, in order."""
  since = 0.0 if line.counted else since  # a number is found by counting from the start
  given = False
  with opened(path) as (container, stream):
    aspect = float(stream.sample_aspect_ratio or 1)
    sought = since > 0 and _seek(container, stream, since + line.origin)
    decoded = _progressive(stream, _decode(container, stream, threads))
    for number, frame in enumerate(decoded):
      if line.counted and number == line.num_frames:
        return
      if not line.counted and frame.time is None:  # not placeable in time
        continue
      time = float(line.times[number]) if line.counted else frame.time - line.origin
      if sought and time > since + 1e-6:  # landed late: some indices do; begin again
        break
      sought, given = False, True
      yield Frame(time, frame, aspect)
    if given or since <= 0:
      return
  yield from frames(path, line, 0.0, threads)


def rgb(frame: av.VideoFrame, background: Colour = BACKGROUND) -> PIL.Image.Image:
  """A frame as RGB: rounded to the nearest, of ordinary range, transparent pixels as background."""
  transfer = int(frame.color_trc or 0)
  if transfer in (hdr.PQ, hdr.HLG):
    return PIL.Image.fromarray(hdr.to_sdr(_array(frame, "rgb48le"), transfer))
  if any(component.is_alpha for component in frame.format.components):
    return flattened(PIL.Image.fromarray(_array(frame, "rgba")), background)
  return PIL.Image.fromarray(_array(frame, "rgb24"))


def _array(frame: av.VideoFrame, form: str) -> np.ndarray:
  return frame.reformat(format=form, interpolation=ROUNDED, threads=1).to_ndarray()


def _decoded_timeline(path: str | pathlib.Path, rates: list[float], clock: list[float]) -> Timeline:
  """The timeline by decoding.

  Where the decoder gives timestamps out of order or none, as for B-frames in AVI, which stores
  none, its frames are in order nevertheless: they take the times at which packets are decoded, if
  there are as many, else even ones.

  Args:
    rates: that the file declares, frames/s.
    clock: seconds at which each packet is decoded.
  """
  with opened(path) as (container, stream):
    stamps = [frame.time for frame in _decode(container, stream, threads=1)]
  known = [stamp for stamp in stamps if stamp is not None]
  if not stamps:
    raise InputError(f"decode: {path} holds 0 frames; remove it or its line of metadata")
  if not known:
    raise InputError(
      f"decode: {path} holds frames without timestamps; remux it into MP4 with ffmpeg"
    )
  if len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(stamps)):
    return Timeline.of(stamps, rates)
  if len(stamps) == len(clock):
    known = clock
  elif len(stamps) != len(known):
    known = np.linspace(min(known), max(known), len(stamps)).tolist()
  return Timeline.of(known, rates, counted=True)


def _decode(container, stream, threads: int) -> Iterator[av.VideoFrame]:
  """The decoder's frames, with alpha where the file has it."""
  context = stream.codec_context
  if stream.metadata.get("alpha_mode") == "1" and context.name in ALPHA_DECODERS:
    context = av.CodecContext.create(ALPHA_DECODERS[context.name], "r")
  context.thread_type = "AUTO"
  context.thread_count = threads
  for packet in container.demux(stream):
    yield from context.decode(packet)


def _progressive(stream, decoded: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
  """One whole frame for each: from the first interlaced frame on, the two fields are joined."""
  graph = None
  for frame in decoded:
    if graph is None and frame.interlaced_frame:
      graph = Graph()
      source = graph.add_buffer(template=stream, time_base=frame.time_base)
      graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
      ).configure()
    if graph is None:
      yield frame
    else:
      graph.push(frame)
      yield from _pulled(graph)
  if graph is not None:
    graph.push(None)
    yield from _pulled(graph)


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
  with contextlib.suppress(av.BlockingIOError, av.EOFError):
    while True:
      yield graph.pull()


def _seek(container, stream, since: float) -> bool:
  try:
    container.seek(int(since / stream.time_base), stream=stream)
  except av.FFmpegError:  # a container without an index: read it from its start
    container.seek(0)
    return False
  return True


def _declared_seconds(stream) -> float:
  """What the header says the video lasts; 0 where it says nothing of the video alone."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  tag = stream.metadata.get("DURATION", "")  # Matroska keeps it as a tag, H:M:S
  if tag.count(":") == 2:
    hours, minutes, seconds = tag.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
  return 0.0
