"""What a place is that holds no model, and what to do about it."""

import contextlib
import pathlib
import re

from emu_jax.errors import InputError
from emu_jax.systems.pipelines import INDEX
from emu_jax.weights.files import PICKLES, STEMS, Tensors, read_json

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = (
  "give the folder of a run of emu-train, of a release, or of a pipeline of diffusers (with "
  f"{INDEX} in it)"
)


def no_model(path: pathlib.Path) -> InputError:
  """The error, to be raised, for a path that is no run, release or pipeline."""
  return InputError(f"{path}: {_what(path)}")


def _what(path: pathlib.Path) -> str:
  if path.is_file():
    return _file(path)
  if not path.is_dir():
    if HUB_ID.fullmatch(str(path)) and not path.parent.exists():
      return (
        "there is no such folder; of a model on the Hugging Face hub give the folder that it was "
        f"downloaded to: hf download {path} --local-dir FOLDER"
      )
    return f"there is no such folder; {WANTED}"
  names = sorted(entry.name for entry in path.iterdir())
  if (path / "snapshots").is_dir():
    inner = sorted((path / "snapshots").iterdir())
    where = f", such as {inner[-1]}" if inner else ", of which it holds none: download it again"
    return f"is a model's cache of the Hugging Face hub; give one of its snapshots{where}"
  if models := [name for name in names if name.startswith("models--")]:
    return (
      f"is the cache of the Hugging Face hub, which holds {_some(models)}; give a folder "
      f"{models[0]}/snapshots/REVISION in it"
    )
  if lora := _lora(path, names):
    return f"is a LoRA ({lora}), changes to a model and no model; merge it into one first"
  if "config.json" in names:
    with contextlib.suppress(InputError):
      values = read_json(path / "config.json")
      kind = values.get("_class_name") or (values.get("architectures") or [None])[0]
      if kind:
        return (
          f"holds one network, a {kind}, and no whole model; give the folder of its pipeline, with "
          f"{INDEX} in it"
        )
  if "checkpoints" in names:
    return "holds no checkpoint that is complete; let the run go on until it has saved one"
  return f"holds no model but {_some(names) if names else 'nothing'}; {WANTED}"


def _file(path: pathlib.Path) -> str:
  if path.suffix in PICKLES:
    return "is a pickle, which can run code when opened; give a folder with .safetensors"
  if path.suffix != ".safetensors":
    return f"is a file and no folder; {WANTED}"
  with contextlib.suppress(InputError):
    if _is_lora(Tensors(path)):
      return "is a LoRA, changes to a model and no model; merge it into one first"
  return (
    "is a single file of weights, which does not say what they are of; give the folder of its "
    "pipeline, which diffusers writes of such a file (from_single_file, then save_pretrained)"
  )


def _lora(path: pathlib.Path, names: list[str]) -> str | None:
  """The file of a folder that shows it to be a LoRA."""
  if "adapter_config.json" in names:
    return "adapter_config.json"
  for name in names:
    if name.endswith(".safetensors") and name.removesuffix(".safetensors") not in STEMS:
      with contextlib.suppress(InputError):
        if _is_lora(Tensors(path / name)):
          return name
  return None


def _is_lora(tensors: Tensors) -> bool:
  return any("lora" in name.lower() for name in tensors)


def _some(names: list[str]) -> str:
  return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
