"""A study played through in a real browser, by keyboard alone; what it saves is what is scored."""

import functools
import http.server
import json
import pathlib
import shutil
import threading
import time
import zlib

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from emu_jax import cli
from emu_jax.evaluation.juice.study import QUESTIONS, key_path, read_key
from tests.evaluation.juice_study import PROMPTS, words, write_folders

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --mute-audio"
  " --disable-background-networking --disable-component-update --disable-sync"
  " --disable-dev-shm-usage --window-size=1280,800"
)
pytestmark = pytest.mark.skipif(
  not (BROWSER and DRIVER),
  reason="no chromium and chromedriver on PATH: apt-get install chromium chromium-driver",
)
QUALITY, FAITHFULNESS = (question.name for question in QUESTIONS)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
  return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(tmp_path_factory, downloads):
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for flag in FLAGS.split():
    options.add_argument(flag)
  options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
  options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
  driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
  yield driver
  driver.quit()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return write_folders(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(base, request):
  """A new study of the three pairs; another seed for every test, hence another id."""
  page = base / request.node.name
  cli.main(words(base, "--out", page, "--seed", zlib.crc32(page.name.encode())))
  return page


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *words):
    pass


@pytest.fixture
def served(study):
  """The address of the study on a static server."""
  handler = functools.partial(Quiet, directory=study)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Rater:
  """Somebody with a keyboard and eyes, at a page that was opened from disk or from a server."""

  def __init__(self, driver, page):
    self.driver = driver
    driver.get(page if isinstance(page, str) else (page / "index.html").as_uri())

  def press(self, *keys):
    webdriver.ActionChains(self.driver, duration=0).send_keys(*keys).perform()

  def see(self, selector):
    """Text of what is shown under a selector; None where it is not shown."""
    (found,) = self.driver.find_elements("css selector", selector)
    return found.text if found.is_displayed() else None

  def run(self, script):
    return self.driver.execute_script("return " + script)

  def wait(self, script):
    WebDriverWait(self.driver, 10, 0.05).until(lambda _: self.run(script), script)

  def begin(self, name):
    self.press(name, Keys.ENTER)

  def ticked(self):
    return self.run("[...document.querySelectorAll('#list input:checked')].map(i => i.value)")

  def chosen(self):
    return self.run("document.querySelector('[name=choice]:checked')?.value")


ARROWS = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT}
OTHER = {"left": "right", "right": "left"}


def saved(downloads, before):
  """The file that is new among the downloads, once it is whole."""
  for _ in range(200):
    # Chromium takes the name with an empty file, which the whole one then replaces in one step.
    files = [p for p in downloads.iterdir() if p not in before and p.suffix == ".json"]
    new = [p for p in files if p.stat().st_size]
    if new:
      return new[0]
    time.sleep(0.05)
  raise AssertionError("nothing was downloaded within 10 s")


def test_a_study_by_keyboard_alone_from_the_first_page_to_the_score(
  driver, study, served, downloads, tmp_path
):
  """Prefers A's quality, for sharpness and smoothness, and B's faithfulness, for time."""
  rater, key, before = Rater(driver, served), read_key(key_path(study)), set(downloads.iterdir())
  rater.press(Keys.ENTER)  # without a name: nothing begins
  assert rater.see("#start") is not None
  assert "Pixel sharpness" in rater.see("#explained")
  rater.begin("  Änn O'Neil ")
  for number, item in enumerate(key.items, 1):
    assert rater.see("#place") == f"Pair {number} of 3, question 1 of 2"
    assert rater.see("#question") == "Which video has better quality?"
    assert rater.see("#prompt") is None
    rater.press(ARROWS[item.a_side], "1", "3", "2", "3", Keys.ENTER)  # 3 is taken back
    assert rater.see("#place") == f"Pair {number} of 3, question 2 of 2"
    assert rater.see("#question") == "Which video follows the prompt better?"
    assert rater.see("#prompt") == item.prompt
    rater.press(ARROWS[OTHER[item.a_side]], "2", Keys.ENTER)
  assert rater.see("#end-title") == "Done, thank you"
  assert rater.see("#share") == "6 of 6 answered"
  rater.press("s")
  file = saved(downloads, before)
  assert file.name == f"juice-{key.study[:8]}-A-nn-O-Neil.json"
  written = json.loads(file.read_text())
  assert written["rater"] == "Änn O'Neil"
  assert written["answers"][key.items[0].id] == {
    QUALITY: {"choice": key.items[0].a_side, "reasons": ["sharpness", "smoothness"]},
    FAITHFULNESS: {"choice": OTHER[key.items[0].a_side], "reasons": ["temporal"]},
  }
  out = tmp_path / "score.json"
  cli.main(["juice", "score", str(key_path(study)), str(file), "--out", str(out)])
  read = json.loads(out.read_text())["questions"]
  assert read[QUALITY]["wins"] == {"a": 3, "b": 0, "tie": 0}
  assert read[FAITHFULNESS]["wins"] == {"a": 0, "b": 3, "tie": 0}
  assert read[QUALITY]["reasons"]["a"]["counts"]["smoothness"] == 3
  assert read[FAITHFULNESS]["reasons"]["b"]["counts"] == {"spatial": 0, "temporal": 3}
  loaded = rater.run("performance.getEntriesByType('resource').map(e => e.name)")
  assert {name.removeprefix(served) for name in loaded} >= {"page.js", "study.js", "style.css"}
  assert all(name.startswith((served, "data:")) for name in loaded)


def test_no_step_without_a_choice_and_a_reason(driver, study):
  rater = Rater(driver, study)
  rater.begin("Bo")
  rater.press(Keys.ENTER)
  assert rater.see("#alert") == "Choose a video first: ← for the left one, → for the right one."
  rater.press(Keys.ARROW_LEFT, Keys.ENTER)
  assert rater.see("#alert") == "Give at least one reason."
  assert rater.see("#place") == "Pair 1 of 3, question 1 of 2"
  rater.press(Keys.SPACE, Keys.ENTER)  # the first reason has the focus
  assert rater.see("#place") == "Pair 1 of 3, question 2 of 2"
  assert rater.see("#share") == "1 of 6 answered"


def test_closing_the_page_loses_nothing_and_going_back_keeps_answers(driver, study):
  rater = Rater(driver, study)
  rater.begin("Cy")
  rater.press(Keys.ARROW_LEFT, "5", Keys.ENTER, Keys.ARROW_RIGHT)  # half of the second answer
  again = Rater(driver, study)
  assert again.see("#place") == "Pair 1 of 3, question 2 of 2"
  assert again.see("#status").startswith("Welcome back, Cy.")
  assert (again.chosen(), again.ticked()) == ("right", [])
  again.press(Keys.BACKSPACE)
  assert (again.chosen(), again.ticked()) == ("left", ["motion"])
  again.press(Keys.ARROW_RIGHT, "4", Keys.ENTER, Keys.BACKSPACE)  # changed, and looked at again
  assert (again.chosen(), again.ticked()) == ("right", ["consistency", "motion"])


def test_an_answer_undone_on_the_way_back_is_asked_for_at_the_end(driver, study):
  rater = Rater(driver, study)
  rater.begin("Di")
  rater.press(*[Keys.ARROW_LEFT, "1", Keys.ENTER] * 5, Keys.ARROW_LEFT, "1")
  rater.press(Keys.BACKSPACE, "1", Keys.BACKSPACE, Keys.ENTER)  # question 5 has no reason now
  assert rater.see("#place") == "Pair 3 of 3, question 1 of 2"
  rater.press(Keys.BACKSPACE, Keys.ENTER, "1", Keys.ENTER, Keys.ENTER)
  assert rater.see("#end-title") == "Done, thank you"


def test_two_raters_at_one_browser_keep_their_own_answers(driver, study, downloads):
  first, before = Rater(driver, study), set(downloads.iterdir())
  first.begin("constructor")
  first.press(Keys.ARROW_LEFT, "1", Keys.ENTER, Keys.BACKSPACE, Keys.BACKSPACE)
  first.begin("Flo")
  assert first.chosen() is None
  first.press(Keys.ARROW_RIGHT, "2", "s")  # saved before the end
  written = json.loads(saved(downloads, before).read_text())
  assert written["rater"] == "Flo"
  assert list(written["answers"].values()) == [
    {QUALITY: {"choice": "right", "reasons": ["smoothness"]}}
  ]
  first.press(Keys.BACKSPACE)
  first.begin("constructor")
  assert (first.chosen(), first.ticked()) == ("left", ["sharpness"])


def test_videos_play_side_by_side_in_equal_size_and_can_be_stopped(driver, study):
  rater = Rater(driver, study)
  rater.begin("Gus")
  rater.wait("videos().length === 2 && videos().every(v => v.readyState === 4 && !v.paused)")
  rater.wait("videos().every(v => v.currentTime > 0.1)")
  left, right = rater.run("videos().map(v => v.getBoundingClientRect().toJSON())")
  assert (left["width"], left["height"], left["top"]) == (
    right["width"], right["height"], right["top"],
  )  # fmt: skip
  assert left["right"] < right["left"]
  assert left["width"] > 300
  assert rater.run("videos().every(v => v.loop && v.muted && v.videoWidth === 240)")
  assert rater.run("document.documentElement.scrollHeight <= innerHeight"), "has to be scrolled"
  rater.press("p")
  assert rater.run("videos().every(v => v.paused)")
  assert rater.run("document.getElementById('pause').ariaPressed") == "true"
  rater.press("r")
  rater.wait("videos().every(v => !v.paused)")


def test_animations_are_shown_as_they_are(driver, tmp_path):
  base = write_folders(tmp_path / "gifs", num_pairs=1, ending=".gif")
  cli.main(words(base, "--out", base / "page", "--no-post-process"))
  rater = Rater(driver, base / "page")
  rater.begin("Hal")
  rater.wait(
    "[...document.querySelectorAll('img')].filter(i => i.naturalWidth === 48).length === 2"
  )
  rater.press(Keys.ARROW_LEFT, "1", Keys.ENTER)
  assert rater.see("#prompt") == PROMPTS[0]


def test_a_video_that_cannot_be_shown_is_said(driver, study):
  for clip in pathlib.Path(study / "videos").iterdir():
    clip.write_bytes(b"nothing")
  rater = Rater(driver, study)
  rater.begin("Ina")
  rater.wait("document.getElementById('alert').textContent.includes('cannot be shown')")


def test_the_page_works_where_nothing_can_be_kept(driver, study):
  blocked = "Storage.prototype.setItem = () => { throw new Error('full') }"
  rater = Rater(driver, study)
  rater.run(blocked)
  rater.begin("Jo")
  assert rater.see("#unkept").startswith("This browser keeps nothing: do not close or reload")
  rater.press(Keys.ARROW_LEFT, "1", Keys.ENTER)
  assert rater.see("#place") == "Pair 1 of 3, question 2 of 2"
