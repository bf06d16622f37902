"""Configurations of before version 2, when every run and release was one of Emu Video.

They had {"stage", "model", …}, with what is now the system's among the fields of an experiment.
"""

from typing import Any

UNREAD = ("strip",)  # fields of an autoencoder that there are no longer


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
  """config.json of a run, or of a release, in today's form.

  Args:
    values: of a release "model" alone.
  """
  new = {"version": 2, "system": _system(values)}
  if "stage" not in values:
    return new
  data = dict(values["data"])
  data.pop("first_frames", None)
  data["tokenizers"] = values.get("tokenizers") or values.get("text_encoders") or []
  folders = enumerate(values.get("text_encoders") or [])
  loop = values["loop"] | {"num_samples": values.get("num_samples", 4)}
  return new | {
    "part": values["stage"],
    "data": data,
    "loop": loop,
    "init_trees": [f"text/{i}={folder}" for i, folder in folders],
    **{name: values[name] for name in ("optim", "mesh", "name", "init_from") if name in values},
  }


def _system(values: dict[str, Any]) -> dict[str, Any]:
  model = values["model"]
  guidance = dict(model.get("guidance", {}))
  fields = ("temporal", "interpolation_steps", "num_frames", "fps")
  video = values.get("stage") in ("video", "interpolation", "extension")
  times = _given(times=values.get("times"))
  noise = _given(offset_noise=values.get("offset_noise"))
  return {
    "@kind": "emu_video",
    "image": _image(values, guidance.pop("picture", 7.5), {} if video else times | noise),
    "process": _discrete(model["schedule"], times if video else {}),
    "guidance": guidance,
    "first_frames": values.get("data", {}).get("first_frames", False),
    "train_spatial": values.get("train_spatial", False),
    **{name: model[name] for name in fields if name in model},
    **({"augmentation": _discrete(model["augmentation"])} if "augmentation" in model else {}),
    **(noise if video else {}),
  }


def _image(values: dict[str, Any], guidance: float, training: dict[str, Any]) -> dict[str, Any]:
  image = values["model"]["image"]
  times = {"times": training["times"]} if "times" in training else {}
  preview = dict(values.get("sampling", {}))
  preview.pop("rescale", None)
  autoencoder = {k: v for k, v in image["autoencoder"].items() if k not in UNREAD}
  side = image.get("size", 512)
  return {
    "@kind": "emu",
    "unet": image["unet"],
    "text": image["text"],
    "first_stage": {"@kind": "kl_autoencoder", "config": autoencoder},
    "process": _discrete(image.get("schedule", {}), times),
    "size": [side, side],
    "zero_empty": image.get("zero_empty", False),
    "guidance": guidance,
    "train_text": values.get("train_text", False),
    **_given(objective=values.get("objective"), offset_noise=training.get("offset_noise")),
    **({"preview": preview} if preview else {}),
  }


def _discrete(schedule: dict[str, Any], times: dict[str, Any] | None = None) -> dict[str, Any]:
  return {"@kind": "discrete", "schedule": schedule, **(times or {})}


def _given(**values: Any) -> dict[str, Any]:
  return {name: value for name, value in values.items() if value is not None}
