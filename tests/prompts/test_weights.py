"""Brackets become weights, and every text is one."""

import re
import time
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.prompts.weights import LEAST, MOST, Weighted, parse


def pieces(text: str) -> list[tuple[str, float]]:
    """Each span's characters with its weight."""
    weighted = parse(text)
    return [(weighted.text[span.begin : span.end], round(span.weight, 6)) for span in weighted.spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red house", [("a red house", 1.0)]),
        ("a (red) house", [("a ", 1.0), ("red", 1.1), (" house", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:2) house)", [("a ", 1.1), ("red", 2.2), (" house", 1.1)]),
        ("(red:1.5)", [("red", 1.5)]),
        ("(red: 0.8 )", [("red", 0.8)]),
        ("(red:.5)(blue:2.)", [("red", 0.5), ("blue", 2.0)]),
        ("(red:+2)", [("red", 2.0)]),
        ("(red:-1)", [("red", -1.0)]),
        ("(red:0)", [("red", 0.0)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a (b:0.5):1.5)", [("a ", 1.5), ("b", 0.75)]),
        ("(red:1)", [("red", 1.0)]),
        ("a (red:1) house", [("a red house", 1.0)]),
        ("(a)(b) (c)", [("ab", 1.1), (" ", 1.0), ("c", 1.1)]),
        ("red, (blue, green:1.2), 3:2", [("red, ", 1.0), ("blue, green", 1.2), (", 3:2", 1.0)]),
        ("a\n(red:1.5)\tsun", [("a\n", 1.0), ("red", 1.5), ("\tsun", 1.0)]),
    ],
)  # fmt: skip
def test_brackets_weigh_what_they_hold(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        ":)",
        "a (red house",
        "red) house",
        ")(",
        "3:2",
        "red:1.5",
        "[red]",
        "{a|b}",
        "[[red:0.5]]",
        "a\\b",
        "c:\\dir\\",
        "",
    ],
)
def test_what_is_no_pair_of_brackets_is_text(text: str) -> None:
    assert parse(text).text == text
    assert all(span.weight == 1.0 for span in parse(text).spans)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\\(red\\)", "(red)"),
        ("\\(red)", "(red)"),
        ("a \\\\(red)", "a \\red"),
        ("(red \\(sun\\):1.5)", "red (sun)"),
        ("(red :)", "red :"),
        ("(red:two)", "red:two"),
        ("(red:1e3)", "red:1e3"),
        ("(red:nan)", "red:nan"),
        ("(red:1.5.5)", "red:1.5.5"),
        ("(red:1,5)", "red:1,5"),
        ("((red)", "(red"),
        ("(red))", "red)"),
        ("a () b", "a  b"),
        ("(:1.5)", ""),
    ],
)
def test_escapes_and_colons_without_a_number_are_text(text: str, plain: str) -> None:
    assert parse(text).text == plain


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("(red:10)", 10.0),
        ("(red:1000)", MOST),
        ("(red:-1000)", LEAST),
        ("(red:" + "9" * 5000 + ")", MOST),
        ("(" * 5000 + "red" + ")" * 5000, MOST),
        ("((red:4):4)", MOST),
        ("((red:0):" + "9" * 400 + ")", 0.0),
        ("((red:" + "9" * 400 + "):0)", 0.0),
    ],
)
def test_weights_stay_in_their_range_and_what_lay_outside_is_told(text: str, weight: float) -> None:
    found = parse(text)
    assert [span.weight for span in found.spans] == [weight]
    assert found.bounded == (text != "(red:10)" and weight != 0.0)


@given(st.text(st.characters(exclude_characters="()\\")))
def test_a_text_without_brackets_and_backslashes_is_returned_unchanged(text: str) -> None:
    spans = parse(text).spans
    assert parse(text) == Weighted(text, spans, False)
    assert [(span.begin, span.end, span.weight) for span in spans] == ([(0, len(text), 1.0)] if text else [])


SYNTAX = st.lists(st.sampled_from([*"()\\: 0159.-+abé🚤", "(", ")", ":1.5)", ":99)", "\\(", "\\\\"]), max_size=60).map(
    "".join
)


@given(SYNTAX)
def test_the_ranges_part_the_text_and_their_weights_are_bounded(text: str) -> None:
    found = parse(text)
    assert "".join(found.text[span.begin : span.end] for span in found.spans) == found.text
    assert [span.end for span in found.spans[:-1]] == [span.begin for span in found.spans[1:]]
    assert all(span.begin < span.end and LEAST <= span.weight <= MOST for span in found.spans)


GROUPS = st.recursive(
    st.text(st.sampled_from("ab ,é🚤:"), min_size=1, max_size=5).filter(lambda text: not text.endswith(":")),
    lambda inner: st.builds(lambda parts, end: f"({''.join(parts)}{end})", st.lists(inner, min_size=1, max_size=3),
                            st.sampled_from(["", ":1.5", ": 0.8", ":2"])),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(GROUPS, max_size=4))
def test_of_balanced_brackets_no_syntax_is_left_in_the_text(parts: list[str]) -> None:
    written = "".join(parts)
    assert parse(written).text == re.sub(r":\s?[0-9.]+\)|[()]", "", written)


@given(st.text())
def test_an_escaped_text_is_itself(text: str) -> None:
    assert parse(re.sub(r"([()\\])", r"\\\1", text)).text == text


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + ")" * 5000, "(" * 10_000, ")" * 10_000, "(a:1.5)" * 1430, "\\(" * 5000, "(" + ":1" * 4999 + ")",
     "(:" + "1" * 9990 + "x)", "(" + ": " * 4999 + ")", "(a" * 3333 + ":1.1)" * 666],
)  # fmt: skip
def test_ten_thousand_brackets_take_milliseconds(text: str) -> None:
    assert min(timeit.repeat(lambda: parse(text), timer=time.thread_time, repeat=3, number=1)) < 0.05
