"""The command `emu-jax`: what one does with a model."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `emu-jax`; what it needs is imported when it runs."""
  from emu_jax.cli.commands import main as command

  command(arguments)
