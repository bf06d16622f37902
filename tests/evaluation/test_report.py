"""A report holds what the metrics say, and its tables show every number with interval and count."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import rich.console
from drawing import drawn

from emu_jax.data.shapes import BACKGROUNDS, COLOURS
from emu_jax.errors import InputError
from emu_jax.evaluation import clip_score, metrics, report
from emu_jax.evaluation.frechet import Distance

TRUTH = {
  "colour": "green",
  "shape": "square",
  "size": "large",
  "texture": "plain",
  "background": "navy",
  "direction": "right",
  "speed": "quickly",
}


def clips_of(colours, num_frames=4):
  """Clips at 4 frames a second of a large square that moves quickly to the right."""
  return np.stack(
    [
      [
        drawn("square", COLOURS[c], BACKGROUNDS["navy"], across=12, centre=(8 + 4 * i, 15))
        for i in range(num_frames)
      ]
      for c in colours
    ]
  )


@pytest.fixture(scope="module")
def reports():
  real = report.evaluate_clips(clips_of(["green"] * 4), [TRUTH] * 4, fps=4)
  generated = report.evaluate_clips(clips_of(["green"] * 3 + ["red"]), [TRUTH] * 4, fps=4)
  return {"generated": generated, "real": real}


def test_a_report_counts_what_is_right(reports):
  real, generated = reports["real"].estimates, reports["generated"].estimates
  assert set(real) == set(report.TITLES) - set(clip_score.TITLES)
  for key in ("appearance", "direction", "speed", "joint", "readable", "object_consistency"):
    assert (real[key].value, real[key].n) == (1, 4)
  assert generated["colour"] == generated["joint"] == metrics.proportion(np.arange(4) < 3)
  assert generated["shape"].value == generated["direction"].value == 1
  assert real["motion_score"].value > 0
  assert real["h264_motion_score"].value > 0


def test_of_pictures_only_their_appearance_is_reported():
  pictures = report.evaluate_clips(clips_of(["green", "red"], num_frames=1), [TRUTH] * 2, fps=1)
  assert pictures.estimates["colour"].value == 0.5
  assert set(pictures.estimates) == {"appearance", "readable", *metrics.APPEARANCE}


def test_the_same_clips_and_seed_give_the_same_report():
  rng = np.random.default_rng(0)
  levels = rng.uniform(0, 9, (16, 1, 1, 1, 1))  # each clip has a flicker of its own
  clips = clips_of(["green"] * 16) // 2 + np.uint8(levels * rng.random((16, 4, 32, 32, 3)))
  first, again, other = (
    report.evaluate_clips(clips, [TRUTH] * 16, fps=4, seed=seed) for seed in (0, 0, 1)
  )
  assert first == again
  assert first.estimates["pixel_consistency"] != other.estimates["pixel_consistency"]
  assert first.estimates["colour"] == other.estimates["colour"]


def test_json_returns_every_number(reports):
  read = json.loads(report.to_json(reports))
  for name, made in reports.items():
    assert (read[name]["num_clips"], read[name]["num_frames"], read[name]["fps"]) == (4, 4, 4)
    for key, estimate in made.estimates.items():
      assert metrics.Estimate(**read[name]["estimates"][key]) == estimate


def test_json_has_null_for_what_could_not_be_judged():
  silent = {"colour": "green"}
  made = report.evaluate_clips(clips_of(["green"]), [silent], fps=4)
  read = json.loads(report.to_json({"generated": made}))["generated"]["estimates"]
  assert read["direction"] == {"value": None, "low": None, "high": None, "n": 0}
  assert "| motion direction | - |" in report.markdown({"generated": made})


def test_tables_show_every_estimate_of_every_report(reports):
  console = rich.console.Console(file=io.StringIO(), width=200)
  console.print(report.table(reports))
  texts = (console.file.getvalue(), report.markdown(reports))
  for text in texts:
    lines = text.splitlines()
    for key, (title, share) in report.TITLES.items():
      if key in clip_score.TITLES:
        continue
      (line,) = (line for line in lines if line.strip("│| ").startswith(f"{title} "))
      assert line.index("(4)") < line.rindex("(4)")  # two cells, each with its count
      for made in reports.values():
        low = made.estimates[key].low
        assert (f"[{100 * low:.1f}, " if share else f"[{low:.2f}, ") in line
    assert "4 x 4 x 32 x 32, 4 fps" in text


def test_markdown_is_a_table(reports):
  lines = report.markdown(reports).splitlines()
  assert len({line.count("|") for line in lines}) == 1
  assert lines[0].split("|")[2:4] == [" generated ", " real "]
  assert "| colour | 75.0 % [30.1, 95.4] (4) | 100.0 % [51.0, 100.0] (4) |" in lines


def test_distances_stand_with_both_counts_their_bias_and_what_must_be_known(reports):
  near = Distance(1.25, 1.0, 1.5, 8, 4, 64, 0.5, "8 samples of 64 features")
  far = Distance(math.inf, math.nan, math.nan, 8, 4, 64)
  found = {"FID-o": near, "kernel": far}
  both = dict(reports)
  both["generated"] = dataclasses.replace(reports["generated"], distances=found)
  text = report.markdown(both)
  assert "| FID-o | 1.25 [1, 1.5] (8 to 4, bias 0.5) | - |" in text
  assert "| kernel | ? [?, ?] (8 to 4) | - |" in text
  assert text.endswith("|\n\n- FID-o: 8 samples of 64 features\n")
  console = rich.console.Console(file=io.StringIO(), width=200)
  console.print(report.table(both))
  assert "FID-o: 8 samples of 64 features" in console.file.getvalue()
  read = json.loads(report.to_json(both))["generated"]["distances"]
  assert Distance(**read["FID-o"]) == near
  assert (read["kernel"]["value"], read["kernel"]["low"], read["kernel"]["n"]) == (None, None, 8)


def test_saved_reports_are_what_they_print(reports, tmp_path):
  assert report.save(tmp_path / "a.json", reports).read_text() == report.to_json(reports)
  assert report.save(tmp_path / "a.md", reports).read_text() == report.markdown(reports)
  with pytest.raises(InputError, match=r"'\.txt' is not known; use one of \.json, \.md"):
    report.save(tmp_path / "a.txt", reports)
  assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.md"}


def test_truths_must_match_the_clips():
  with pytest.raises(InputError, match="2 clips and 1 truths; give one truth for each"):
    report.evaluate_clips(clips_of(["red", "red"]), [TRUTH], fps=4)
  with pytest.raises(InputError, match="0 clips and 0 truths"):
    report.evaluate_clips(np.zeros((0, 2, 32, 32, 3), np.uint8), [], fps=4)
