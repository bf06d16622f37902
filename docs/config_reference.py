"""The tables of configs.md: every field of every part of a config, out of the dataclasses.

MkDocs calls `on_page_markdown` for each page; the page that holds `MARK` gets the tables there.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from emu_jax.config import class_of_kind
from emu_jax.systems import registry
from emu_jax.train.config import Experiment

MARK = "<!-- fields -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
  """A page's text; MkDocs passes the page, its configuration and all files besides."""
  return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
  """A section for each class that a config can be made of, `Experiment` first."""
  found = list(dict.fromkeys(parts(Experiment, set())))
  links = {cls.__name__: f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in found}
  return "\n\n".join(section(cls, links) for cls in found)


def parts(cls: type, seen: set[type]) -> Iterator[type]:
  """A dataclass and those that its fields may hold, before those that these hold in turn."""
  if cls in seen:
    return
  seen.add(cls)
  yield cls
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    for part in held_by(hints[field.name]):
      yield from parts(part, seen)


def held_by(hint: Any) -> Iterator[type]:
  """Dataclasses of ours that a field may hold: those annotated, and every kind of a base class."""
  for cls in named_classes(hint):
    if dataclasses.is_dataclass(cls) and not inspect.isabstract(cls):
      yield cls
    for name in (*registry.names(), *registry.KINDS):
      with contextlib.suppress(ValueError):  # a kind of something else
        yield class_of_kind(name, cls)


def named_classes(hint: Any) -> Iterator[type]:
  """Classes of ours in an annotation: itself, or the parts of a union or a tuple."""
  if inspect.isclass(hint) and hint.__module__.startswith("emu_jax."):
    yield hint
  for part in typing.get_args(hint):
    yield from named_classes(part)


def section(cls: type, links: dict[str, str]) -> str:
  """Heading, docstring and a table of the fields of one class."""
  said = inspect.getdoc(cls).split("\n\nAttributes:")[0].split("\n\nRaises:")[0]
  kind = f" (kind `{cls.config_kind}`)" if "config_kind" in cls.__dict__ else ""
  lines = [
    f"## {cls.__name__}", "", f"`{cls.__module__}`{kind}. {said}", "",
    "| field | type | default | meaning |", "|---|---|---|---|",
  ]  # fmt: skip
  source, hints = fields_as_written(cls), typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    annotation, meaning = source[field.name]
    held = list(dict.fromkeys(held_by(hints[field.name])))
    others = [links[one.__name__] for one in held if one.__name__ not in annotation]
    kinds = re.sub(r"\w+", lambda word: links.get(word[0], word[0]), annotation)
    kinds += f" ({', '.join(others)})" if others else ""
    if held and not meaning:
      meaning = " ".join(inspect.getdoc(held[0]).split("\n\n")[0].split()) if len(held) == 1 else ""
    cells = (f"`{field.name}`", kinds, default(field), meaning)
    lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
  return "\n".join(lines)


def fields_as_written(cls: type) -> dict[str, tuple[str, str]]:
  """Field -> its annotation and what the source says of it, those of base classes too.

  That is the comment behind the field, else the text that stands alone behind it, else the comment
  above it, else its line under "Attributes:" in the class's docstring.
  """
  found: dict[str, tuple[str, str]] = {}
  for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
    source = textwrap.dedent(inspect.getsource(base))
    comments = {
      token.start[0]: (token.string.lstrip("# "), token.line.strip() == token.string)
      for token in tokenize.generate_tokens(io.StringIO(source).readline)
      if token.type == tokenize.COMMENT
    }
    listed = attributes(inspect.cleandoc(base.__doc__ or ""))
    body = ast.parse(source).body[0].body
    for node, following in zip(body, [*body[1:], None], strict=True):
      if not isinstance(node, ast.AnnAssign):
        continue
      behind = [comments[n][0] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
      text = getattr(getattr(following, "value", None), "value", None)
      after = text if isinstance(following, ast.Expr) and isinstance(text, str) else ""
      above, line = [], node.lineno - 1
      while comments.get(line, ("", False))[1]:
        above.insert(0, comments[line][0])
        line -= 1
      said = " ".join(behind) or after or " ".join(above) or listed.get(node.target.id, "")
      found[node.target.id] = (ast.unparse(node.annotation), " ".join(said.split()))
  return found


def attributes(docstring: str) -> dict[str, str]:
  """Name -> text of the lines under "Attributes:"."""
  _, _, listed = docstring.partition("\nAttributes:\n")
  entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", listed.split("\n\n")[0], re.MULTILINE)
  return dict(entries)


def default(field: dataclasses.Field) -> str:
  """A field's default as one would write it; empty where it must be given."""
  if field.default is not dataclasses.MISSING:
    return f"`{written(field.default)}`"
  if field.default_factory is not dataclasses.MISSING:
    return f"`{written(field.default_factory())}`"
  return ""


def written(value: Any) -> str:
  """A value as source; of a dataclass only the fields that are not its defaults."""
  if isinstance(value, tuple):
    inside = ", ".join(map(written, value))
    return f"({inside},)" if len(value) == 1 else f"({inside})"
  if not dataclasses.is_dataclass(value):
    return repr(value)
  changed = [
    f"{f.name}={written(getattr(value, f.name))}"
    for f in dataclasses.fields(value)
    if f.default is dataclasses.MISSING or getattr(value, f.name) != f.default
  ]
  return f"{type(value).__name__}({', '.join(changed)})"
