"""Words that a deployment does not draw: a list in a file, looked for in what a request wants to see.

Knows nothing of requests: it is given texts. A text and the list are folded alike (compatible forms, case, invisible
characters). Whole words count, and any white space or punctuation may stand between the words of a phrase.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

# Written without spaces between words: each letter counts as a word, so that a word is found within a sentence.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_UNSEEN = (  # Unicode's Default_Ignorable_Code_Point, as far as they are of other categories than Cf
    range(0x034F, 0x0350),
    range(0x115F, 0x1161),
    range(0x17B4, 0x17B6),
    range(0x180B, 0x1810),
    range(0x3164, 0x3165),
    range(0xFE00, 0xFE10),
    range(0xFFA0, 0xFFA1),
    range(0xE0100, 0xE01F0),
)
_LONGEST = 8  # characters that one may stand for; U+FDFA alone stands for more, 18, and is left as it is
_KEPT = 50_000  # characters whose fold is remembered
_LONG_RUN = re.compile(r"(\w?[^\w\s]{30})")  # UAX 15: no letter of a real text has more marks

REFUSAL = "this service does not draw what it asks for; word it differently"


class PromptBlocked(Exception):
    """The prompt filter refuses texts of the request. Says which fields; what the list holds is the deployment's."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__("; ".join(f"{field}: {REFUSAL}" for field in fields))
        self.fields = tuple(fields)


class PromptFilter(Protocol):
    """Whether a text (without weighting syntax, at most 10,000 characters) is refused. The word list is one; a
    deployment with a filter of its own gives any function of this type to `ImageService` in `server/app.py`."""

    async def __call__(self, text: str) -> bool: ...


async def nothing_blocked(text: str) -> bool:
    """The filter of a service without one."""
    return False


class WordList:
    """A prompt filter of words and phrases."""

    def __init__(self, lines: str) -> None:
        """One word or phrase a line; empty lines and what follows # are comments."""
        phrases = (words(line.partition("#")[0]) for line in lines.splitlines())
        self._whole: set[str] = set()  # words joined by spaces
        self._begun: set[str] = set()  # what phrases of several words begin with
        self._first: set[str] = set()  # words that a phrase begins with
        for phrase in phrases:
            self._whole |= {" ".join(phrase)} if phrase else set()
            self._first |= set(phrase[:1])
            self._begun |= {" ".join(phrase[:length]) for length in range(1, len(phrase))}

    async def __call__(self, text: str) -> bool:
        """Does the text hold a word or a phrase of the list?"""
        return self.holds(text)

    def holds(self, text: str) -> bool:
        """Work is linear in the text: from each word on only as far as a phrase of the list goes."""
        said = words(text)
        for first, word in enumerate(said):
            if word not in self._first:
                continue
            begun, following = word, first + 1
            while begun not in self._whole and begun in self._begun and following < len(said):
                begun, following = f"{begun} {said[following]}", following + 1
            if begun in self._whole:
                return True
        return False


def words(text: str) -> list[str]:
    """Folded. Letters, digits and marks make words, whatever else stands there ends them."""
    if text.isascii():
        return "".join(c if c.isalnum() else " " for c in text.lower()).split()
    # Sorting the marks of a letter takes the square of their number, hence the pieces.
    pieces = _LONG_RUN.split(text.translate(_FOLDS))
    return "".join([unicodedata.normalize("NFC", piece) for piece in pieces]).translate(_PARTS).split()


class _Remembered(dict[int, str]):
    """What characters become, by code point: the table of `str.translate`."""

    def __init__(self, becomes: Callable[[str], str]) -> None:
        super().__init__()
        self._becomes = becomes

    def __missing__(self, code: int) -> str:
        if len(self) >= _KEPT:
            self.clear()
        self[code] = becomes = self._becomes(chr(code))
        return becomes


def _fold(character: str) -> str:
    if unicodedata.category(character) == "Cf" or any(ord(character) in unseen for unseen in _UNSEEN):
        return ""  # zero-width characters and soft hyphens part no word
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
    return folded if len(folded) <= _LONGEST else character


def _part(character: str) -> str:
    if unicodedata.category(character)[0] not in "LNM":
        return " "
    if character > "\u0e00" and unicodedata.name(character, "").startswith(_UNSPACED):
        return f" {character} "
    return character


_FOLDS, _PARTS = _Remembered(_fold), _Remembered(_part)


def read_word_list(path: Path) -> WordList:
    """Raises `ValueError` for a file that cannot be read or is not UTF-8."""
    try:
        return WordList(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"MEDIAGEN_PROMPT_FILTER: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"MEDIAGEN_PROMPT_FILTER: {path} is not UTF-8 text: {error}") from error
