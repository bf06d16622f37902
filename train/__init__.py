"""The trainer, imported as emu_jax.train: this folder is linked there, and a wheel has it there."""

if __name__ == "train":
  raise ImportError("the trainer is emu_jax.train; import that, not train")
