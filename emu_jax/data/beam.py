"""A folder of captioned clips -> the records of `folder`, packed by an Apache Beam pipeline.

Each shard is packed whole by one worker, so that no frame travels through Beam, and a retried
bundle does not repeat a finished shard.

Clips and records lie where every worker can reach them under the same path: a disk, NFS, Lustre,
or a bucket that is mounted. Apache Beam is needed for this module alone.
"""

import contextlib
import io
import pathlib
import re
from collections.abc import Sequence

from emu_jax.data import folder as packing
from emu_jax.data.folder import CLIPS_PER_SHARD, Options, Report, Run, Shard
from emu_jax.errors import InputError

# Beam's DirectRunner would first try to download a runner of another language.
DEFAULT_RUNNER = "--runner=FnApiRunner"


def prepare_folder(
  folder: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  options: Options,
  clips_per_shard: int = CLIPS_PER_SHARD,
  beam_options: Sequence[str] = (),
  overwrite: bool = False,
  progress: bool = True,
) -> Report:
  """Packs as `folder.prepare_folder` does, on the workers of a Beam runner.

  The files, records, their order, the index and the report are the same. A killed or failed run is
  continued by the same call.

  Args:
    clips_per_shard: of one file at most; a kill costs a worker no more.
    beam_options: flags of Beam and its runner, `--runner=…` among them; without one the pipeline
      runs in this process.

  Raises:
    InputError: as `folder.prepare_folder`, or no Beam, or flags that it refuses.
  """
  for name, path in (("folder", folder), ("out", out)):
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):  # pathlib makes one slash of two
      raise InputError(
        f"prepare: {name}={path} is an address, clips and records need a path; mount the bucket "
        "on every worker and name the mounted folder"
      )
  if clips_per_shard < 1:  # before Beam is looked for
    raise InputError(f"prepare: clips_per_shard={clips_per_shard} is below 1; raise it")
  return packing.pack(
    folder, out, options=options, clips_per_shard=clips_per_shard, overwrite=overwrite,
    progress=progress, run=_runner(beam_options),
  )  # fmt: skip


def _runner(flags: Sequence[str]) -> Run:
  """A function of (shards, pack) that runs the pipeline to its end; Beam refuses flags now."""
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
  except ImportError as error:
    raise InputError(
      f"prepare: the runner beam needs Apache Beam ({error}); install requirements-beam.txt, or "
      "leave --runner beam away"
    ) from error
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      parsed = PipelineOptions(list(flags))
      if parsed.view_as(StandardOptions).runner is None:
        parsed = PipelineOptions([DEFAULT_RUNNER, *flags])
      parsed.get_all_options()  # parses them all, which the constructor does not
      beam.runners.create_runner(parsed.view_as(StandardOptions).runner)
  except (SystemExit, ValueError, ImportError) as error:  # argparse's, an unknown or absent runner
    reason = (said.getvalue().strip() or str(error)).splitlines()[-1]
    raise InputError(
      f"prepare: Apache Beam refuses {' '.join(flags)} ({reason}); give flags of its runner"
    ) from error

  def run(planned: Sequence[Shard], pack) -> None:
    if not planned:
      return
    with beam.Pipeline(options=parsed) as pipeline:
      # Without the reshuffle a runner may keep all shards in the one worker that lists them.
      _ = pipeline | beam.Create(planned) | beam.Reshuffle() | beam.Map(pack)

  return run
