"""Glob patterns match parameters and the modules that hold them; what matches nothing is a typing error."""

from __future__ import annotations

import pytest

import fx_oto
from fx_oto.core.patterns import check_matched, matches, patterns_in

NAMES = ["stem.conv.weight", "stem.conv.bias", "head.weight", "scale"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["stem"], [True, True, False, False]),
        (["stem.*"], [True, True, False, False]),
        (["*.weight"], [True, False, True, False]),
        (["head", "scale"], [False, False, True, True]),
        (["Stem", "ste"], [False] * 4),
        ([], [True] * 4),
    ],
)
def test_a_pattern_matches_a_parameter_or_a_module_that_holds_it(patterns, found):
    assert [matches(name, patterns) for name in NAMES] == found


def test_a_string_is_one_pattern():
    assert patterns_in("stem") == ("stem",)
    assert patterns_in(iter(["a", "b"])) == ("a", "b")


def test_each_pattern_must_match():
    check_matched(["stem", "*.weight"], NAMES, "parameter")
    with pytest.raises(
        fx_oto.SettingsError,
        match=r"^the pattern 'tail' in unprunable matches no parameter; names look like 'stem.conv.weight', 'stem.conv",
    ):
        check_matched(["stem", "tail"], NAMES, "parameter", "unprunable")
    with pytest.raises(fx_oto.SettingsError, match=r"^the pattern 'tail' matches no node; names look like nothing"):
        check_matched(["tail"], [], "node")


def test_one_axis_of_a_parameter():
    assert matches("embed.weight", ["embed.weight[0]"], 0)
    assert matches("layers.3.weight", ["layers.*.weight[1]"], 1)
    assert not matches("embed.weight", ["embed.weight[0]"], 1)
    assert not matches("embed.weight0", ["embed.weight[0]"], 0)
    assert matches("blocks.1.weight", ["blocks.[12]"], 0)  # letters to choose from, as in any glob
    check_matched(["embed.weight[0]"], ["embed.weight"], "parameter")
