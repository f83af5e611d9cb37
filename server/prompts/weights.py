"""A prompt's brackets become weights by character range. Knows nothing of tokens: `tokenizer.py` reads the ranges.

`(x)` is 1.1 times as strong, `(x:1.5)` and `(x: 0.8)` say how much, nesting multiplies. `\\(`, `\\)` and `\\\\` are the
characters themselves, any other backslash is one too. A bracket without its partner is text, and so is a colon without
a number behind it. Square and curly brackets mean nothing here. No text is an error.
"""

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EMPHASIS = 1.1  # of brackets that name no weight
LEAST, MOST = -10.0, 10.0  # weights; what lies beyond is taken as the nearest of them, products as well

_MARK = re.compile(r"\\[()\\]|[()]")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*")


@dataclass(frozen=True)
class Span:
    """Characters of one weight: from `begin` up to, not including, `end`."""

    begin: int
    end: int
    weight: float  # LEAST..MOST, 1 is plain


@dataclass(frozen=True)
class Weighted:
    """A text without its syntax, and what that said."""

    text: str
    spans: tuple[Span, ...]  # side by side, from the text's begin to its end; none of them empty
    bounded: bool  # whether a weight lay outside LEAST..MOST


def parse(text: str) -> Weighted:
    """In time proportional to the text's length, whatever it holds."""
    marks = tuple(_MARK.finditer(text))
    groups = _groups(text, marks)
    plain: list[str] = []
    begins: dict[int, float] = {}  # where in the plain text a weight begins
    length, last, bounded = 0, math.nan, False
    for piece, inside in _pieces(text, marks, groups):
        if not piece:
            continue
        weight = _clamped(inside)
        bounded |= weight != inside
        if weight != last:
            begins[length] = last = weight
        plain.append(piece)
        length += len(piece)
    ends = (*tuple(begins)[1:], length)
    spans = tuple(Span(begin, end, weight) for (begin, weight), end in zip(begins.items(), ends, strict=False))
    return Weighted("".join(plain), spans, bounded)


@dataclass(frozen=True)
class _Group:
    """A bracket with its partner. Positions in the text as given."""

    weight: float  # as written
    end: int  # of the words: where the closing bracket stands, or the colon before its number


def _groups(text: str, marks: Sequence[re.Match[str]]) -> dict[int, _Group]:
    """By the positions of both brackets."""
    groups: dict[int, _Group] = {}
    opened: list[int] = []
    behind = 0  # the mark before
    for mark in marks:
        here = mark.start()
        if mark[0] == "(":
            opened.append(here)
        elif mark[0] == ")" and opened:
            words, colon, number = text[behind:here].rpartition(":")
            weighted = bool(colon) and _NUMBER.fullmatch(number) is not None
            group = _Group(_finite(number), behind + len(words)) if weighted else _Group(EMPHASIS, here)
            groups[opened.pop()] = groups[here] = group
        behind = mark.end()
    return groups


def _pieces(text: str, marks: Sequence[re.Match[str]], groups: dict[int, _Group]) -> Iterator[tuple[str, float]]:
    """The text in order, piece by piece, each with its weight, which may lie outside of the bounds."""
    weights = [1.0]
    behind = 0
    for mark in marks:
        here, group = mark.start(), groups.get(mark.start())
        if group is None:  # text, escaped or without a partner
            yield text[behind:here] + mark[0][-1], weights[-1]
        elif mark[0] == "(":
            yield text[behind:here], weights[-1]
            weights.append(_clamped(weights[-1]) * group.weight)
        else:
            yield text[behind : group.end], weights.pop()
        behind = mark.end()
    yield text[behind:], weights[-1]


def _clamped(weight: float) -> float:
    return min(max(weight, LEAST), MOST)


def _finite(number: str) -> float:
    """Any count of digits is a number, and 0 times it is 0."""
    return min(max(float(number), -sys.float_info.max), sys.float_info.max)
