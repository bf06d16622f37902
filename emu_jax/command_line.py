"""One line and an exit code for what goes wrong, in both commands."""

import contextlib
import sys
from collections.abc import Iterator

from emu_jax.errors import InputError


@contextlib.contextmanager
def errors(prog: str) -> Iterator[None]:
  """Bad input ends the process in one line and exit code 2, an interruption in exit code 130.

  So does training that diverged, with exit code 1: its message says what to change.
  """
  try:
    yield
  except (InputError, FloatingPointError) as error:
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, InputError) else 1) from None
  except KeyboardInterrupt:
    raise SystemExit(130) from None
