"""What users install: a wheel out of the source distribution, in an environment of its own.

README's commands and its Python run there, outside the tree and in their order, with less work:
`LESS` holds what is added to them.
"""

import email
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import numpy as np
import PIL.Image
import pytest
from packaging.requirements import Requirement

from emu_jax.media import save_video
from tests import tiny_public

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
SOURCES = ("emu_jax", "train", "configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE")

SHORT = ["--steps", "2"]
TINY = shlex.split(
  "--loop.num_steps 1 --loop.validate_every 0 --loop.sample_every 0 --data.batch_size 2 "
  "--system.image.size 16 16 --system.image.first_stage.config.channels 8 "
  "--system.image.first_stage.config.norm_groups 4 --system.image.unet.num_res_blocks 1 "
  "--system.image.unet.channels 32 --system.image.unet.transformer_depth 1 "
  "--system.image.text.0.num_layers 1"
)
# What is added to a line that begins so. Of 37 frames 8 are drawn: tests/test_shipped.py asks for
# the rest. Lines of full size need real weights, or minutes of the compiler: all their options are
# read, and they list the fields instead of training.
LESS = {
  "emu-jax sample": [*SHORT, "--frames", "8"],
  "emu-jax sample a lighthouse": SHORT,
  "emu-jax animate": [*SHORT, *shlex.split("--frames 2 --height 64 --width 64")],
  "emu-jax evaluate": [*SHORT, *shlex.split("--num-prompts 1 --batch-size 1")],
  "emu-jax convert": [],
  "emu-train prepare": ["--size", "16"],
  "emu-train run --config sprites_64": TINY,
  "emu-train run --config emu_video_sd15_256": ["--fields"],
  "emu-train plan": [],
}

DRIVER = """
import importlib.metadata, json, sys, time
started = time.time()
import emu_jax.train.command
from emu_jax.config import override

def read_only(plan, words):
  override(emu_jax.train.config.load_stages(str(plan.config))[-1], words)

emu_jax.train.command.planning.main = read_only  # compiling a real config for a pod takes minutes
mains = {e.name: e.load() for e in importlib.metadata.entry_points(group="console_scripts")
         if e.name in ("emu-jax", "emu-train")}
assert emu_jax.__file__.startswith(sys.prefix), emu_jax.__file__
assert emu_jax.__version__ == importlib.metadata.version("emu-jax")
for name, *words in json.loads(sys.argv[1]):
  print(f"{time.time() - started:.0f} s $", name, *words, flush=True)
  try:
    mains[name](words)
  except SystemExit as ended:
    if ended.code:
      raise
print(f"{time.time() - started:.0f} s Python", flush=True)
exec(sys.argv[2], found := {})
print(found["frames"].shape, found["fps"])
"""


def blocks(kind):
  return re.findall(rf"^```{kind}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
  """README's lines of our two commands, as words."""
  lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
  return [shlex.split(line, comments=True) for line in lines if line.startswith("emu-")]


def with_less(words):
  begins = " ".join(words)
  return [*words, *LESS[max((start for start in LESS if begins.startswith(start)), key=len)]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, built from the source distribution of a copy of the tree."""
  base = tmp_path_factory.mktemp("wheel")
  tree, out = base / "tree", base / "out"
  tree.mkdir()
  ignored = shutil.ignore_patterns("__pycache__")
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    else:
      shutil.copy(ROOT / name, tree / name)
  build = "from setuptools import build_meta; import sys; build_meta.build_{}(sys.argv[1])"
  out.mkdir()
  for kind in ("sdist", "wheel"):
    words = [sys.executable, "-c", build.format(kind), str(out)]
    subprocess.run(words, cwd=tree, check=True, capture_output=True)
    if kind == "sdist":
      (archive,) = out.glob("*.tar.gz")
      shutil.unpack_archive(archive, base, filter="data")
      tree = base / archive.name.removesuffix(".tar.gz")
  (found,) = out.glob("*.whl")
  return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
  """Python of a new environment that has the wheel, and sees what is installed here besides."""
  folder = tmp_path_factory.mktemp("environment")
  venv.create(folder)
  site = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
  (site / "installed_here.pth").write_text(sysconfig.get_path("purelib"))
  program = folder / "bin" / "python"
  pip = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet"]
  subprocess.run([*pip, "--ignore-installed", "--no-deps", "--no-index", str(wheel)], check=True)
  return program


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder that has what README speaks of: clips, a picture, prompts and public pipelines."""
  folder = tmp_path_factory.mktemp("outside")
  (folder / "my_clips").mkdir()
  random, lines = np.random.default_rng(0), []
  for i in range(8):
    frames = np.repeat(random.integers(0, 256, (8, 1, 1, 3), np.uint8), 16, 1).repeat(16, 2)
    save_video(folder / "my_clips" / f"{i}.mp4", frames, 8)
    lines.append(f'{{"file_name": "{i}.mp4", "text": "a brown character walking to the left"}}\n')
  (folder / "my_clips" / "metadata.jsonl").write_text("".join(lines))
  PIL.Image.new("RGB", (20, 24), "teal").save(folder / "first.png")
  (folder / "prompts.txt").write_text("a brown character walking to the left\n")
  tiny_public.stable_diffusion(folder / "models" / "stable-diffusion-v1-5")
  tiny_public.stable_video(folder / "models" / "stable-video-diffusion")
  return folder


def run(python, words, place):
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  done = subprocess.run(
    [str(python), *words], cwd=place, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  return done.stdout


def python_with_less():
  """README's Python, with less work."""
  (code,) = blocks("python")
  less = {
    'black background"])': 'black background"], steps=2)',
    "size=(64,)": "size=(16,)",
    '["--data.sources", "data/my_clips"]': f'["--data.sources", "data/my_clips", *{TINY!r}]',
  }
  for old, new in less.items():
    assert old in code
    code = code.replace(old, new)
  return code


def test_the_lines_and_the_python_of_the_readme_run_from_a_wheel(python, place):
  """In one process, which imports and compiles once. Python comes last, and finds all made."""
  lines = json.dumps([with_less(words) for words in commands()])
  said = run(python, ["-c", DRIVER, lines, python_with_less()], place)
  for name in ("circle.mp4", "up.gif", "walk.mp4", "mine.gif", "lighthouse.png", "lighthouse.mp4"):
    assert (place / name).stat().st_size, name
  assert len(list((place / "clips").glob("*.mp4"))) == 4
  assert (place / "mine" / "model.safetensors").is_file()
  assert "(1, 8, 64, 64, 3) 4.0" in said
  assert "runs/mine/video: complete at step 1" in said


def test_a_command_of_the_wheel_starts_and_finds_a_config_by_name(python, place):
  said = run(python.with_name("emu-train"), ["run", "--config", "shapes_64", "--fields"], place)
  assert "--loop.num-steps" in said


def test_a_wheel_holds_one_package_with_its_weights_types_and_licence(wheel):
  files = set(zipfile.ZipFile(wheel).namelist())
  info = next(name for name in files if name.endswith("METADATA")).removesuffix("METADATA")
  assert {name.split("/")[0] for name in files} == {"emu_jax", info.rstrip("/")}
  for folder, package in (
    ("emu_jax", "emu_jax"),
    ("train", "emu_jax/train"),
    ("configs", "emu_jax/configs"),
  ):
    sources = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
    assert {f"{package}/{path.as_posix()}" for path in sources} <= files
  for name in (
    "py.typed",
    "shipped/shapes_64/model.safetensors",
    "evaluation/shape_features.safetensors",
    "evaluation/juice/static/index.html",
  ):
    assert f"emu_jax/{name}" in files
  assert {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= files
  about = email.message_from_bytes(zipfile.ZipFile(wheel).read(f"{info}METADATA"))
  assert about["License-Expression"] == "Apache-2.0"
  extras = {"tpu", "cuda13", "plan", "beam", "wandb", "test", "reference", "docs"}
  assert set(about.get_all("Provides-Extra")) == extras


def pins(file):
  """name -> version of the lines of a requirements file that pin one."""
  lines = [
    line.split(";")[0].split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()
  ]
  return dict(line.split("==") for line in lines if "==" in line)


def canonical(name):
  return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
  ("file", "extra"),
  [("requirements.txt", None), ("requirements-plan.txt", "plan"), ("requirements-beam.txt", "beam"),
   ("requirements-reference.txt", "reference"), ("requirements-test.txt", "test"),
   ("requirements-docs.txt", "docs")],
)  # fmt: skip
def test_what_is_tested_lies_within_what_is_asked_for(file, extra):
  lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
  ranges = {canonical(r.name): r.specifier for r in map(Requirement, lines)}
  tested = {canonical(name): version for name, version in pins(file).items()}
  for name, version in tested.items():
    assert name in ranges, f"{name} of {file} is not in pyproject.toml"
    assert version in ranges[name], f"{name}=={version} of {file} is outside {ranges[name]}"
  if not extra:
    assert set(tested) == set(ranges)


def test_the_trainer_has_one_name():
  """Two names would be two modules, and a config's Experiment none of the command's."""
  words = [sys.executable, "-c", "import train"]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert "emu_jax.train" in done.stderr.splitlines()[-1]
