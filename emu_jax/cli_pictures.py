"""The commands of `emu-jax` that begin with a picture: `edit` and `animate`."""

import pathlib
from typing import Annotated, Literal

import tyro

from emu_jax.cli_shared import (
  Asked,
  Options,
  Shared,
  check_file,
  opened,
  precision_of,
  working,
  write,
)
from emu_jax.data.own_files import load_picture
from emu_jax.errors import InputError
from emu_jax.generation import edit
from emu_jax.parallel.mesh import MeshConfig, sampling_mesh
from emu_jax.stable_video import HEIGHT, WIDTH, Motion, load_stable_video
from emu_jax.systems.emu_video import Guidance
from emu_jax.systems.svd import SvdSampling

Picture = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
# Source: InstructPix2Pix, arXiv:2211.09800, sec. 3.2.
EDITING = Guidance(image=1.5, text=7.5)


def edit_picture(
  picture: Picture,
  instruction: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INSTRUCTION")],
  /,
  out: pathlib.Path = pathlib.Path("edited.png"),
  enlarge: int = 0,
  options: Shared = Options(),
) -> None:
  """Changes a picture as an instruction says, by InstructPix2Pix or another model of its kind.

  Args:
    picture: file; its central square is taken, at the model's size.
    instruction: what to change, such as "make it winter".
    out: file to write.
    enlarge: times that each pixel is repeated in the file; 0: up to some 256 pixels a side.
  """
  with working() as say:
    pipeline = opened(options, out, enlarge, say)
    given = load_picture(picture, pipeline.config.image.size)[None]
    frames = edit(pipeline, given, [instruction], options.request(EDITING, 1), say)
    write(out, frames[0], 1.0, enlarge, say)


def animate_picture(
  picture: Picture,
  /,
  checkpoint: pathlib.Path,
  frames: int | None = None,
  height: int = HEIGHT,
  width: int = WIDTH,
  fps: float = Motion.fps,
  motion: float = Motion.bucket,
  noise: float = Motion.noise,
  first_guidance: float = Motion.first_guidance,
  last_guidance: float = Motion.last_guidance,
  steps: int = SvdSampling.num_steps,
  solver: Literal["euler", "heun"] = "euler",
  seed: int = 0,
  decode_chunk: int = 8,
  precision: Asked = "stored",
  widen: bool = False,
  mesh: MeshConfig = MeshConfig(data=1),
  out: pathlib.Path = pathlib.Path("animated.mp4"),
) -> None:
  """Turns a picture into a clip by Stable Video Diffusion.

  Args:
    picture: file; its middle is cut to the clip's shape.
    checkpoint: folder of the public pipeline.
    frames: length; None: that of the model's training clips, 14 or 25.
    height: in pixels, a multiple of 64; 576 is what the public models were trained on.
    width: in pixels, a multiple of 64.
    fps: frames a second that the model is told and the file has.
    motion: how much moves, 0 to 255.
    noise: standard deviation of what is added to the picture; more lets the clip leave it.
    first_guidance: scale of the first frame; it grows evenly to the last one's.
    last_guidance: scale of the last frame.
    steps: network evaluations, 1 or more; "heun" takes two for each.
    solver: of Euler, or Heun's, which needs fewer steps.
    seed: of all noise, 0 or more.
    decode_chunk: frames decoded at a time; fewer need less memory.
    precision: of the networks; stored: as the model is.
    widen: take float16 weights, as float32.
    mesh: devices that sample together, as emu-jax sample takes them.
    out: file to write: .mp4, .gif, .webp, or .png with the frames side by side.
  """
  with working() as say:
    check_file(out, 0)
    told = Motion(fps, motion, noise, first_guidance, last_guidance)
    if not 0 <= seed < 2**32:
      raise InputError(f"seed={seed} is not from 0 to {2**32 - 1}; give one that is")
    say(f"loading {checkpoint}")
    model = load_stable_video(
      checkpoint, dtype=precision_of(precision), widen=widen, mesh=sampling_mesh(mesh)
    )
    model.check_size(height, width)
    given = load_picture(picture, height, width)[None]
    sampling = SvdSampling(solver, steps, model.num_frames if frames is None else frames)
    say(f"picture -> {sampling.num_frames} frames")
    clips = model.animate(given, seed, told, sampling, decode_chunk)
    write(out, clips[0], fps, 0, say)
