"""Runs a module in a process that cannot import PyTorch, as if it were not installed.

tensorboardX, for one, loads it wherever it finds it.

  python -m benchmarks.without_torch benchmarks.with_jax training default 1
"""

import runpy
import sys


class NoTorch:
  """An import finder, asked first, that knows of one module that there is none."""

  @staticmethod
  def find_spec(name: str, path=None, target=None):
    if name == "torch":
      raise ModuleNotFoundError("torch is kept out of this process", name=name)


def main() -> None:
  sys.meta_path.insert(0, NoTorch)
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
