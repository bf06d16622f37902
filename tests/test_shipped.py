"""The model in the package: of its recipe, small enough, and trained."""

from emu_jax.cli_shared import SHIPPED
from emu_jax.data import shapes
from emu_jax.evaluation import oracle
from emu_jax.generation import Request, check_frames, generate
from emu_jax.loading import load_pipeline
from emu_jax.systems.latent import Sampling


def test_it_is_of_its_recipe_and_small():
  from configs.shapes_64 import MODEL

  assert load_pipeline(SHIPPED).config == MODEL
  assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 25e6


def test_its_clips_go_where_prompts_say_by_motions_that_training_has_not_seen():
  pairs = list(shapes.prompts("test", 8, 0))
  pipeline = load_pipeline(SHIPPED)
  request = Request(8, guidance=pipeline.config.guidance, sampling=Sampling("dpm++", 8))
  clips, fps = generate(pipeline, [caption for caption, _ in pairs], request)
  read = oracle.read_clips(clips, fps).clips["direction"]
  right = [str(word) == truth["direction"] for word, (_, truth) in zip(read, pairs, strict=True)]
  # Drawn at random of four, six of eight are right once in 200 times.
  assert sum(right) >= 6


def test_it_has_all_that_37_frames_take():
  check_frames(load_pipeline(SHIPPED), 37)


def test_its_pictures_have_the_colours_of_the_prompts():
  pairs = list(shapes.prompts("test", 8, 0))
  pipeline = load_pipeline(SHIPPED)
  request = Request(1, guidance=pipeline.config.guidance, sampling=Sampling("dpm++", 8))
  pictures, fps = generate(pipeline, [caption for caption, _ in pairs], request)
  read = oracle.read_clips(pictures, fps).clips
  for attribute in ("colour", "background"):
    asked = [truth[attribute] for _, truth in pairs]
    right = [str(word) == other for word, other in zip(read[attribute], asked, strict=True)]
    # Drawn at random of four, six of eight are right once in 200 times.
    assert sum(right) >= 6, attribute
