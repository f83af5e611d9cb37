"""Textual inversions in a request: words of its own for its texts. Knows no tokenizer and no text engine's name.

Source: Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion" (2022);
files as diffusers and its trainings write them. A text's sum is that of its end token whatever words it has: where a
checkpoint's config has eos_token_id 2 (SDXL's second encoder as published), diffusers takes it at the highest id, which
is then the word's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from server.engines.port import Array

# What a file calls the vectors of a text encoder, by the end of that engine's name. Any other name is the token's own.
_PUBLISHED = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FIRST = "text_encoder"


@dataclass(frozen=True, eq=False)
class Inversion:
    """A word and what text encoders read in its place."""

    trigger: str
    vectors: Mapping[
        str, Array
    ]  # by the end of a text engine's name, "text_encoder" or "text_encoder_2": k width, float32


@dataclass(frozen=True)
class Found:
    """A trigger word in a text: its characters from `begin` up to, not including, `end`."""

    begin: int
    end: int
    trigger: str


def inversion(trigger: str, tensors: Mapping[str, Array]) -> Inversion:
    """Of a file's tensors, each k width, or width: `clip_l` and `clip_g`, or one of whatever name."""
    vectors = {
        _PUBLISHED.get(name, _FIRST): np.atleast_2d(tensor).astype(np.float32) for name, tensor in tensors.items()
    }
    return Inversion(trigger, vectors)


def find(text: str, triggers: Iterable[str]) -> tuple[Found, ...]:
    """Where trigger words stand in a text, in order: exactly as written, and not inside of a longer word. Where several
    begin it is the longest."""
    ordered = sorted(set(triggers) - {""}, key=lambda trigger: (-len(trigger), trigger))
    if not ordered:
        return ()
    pattern = re.compile("|".join(map(_word, ordered)))
    return tuple(Found(match.start(), match.end(), match[0]) for match in pattern.finditer(text))


def table(inversions: Sequence[Inversion], engine: str) -> tuple[Mapping[str, tuple[int, ...]], Array]:
    """The token ids of each trigger word that an engine has vectors for, and all of those (k width, float32): the id
    -1-i stands for vector i."""
    ids: dict[str, tuple[int, ...]] = {}
    rows: list[Array] = []
    for each in inversions:
        for ending, vectors in each.vectors.items():
            if engine.endswith(f"_{ending}"):
                ids[each.trigger] = tuple(-1 - len(rows) - place for place in range(len(vectors)))
                rows.extend(vectors)
    return ids, np.stack(rows) if rows else np.empty((0, 0), np.float32)


def _word(trigger: str) -> str:
    """Marks of its own, as those of "<cat>", end a word already."""
    before = r"(?<!\w)" if re.match(r"\w", trigger) else ""
    behind = r"(?!\w)" if re.search(r"\w\Z", trigger) else ""
    return f"{before}{re.escape(trigger)}{behind}"
