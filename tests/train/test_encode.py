"""Training on records encoded ahead is training on the clips, without the encoders.

The run that the encoders come from is one of an image stage with the tiny model's trees, written as
the trainer writes it; nothing trains but where a test says so.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import itertools
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from emu_jax import cli
from emu_jax.checkpoints.run import digest, load_trees, origins, stored_metadata
from emu_jax.data.batches import batches, open_source
from emu_jax.data.latent_records import collate_captions
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import InputError
from emu_jax.model import load_tokenizers
from emu_jax.parallel.mesh import make_mesh
from emu_jax.systems.emu import batch_text
from emu_jax.systems.first_stage import pixels
from emu_jax.train import command, encode
from emu_jax.train.checkpoint import Checkpoints, Inherited, save_frozen
from emu_jax.train.clips import batch_options, empty_prompt, opened
from emu_jax.train.config import Experiment, config_json, load_stages
from emu_jax.train.inherit import inherit, measured, source_of
from emu_jax.train.parts import build, check_inherited, encoded_fields
from emu_jax.train.state import TrainState
from tests import tiny, tiny_recipe

CONFIG = """
import dataclasses

from emu_jax.diffusion.process import Sampling
from tests.tiny import MODEL
from emu_jax.train.config import DataConfig, Experiment
from emu_jax.train.loop import LoopConfig

IMAGE = dataclasses.replace(MODEL.image, preview=Sampling(num_steps=2))
COMMON = dict(
  system=dataclasses.replace(MODEL, image=IMAGE),
  data=DataConfig(sources=({clips!r},), batch_size=4, drop_text=0.3, drop_both=0.3),
  loop=LoopConfig(num_steps=2, log_every=1, num_samples=1),
)
STAGES = tuple(Experiment(part=part, **COMMON) for part in ("image", "video", "interpolation"))
"""


class NoData(collections.abc.Iterator):
  def __next__(self):
    raise StopIteration

  def get_state(self):
    return {}


def write_run(folder, trees, experiment, texts):
  """A run of the image stage that has trained text and U-Net."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(config_json(experiment))
  save_frozen(folder, {name: trees[name] for name in ("autoencoder", "latents")}, Inherited())
  trained = {name: trees[name] for name in ("spatial", "text")}
  with Checkpoints(folder, 1) as checkpoints:
    checkpoints.save(1, TrainState(np.int32(1), trained, trained, {"count": np.int32(1)}), NoData())
  for i, encoder in enumerate(experiment.system.texts):
    (folder / "tokenizers" / str(i)).mkdir(parents=True)
    file = folder / "tokenizers" / str(i) / "tokenizer.json"
    train_tokenizer(texts, file, encoder.vocab_size)


@dataclasses.dataclass(frozen=True)
class Made:
  """What the tests share."""

  config: str
  clips: str
  runs: object
  trees: dict  # of arrays
  stages: dict  # experiments by stage
  out: object  # of the encoded records, by dtype

  def stage(self, stage: str, source: str, **fields) -> Experiment:
    experiment = self.stages[stage]
    data = dataclasses.replace(experiment.data, sources=(str(source),))
    return dataclasses.replace(experiment, data=data, init_from=str(self.runs / "image"), **fields)

  def words(self, *words):
    return ["--config", self.config, *map(str, words)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  base = tmp_path_factory.getbasetemp()
  here = tmp_path_factory.mktemp("encode")
  clips = str(tiny_recipe.shapes(base) / "videos")
  (here / "tiny.py").write_text(CONFIG.format(clips=clips))
  stages = {e.part: e for e in load_stages(str(here / "tiny.py"))}
  trees = tiny.trees()
  texts = list(open_source(clips, "train").captions)
  write_run(here / "runs" / "image", trees, stages["image"], texts)
  found = Made(str(here / "tiny.py"), clips, here / "runs", trees, stages, here)
  with tiny_recipe.one_device(), one_local_device():
    for dtype in ("float32", "float16"):
      words = found.words(clips, "--runs", found.runs, "--out", here / dtype, "--dtype", dtype)
      command.main(["encode", *words])
  return found


@contextlib.contextmanager
def one_local_device():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encode, "make_mesh", lambda _, config: make_mesh(jax.devices()[:1], config))
    yield


def readers(made, experiment, count=4):
  """The experiment's first batches, and its empty prompt."""
  sources = opened(experiment, "train")
  encoded = sources[0].encoded
  encoding = encoded and encoded.encoding
  folders = [made.runs / "image" / "tokenizers" / str(i) for i in range(2)]
  tokenizers = load_tokenizers(experiment.definition.texts, folders)
  empty = empty_prompt(tokenizers)
  if "captions" in encoded_fields(experiment, encoding):
    tokenizers, empty = (), {"text": collate_captions([encoded.empty], encoded.encoding)}
  options = batch_options(experiment, tokenizers)
  options |= {"drop_text": experiment.data.drop_text, "drop_both": experiment.data.drop_both}
  with contextlib.closing(batches(sources, **options)) as data:
    return list(itertools.islice(data, count)), empty, encoded and encoded.encoding


@pytest.fixture(scope="module")
def losses(made):
  """Of each example of a batch of video, and the frozen trees that they took; a program a kind."""

  @functools.cache
  def stage(source):
    experiment = made.stage("video", source)
    (batch, *_), empty, encoding = readers(made, experiment, 1)
    trees = {n: made.trees[n] for n in ("autoencoder", "latents", "text", "spatial")}
    return build(experiment, trees, empty, encoding=encoding), batch

  @functools.cache
  def program(encoded):
    run = stage(made.out / "float32" if encoded else made.clips)[0].loss
    step = jax.numpy.int32(0)
    return jax.jit(lambda trained, frozen, batch, key: run(trained, frozen, batch, key, step)[0])

  def losses(source, change=lambda batch: batch):
    built, batch = stage(source)
    wide = lambda a: a.astype(np.float32) if a.dtype == np.float16 else a  # as the step does
    batch = jax.tree.map(wide, change(batch))
    trained = {"temporal": made.trees["temporal"]}
    run = program(source != made.clips)
    return np.asarray(run(trained, built.frozen, batch, jax.random.key(3))), set(built.frozen)

  return losses


def test_batches_are_those_of_the_clips_in_the_same_order(made):
  pixel, encoded = (made.stage("video", source) for source in (made.clips, made.out / "float32"))
  of_clips, _, _ = readers(made, pixel)
  of_records, _, _ = readers(made, encoded)
  image, trees = pixel.system.image, made.trees
  moments = jax.jit(lambda batch: image.first_stage.posterior(trees, pixels(batch["frames"])))
  features = jax.jit(lambda batch: batch_text(image, trees, batch))
  for clip, record in zip(of_clips, of_records, strict=True):
    want, text = moments(clip), features(clip)
    want = np.concatenate([want.mean, want.log_var], axis=-1)
    np.testing.assert_allclose(record["moments"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(record["image_dropped"], clip["image_dropped"])
    np.testing.assert_array_equal(record["fps"], clip["fps"])
    assert record["text"]["masks"][0] is None
    seen = clip["masks"][1][..., None]
    np.testing.assert_array_equal(record["text"]["masks"][1], clip["masks"][1])
    for stored, computed in zip(
      record["text"]["texts"], (text.texts[0], text.texts[1] * seen), strict=True
    ):
      np.testing.assert_allclose(stored, computed, rtol=1e-5, atol=1e-5)
  dropped = np.concatenate([record["image_dropped"] for record in of_records])
  assert 0 < dropped.sum() < len(dropped)


# In float32 the same operations are compiled into another program: some roundings of a sum's last
# bit. In float16 a stored number is off by 2^-11 of itself, which noise and target share with the
# network's input; a squared error then changes by twice that, relative to itself, for each of both.
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 4 * 2**-23), ("float16", 4 * 2**-11)])
def test_the_loss_is_that_of_the_clips_without_the_encoders(made, losses, dtype, rtol):
  want, all_trees = losses(made.clips)
  got, left = losses(made.out / dtype)
  np.testing.assert_allclose(got, want, rtol=rtol)
  assert all_trees - left == {"autoencoder", "text"}


def test_a_sample_of_the_posterior_is_drawn_in_the_step(made, losses):
  def certain(batch):
    moments = batch["moments"].copy()
    moments[..., moments.shape[-1] // 2 :] = -30.0  # no spread
    return batch | {"moments": moments}

  drawn, mean = (losses(made.out / "float32", change) for change in (lambda b: b, certain))
  assert not np.isclose(drawn[0], mean[0], rtol=1e-4).any()


def test_text_that_trains_is_read_from_captions(made):
  """And latents are measured from the records, as from the clips."""
  both = []
  for source in (made.clips, made.out / "float32"):
    experiment = made.stage("image", source)
    image = dataclasses.replace(experiment.system.image, train_text=True)
    system = dataclasses.replace(experiment.system, image=image)
    experiment = dataclasses.replace(experiment, system=system)
    (batch, *_), _, encoding = readers(made, experiment, 1)
    assert "tokens" in batch
    data = batches(opened(experiment, "train"), **batch_options(experiment, ()))
    trees = {"autoencoder": made.trees["autoencoder"]} if encoding is None else {}
    with contextlib.closing(data):
      both.append(measured(experiment, trees, data, make_mesh(jax.devices()[:1]))["latents"])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *both)


# The command.


def files(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "report.json"}


def encode_here(made, out, *words):
  with tiny_recipe.one_device(), one_local_device():
    command.main(["encode", *made.words(made.clips, "--runs", made.runs, "--out", out, *words)])


def test_a_killed_run_is_continued_to_the_same_bytes(made, tmp_path, monkeypatch):
  few = ("--records-per-shard", "16")
  encode_here(made, tmp_path / "whole", *few)
  write, written = encode.shards.write, []

  def dies_at_the_third(shard, *arguments):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(shard.name)
    write(shard, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(encode.shards, "write", dies_at_the_third)
    with pytest.raises(SystemExit):
      encode_here(made, tmp_path / "killed", *few)
  assert not (tmp_path / "killed").exists()
  again = []
  with monkeypatch.context() as patch:
    patch.setattr(
      encode.shards, "write", lambda shard, *rest: (again.append(shard.name), write(shard, *rest))
    )
    encode_here(made, tmp_path / "killed", *few)
  assert len(written) == 2
  assert not set(again) & set(written)
  assert files(tmp_path / "killed") == files(tmp_path / "whole")
  assert len(list((tmp_path / "whole").glob("*-train.*"))) == 3
  assert {path.name for path in tmp_path.iterdir()} == {"killed", "whole"}


def test_the_same_command_again_changes_nothing(made, capsys):
  before = {path: path.stat().st_mtime_ns for path in (made.out / "float16").iterdir()}
  encode_here(made, made.out / "float16")
  assert "was there already" in capsys.readouterr().out
  assert {path: path.stat().st_mtime_ns for path in (made.out / "float16").iterdir()} == before


REFUSED = {
  "records that are encoded": (["float16"], "is encoded already"),
  "another thing there": (["clips", "--out", "float32"], "dtype=float32 there, float16 asked"),
  "the encoder's own stage": (["clips", "--stage", "autoencoder"], "has no such stage"),
  "no frames at a time": (["clips", "--batch-size", "0"], "batch_size=0 is below 1"),
  "out is the source": (["clips", "--out", "clips"], "is the source"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_encoded_is_one_line(made, tmp_path, capsys, name):
  given, line = REFUSED[name]
  places = {"clips": made.clips} | {dtype: made.out / dtype for dtype in ("float16", "float32")}
  given = [places.get(word, word) for word in given]
  out = [] if "--out" in given else ["--out", tmp_path / "out"]
  words = ["encode", *made.words("--runs", made.runs, *out, *given)]
  assert line in tiny_recipe.refusal(command.main, words, capsys)
  assert not list(tmp_path.iterdir())


def test_records_of_other_weights_are_refused_with_both_digests(made, tmp_path, capsys):
  other = made.trees | {"autoencoder": jax.tree.map(lambda a: a + 1, made.trees["autoencoder"])}
  shutil.copytree(made.runs / "image", tmp_path / "image")
  frozen = {name: other[name] for name in ("autoencoder", "latents")}
  save_frozen(tmp_path / "image", frozen, Inherited())
  line = run_refused(made, tmp_path, capsys, "--data.sources", made.out / "float16")
  for trees in (made.trees, other):
    assert digest({"autoencoder": trees["autoencoder"]}) in line
  assert not (tmp_path / "video" / "frozen").exists()
  assert not (tmp_path / "video" / "inherited.json").exists()


def test_records_of_other_tokenizers_are_refused(made, tmp_path, capsys):
  shutil.copytree(made.runs / "image", tmp_path / "image")
  file = tmp_path / "image" / "tokenizers" / "0" / "tokenizer.json"
  train_tokenizer(["other words entirely"] * 4, file, 290)
  line = run_refused(made, tmp_path, capsys, "--data.sources", made.out / "float16")
  assert "was encoded by text encoders and tokenizers of digest" in line


TRAINING = {
  "a mixture": (["clips", "float16"], "do not mix; encode all of them"),
  "two encodings": (["float16", "float32"], "were not encoded alike"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_sources_that_do_not_go_together_are_refused(made, tmp_path, capsys, name):
  given, line = TRAINING[name]
  shutil.copytree(made.runs / "image", tmp_path / "image")
  places = {"clips": made.clips} | {dtype: made.out / dtype for dtype in ("float16", "float32")}
  sources = [places[word] for word in given]
  assert line in run_refused(made, tmp_path, capsys, "--data.sources", *sources)
  assert not (tmp_path / "video" / "checkpoints").exists()


def run_refused(made, runs, capsys, *words):
  words = ["run", *made.words("--stage", "video", "--out", runs, *words)]
  with tiny_recipe.one_device():
    return tiny_recipe.refusal(command.main, words, capsys)


def test_an_autoencoder_does_not_train_on_latents(made):
  experiment = made.stage("video", made.out / "float16")
  with pytest.raises(InputError, match="trains on pixels"):
    opened(dataclasses.replace(experiment, part="autoencoder"), "train")


def test_a_run_on_encoded_records_samples_and_hands_on_what_its_steps_lacked(made, tmp_path):
  """They lie in the run before, which it names; from a release it keeps them itself."""
  run = tmp_path / "image"
  words = ["--stage", "image", "--init_from", made.runs / "image", "--loop.num_steps", "1"]
  words += ["--out", tmp_path, "--data.sources", made.out / "float16"]
  with tiny_recipe.one_device():
    command.main(["run", *made.words(*words)])
  assert set(origins(run)) == {"autoencoder", "latents", "text"}
  assert not (run / "frozen").exists()
  following = dataclasses.replace(made.stages["video"], init_from=str(run))
  found, _ = inherit(following, source_of(following))
  check_inherited(following, tuple(found))
  for name in ("autoencoder", "latents", "text"):
    jax.tree.map(np.testing.assert_array_equal, found[name], made.trees[name])
  picture = str(tmp_path / "a.png")
  words = ["--checkpoint", str(run), "--frames", "1", "--steps", "2", "--out", picture]
  cli.main(["sample", "a square", *words])
  assert (tmp_path / "a.png").stat().st_size > 0


def test_a_run_that_begins_with_a_release_keeps_what_it_does_not_train(made, tmp_path):
  cli.main(["convert", str(made.runs / "image"), str(tmp_path / "release"), "--to", "safetensors"])
  words = ["--stage", "image", "--init_from", tmp_path / "release", "--loop.num_steps", "1"]
  words += ["--out", tmp_path, "--data.sources", made.out / "float32"]
  with tiny_recipe.one_device():
    command.main(["run", *made.words(*words)])
  assert set(stored_metadata(tmp_path / "image" / "frozen")) == {"autoencoder", "latents", "text"}
  assert set(load_trees(tmp_path / "image")) == {"autoencoder", "latents", "text", "spatial"}


@pytest.mark.parametrize("stage", ["image", "video"])
def test_samples_while_training_take_the_autoencoder_and_no_text_encoder(made, stage):
  """A clip that is drawn stands beside the reconstruction of the real one."""
  experiment = made.stage(stage, made.out / "float16")
  (batch, *_), empty, encoding = readers(made, experiment, 1)
  names = ("spatial", "temporal") if stage == "video" else ("spatial",)
  trees = {name: made.trees[name] for name in ("latents", *names)}
  sampling_trees = {"autoencoder": made.trees["autoencoder"]}
  assert build(experiment, trees, empty, encoding=encoding).sample is None
  built = build(experiment, trees, empty, encoding=encoding, sampling_trees=sampling_trees)
  trained = {"temporal": trees["temporal"]} if stage == "video" else {"spatial": trees["spatial"]}
  drawn = jax.eval_shape(built.sample, trained, built.frozen, batch, jax.random.key(0))
  assert drawn[stage].shape == ((1, 8, 16, 32, 3) if stage == "video" else (1, 1, 16, 16, 3))


def test_clips_of_several_captions_are_encoded_without_them_and_one_is_drawn_a_step(made, tmp_path):
  """Else one of them would be all that training ever sees."""
  clips = tmp_path / "clips"
  clips.mkdir()
  for i in range(4):
    PIL.Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(clips / f"{i}.png")
    (clips / f"{i}.txt").write_text("a red circle\na blue square\n")
  packed, out = tmp_path / "packed", tmp_path / "encoded"
  command.main(["prepare", str(clips), "--out", str(packed), "--size", "16", "--workers", "1"])
  words = made.words(packed, "--runs", made.runs, "--out", out)
  with tiny_recipe.one_device(), one_local_device():
    command.main(["encode", *words])
  source = open_source(out, "train")
  assert source.encoded.encoding.text == ""
  assert [len(r["captions"]) for r in source.records] == [2] * 4
  assert len(source.all_captions) == 8
  experiment = made.stage("image", out)
  read = batches(
    opened(experiment, "train"), **batch_options(experiment, ()) | {"tokenizers": (_words,)}
  )
  drawn = {
    bytes(row).decode() for _ in range(8) for row in next(read)["tokens"][0].astype(np.uint8)
  }
  read.close()
  assert drawn == {"a r", "a b"}


def _words(texts, *, overflow):
  ids = np.array([list(text[:3].encode()) for text in texts], np.int32)
  return ids, ids > 0
