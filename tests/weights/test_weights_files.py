"""Files of public weights: bad input is one clear line, and what is written reads back the same."""

import dataclasses
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from emu_jax import weights
from emu_jax.errors import InputError
from emu_jax.weights.arrays import require_finite
from emu_jax.weights.model import save_orbax

OPTIONS = {
  "_class_name": "AutoencoderKL",
  "_diffusers_version": "0.35.0",
  "in_channels": 3,
  "out_channels": 3,
  "block_out_channels": [8],
  "down_block_types": ["DownEncoderBlock2D"],
  "up_block_types": ["UpDecoderBlock2D"],
  "norm_num_groups": 4,
  "sample_size": 32,
  "scaling_factor": 0.5,
}
STEM = "diffusion_pytorch_model"
WHOLE, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"


def public_tensors(width=8, dtype=np.float32):
  """Random tensors of a small AutoencoderKL, by their public names."""
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(shape).astype(dtype) for name, shape in public_shapes(width).items()
  }


def public_shapes(width):
  """Names and shapes as diffusers has them, said again: a level, a residual block."""
  shapes = {}

  def layer(name, *kernel):
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = kernel, kernel[:1]

  def block(name):
    for i in (1, 2):
      layer(f"{name}.norm{i}", width)
      layer(f"{name}.conv{i}", width, width, 3, 3)

  for part, blocks, read, made in (("encoder", 1, 3, 8), ("decoder", 2, 4, 3)):
    layer(f"{part}.conv_in", width, read, 3, 3)
    layer(f"{part}.conv_norm_out", width)
    layer(f"{part}.conv_out", made, width, 3, 3)
    for i in range(blocks):
      block(f"{part}.{'down' if part == 'encoder' else 'up'}_blocks.0.resnets.{i}")
    for i in (0, 1):
      block(f"{part}.mid_block.resnets.{i}")
    layer(f"{part}.mid_block.attentions.0.group_norm", width)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
      layer(f"{part}.mid_block.attentions.0.{name}", width, width)
  layer("quant_conv", 8, 8, 1, 1)
  layer("post_quant_conv", 4, 4, 1, 1)
  return shapes


def write(folder, tensors, **options):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(OPTIONS | options))
  safetensors.numpy.save_file(tensors, folder / WHOLE, metadata={"format": "pt"})
  return folder


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path / "vae", public_tensors())


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(call, *words):
  """The one clear line with which `call` is refused."""
  with pytest.raises(InputError) as caught:
    call()
  line = str(caught.value)
  assert "\n" not in line
  assert line.startswith("weights: ")
  for word in words:
    assert str(word) in line, line
  assert ";" in line or ". " in line, f"says not what to do: {line}"
  return line


# Bad input


def truncated(folder):
  file = folder / WHOLE
  file.write_bytes(file.read_bytes()[:-100])
  return file, "no whole safetensors file", "download or copy it again"


def no_header(folder):
  (folder / WHOLE).write_bytes(b"not a header")
  return folder / WHOLE, "no whole safetensors file"


def absent_shard(folder):
  weights.save(folder / "shards", *config_and_params(folder), shard_bytes=4000)
  for name in ("config.json", WHOLE):
    (folder / name).unlink()
  for file in sorted((folder / "shards").iterdir()):
    file.rename(folder / file.name)
  gone = sorted(folder.glob("*-00002-of-*"))[0]
  gone.unlink()
  return folder / INDEX, gone.name, "download it too"


def index_without_a_map(folder):
  (folder / WHOLE).unlink()
  (folder / INDEX).write_text('{"metadata": {}}')
  return folder / INDEX, "no 'weight_map'", "download"


def index_of_another_folder(folder):
  (folder / WHOLE).unlink()
  (folder / INDEX).write_text('{"weight_map": {"a": "../other.safetensors"}}')
  return folder / INDEX, "../other.safetensors"


def index_cut_off(folder):
  (folder / WHOLE).unlink()
  (folder / INDEX).write_text('{"weight_map": {"a"')
  return folder / INDEX, "is not JSON", "download it again"


def other_option(name, value, *words):
  def change(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    return file, *words

  return change


def no_config(folder):
  (folder / "config.json").unlink()
  return folder / "config.json", "is missing", "give a folder"


def config_of_no_object(folder):
  (folder / "config.json").write_text("[1]")
  return folder / "config.json", "no JSON object"


def pickled(folder):
  (folder / WHOLE).unlink()
  (folder / f"{STEM}.bin").write_bytes(pickle.dumps({"a": 1}))
  return folder / f"{STEM}.bin", "is a pickle", "give a folder with .safetensors"


def half(folder):
  safetensors.numpy.save_file(public_tensors(dtype=np.float16), folder / WHOLE)
  return folder, "float16", "take the float32 file"


def half_variant(folder):
  (folder / WHOLE).unlink()
  safetensors.numpy.save_file(public_tensors(dtype=np.float16), folder / f"{STEM}.fp16.safetensors")
  return folder, "float16", "take the float32 file"


def quantised(folder):
  tensors = public_tensors()
  tensors["quant_conv.weight"] = tensors["quant_conv.weight"].astype(np.int8)
  safetensors.numpy.save_file(tensors, folder / WHOLE)
  return folder, "quant_conv.weight", "I8", "take the float32"


def another_width(folder):
  safetensors.numpy.save_file(public_tensors(width=12), folder / WHOLE)
  return folder, "(12, 4, 3, 3) instead of (8, 4, 3, 3)", "of one model"


def a_tensor_less_and_one_more(folder):
  tensors = public_tensors()
  tensors["decoder.extra.weight"] = tensors.pop("decoder.conv_out.bias")
  safetensors.numpy.save_file(tensors, folder / WHOLE)
  return folder, "1 tensors are missing: decoder.conv_out.bias", "1 are unknown: decoder.extra"


def no_number(folder):
  tensors = public_tensors()
  tensors["decoder.conv_out.bias"][1] = np.nan
  safetensors.numpy.save_file(tensors, folder / WHOLE)
  return folder, "decoder.conv_out.bias holds 1 of 3 numbers that are NaN or infinite", "again"


def infinite_bfloat16(folder):
  tensors = public_tensors(dtype=ml_dtypes.bfloat16)
  tensors["encoder.conv_in.weight"][0, 0, 0] = -np.inf
  safetensors.numpy.save_file(tensors, folder / WHOLE)
  return folder, "encoder.conv_in.weight holds 3 of 216 numbers that are NaN or infinite"


def lora(folder):
  name = "encoder.mid_block.attentions.0.to_q.lora_A.weight"
  safetensors.numpy.save_file({name: np.zeros((4, 8), np.float32)}, folder / WHOLE)
  return folder, "is a LoRA", "merge it"


def empty(folder):
  for file in folder.iterdir():
    file.unlink()
  return folder / "config.json", "is missing", "give a folder"


def no_weights(folder):
  (folder / WHOLE).unlink()
  return folder, "holds none of", "config.json"


BROKEN = {
  "truncated": truncated,
  "no header": no_header,
  "absent shard": absent_shard,
  "index without a map": index_without_a_map,
  "index of another folder": index_of_another_folder,
  "index cut off": index_cut_off,
  "another class": other_option("_class_name", "VQModel", "'VQModel'", "AutoencoderKL", "choose"),
  "a class of no name": other_option("_class_name", ["A"], "['A']"),
  "unsupported option": other_option("act_fn", "gelu", "act_fn='gelu'", "'silu'", "another"),
  "unknown option": other_option("use_magic", 3, "use_magic=3", "choose another"),
  "option of another kind": other_option("layers_per_block", "two", "another checkpoint"),
  "a number that is none": other_option("layers_per_block", 1.5, "another checkpoint"),
  "a list of a number": other_option("latent_channels", [4], "another checkpoint"),
  "no config": no_config,
  "config of no object": config_of_no_object,
  "pickle": pickled,
  "float16": half,
  "float16 under its own name": half_variant,
  "quantised": quantised,
  "another width": another_width,
  "a tensor less and one more": a_tensor_less_and_one_more,
  "NaN": no_number,
  "infinity in bfloat16": infinite_bfloat16,
  "LoRA": lora,
  "empty folder": empty,
  "no weights": no_weights,
}


def config_and_params(folder):
  loaded = weights.load(folder)
  return loaded.module.config, loaded.params


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_one_clear_line(name, folder):
  words = BROKEN[name](folder)
  before = contents(folder)
  refused(lambda: weights.load(folder), *words)
  assert contents(folder) == before


def test_a_path_that_is_no_folder_is_refused(folder, tmp_path):
  refused(lambda: weights.load(tmp_path / "absent"), tmp_path / "absent", "give a folder")
  refused(lambda: weights.load(folder / WHOLE), folder / WHOLE, "give a folder")


def test_a_converted_copy_of_another_model_is_refused(folder, tmp_path):
  save_orbax(tmp_path / "ours", *config_and_params(folder))
  other = write(tmp_path / "wide", public_tensors(width=12), block_out_channels=[12])
  (tmp_path / "ours/config.json").write_text((other / "config.json").read_text())
  refused(lambda: weights.load(tmp_path / "ours"), tmp_path / "ours", "(8,) instead of (12,)")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_number_that_is_none_is_found_and_no_other(dtype):
  largest = float(ml_dtypes.finfo(dtype).max)
  for values in ([0.0, -0.0, largest, -largest], [-1.0, -largest], [1.0], []):
    require_finite(np.array(values, dtype), "a")
  for values in ([np.nan], [-np.nan, 1], [1, np.inf], [-np.inf, 3], [-1, -np.nan]):
    with pytest.raises(InputError, match=r"^a holds 1 of"):
      require_finite(np.array(values, dtype), "a")


def test_a_converted_copy_with_a_number_that_is_none_is_refused(folder, tmp_path):
  config, params = config_and_params(folder)
  params["decoder"]["conv_out"]["bias"] = params["decoder"]["conv_out"]["bias"].at[0].set(jnp.inf)
  save_orbax(tmp_path / "ours", config, params)
  with pytest.raises(InputError, match="params: decoder/conv_out/bias holds 1 of 3 numbers that"):
    weights.load(tmp_path / "ours")


# Destinations


@pytest.mark.parametrize("save", [weights.save, save_orbax])
def test_nothing_is_written_where_it_cannot_be_whole(save, folder, tmp_path):
  config, params = config_and_params(folder)
  taken, file = tmp_path / "taken", tmp_path / "file"
  taken.mkdir()
  (taken / "mine").write_text("kept")
  file.write_text("kept")
  before = contents(tmp_path)
  save_to = lambda where: lambda: save(where, config, params)
  refused(save_to(taken), taken, "exists and is not empty", "choose another name")
  refused(save_to(file), file, "choose another name")
  refused(save_to(file / "below"), file / "below", "cannot be written", "choose another")
  refused(save_to(pathlib.Path("/proc/below")), "/proc/below", "cannot be written")
  other = jax.tree.map(lambda a: a[:2] if a.ndim == 4 else a, params)
  refused(lambda: save(tmp_path / "new", config, other), "AutoencoderConfig", "give the")
  less = {"encoder": params["encoder"]}
  refused(lambda: save(tmp_path / "new", config, less), "AutoencoderConfig", "differ", "give the")
  assert contents(tmp_path) == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken", "vae"]


def test_a_disk_that_is_full_leaves_nothing(folder, tmp_path):
  config, params = config_and_params(folder)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes a file
  try:
    with pytest.raises(InputError) as caught:
      weights.save(tmp_path / "new", config, params)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "cannot be written" in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ["vae"]


def test_an_empty_destination_is_taken(folder, tmp_path):
  (tmp_path / "out").mkdir()
  weights.save(tmp_path / "out", *config_and_params(folder))
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WHOLE]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vae"]


# What is written reads back


def assert_equal_trees(a, b):
  a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
  assert sorted(a) == sorted(b)
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loaded_and_saved_again_every_byte_is_the_same(dtype, tmp_path):
  tensors = public_tensors(dtype=dtype)
  folder = write(tmp_path / "theirs", tensors)
  config, params = config_and_params(folder)
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
  weights.save(tmp_path / "first", config, params)
  again = safetensors.numpy.load_file(tmp_path / "first" / WHOLE)
  assert sorted(again) == sorted(tensors)
  for name, array in tensors.items():
    assert array.tobytes() == again[name].tobytes(), name
  weights.save(tmp_path / "second", *config_and_params(tmp_path / "first"))
  assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_shards_read_back_equal(folder, tmp_path):
  config, params = config_and_params(folder)
  weights.save(tmp_path / "shards", config, params, shard_bytes=4000)
  files = sorted((tmp_path / "shards").glob("*.safetensors"))
  assert len(files) > 3
  index = json.loads((tmp_path / "shards" / INDEX).read_text())
  tensors = public_tensors()
  assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors.values())
  weight_map = {name: file.name for file in files for name in safetensors.numpy.load_file(file)}
  assert index["weight_map"] == weight_map
  assert sorted(weight_map) == sorted(tensors)
  for file in files:
    sizes = [a.nbytes for a in safetensors.numpy.load_file(file).values()]
    assert sum(sizes) <= 4000 or len(sizes) == 1
  assert_equal_trees(weights.load(tmp_path / "shards").params, params)


def test_weights_are_for_whoever_may_read_the_rest(folder, tmp_path):
  weights.save(tmp_path / "out", *config_and_params(folder))
  modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
  (tmp_path / "plain").touch()
  assert modes == {(tmp_path / "plain").stat().st_mode}


def test_our_own_copy_reads_back_equal(folder, tmp_path):
  config, params = config_and_params(folder)
  save_orbax(tmp_path / "ours", config, params)
  loaded = weights.load(tmp_path / "ours")
  assert loaded.module.config == config
  assert_equal_trees(loaded.params, params)
  half = weights.load(tmp_path / "ours", dtype="bfloat16")
  assert_equal_trees(half.params, jax.tree.map(lambda a: a.astype(jnp.bfloat16), params))


def test_precision_follows_what_is_asked_for(folder, tmp_path):
  exact = weights.load(folder)
  assert exact.module.config.dtype == "float32"
  narrow = weights.load(folder, dtype="bfloat16")
  assert narrow.module.config == dataclasses.replace(exact.module.config, dtype="bfloat16")
  expected = jax.tree.map(lambda a: a.astype(jnp.bfloat16), exact.params)
  assert_equal_trees(narrow.params, expected)
  wide = write(tmp_path / "half", public_tensors(dtype=np.float16))
  halves = {p: a.astype(np.float16).astype(np.float32) for p, a in public_tensors().items()}
  widened = write(tmp_path / "wide", halves)
  assert_equal_trees(weights.load(wide, widen=True).params, weights.load(widened).params)


READER = """
import sys
from emu_jax import weights
from emu_jax.weights import model

model.THREADS = 2  # whatever this machine has

def status(name):
  lines = open("/proc/self/status").read().splitlines()
  return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

weights.load(sys.argv[1])  # whatever JAX allocates once
before = status("VmRSS")
kept = weights.load(sys.argv[2])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is Linux's")
def test_reading_holds_no_second_copy(folder, tmp_path):
  tensors = public_tensors(width=768)
  size = sum(a.nbytes for a in tensors.values())
  assert 150e6 < size < 600e6
  write(tmp_path / "large", tensors, block_out_channels=[768])
  grown = subprocess.run(
    [sys.executable, "-c", READER, str(folder), str(tmp_path / "large")],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  )
  # One copy, and each of two threads with a tensor four times over: the file's pages, what is
  # copied out of them, what that is laid out as, and JAX's own. One more tensor for JAX's tables.
  largest = max(a.nbytes for a in tensors.values())
  assert (2 * 4 + 1) * largest < 0.7 * size
  assert size < int(grown.stdout) < size + (2 * 4 + 1) * largest
