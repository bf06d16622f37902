"""Partition and merge."""

import pytest

from emu_jax.trees import first_match, merge, partition

TREE = {"a": {"temporal_x": {"kernel": 1}, "y": 2}, "concat_in": {"kernel": 3}}
RULES = (("concat_in/*", "new"), ("*temporal_*", "new"), ("*", "old"))


def test_each_leaf_goes_where_its_first_rule_says():
  parts = partition(TREE, RULES)
  assert parts["old"] == {"a": {"y": 2}}
  assert parts["new"] == {"a": {"temporal_x": {"kernel": 1}}, "concat_in": {"kernel": 3}}


def test_the_first_rule_that_matches_decides():
  rules = (("a/*", 0.0), ("*", 1.0))
  assert [first_match(rules, path) for path in ("a/y", "b/a/y")] == [0.0, 1.0]
  with pytest.raises(ValueError, match=r"no rule covers b/y; add one to \['a/\*'\]"):
    first_match(rules[:1], "b/y")


def test_merging_the_parts_gives_the_whole():
  assert merge(*partition(TREE, RULES).values()) == TREE


def test_a_leaf_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="no rule covers a/y"):
    partition(TREE, RULES[:2])


def test_two_trees_with_one_path_are_an_error():
  with pytest.raises(ValueError, match="a/y"):
    merge(TREE, {"a": {"y": 5}})
