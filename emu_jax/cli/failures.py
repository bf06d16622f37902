"""One line and an exit code for what goes wrong, in both commands."""

import contextlib
import sys
from collections.abc import Iterator

from emu_jax.errors import InputError


@contextlib.contextmanager
def errors(prog: str) -> Iterator[None]:
  """Bad input, or a system that refuses a file, ends in one line and exit code 2.

  Training that diverged ends in one line and exit code 1, an interruption in exit code 130.
  """
  try:
    yield
  except (InputError, FloatingPointError, OSError) as error:
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(1 if isinstance(error, FloatingPointError) else 2) from None
  except KeyboardInterrupt:
    raise SystemExit(130) from None
