"""Container and job files: linters, schemas, and a dry run that reads the commands they give."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from emu_jax.config import override
from emu_jax.train import command, packing
from emu_jax.train.config import load_stages

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
JOBS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.33"  # whose schemas are asked


def tool(name):
  """A program that came by pip with the tests, or is on the path."""
  search = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  found = shutil.which(name, path=search)
  return found or pytest.skip(f"{name} is not installed (requirements-test.txt)")


def commanded(words, monkeypatch):
  """What a command line of emu-train asks for, parsed as it does: `Prepare`, or experiments.

  Nothing is packed, trained, encoded or compiled.
  """
  found = []

  def experiments(arguments, rest):
    for stage in load_stages(str(arguments.config)):
      if not arguments.stage or stage.run_name in arguments.stage:
        found.append(override(stage, rest))

  for module, name in ((command, "run"), (command, "encode_source"), (command.planning, "main")):
    monkeypatch.setattr(module, name, experiments)
  monkeypatch.setattr(command, "prepare", lambda arguments, rest: found.append(arguments))
  command.main(words)
  return found


def test_the_dockerfile_passes_its_linter_and_copies_what_there_is():
  done = subprocess.run(
    [tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
  kept = (ROOT / ".dockerignore").read_text().splitlines()
  lines = (ROOT / "Dockerfile").read_text().splitlines()
  for line in (line for line in lines if line.startswith("COPY")):
    for name in line.split()[1:-1]:
      assert (ROOT / name).exists(), name
      assert f"!{name}" in kept, f".dockerignore keeps {name} from the build"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_slurm_script_passes_its_linter_and_gives_a_command(path, tmp_path, monkeypatch):
  done = subprocess.run([tool("shellcheck"), str(path)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  srun = tmp_path / "srun"
  code = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
  srun.write_text(code)
  srun.chmod(0o755)
  given = {"CONFIG": "sprites_64", "CLIPS": "clips", "RECORDS": "records", "RUNS": "runs/a b"}
  search = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
  environment = os.environ | given | {"PATH": search, "SLURM_CPUS_PER_TASK": "7"}
  extra = ["--size", "32"] if path.stem == "prepare" else ["--mesh.fsdp", "4"]
  out = subprocess.run(
    ["bash", str(path), *extra], env=environment, capture_output=True, text=True, check=True
  ).stdout
  program, *words = json.loads(out)
  assert program == "emu-train"
  for found in commanded(words, monkeypatch):
    if isinstance(found, packing.Prepare):
      assert (found.source, found.workers, found.size) == ("clips", 7, (32,))
      continue
    assert found.data.sources == ("records",)
    assert found.mesh.fsdp == 4
    assert words[words.index("--out") + 1] == "runs/a b"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_slurm_script_names_what_it_lacks(path):
  absent = {"CONFIG", "CLIPS", "RECORDS", "RUNS"}
  environment = {name: value for name, value in os.environ.items() if name not in absent}
  done = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True)
  assert done.returncode != 0
  assert "a folder of clips" in done.stderr or "a config file" in done.stderr


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_kubernetes_job_has_its_schema_and_gives_a_command(path, monkeypatch):
  """A JobSet holds templates of jobs; its own fields are no part of Kubernetes' schemas."""
  validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed (requirements-test.txt)"
  )
  job = yaml.safe_load(path.read_text())
  if job["kind"] == "JobSet":
    (replicated,) = job["spec"]["replicatedJobs"]
    assert replicated["template"]["spec"]["backoffLimit"] == 0, "JobSet restarts all, a job none"
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": job["metadata"]}
    job["spec"] = replicated["template"]["spec"]
  validate.validate(job, KUBERNETES, strict=True)
  (container,) = job["spec"]["template"]["spec"]["containers"]
  program, *words = container["command"]
  assert program == "emu-train"
  mount = container["volumeMounts"][0]["mountPath"]
  assert words[words.index("--out") + 1].startswith(mount)
  (devices,) = container["resources"]["limits"].values()
  experiments = commanded(words, monkeypatch)
  assert experiments
  for experiment in experiments:
    experiment.check_mesh(job["spec"].get("completions", 1) * devices)
