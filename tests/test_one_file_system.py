"""A system is a file: one that nothing else knows trains, resumes, shards, plans and samples.

The toy of docs/systems.md is written into a folder of its own with the entry point that a package
would have. It draws clips of one colour, by a network of one kernel.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

import emu_jax
from emu_jax import cli as emu_jax_command
from emu_jax.checkpoints.run import latest_step, load_trees
from emu_jax.systems import registry
from emu_jax.train import command
from tests.tiny_recipe import refusal

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40

# The tutorial's own code.
TOY, CONFIG, _ = re.findall(
  r"^```python\n(.*?)^```", (ROOT / "docs" / "systems.md").read_text(), re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
  """The toy's package on the path, packed clips, and a config file."""
  folder = tmp_path_factory.mktemp("toy")
  (folder / "toy_system.py").write_text(TOY)
  installed = folder / "toy-1.0.dist-info"
  installed.mkdir()
  (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
  (installed / "entry_points.txt").write_text(
    f"[{registry.ENTRY_POINTS}]\ntoy = toy_system:Toy\nbroken = toy_system:Absent\n"
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    sizes = ["--size", "16", "--num-images", "8", "--num-clips", "40"]
    command.main(["prepare", "shapes", "--out", str(folder / "shapes"), *sizes])
    clips = str(folder / "shapes" / "videos")
    assert f"num_steps={STEPS}," in CONFIG
    (folder / "toy_config.py").write_text(CONFIG.replace("data/shapes/videos", clips))
    yield folder


def start(house, out, *words, devices=1):
  """`emu-train run` in a process of its own."""
  path = os.pathsep.join([str(house), str(ROOT)])
  flags = f"--xla_force_host_platform_device_count={devices}"
  environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  train = "import sys; from emu_jax.train.command import main; main(sys.argv[1:])"
  words = ["run", "--config", str(house / "toy_config.py"), "--out", str(out), *words]
  return subprocess.Popen(
    [sys.executable, "-c", train, *words], env=environment, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def finished(process):
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


@pytest.fixture(scope="module")
def run(house):
  """A run that was never stopped."""
  requests = house / "requests.jsonl"
  requests.write_text('{"seed": 3, "brightness": 0.25}\n{"seed": 4}\n')
  drawn = ["--monitor.prompts", str(requests), "--monitor.prompts_every", str(STEPS // 2)]
  finished(start(house, house / "runs", *drawn))
  return house / "runs" / "colour"


def kernel(run):
  return load_trees(run)["net"]["kernel"]


def test_killed_and_continued_it_ends_as_if_it_had_never_stopped(house, run):
  out = house / "killed"
  process = start(house, out)
  while (latest_step(out / "colour") or 0) < 3 and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = latest_step(out / "colour")
  assert before is not None
  assert before < STEPS, "the run ended before it was killed; give it more steps"
  assert "continuing from step" in finished(start(house, out))
  np.testing.assert_array_equal(kernel(out / "colour"), kernel(run))


def test_on_four_devices_it_trains_the_same(house, run):
  """A mean over four parts rounds otherwise, by 1e-7 of the gradients of single examples.

  Where these cancel that is 1e-4 of their sum, and AdamW divides by its size: updates of at most
  1e-2 each may differ by 1e-4 of that.
  """
  finished(start(house, house / "four", "--mesh.fsdp", "2", devices=4))
  found = kernel(house / "four" / "colour")
  np.testing.assert_allclose(found, kernel(run), atol=STEPS * 1e-2 * 1e-4)


def test_it_learns(run):
  losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in losses if "train/loss" in line]
  assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_it_draws_by_the_command_and_from_python_alike(house, run, tmp_path, capsys):
  model = emu_jax.load(run)
  assert list(model.tasks) == ["paint"]
  clips = model.paint(seed=3, brightness=0.25)
  assert clips.frames.shape == (1, 2, 16, 16, 3)
  assert clips.fps == 4.0
  assert np.all(clips.frames == clips.frames[:, :1, :1, :1])
  out = tmp_path / "paint.png"
  words = ["paint", "--checkpoint", str(run), "--seed", "3", "--brightness", "0.25"]
  emu_jax_command.main([*words, "--enlarge", "1", "--out", str(out)])
  from PIL import Image

  drawn = np.asarray(Image.open(out).convert("RGB"))
  np.testing.assert_array_equal(drawn[8, 8], clips.frames[0, 0, 8, 8])
  with pytest.raises(SystemExit) as ended:
    emu_jax_command.main(["paint", "--checkpoint", str(run), "--help"])
  assert ended.value.code == 0
  assert "added to the colour" in capsys.readouterr().out


def test_requests_are_drawn_while_it_trains(run):
  """By the weights of the step: the last drawing is what the run's model draws."""
  samples = run / "samples"
  assert sorted(p.name for p in samples.iterdir()) == [f"{n:08d}" for n in (STEPS // 2, STEPS)]
  rows = [json.loads(line) for line in (samples / f"{STEPS:08d}" / "metadata.jsonl").open()]
  assert [(row["file_name"], row["seed"]) for row in rows] == [
    ("00000_00.mp4", 3),
    ("00001_00.mp4", 4),
  ]
  model = emu_jax.load(run)
  for row, fields in zip(rows, ({"seed": 3, "brightness": 0.25}, {"seed": 4}), strict=True):
    with av.open(samples / f"{STEPS:08d}" / row["file_name"]) as file:
      found = next(file.decode(video=0)).to_ndarray(format="rgb24")[0, 0]
    wanted = model.paint(**fields).frames[0, 0, 0, 0]
    assert np.abs(found.astype(int) - wanted).max() <= 4  # of one colour in H.264


def test_its_best_checkpoint_is_a_model_by_its_name(run):
  best = {"step": STEPS - 1, "value": 0.5}
  record = run / "best.json"
  record.write_text(json.dumps({"metric": "m", "is": "lowest", "best": best, "before": None}))
  try:
    found = emu_jax.load(run / "best").trees["net"]["kernel"]
  finally:
    record.unlink()
  np.testing.assert_array_equal(found, load_trees(run, step=STEPS - 1)["net"]["kernel"])
  assert not np.array_equal(found, kernel(run))


def test_it_becomes_a_release_that_draws_the_same(house, run, tmp_path):
  target = tmp_path / "release"
  emu_jax_command.main(["convert", str(run), str(target), "--to", "safetensors"])
  ours, theirs = (emu_jax.load(folder).paint(seed=5).frames for folder in (run, target))
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-plan)"
)
def test_it_is_planned(house, tmp_path, capsys):
  words = ["--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json"), "--memory-only"]
  command.main(["plan", "--config", str(house / "toy_config.py"), *words])
  (found,) = json.loads((tmp_path / "plan.json").read_text())
  assert found["stage"] == "colour"
  assert found["fits"]


def test_what_it_has_not_is_refused_in_a_line(house, run, tmp_path, capsys):
  ask = lambda *words: refusal(emu_jax_command.main, words, capsys)
  assert "paint" in ask("sample", "a prompt", "--checkpoint", run)
  assert "--frames" in ask("paint", "--checkpoint", run, "--frames", "8")
  newer = tmp_path / "newer"
  newer.mkdir()
  (newer / "config.json").write_text(json.dumps({"version": 99, "system": {"@kind": "toy"}}))
  (newer / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
  assert "newer version" in ask("paint", "--checkpoint", newer)
  unknown = json.dumps({"version": 2, "system": {"@kind": "nobody"}})
  (newer / "config.json").write_text(unknown)
  assert "'nobody' is unknown" in ask("paint", "--checkpoint", newer)
  (newer / "config.json").write_text(unknown.replace("nobody", "broken"))
  assert "does not import" in ask("paint", "--checkpoint", newer)


# What a module may not name: the classes and modules of systems. Docstrings and comments may.
HOME = ("emu_jax/systems/", "configs/", "experiments/", "tests/", "benchmarks/")


def names_in(path):
  """Identifiers, imported modules and words of strings of a file, its docstrings left out."""
  tree = ast.parse(path.read_text())
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
  docs = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
  # A string that stands alone behind a field is its help.
  docs |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      yield node.id
    elif isinstance(node, ast.Attribute) and node.attr[0].isupper():
      yield node.attr  # of lower case svd is a decomposition, too
    elif isinstance(node, ast.alias):
      yield from node.name.split(".")
    elif isinstance(node, ast.ImportFrom):
      yield from (node.module or "").split(".")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
      yield from node.value.replace("/", " ").replace(".", " ").replace(":", " ").split()


def test_no_other_module_names_a_system():
  systems = {registry.system_class(name) for name in registry.BUILT_IN}
  words = {cls.__name__ for cls in systems} | set(registry.BUILT_IN) - {"emu"}
  found = []
  for package in ("emu_jax", "train"):
    for path in sorted((ROOT / package).rglob("*.py")):
      relative = str(path.relative_to(ROOT))
      if not relative.startswith(HOME):
        found += [f"{relative}: {name}" for name in set(names_in(path)) & words]
  assert not found
