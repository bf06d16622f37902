"""Every study: its cells, what it says of figures that are as claimed or are not, and its page."""

import json
import pathlib
import types

import chex
import numpy as np
import pytest

from emu_jax.model import SHIPPED, load
from emu_jax.systems.svd import Animate
from experiments import pixel_model, recipe, report, run, sampling
from experiments.artefact import Artefact, made
from experiments.studies import (
  STUDIES,
  brightness,
  brightness_growth,
  convergence,
  factorized,
  frozen,
  guidance,
  identity,
  interpolation,
  multistage,
  stable_video,
)
from experiments.study import Results, verdict
from tests import tiny_recipe

SEEDS = 3


def values(rng, metrics):
  """Twenty samples a metric, around the given means."""
  return {name: mean + rng.normal(0, 0.01, 20) for name, mean in metrics.items()}


def results(arms):
  """Three seeds of each arm's means."""
  rng = np.random.default_rng(0)
  return Results({arm: [values(rng, m) for _ in range(SEEDS)] for arm, m in arms.items()})


CLIPS = ("joint", "appearance", "direction", "consistency", "motion", "colour", "shape")


def better(name, claimed, metrics=CLIPS):
  """The first arm of every pair above the second, or below it."""
  first = {a for a, _ in STUDIES[name].pairs}
  arms = dict.fromkeys(arm for pair in STUDIES[name].pairs for arm in pair)
  level = lambda arm: 0.8 if (arm in first) == claimed else 0.4
  return results({arm: dict.fromkeys(metrics, level(arm)) for arm in arms})


def of_identity(claimed):
  exact = lambda **metrics: [{k: np.full(4, v) for k, v in metrics.items()}] * SEEDS
  named = lambda changed, apart: exact(**{"changed weights": changed, "picture difference": apart})
  off = 0.0 if claimed else 1.0
  return Results(
    {
      identity.START: exact(**{"output difference": 1e-7 + off}),
      identity.FROZEN: named(off, off),
      identity.TUNED: named(500.0, 0.3),
    }
  )


def of_convergence(claimed):
  steps = np.arange(20.0, 420, 20)
  curve = lambda scale: {"step": steps, "loss": 0.3 + np.exp(-steps / scale)}
  fast, slow = ([curve(s + i) for i in range(SEEDS)] for s in (50, 100))
  return Results({convergence.IDENTITY: fast, convergence.RANDOM: slow if claimed else fast})


def spread(share):
  """Three seeds of brightness with a share of the data's spread."""
  even = np.linspace(-1, 1, 101) * share
  rng = np.random.default_rng(0)
  zero = np.zeros(101)
  return [
    {"brightness": rng.permutation(even), "drift": zero, "noise": zero, "expected": zero + share}
    for _ in range(SEEDS)
  ]


def of_brightness(claimed):
  kept = {brightness.SD: 0.4, brightness.EPS: 0.4, brightness.ZERO: 0.97 if claimed else 0.4}
  return Results({name: spread(share) for name, share in kept.items()})


def of_brightness_captions(claimed):
  near, far = (0.02, 0.4) if claimed else (0.4, 0.02)
  goals = np.resize([-1.0, 1.0], 20)
  seeds = lambda off: (
    [{"brightness": goals * (1 - off), "asked": goals, "off": np.full(20, off), "noise": goals * 0}]
    * SEEDS
  )
  kept = {brightness.ZERO: near, brightness.SD: far, brightness.EPS: far}
  return Results({name: seeds(off) for name, off in kept.items()})


def of_brightness_growth(claimed):
  """The gap grows in the claimed order, or falls."""
  order = [("picture", 16), ("picture", 32), ("picture", 64), ("direct", 16), ("factorized", 16)]
  gaps = [0.1, 0.3, 0.5, 0.2, 0.4] if claimed else [0.5, 0.3, 0.1, 0.4, 0.2]
  return Results(
    {
      brightness_growth.arm(*which, name): spread(0.95 - (gap if name == brightness.SD else 0))
      for which, gap in zip(order, gaps, strict=True)
      for name in (brightness.SD, brightness.ZERO)
    }
  )


def of_brightness_exact(claimed):
  study = STUDIES["brightness_exact"]
  cells = study.cells("tiny", 0)
  measured = {name: cell.measure(()) for name, cell in cells.items()}
  if not claimed:
    for found in measured.values():
      found["SD, closed form"] = [2.0]
  return Results({n: [{k: np.array(v) for k, v in m.items()}] for n, m in measured.items()})


def of_guidance(claimed):
  sign = 1 if claimed else -1
  motion = lambda text, image: 10 + sign * (text - 3 * image)
  arms = {(t, i): motion(t, i) for t in guidance.TEXT for i in guidance.IMAGE}
  return results(
    {
      guidance.arm(*which): {"motion": m, "direction": 1, "consistency": 1, "off the picture": 0}
      for which, m in arms.items()
    }
  )


def of_interpolation(claimed):
  good, bad = (30.0, 20.0) if claimed else (20.0, 30.0)
  errors = lambda psnr: dict.fromkeys(interpolation.ERRORS, 40.0 - psnr) | {
    "PSNR between": psnr, "PSNR outside": psnr
  }  # fmt: skip
  kept = 35.0 if claimed else 15.0
  ways = {interpolation.KEPT: kept, interpolation.MODEL: good}
  ways |= {interpolation.WITH: good, interpolation.WITHOUT: bad}
  ways |= dict.fromkeys(interpolation.PLAIN, bad)
  arms = {
    interpolation.arm(way, keys): errors(p)
    for way, p in ways.items()
    for keys in interpolation.KEYS
  }
  uneven = lambda wrong: dict.fromkeys((*interpolation.PATHS, "ghost"), wrong)
  arms |= {
    interpolation.arm(way, interpolation.GENERATED): uneven(40.0 - ways[way])
    for way in (interpolation.MODEL, interpolation.KEPT, *interpolation.PLAIN)
  }
  spike = {"published": 5.0, "gapless": 1.2 if claimed else 9.0}
  arms |= {f"16 frames, {s} seam": {"seam": v, "seam, drawn": 1.1} for s, v in spike.items()}
  return results(arms)


def of_multistage(claimed):
  joint, distance = (0.8, 0.4, 0.75), (2.0, 5.0, 2.5)
  if not claimed:
    joint, distance = (0.4, 0.8, 0.2), (5.0, 2.0, 5.0)
  arms = (multistage.MULTI, multistage.SINGLE, multistage.TENTH)
  return results(
    {
      arm: dict.fromkeys(multistage.METRICS, share) | {"FVD-o": far}
      for arm, share, far in zip(arms, joint, distance, strict=True)
    }
  )


def of_frozen(claimed):
  metrics = {"share": frozen.METRICS, "far": ("FID-o",)}
  kept, lost = ({"share": 0.8, "far": 2.0}, {"share": 0.4, "far": 5.0})
  arms = (frozen.FROZEN, frozen.TUNED) if claimed else (frozen.TUNED, frozen.FROZEN)
  mean = lambda of: {m: of[kind] for kind, names in metrics.items() for m in names}
  return results({arm: mean(of) for arm, of in zip(arms, (kept, lost), strict=True)})


def of_stable_video(claimed):
  moves = dict(zip(stable_video.BUCKETS, (1.0, 2.0, 3.0), strict=True))
  off = {stable_video.GROWS: 0.01, **dict.fromkeys(stable_video.CONSTANT, 0.05)}
  if not claimed:
    moves = {motion: 4.0 - pixels for motion, pixels in moves.items()}
    off = {way: 0.06 - distance for way, distance in off.items()}
  common = dict.fromkeys(stable_video.METRICS, 0.5)
  arm = lambda pixels, distance: common | {"pixels a frame": pixels, "off the picture": distance}
  arms = {
    stable_video.bucket(m): arm(pixels, off[stable_video.GROWS]) for m, pixels in moves.items()
  }
  arms[stable_video.TWICE] = arm(moves[stable_video.QUICK] - (0.9 if claimed else -0.9), 0.01)
  arms |= {stable_video.guidance(way): arm(3.0, off[way]) for way in stable_video.CONSTANT}
  return results(arms | dict.fromkeys((stable_video.SVD, stable_video.EMU_VIDEO), arm(2.0, 0.02)))


FIGURES = {
  "identity": of_identity,
  "convergence": of_convergence,
  "brightness_exact": of_brightness_exact,
  "brightness": of_brightness,
  "brightness_captions": of_brightness_captions,
  "brightness_growth": of_brightness_growth,
  "factorized": lambda claimed: better("factorized", claimed),
  "guidance": of_guidance,
  "high_motion": lambda claimed: better("high_motion", claimed),
  "multistage": of_multistage,
  "interpolation": of_interpolation,
  "frozen": of_frozen,
  "stable_video": of_stable_video,
}


def test_every_study_is_judged_here():
  assert set(FIGURES) == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_its_figures_say(name, tmp_path):
  study = STUDIES[name]
  command = {"command": "…", "size": "tiny", "seeds": SEEDS}
  criteria = report.write(study, FIGURES[name](True), tmp_path, command)
  assert verdict(criteria) == "holds", [(c.text, c.found) for c in criteria]
  assert "**The claim holds**" in (tmp_path / f"{name}.md").read_text()
  assert json.loads((tmp_path / f"{name}.json").read_text())["verdict"] == "holds"
  assert verdict(study.judge(FIGURES[name](False))) == "does not hold"


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("size", ["tiny", "default"])
def test_cells_say_all_that_they_depend_on(name, size):
  options = lambda seed: {
    arm: ([a.name for a in cell.of], json.loads(json.dumps(cell.options)))
    for arm, cell in STUDIES[name].cells(size, seed).items()
  }
  assert options(0) == options(0)
  if name != "brightness_exact":
    assert all(
      one != other for one, other in zip(options(0).values(), options(1).values(), strict=True)
    )


def test_arms_of_a_study_differ_in_what_is_compared_and_nothing_else():
  """The frozen and the tuned arm have the same image model, data and prompts."""
  cells = STUDIES["frozen"].cells("default", 0)
  frozen, tuned = (cells[arm].of[0] for arm in ("frozen", "tuned"))
  assert [part.name for part in frozen.parts] == [part.name for part in tuned.parts]
  one, other = (artefact.spec["experiment"] for artefact in (frozen, tuned))
  differ = lambda a, b: {name for name in a if a[name] != b[name]}
  assert differ(one, other) == {"system"}
  assert differ(one["system"], other["system"]) == {"train_spatial"}


def test_studies_begin_with_the_packages_image_model_and_nothing_that_crosses_frames(tmp_path):
  trees = load(made(recipe.released(SHIPPED, "image"), tmp_path)).trees
  shipped = load(SHIPPED).trees
  assert set(trees) == {"autoencoder", "latents", "text", "spatial"}
  chex.assert_trees_all_equal(trees, {name: shipped[name] for name in trees})


def test_a_study_of_the_finished_model_has_all_of_it(tmp_path):
  whole = made(recipe.recipe("default").whole(), tmp_path)
  chex.assert_trees_all_equal(load(whole).trees, load(SHIPPED).trees)


@pytest.fixture
def pretended(monkeypatch):
  """Training that leaves a folder, and models that draw noise of the right shape."""
  rng = np.random.default_rng(0)
  noise = lambda n, t, side=16: rng.integers(0, 255, (n, t, side, side, 3), np.uint8)
  side_of = lambda pictures: () if pictures is None else pictures.shape[2:3]

  def train_part(experiment, folder):
    folder.mkdir(exist_ok=True)
    lines = [{"step": step, "validation/loss": 1 / step} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return True

  def train(stage, data, *, run_dir, loop, **options):
    run_dir.mkdir(exist_ok=True)
    return types.SimpleNamespace(step=loop.num_steps)

  shipped = load(SHIPPED)

  def drawn(model, texts, fields, given):
    model.request("sample", prompt=tuple(texts), **fields)  # its checks
    return noise(len(texts), fields["frames"], *side_of(given))

  def between(model, texts, fields, keys):
    assert len(keys) == len(texts)
    shape = len(texts), {8: 37, 16: 65}[keys.shape[1]], *keys.shape[2:]
    return rng.integers(0, 255, shape, np.uint8)

  def with_layers(image, seed):
    build = lambda folder, parts: folder.mkdir(exist_ok=True) or True
    return Artefact("random-layers", {"seed": seed}, (image,), build)

  def sample(net, key, first, caption, *, model, sampling, num):
    assert (first is None) == (not model.told)
    assert (caption is None) == (not model.captioned)
    return rng.normal(size=(num, *model.shape))

  def animated(fields, given):
    Animate(picture=given, **fields)  # its checks
    return noise(len(given), fields["frames"], *side_of(given))

  direct = lambda model, texts, fields, given: noise(len(texts), 8)
  exact = lambda image, seed, num: {"output difference": np.zeros(num)}
  same = lambda *given: {"changed weights": np.zeros(1), "picture difference": np.zeros(2)}
  for module, fakes in {
    recipe.command: {"train_part": train_part},
    pixel_model: {"train": train},
    sampling: {"load": lambda folder: shipped, "sample": drawn},
    interpolation: {"between": between, "coded": lambda model, *given: given[-1]},
    factorized: {"direct": direct},
    convergence: {"image_with_random_layers": with_layers},
    brightness: {"sample": sample, "averaged": lambda folder: None},
    stable_video: {"animate": lambda model, texts, fields, given: animated(fields, given)},
    identity: {"at_start": exact, "after_training": same},
  }.items():
    for name, fake in fakes.items():
      monkeypatch.setattr(module, name, fake)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_from_data_to_page(pretended, runs, name, tmp_path, capsys):
  """All but the networks is real: records, prompts, the oracle, statistics, the page."""
  with tiny_recipe.one_device():
    words = ["--size", "tiny", "--seeds", "2", "--out", str(tmp_path), "--runs", str(runs)]
    run.main([name, *words])
  assert f"{name}: the claim " in capsys.readouterr().out
  page = (tmp_path / f"{name}.md").read_text()
  assert f"`python -m experiments.run {name} --size tiny --seeds 2`" in page
  found = json.loads((tmp_path / f"{name}.json").read_text())
  assert found["setting"]["seeds"] == 2
  assert found["criteria"]
  assert (tmp_path / f"{name}.png").is_file()
  assert f"({name}.md)" in (tmp_path / "studies.md").read_text()


def test_a_study_that_there_is_not_is_named(capsys, tmp_path):
  line = tiny_recipe.refusal(run.main, ["frozne", "--runs", tmp_path], capsys)
  assert "frozne: there is no such study; choose of identity" in line


def test_the_overview_of_the_studies_says_what_their_pages_say():
  pages = pathlib.Path(run.__file__).parents[1] / "docs" / "results"
  assert "\n".join(report.overview(STUDIES.values(), pages)) in (pages / "studies.md").read_text()
