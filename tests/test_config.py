"""Configurations survive JSON; what is wrong in one is named with its place and its remedy."""

import json
import pathlib
import re

import pytest

from emu_jax.config import from_dict, override, refused, to_dict
from emu_jax.errors import InputError
from emu_jax.systems.emu_video import EmuVideoConfig
from emu_jax.systems.latent import Sampling
from tests.tiny import MODEL
from train.config import Experiment, load_stages

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))
EXPERIMENT = Experiment(stage="video", model=MODEL)


def test_a_config_with_two_kinds_of_text_encoder_survives_json():
  assert from_dict(json.loads(json.dumps(to_dict(MODEL))), EmuVideoConfig, "file") == MODEL


def changed(path, value):
  values = json.loads(json.dumps(to_dict(MODEL)))
  *parents, last = path.split(".")
  part = values
  for name in parents:
    part = part[int(name) if name.isdigit() else name]
  if value is None:
    del part[last]
  else:
    part[last] = value
  return values


@pytest.mark.parametrize(
  ("path", "value", "says"),
  [
    ("fps", "fast", "'fast' is not of type float (in fps)"),
    ("num_frames", 8.5, "8.5 is not of type int (in num_frames)"),
    ("image.unet.linear_projection", "no", "'no' is not of type bool"),
    ("image.sise", 16, "EmuConfig has no field 'sise'; it has autoencoder, text, unet"),
    ("image.unet", None, "field 'unet' is missing"),
    ("image.size", 20, "size=20 pixels must be a multiple of 8"),
    ("schedule.prediction", "epsilon", "prediction='epsilon' with zero_terminal_snr=True"),
    ("schedule.prediction", "noise", "noise not in literal"),
    ("image.text.0.architecture", "bert", "'bert'"),
    ("image", 3, "not of type EmuConfig"),
  ],
)
def test_json_of_another_config_is_refused_with_the_reason_and_the_place(path, value, says):
  with pytest.raises(InputError, match=r"^run/config\.json: .*; restore it") as caught:
    from_dict(changed(path, value), EmuVideoConfig, "run/config.json")
  assert says in str(caught.value)


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(values):
  with pytest.raises(InputError, match="is no configuration"):
    from_dict(values, EmuVideoConfig, "run/config.json")


def test_fields_are_set_by_name_with_their_own_types():
  words = ["--data.sources", "a", "b", "--optim.peak-lr", "3e-4", "--train_text=true"]
  words += ["--loop.num_steps", "7", "--optim.betas", "0.5", "0.75", "--optim.decay", "cosine"]
  new = override(EXPERIMENT, words)
  assert new.data.sources == ("a", "b")
  assert new.optim.peak_lr == 3e-4
  assert new.train_text is True
  assert new.loop.num_steps == 7
  assert new.optim.betas == (0.5, 0.75)
  assert new.optim.decay == "cosine"
  assert override(new, ["--data.sources"]).data.sources == ()
  assert override(new, ["--train_text", "False"]).train_text is False
  assert override(new, ["--offset_noise", "-1"]).offset_noise == -1


def test_no_words_leave_the_config_as_it_is():
  assert override(EXPERIMENT, []) is EXPERIMENT


def test_checks_run_once_all_fields_are_set():
  both = ["--model.image.text.0.width", "16", "--model.image.unet.context_dims", "16", "12"]
  new = override(EXPERIMENT, both)
  assert new.model.image.text[0].width == new.model.image.unet.context_dims[0] == 16
  with pytest.raises(InputError, match=r"^--model.image.text.0.width 16: .*context_dims=\(8, 12\)"):
    override(EXPERIMENT, both[:2])


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("--optim.lr 1", "--optim.lr: OptimConfig has no field 'lr'; it has peak_lr, warmup_steps"),
    ("--lr 1", "--lr: Experiment has no field 'lr'; it has stage, model, data"),
    ("--loop.num_steps many", "--loop.num_steps: 'many' is not of type int"),
    ("--loop.num_steps 1.5", "'1.5' is not of type int"),
    ("--loop.num_steps 0", "--loop.num_steps 0: LoopConfig: num_steps=0 is below 1"),
    ("--loop.num_steps", "0 values were given; it takes one"),
    ("--loop.num_steps 1 2", "2 values were given; it takes one"),
    ("--optim.betas 0.9", "1 values were given; it takes 2"),
    ("--optim.peak_lr nan", "nan is not a finite number"),
    ("--optim.decay linear", "'linear' is unknown; choose one of constant, cosine"),
    ("--train_text perhaps", "'perhaps' is unknown; choose one of true, false"),
    ("--loop 3", "is no single value; set its own fields"),
    ("--loop.seed.x 3", "0 has no field 'x'"),
    ("--model.image.text.2.width 3", "'2' is not a number below 2"),
    ("--model.image.unet.channels.0 3", "part 0 of a tuple is not set alone"),
    ("--model.schedule.prediction epsilon", "prediction='epsilon' with zero_terminal_snr=True"),
    ("--data.batch_size 7 --optim.accumulate 2", "batch_size=7 must be a multiple of"),
    ("--data.sources a --data.weights 1 2", "2 weights for 1 sources"),
    ("sources", "'sources' belongs to no option"),
  ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(words, says):
  with pytest.raises(InputError, match=re.escape(says)):
    override(EXPERIMENT, words.split())


def test_a_number_that_may_be_none_is_set_to_either():
  option = "--model.guidance.interpolation"
  assert override(EXPERIMENT, [option, "1.5"]).model.guidance.interpolation == 1.5
  set_once = override(EXPERIMENT, [option, "1.5"])
  assert override(set_once, [option, "none"]).model.guidance.interpolation is None
  with pytest.raises(InputError, match="'much' is not of type float"):
    override(EXPERIMENT, [option, "much"])


def test_a_plain_value_error_becomes_one_that_says_where():
  with pytest.raises(InputError, match=r"^sampling: .*num_steps=0"), refused("sampling"):
    Sampling(num_steps=0).check(MODEL.schedule)
  with pytest.raises(InputError, match=r"^as it was$"), refused("sampling"):
    raise InputError("as it was")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_field_of_a_shipped_config_can_be_set(file):
  """Options are strings: each simple field of each stage, written out, gives the config again."""
  for experiment in load_stages(str(file)):
    words = []
    for name, value in leaves(to_dict(experiment)):
      values = value if isinstance(value, list | tuple) else [value]
      words += [f"--{name}", *map(str, values)]
    assert override(experiment, words) == experiment


def leaves(values, prefix=""):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from leaves(value, f"{prefix}{name}.")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
      for i, part in enumerate(value):
        yield from leaves(part, f"{prefix}{name}.{i}.")
    elif value is not None:
      yield prefix + name, value
