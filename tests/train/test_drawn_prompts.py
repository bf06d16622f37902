"""The user's prompts, drawn of a run's trees while it trains, without a run."""

import json
import pathlib

import jax
import numpy as np
import pytest

from emu_jax.data.tokenizer import load_tokenizer, train_tokenizer
from emu_jax.errors import InputError
from emu_jax.evaluation.evaluators import EVALUATORS, Evaluator, evaluator
from emu_jax.model import Model
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from emu_jax.parallel.placement import place
from emu_jax.train.config import Experiment
from emu_jax.train.evaluations import evaluation_looks
from emu_jax.train.live_model import LiveModel
from emu_jax.train.log import Log
from emu_jax.train.monitor import MonitorConfig
from emu_jax.train.prompts import check_prompts, prompts_look
from tests.tiny import MODEL, trees

IMAGE = ("autoencoder", "latents", "text", "spatial")
LINES = ["a red circle", "a blue square"]


class RecordingLog(Log):
  """What a look shows, by name."""

  def __init__(self):
    self.shown = {}

  def picture(self, step, name, frames, fps, caption=""):
    self.shown[name] = (step, frames.shape, caption)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizers")
  for i in range(len(MODEL.texts)):
    train_tokenizer(LINES, folder / str(i), 300)
  pairs = enumerate(MODEL.texts)
  return tuple(load_tokenizer(folder / str(i), encoder.max_length) for i, encoder in pairs)


def write_requests(folder, *rows):
  path = folder / "prompts.jsonl"
  path.write_text("".join(json.dumps({"steps": 2, **row}) + "\n" for row in rows))
  return path


def experiment_of(part, path, **fields):
  return Experiment(
    MODEL, part, monitor=MonitorConfig(prompts=str(path), prompts_every=3, **fields)
  )


def live_model(where, tokenizers, step_trees, host=(), devices=1):
  """Its trees on a mesh, and what the step does without on the host."""
  mesh = make_mesh(jax.devices()[:devices], MeshConfig(fsdp=min(devices, 2)))
  read = lambda names: {name: trees()[name] for name in names}
  live = LiveModel(MODEL, tokenizers, step_trees, {*step_trees, *host}, read, where, mesh)
  return live, place({name: trees()[name] for name in step_trees}, mesh)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_draws_what_its_model_would(tmp_path, tokenizers, devices):
  """Clips, of trees that the step has and of one that lies on the host; again without compiling."""
  path = write_requests(tmp_path, *({"prompt": prompt} for prompt in LINES))
  in_step = ("autoencoder", "latents", "spatial", "temporal")
  live, placed = live_model(tmp_path, tokenizers, in_step, ("text",), devices)
  (look,) = prompts_look(experiment_of("video", path), live, pytest.fail)
  assert look.every == 3
  ema, frozen = {"temporal": placed["temporal"]}, {n: placed[n] for n in in_step[:3]}
  log = RecordingLog()
  assert look.run(3, ema, frozen, log) == {}
  with pytest.MonkeyPatch.context() as patch:
    compiled = []
    patch.setattr(jax._src.compiler, "compile_or_get_cached", compiled.append)
    look.run(6, ema, frozen, log)
  assert not compiled
  assert log.shown["prompts/00000 a red circle"][0] == 6
  assert log.shown["prompts/00001 a blue square"][1][0] == 8
  first, again = tmp_path / "samples" / "00000003", tmp_path / "samples" / "00000006"
  names = ["00000_00.mp4", "00001_00.mp4", "metadata.jsonl"]
  assert sorted(p.name for p in first.iterdir()) == names
  assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
  if devices > 1:
    return
  model = Model(MODEL, {n: trees()[n] for n in (*in_step, "text")}, tokenizers, "here")
  clips = model.sample(tuple(LINES), steps=2, seed=0)
  made = live.maker(model.trees)(ema, frozen).sample(tuple(LINES), steps=2, seed=0)
  np.testing.assert_array_equal(made.frames, clips.frames)


def test_an_image_part_draws_pictures(tmp_path, tokenizers):
  path = write_requests(tmp_path, {"prompt": LINES[0]})
  live, placed = live_model(tmp_path, tokenizers, IMAGE)
  (look,) = prompts_look(experiment_of("image", path), live, pytest.fail)
  log = RecordingLog()
  look.run(3, {"spatial": placed["spatial"]}, {n: placed[n] for n in IMAGE[:3]}, log)
  assert log.shown["prompts/00000 a red circle"][1][0] == 1
  (row,) = map(json.loads, (tmp_path / "samples" / "00000003" / "metadata.jsonl").open())
  assert row == {"file_name": "00000_00.png", "text": LINES[0], "seed": 0, "steps": 2}
  assert (tmp_path / "samples" / "00000003" / "00000_00.png").is_file()


def test_a_part_whose_trees_do_not_serve_the_task_says_so(tmp_path, tokenizers):
  path, said = write_requests(tmp_path, {"prompt": LINES[0]}), []
  live, _ = live_model(tmp_path, (), ("autoencoder",))
  assert prompts_look(experiment_of("autoencoder", path), live, said.append) == ()
  assert len(said) == 1
  assert said[0].startswith("prompts are not drawn in this run: ")


def test_prompts_that_are_too_long_are_refused(tmp_path, tokenizers):
  path = write_requests(tmp_path, {"prompt": "a red circle " * 20})
  live, _ = live_model(tmp_path, tokenizers, IMAGE)
  with pytest.raises(InputError, match=r"prompts\.jsonl line 1"):
    prompts_look(experiment_of("image", path), live, pytest.fail)


@pytest.mark.parametrize(
  ("row", "fields", "words"),
  [
    ({"prompt": "a", "colour": 1}, {}, "line 1: has the field 'colour'"),
    ({"prompt": "a", "steps": 0}, {}, "line 1: .*0"),
    ({"prompt": "a"}, {"task": "dance"}, "has no task 'dance'"),
    ({"prompt": "a", "image": "none.png"}, {}, r"line 1: .*none\.png"),
  ],
)
def test_prompts_are_checked_before_training(tmp_path, row, fields, words):
  with pytest.raises(InputError, match=words):
    check_prompts(experiment_of("video", write_requests(tmp_path, row), **fields))


def test_prompts_that_are_never_drawn_are_refused():
  monitor = MonitorConfig(prompts="prompts.txt")
  with pytest.raises(InputError, match=r"never drawn; give --monitor\.prompts_every"):
    check_prompts(Experiment(MODEL, "video", monitor=monitor))
  absent = experiment_of("video", pathlib.Path("absent.txt"))
  with pytest.raises(InputError, match=r"absent\.txt: cannot be read"):
    check_prompts(absent)


def test_an_evaluator_measures_the_weights_of_the_step(tmp_path, tokenizers, monkeypatch):
  largest = lambda model, num: {"largest": num * float(model.trees["spatial"]["in"].max())}
  refusing = Evaluator(lambda model: model.require("temporal"), largest)
  monkeypatch.setitem(EVALUATORS, "largest", Evaluator(lambda model: {"spatial"}, largest))
  monkeypatch.setitem(EVALUATORS, "refusing", refusing)
  monitor = MonitorConfig(evaluators=("largest", "refusing"), evaluate_every=5, evaluate_prompts=2)
  live, said = live_model(tmp_path, tokenizers, IMAGE)[0], []
  experiment = Experiment(MODEL, "image", monitor=monitor)
  (look,) = evaluation_looks(experiment, live, said.append)
  assert look.every == 5
  ema = {"spatial": {"in": np.arange(4.0)}}
  assert look.run(5, ema, {}, RecordingLog()) == {"evaluation/largest/largest": 6.0}
  assert len(said) == 1
  assert said[0].startswith("evaluator 'refusing' does not measure this run: ")


def test_an_evaluator_names_the_trees_that_it_needs(tmp_path, tokenizers):
  live, _ = live_model(tmp_path, tokenizers, (*IMAGE, "temporal"), ("extension",))
  assert evaluator("shapes").reads(live.outline()) == {*IMAGE, "temporal"}
  with pytest.raises(InputError, match="'nobody': is unknown; choose of shapes"):
    evaluator("nobody")
