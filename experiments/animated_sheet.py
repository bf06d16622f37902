"""Clips that begin with one first frame, as the study `stable_video` has them, on one sheet.

  python -m experiments.animated_sheet   # after `python -m experiments.run stable_video`

The first scenes of seed 0, none chosen: the drawn clip, Stable Video Diffusion with the bucket of
slow and of quick clips, and Emu Video, which reads the caption.
"""

import dataclasses
import pathlib

import tyro

from emu_jax import media
from emu_jax.parallel.compilation import enable_cache
from experiments.artefact import made
from experiments.sampling import drawn, real_clips
from experiments.studies import stable_video as study


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Draws the sheet."""

  runs: pathlib.Path = pathlib.Path("runs/experiments")
  """Folder of what the study has trained; what is missing is trained."""
  out: pathlib.Path = pathlib.Path("docs/results/stable_video_clips.png")
  """The picture."""
  num: int = 4
  """Scenes."""
  seed: int = 0
  """Of training and sampling."""


def main() -> None:
  """Samples and writes."""
  arguments = tyro.cli(Arguments, prog="python -m experiments.animated_sheet")
  enable_cache()
  runs = study.Runs("default")
  prompts = dataclasses.replace(study.prompts_of("default", arguments.seed), num=arguments.num)
  real = real_clips(prompts, runs.side, study.FPS, study.FRAMES)
  rows = {"drawn": real}
  svd, emu_video = (
    made(runs.video(name, arguments.seed), arguments.runs) for name in ("svd", "emu_video")
  )
  for motion in (study.SLOW, study.QUICK):
    wanted = study.moving(prompts, motion, study.FPS, study.GROWS)
    clips = drawn(svd, wanted, pictures=real[:, :1], draw=study.animate)
    rows[f"SVD, bucket {motion}"] = clips
  rows["Emu Video"] = drawn(emu_video, study.captioned(prompts), pictures=real[:, :1])
  tiles = [(clips[i], f"{i}: {name}") for i in range(arguments.num) for name, clips in rows.items()]
  clips, labels = zip(*tiles, strict=True)
  media.save_picture(arguments.out, media.contact_sheet(list(clips), list(labels), columns=8))


if __name__ == "__main__":
  main()
