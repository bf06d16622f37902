"""The command `emu-jax metrics`: folders of generated clips or pictures against real ones."""

import pathlib
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console

from emu_jax import media
from emu_jax.cli.progress import counted
from emu_jax.errors import InputError
from emu_jax.evaluation import clip_score, features, report, shape_features
from emu_jax.evaluation.clip_sets import ClipSet, captioned, open_set
from emu_jax.evaluation.features import Features
from emu_jax.evaluation.set_metrics import compared, measure
from emu_jax.parallel.mesh import MeshConfig, sampling_mesh


def measure_folders(
  generated: pathlib.Path,
  reference: pathlib.Path,
  prompts: pathlib.Path | None = None,
  fid_weights: pathlib.Path | None = None,
  fvd_weights: pathlib.Path | None = None,
  clip: pathlib.Path | None = None,
  widen: bool = False,
  shapes: bool = False,
  frames: int = 16,
  fps: float | None = None,
  size: int | None = None,
  batch_size: int = 64,
  mesh: MeshConfig = MeshConfig(data=1),
  seed: int = 0,
  out: pathlib.Path | None = None,
) -> None:
  """Measures generated clips (or pictures) against a folder of real ones: FID, FVD, CLIP.

  Every figure is printed with its 95 % interval and the numbers of what it is of. What each one is,
  and where its weights come from: docs/metrics.md.

  Args:
    generated: folder of videos or of pictures; metadata.jsonl or .csv in it, as emu-train prepare
      takes it, names and captions them.
    reference: folder of real ones.
    prompts: text file, a line for each generated file in the order of their names.
    fid_weights: .safetensors of FID's Inception-v3, for the distance of frames.
    fvd_weights: .safetensors of FVD's I3D, for the distance of clips of 9 frames or more.
    clip: folder of a CLIPModel, for consistency with the text, between frames, to the first frame.
    widen: take float16 weights of the CLIPModel, as float32.
    shapes: distances by features of our own that tell the moving shapes apart (FID-o, FVD-o).
    frames: of each video, from its beginning.
    fps: at which they are read; None: the files' own rate, which must be one.
    size: pixels a side to which both sets are brought; None: as the generated files are.
    batch_size: frames that are measured at a time.
    mesh: devices over which batches are split, as emu-jax sample takes them.
    seed: of the means' bootstrap, 0 or more.
    out: .json or .md file for the report; it is printed in any case.
  """
  for name, value in (("frames", frames), ("batch_size", batch_size), ("size", size or 1)):
    if value < 1:
      raise InputError(f"metrics: {name}={value} is not 1 or more; give a whole number above 0")
  if fps is not None and not fps > 0:
    raise InputError(f"metrics: fps={fps} is not above 0; give the frames a second")
  if seed < 0:
    raise InputError(f"metrics: seed={seed} is below 0; give one that is not")
  if not (fid_weights or fvd_weights or clip or shapes):
    raise InputError(
      "metrics: nothing is to be measured; give --fid-weights, --fvd-weights, --clip or --shapes"
    )
  if out is not None:
    media.check_output(out, report.ENDINGS)
  devices = sampling_mesh(mesh)
  settings = {"num_frames": frames, "progress": _bar}
  made = open_set(generated, fps=fps, size=size, **settings)
  real = open_set(reference, fps=fps, size=made.size, **settings)
  _comparable(made, real)
  if prompts is not None:
    made = captioned(made, prompts)
  chosen = [features.fid(fid_weights)] if fid_weights else []
  chosen += [features.fvd(fvd_weights)] if fvd_weights else []
  if shapes:
    moving = made.spec.num_frames > 1
    chosen += [shape_features.frames(), *([shape_features.clips()] if moving else [])]
  _fitting(chosen, made.spec.num_frames)
  scorer = None if clip is None else clip_score.load(clip, widen=widen)
  settings = {"batch_size": batch_size, "mesh": devices, "seed": seed, "progress": _bar}
  found = compared(*(measure(clips, chosen, scorer, **settings) for clips in (made, real)))
  Console(width=None if sys.stdout.isatty() else 120).print(report.table(found))
  if out is not None:
    report.save(out, found)


def _bar(items: Sequence, what: str) -> Iterable:
  return counted(items, what, "files")


def _comparable(made: ClipSet, real: ClipSet) -> None:
  if (made.spec.num_frames > 1) != (real.spec.num_frames > 1):
    kinds = ("videos" if clips.spec.num_frames > 1 else "pictures" for clips in (made, real))
    raise InputError(
      "metrics: generated are {}, reference are {}; give folders of one kind, or --frames 1".format(
        *kinds
      )
    )
  rates = made.spec.fps, real.spec.fps
  if made.spec.num_frames > 1 and not 0.998 < rates[0] / rates[1] < 1.002:
    raise InputError(
      f"metrics: generated clips have {rates[0]:g} fps and those of reference {rates[1]:g}; motion "
      f"compares at one rate only: give --fps, at most {min(rates):g}"
    )


def _fitting(chosen: Sequence[Features], num_frames: int) -> None:
  for f in chosen:
    if num_frames < f.least_frames:
      raise InputError(
        f"metrics: {f.name} takes clips of {f.least_frames} frames or more, and these have "
        f"{num_frames}; give longer ones, or leave it out"
      )
