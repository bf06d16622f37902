"""The page: balanced sides, nothing that tells the models apart, nothing from elsewhere."""

import html.parser
import json
import pathlib
import re
import tomllib
from collections import Counter

import numpy as np
import pytest

from emu_jax.errors import InputError
from emu_jax.evaluation.juice import page, pairs
from emu_jax.evaluation.juice.answers import FORMAT
from emu_jax.evaluation.juice.study import drawn_order, drawn_sides, key_path, read_key
from tests.data.video_files import write_numbered
from tests.evaluation.juice_study import PROMPTS, write_folders


def make(base, out, seed=0, **options):
  found, _ = pairs.matched(base / "secret_a", base / "secret_b", base / "prompts.txt")
  return page.write_page(out, found, ("secret_a", "secret_b"), seed, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return write_folders(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def made(base):
  make(base, base / "page")
  return base / "page"


def study_of(folder):
  text = (folder / "study.js").read_text()
  return json.loads(text.removeprefix("const STUDY = ").rstrip().removesuffix(";"))


# Sides.


@pytest.mark.parametrize("num_items", [1, 2, 7, 20])
def test_sides_are_balanced_and_differ_by_seed(num_items):
  drawn = [drawn_sides(num_items, seed) for seed in range(60)]
  for sides in drawn:
    assert abs(sides.count("left") - sides.count("right")) == num_items % 2
  firsts = Counter(sides[0] for sides in drawn)
  assert min(firsts.values()) > 15  # of 60: less has a chance below 1 in 10 000
  assert drawn[3] == drawn_sides(num_items, 3)


def test_the_order_is_drawn_apart_from_the_sides():
  assert sorted(drawn_order(20, 0)) == list(range(20))
  assert drawn_order(20, 0) != drawn_order(20, 1)
  moved = [np.argsort(drawn_order(20, s))[0] for s in range(200)]  # where the first pair goes
  left = [drawn_sides(20, s)[i] == "left" for s, i in enumerate(moved)]
  assert 65 < sum(left) < 135  # binomial of 200: 5 standard deviations


def test_the_key_says_which_side_is_whose(base, made):
  """A's clips are reddish: their files are those at the side that the key says."""
  key, study = read_key(key_path(made)), study_of(made)
  assert (key.a, key.b, key.study) == ("secret_a", "secret_b", study["id"])
  assert sorted(item.prompt for item in key.items) == sorted(PROMPTS)
  for item, entry in zip(key.items, study["items"], strict=True):
    assert (item.id, item.prompt) == (entry["id"], entry["prompt"])
    number = PROMPTS.index(item.prompt)
    assert item.a_file == str(base / "secret_a" / f"shot_{number}.mp4")
    for side in ("left", "right"):
      file = made / entry[side]
      colour = pairs.fitted(pairs.measured(file), pairs.Setting(160, 240, 8.0, 1))[0, 80, 40]
      assert (colour[0] > colour[2]) == (side == item.a_side)


# Blindness.


def test_nothing_in_the_folder_names_the_models(made):
  names = re.compile(rb"secret|shot_|a_side|a_file|seed", re.IGNORECASE)
  for file in made.rglob("*"):
    assert not names.search(str(file.relative_to(made)).encode())
    assert file.is_dir() or not names.search(file.read_bytes()), file
  assert key_path(made) == made.parent / "page.key.json"
  assert {len(path.stem) for path in (made / "videos").iterdir()} == {20}


def test_the_same_words_make_the_same_bytes_and_another_seed_another_study(base, made):
  other = {}
  for name, seed in (("again", 0), ("other", 1)):
    key = make(base, base / name, seed)
    other[name] = key.study
  before, after = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                   for f in (made, base / "again"))  # fmt: skip
  assert before == after
  assert key_path(made).read_bytes() == key_path(base / "again").read_bytes()
  assert other["other"] != other["again"] == study_of(made)["id"]


def test_files_as_they_are_where_post_processing_is_off(base):
  make(base, base / "raw", post_process=False)
  key, study = read_key(key_path(base / "raw")), study_of(base / "raw")
  for item, entry in zip(key.items, study["items"], strict=True):
    stored = (base / "raw" / entry[item.a_side]).read_bytes()
    with open(item.a_file, "rb") as file:
      assert file.read() == stored


# What the browser is given.


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))


def test_the_page_names_no_address_outside_its_folder(made):
  text = {name: (made / name).read_text() for name in ("index.html", "page.js", "style.css")}
  text["study.js"] = (made / "study.js").read_text()
  outside = re.compile(
    r"[a-z]+://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\("
  )
  for name, content in text.items():
    assert not outside.search(content), name
  links = [a[k] for _, a in Tags(text["index.html"]).found for k in ("src", "href") if k in a]
  assert sorted(links) == ["data:,", "page.js", "study.js", "style.css"]
  assert all((made / link).is_file() for link in links if link != "data:,")
  assert {p.name for p in made.iterdir()} == {*text, "videos"}
  videos = {item[side] for item in study_of(made)["items"] for side in ("left", "right")}
  assert videos == {f"videos/{path.name}" for path in (made / "videos").iterdir()}


def test_what_is_installed_has_the_page():
  """Every file of the package that is no Python is named as its data."""
  root = pathlib.Path(__file__).parents[2]
  named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
  data = {
    file
    for package, patterns in named.items()
    for pattern in patterns
    for file in (root / package.replace(".", "/")).glob(pattern)
    if file.is_file()
  }
  others = (
    f for f in (root / "emu_jax").rglob("*") if f.is_file() and "__pycache__" not in f.parts
  )
  assert data == {file for file in others if file.suffix != ".py"} != set()


def test_the_page_and_its_reader_agree_on_the_format(made):
  assert f'"{FORMAT}"' in (made / "page.js").read_text()


def test_every_input_has_a_label_and_every_section_a_heading(made):
  found = Tags((made / "index.html").read_text()).found
  ids = {attributes.get("id") for _, attributes in found}
  labelled = {attributes.get("for") for tag, attributes in found if tag == "label"}
  for i, (tag, attributes) in enumerate(found):
    if tag == "input":  # radios stand within their labels
      near = {name for name, _ in found[max(0, i - 3) : i]}
      assert attributes.get("id") in labelled or "label" in near
    if tag in ("section",):
      assert attributes["aria-labelledby"] in ids


def luminance(colour):
  values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
  return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(
  ("front", "back", "least"),
  [
    *((front, back, 4.5) for front in ("text", "quiet", "mark", "alert")
      for back in ("ground", "raised")),
    ("on-mark", "mark", 4.5),
  ],
)  # fmt: skip
def test_text_contrasts_with_its_ground(made, front, back, least):
  """WCAG 2.2, 1.4.3: 4.5 to 1."""
  colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", (made / "style.css").read_text()))
  light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
  assert (light + 0.05) / (dark + 0.05) >= least


# Whole or not at all.


def test_a_study_that_exists_is_kept(base, made):
  before = {p: p.stat().st_mtime_ns for p in base.rglob("*")}
  with pytest.raises(InputError, match=r"page\.key\.json exists; remove it or choose another name"):
    make(base, made)
  key_file = key_path(base / "full")
  (base / "full").mkdir()
  (base / "full" / "mine").touch()
  with pytest.raises(InputError, match=r"juice: .*full exists and is not empty"):
    make(base, base / "full")
  assert not key_file.exists()
  (base / "full" / "mine").unlink()
  (base / "full").rmdir()
  assert {p: p.stat().st_mtime_ns for p in base.rglob("*")}.items() >= {
    k: v for k, v in before.items() if k != base
  }.items()


def test_the_key_of_another_study_that_ends_first_is_kept(tmp_path):
  """Begun at the same time under the same name: the later one fails and takes nothing away."""
  base = write_folders(tmp_path / "s", num_pairs=2)

  def overtaken(chosen):
    yield from chosen
    key_path(base / "page").write_text("of the other")

  with pytest.raises(InputError, match=r"page\.key\.json exists"):
    make(base, base / "page", progress=overtaken)
  assert key_path(base / "page").read_text() == "of the other"
  assert not (base / "page").exists()


def test_a_damaged_clip_leaves_nothing(tmp_path):
  base = write_folders(tmp_path / "s", num_pairs=2)
  clip = write_numbered(base / "secret_b" / "shot_1.mp4", 30)
  clip.write_bytes(clip.read_bytes()[:900])
  with pytest.raises(InputError, match=r"shot_1\.mp4"):
    make(base, base / "page")
  assert {p.name for p in base.iterdir()} == {"secret_a", "secret_b", "prompts.txt"}


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("no", "is not JSON"),
    ('{"format": "x"}', r"is no key of a study; give the \.key\.json file"),
    ('{"format": "emu-jax juice key 1", "items": [1]}', "is a damaged key"),
    ('{"format": "emu-jax juice key 1", "items": []}', "is a damaged key"),
  ],
)
def test_a_key_that_is_none(tmp_path, text, says):
  (tmp_path / "k.json").write_text(text)
  with pytest.raises(InputError, match=says):
    read_key(tmp_path / "k.json")
