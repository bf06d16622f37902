"""Captions in the layouts that people keep them in; what is wrong is told by file and line."""

import codecs
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.data.metadata import Layout, read_metadata
from emu_jax.errors import InputError

TABLE = [{"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": "two"}]


@pytest.fixture
def clips(tmp_path):
  """Two files of no content: no clip is opened to read captions."""
  for name in ("a", "b"):
    (tmp_path / f"{name}.mp4").touch()
  return tmp_path


def found(folder):
  return [(row.file_name, row.texts) for row in read_metadata(folder)]


def write(folder, files):
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


LAYOUTS = {
  "jsonl": {"metadata.jsonl": "\n".join(map(json.dumps, TABLE))},
  "csv": {"metadata.csv": "file_name,text\na.mp4,one\nb.mp4,two\n"},
  "a spreadsheet's csv": {"metadata.csv": "\ufefftext;video\r\none;a.mp4\r\ntwo;b.mp4\r\n"},
  "other columns' names": {"metadata.csv": "path,caption\na.mp4,one\nb.mp4,two\n"},
  "text files": {"a.txt": "one\n", "b.txt": "two"},
  "lists": {"videos.txt": "a.mp4\nb.mp4\n", "prompt.txt": "one\ntwo\n"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_set_in_each_layout(clips, name):
  write(clips, LAYOUTS[name])
  assert found(clips) == [("a.mp4", ("one",)), ("b.mp4", ("two",))]


def test_parquet(clips):
  table = pyarrow.Table.from_pylist([row | {"score": i} for i, row in enumerate(TABLE)])
  pyarrow.parquet.write_table(table, clips / "metadata.parquet")
  rows = read_metadata(clips)
  assert [(row.file_name, row.texts) for row in rows] == [("a.mp4", ("one",)), ("b.mp4", ("two",))]
  assert [row.numbers for row in rows] == [(("score", 0.0),), (("score", 1.0),)]


def test_parquet_without_its_package_or_with_the_clips_in_it(clips, monkeypatch):
  table = pyarrow.Table.from_pylist([{"video": {"bytes": b"", "path": "a"}, "text": "one"}])
  pyarrow.parquet.write_table(table, clips / "metadata.parquet")
  with pytest.raises(
    InputError, match=r"bytes in the column\(s\) video; write each clip to a file"
  ):
    read_metadata(clips)
  (clips / "metadata.parquet").write_bytes(b"no parquet")
  with pytest.raises(InputError, match="is no Parquet file"):
    read_metadata(clips)
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(InputError, match="needs the package pyarrow"):
    read_metadata(clips)


def test_several_captions_of_a_clip(clips):
  rows = [{"file_name": "a.mp4", "text": ["one", "uno"]}, {"file_name": "b.mp4", "text": "two"}]
  write(clips, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
  assert found(clips) == [("a.mp4", ("one", "uno")), ("b.mp4", ("two",))]
  (clips / "metadata.jsonl").unlink()
  write(clips, {"a.txt": "one\n\n uno \n", "b.txt": "two"})
  assert found(clips) == [("a.mp4", ("one", "uno")), ("b.mp4", ("two",))]
  assert Layout.of(read_metadata(clips)).captions
  write(clips, {"a.txt": "one"})
  assert not Layout.of(read_metadata(clips)).captions


def test_folders_within_the_folder_are_read_in_turn(tmp_path):
  write(tmp_path, {
    "part1/c.mp4": "", "part1/deep/d.mp4": "", "part1/c.txt": "three", "part1/deep/d.txt": "four",
    "part2/clips/e.mp4": "", "part2/metadata.csv": "file_name,text\nclips/e.mp4,five\n",
    ".cache/f.mp4": "", ".cache/f.txt": "six",
  })  # fmt: skip
  (tmp_path / "part1" / "around").symlink_to(tmp_path)
  assert found(tmp_path) == [
    ("part1/c.mp4", ("three",)), ("part1/deep/d.mp4", ("four",)), ("part2/clips/e.mp4", ("five",)),
  ]  # fmt: skip
  assert {row.split for row in read_metadata(tmp_path)} == {""}


@pytest.mark.parametrize("one_table", [True, False])
def test_folders_that_are_called_as_splits(tmp_path, one_table):
  names = ("train/a.mp4", "val/b.mp4", "test/c.mp4")
  write(tmp_path, dict.fromkeys(names, ""))
  if one_table:
    rows = [{"file_name": name, "text": ""} for name in names]
    write(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
  else:
    write(tmp_path, {name.replace("mp4", "txt"): "" for name in names})
  splits = {row.file_name: row.split for row in read_metadata(tmp_path)}
  assert splits == dict(zip(names, ("train", "validation", "test"), strict=True))


@pytest.mark.parametrize(("stored", "written"), [("e\u0301", "\u00e9"), ("\u00e9", "e\u0301")])
def test_both_ways_to_write_an_accent_name_one_file(tmp_path, stored, written):
  write(tmp_path, {f"{stored}/{stored}.mp4": ""})
  write(tmp_path, {"metadata.csv": f"file_name,text\n{written}/{written}.mp4,one\n"})
  assert found(tmp_path) == [(f"{stored}/{stored}.mp4", ("one",))]
  (tmp_path / "metadata.csv").unlink()
  write(tmp_path, {f"{stored}/{written}.txt": "one"})
  assert found(tmp_path) == [(f"{stored}/{stored}.mp4", ("one",))]


REFUSED = {
  "a quotation mark that nobody closes": (
    {"metadata.csv": 'file_name,text\na.mp4,"one\nb.mp4,two\n'}, "metadata.csv line 2 cannot be"
  ),
  "one that the next line closes": (
    {"metadata.csv": 'file_name,text\na.mp4,"one\nb.mp4,two"\n'}, "line 2 begins a text that runs"
  ),
  "one before the file's name": (
    {"metadata.csv": 'text,file_name\n"one,a.mp4\ntwo,b.mp4"\n'}, "line 2 (has not|begins)"
  ),
  "Windows-1252": (
    {"metadata.csv": "file_name,text\na.mp4,one\nb.mp4,caf\u00e9\n".encode("cp1252")},
    "line 3 is not UTF-8",
  ),
  "UTF-16": (
    {"metadata.csv": codecs.BOM_UTF16_LE + "file_name,text\n".encode("utf-16-le")},
    "line 1 is not UTF-8 .*as UTF-16",
  ),
  "UTF-16 without its mark": (
    {"metadata.jsonl": json.dumps(TABLE[0]).encode("utf-16-le")}, "line 1 is not UTF-8 .*zero bytes"
  ),
  "a field without end": (
    {"metadata.csv": f"file_name,text\na.mp4,one\nb.mp4,{'x' * 140_000}\n"},
    "line 3 cannot be read .field larger",
  ),
  "half a character": (
    {"metadata.jsonl": '{"file_name": "a.mp4", "text": ["one", "\\ud83d"]}'}, "line 1 holds half of"
  ),
  "a column twice": ({"metadata.csv": "file_name,text,text\na.mp4,a,b\n"}, "line 1 names a column"),
  "more cells than columns": ({"metadata.csv": "file_name,text\na.mp4,a,b\n"}, "has not the 2"),
  "fewer": ({"metadata.csv": "file_name,text\na.mp4\n"}, "line 2 has not the 2"),
  "no column of files": ({"metadata.csv": "clip,text\na.mp4,a\n"}, "line 2 .*'file_name'.*video"),
  "no captions": ({"metadata.jsonl": '{"file_name": "a.mp4", "text": []}'}, "line 1 has no text"),
  "an absolute path": ({"metadata.csv": "file_name,text\n/etc/a.mp4,a\n"}, "line 2 .*outside of"),
  "a path above": ({"metadata.csv": "file_name,text\nx/../../a.mp4,a\n"}, "line 2 .*outside of"),
  "a further file above": (
    {"metadata.jsonl": json.dumps(TABLE[0] | {"mask_file_name": "../m.mp4"})}, "line 1 .*outside of"
  ),
  "lists of two lengths": (
    {"videos.txt": "a.mp4\nb.mp4\n", "prompt.txt": "one\n"}, "holds 2 lines and .* 1"
  ),
  "archives": ({"00000.tar": ""}, "unpack 00000.tar"),
  "a table of another name": ({"captions.csv": "file_name,text\n"}, "rename captions.csv to"),
  "a JSON list": ({"data/captions.json": "[]"}, "write data/captions.json as metadata.csv"),
  "clips alone": ({}, "write a metadata.jsonl with a line"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_line_with_file_and_line(clips, name):
  files, words = REFUSED[name]
  write(clips, files)
  with pytest.raises(InputError, match=words) as caught:
    read_metadata(clips)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 600


def test_a_caption_may_have_several_lines(clips):
  text = 'a "red" bus, then\na stop, and rain.'
  quoted = text.replace('"', '""')
  write(clips, {"metadata.csv": f'file_name,text\na.mp4,"{quoted}"\nb.mp4,two\n'})
  assert found(clips) == [("a.mp4", (text,)), ("b.mp4", ("two",))]


def test_a_text_file_that_cannot_be_read_costs_its_clip_alone(clips):
  write(clips, {"a.txt": b"caf\xe9", "b.txt": "two"})
  bad, good = read_metadata(clips)
  assert "a.txt line 1 is not UTF-8" in bad.fault
  assert (good.fault, good.texts) == ("", ("two",))
