"""The one exception that a command turns into a line and exit code 2."""


class InputError(ValueError):
  """What a user gave cannot be used: `<who>: <what was got> <rule broken>; <what to do>`."""
