"""One line and exit code 2 for bad input, in both commands."""

import contextlib
import sys
from collections.abc import Iterator

from emu_jax.errors import InputError


@contextlib.contextmanager
def errors(prog: str) -> Iterator[None]:
  """Bad input ends the process in one line and exit code 2, an interruption in exit code 130."""
  try:
    yield
  except InputError as error:
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2) from None
  except KeyboardInterrupt:
    raise SystemExit(130) from None
