"""CLIP's scores against transformers' own CLIPModel, preprocessing and tokenizer included."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from emu_jax.errors import InputError
from emu_jax.evaluation import clip_score
from emu_jax.evaluation.features import Stream
from emu_jax.parallel.mesh import MeshConfig, make_mesh
from tests.weights.oracle import drawn_anew, torch

transformers = pytest.importorskip("transformers", reason="transformers is the oracle")

SIDE, DIMS, T = 32, 12, 3
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
CAPTIONS = ["a red dot", "two green squares move to the left", "nothing", "a red dot", "a a a"]
# As the published file of openai/clip-vit-base-patch32 has them beside what is set here.
LEGACY = {
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
  "num_beams": 1,
  "max_length": 20,
  "top_k": 50,
  "pruned_heads": {},
  "temperature": 1.0,
  "diversity_penalty": 0.0,
  "use_bfloat16": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A CLIPModel with every tensor drawn anew, and a tokenizer of letters."""
  path = tmp_path_factory.mktemp("clip")
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
  vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
  vocab = {token: i for i, token in enumerate(vocabulary)}
  (path / "vocab.json").write_text(json.dumps(vocab))
  (path / "merges.txt").write_text("#version: 0.2\n")
  config = transformers.CLIPConfig(
    text_config=SMALL
    | {
      "num_attention_heads": 4,
      "vocab_size": len(vocab),
      "max_position_embeddings": 20,
      "eos_token_id": 2,  # as the published file says: the highest id is meant
    },
    vision_config=SMALL | {"num_attention_heads": 4, "image_size": SIDE, "patch_size": 8},
    projection_dim=DIMS,
  )
  drawn_anew(transformers.CLIPModel(config)).save_pretrained(path)
  file = path / "config.json"
  saved = json.loads(file.read_text())
  for part in ("text_config", "vision_config"):
    saved[part] = LEGACY | saved[part]
  file.write_text(json.dumps(saved))
  return path


def clips(size=(48, 40)):
  return np.random.default_rng(0).integers(64, 192, (len(CAPTIONS), T, *size, 3)).astype(np.uint8)


def scored(clip, videos, captions, batch_size=4, mesh=None):
  texts = clip_score.text_embeddings(clip, captions) if captions else None
  scores = clip_score.Scores(videos.shape[1], texts)
  stream = Stream(clip.frames, batch_size, scores.add, mesh)
  for index, video in enumerate(videos):
    stream.take(video, index)
  stream.finish()
  return scores.scores()


def test_scores_are_those_of_transformers(folder):
  model = transformers.CLIPModel.from_pretrained(folder)
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
  pixels = transformers.CLIPImageProcessor(
    size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
  )
  videos = clips()
  frames = [Image.fromarray(frame) for frame in videos.reshape(-1, *videos.shape[2:])]
  tokens = tokenizer(
    CAPTIONS, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
  )
  with torch.no_grad():
    out = model(
      input_ids=tokens.input_ids, pixel_values=pixels(frames, return_tensors="pt").pixel_values
    )
  # The model's own outputs are unit vectors.
  texts, images = out.text_embeds.numpy(), out.image_embeds.numpy().reshape(-1, T, DIMS)
  got = scored(clip_score.load(folder), videos, CAPTIONS)
  for i, (text, (a, b, c)) in enumerate(zip(texts, images, strict=True)):
    expected = {
      "text_consistency": (text @ a + text @ b + text @ c) / 3,
      "frame_consistency": (a @ b + b @ c) / 2,
      "image_consistency": (a @ b + a @ c) / 2,
    }
    for name, value in expected.items():
      # Pillow rounds to whole levels after each axis, we do not: about 1e-3 of the pixels' spread.
      assert got[name][i] == pytest.approx(100 * value, abs=0.2), name


def test_embeddings_are_those_of_transformers_to_rounding(folder):
  """Without Pillow's rounding between: pictures that need no resizing."""
  model = transformers.CLIPModel.from_pretrained(folder)
  pixels = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
  videos = clips((SIDE, SIDE))
  frames = list(videos.reshape(-1, SIDE, SIDE, 3))
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
  tokens = tokenizer(
    CAPTIONS, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
  )
  with torch.no_grad():
    out = model(
      input_ids=tokens.input_ids, pixel_values=pixels(frames, return_tensors="pt").pixel_values
    )
  clip = clip_score.load(folder)
  texts = clip_score.text_embeddings(clip, CAPTIONS)
  np.testing.assert_allclose(texts, out.text_embeds.numpy(), atol=1e-5)
  cosines = np.einsum(
    "btp,bp->bt", out.image_embeds.numpy().reshape(-1, T, DIMS), out.text_embeds.numpy()
  )
  got = scored(clip, videos, CAPTIONS)["text_consistency"]
  np.testing.assert_allclose(got, 100 * cosines.mean(axis=1), atol=1e-3)


def test_scores_depend_neither_on_batches_nor_on_devices(folder):
  clip, videos = clip_score.load(folder), clips()
  mesh = make_mesh(jax.devices(), MeshConfig(data=8))
  first = scored(clip, videos, CAPTIONS, 4)
  for again in (scored(clip, videos, CAPTIONS, 7), scored(clip, videos, CAPTIONS, 8, mesh)):
    for name, values in first.items():
      np.testing.assert_allclose(again[name], values, atol=1e-3)


def test_what_stands_still_is_consistent_and_pictures_have_no_consistency(folder):
  clip, videos = clip_score.load(folder), clips()
  still = scored(clip, videos[:, :1].repeat(T, axis=1), ())
  assert set(still) == {"frame_consistency", "image_consistency"}
  for values in still.values():
    np.testing.assert_allclose(values, 100, atol=1e-3)
  assert set(scored(clip, videos[:, :1], CAPTIONS)) == {"text_consistency"}


def test_the_two_encoders_of_a_pipeline_are_the_model(folder, tmp_path):
  for kind, part in (
    (transformers.CLIPTextModelWithProjection, "text_encoder"),
    (transformers.CLIPVisionModelWithProjection, "image_encoder"),
  ):
    kind.from_pretrained(folder, projection_dim=DIMS).save_pretrained(tmp_path / part)
    config = tmp_path / part / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in values.items() if k not in LEGACY}))
  (tmp_path / "tokenizer").mkdir()
  for name in ("vocab.json", "merges.txt"):
    (tmp_path / "tokenizer" / name).write_bytes((folder / name).read_bytes())
  whole, parts = (scored(clip_score.load(f), clips(), CAPTIONS) for f in (folder, tmp_path))
  for name, values in whole.items():
    np.testing.assert_allclose(parts[name], values, atol=1e-4)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"architectures": ["SiglipModel"]}, "is of no CLIPModel; give a folder of one"),
    ({"text_config": None}, "is of no CLIPModel"),
    ({"projection_dim": 5}, "have another shape .text_projection.weight"),
    ({"text_config": {"rotary": 1}}, "rotary=1 is not supported"),
    ({"vision_config": {"hidden_act": "relu"}}, "hidden_act='relu' is not supported"),
  ],
)
def test_other_folders_are_refused_in_one_line(change, words, folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  values = json.loads((folder / "config.json").read_text())
  for name, new in change.items():
    values[name] = values[name] | new if isinstance(new, dict) else new
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(InputError, match=words) as info:
    clip_score.load(tmp_path)
  assert "\n" not in str(info.value)


def test_float16_is_taken_only_where_it_may_be_widened(folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  halves = {name: array.astype(np.float16) for name, array in tensors.items()}
  safetensors.numpy.save_file(halves, tmp_path / "model.safetensors", metadata={"format": "pt"})
  with pytest.raises(
    InputError, match=r"of float16 with --widen\): .* are not float32 \(.* of F16"
  ):
    clip_score.load(tmp_path)
  whole, half = clip_score.load(folder), clip_score.load(tmp_path, widen=True)
  rounded = jax.tree.map(lambda a: np.asarray(a, np.float16).astype(np.float32), whole.text_params)
  jax.tree.map(np.testing.assert_array_equal, half.text_params, rounded)
