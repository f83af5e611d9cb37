"""Text to the chunks of token ids that a text engine takes. Knows nothing of engines or of what a weight does."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from server.prompts.weights import Weighted


@dataclass(frozen=True)
class Chunk:
    """As much text as a text encoder reads at once."""

    ids: tuple[int, ...]  # the text's, between what the encoder wants before and behind it; always as many
    weights: tuple[float, ...]  # one an id; 1 where it is no text's


@dataclass(frozen=True)
class Tokens:
    """A text as its text encoder reads it."""

    chunks: tuple[Chunk, ...]  # at least one, which is empty where the text is
    cut: str  # the end of the text that does not fit into them, empty where all of it does


@dataclass(frozen=True)
class Prompt:
    """A text of a plan: as many chunks as all its other texts have, filled up with empty ones."""

    chunks: tuple[Chunk, ...]
    empty: Chunk  # the empty text's, from which weights measure


class TextTokenizer:
    """A checkpoint's own tokenizer, as its exporter wrote it: the file says how many ids a chunk has, CLIP's 77, which
    of them begin and end it, and what fills it up."""

    def __init__(self, path: Path) -> None:
        """Raises `ValueError` naming the file when it cannot be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}; export the checkpoint again") from error
        padding = self._tokenizer.padding
        if padding is None or padding["length"] is None:
            raise ValueError(f"{path} does not say how many tokens its encoder reads; export the checkpoint again")
        self.length: int = padding["length"]  # ids of a chunk
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._begin, self._end = _frame(self._tokenizer)
        self._padding: int = padding["pad_id"]
        self.empty = self._chunk((), ())  # the chunk of the empty text

    def chunks(self, weighted: Weighted, most: int) -> Tokens:
        """A text in chunks, `most` of them at most. A chunk ends before a word that does not fit, unless the word fits
        into none or the chunk is the last one allowed: that is full to its last id, as diffusers cuts.

        Words are what the tokenizer splits a text into before it splits words. 10,000 emojis take some 20 ms: ask once
        a text.
        """
        encoding = self._tokenizer.encode(weighted.text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        room = self.length - len(self._begin) - len(self._end)
        bounds = tuple(_bounds(encoding.word_ids, room, most))
        weights = _weights(weighted, offsets[: bounds[-1]])
        kept = max(end for _, end in offsets[: bounds[-1]]) if bounds[-1] < len(ids) else len(weighted.text)
        return Tokens(
            tuple(
                self._chunk(ids[begin:end], weights[begin:end])
                for begin, end in zip((0, *bounds[:-1]), bounds, strict=True)
            ),
            weighted.text[kept:].strip(),
        )

    def _chunk(self, ids: Sequence[int], weights: Sequence[float]) -> Chunk:
        framed = (*self._begin, *ids, *self._end)
        fill = self.length - len(framed)
        return Chunk(
            framed + (self._padding,) * fill,
            (*(1.0 for _ in self._begin), *weights, *(1.0 for _ in self._end), *(1.0 for _ in range(fill))),
        )


def _frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that it puts before and behind every text."""
    framed = tokenizer.encode("a")
    texts = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
    return tuple(framed.ids[: texts[0]]), tuple(framed.ids[texts[-1] + 1 :])


def _bounds(words: Sequence[int | None], room: int, most: int) -> Iterator[int]:
    """Where each chunk ends, in tokens; the last may lie before the end of the text."""
    end = 0
    for number in range(1, most + 1):
        begin, end = end, min(end + room, len(words))
        if end < len(words) and number < most:
            whole = end
            while whole > begin and words[whole] == words[whole - 1]:
                whole -= 1
            end = whole if whole > begin else end
        yield end
        if end == len(words):
            return


def _weights(weighted: Weighted, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """Of each token: that of its first character. T5's tokens begin with the space before their word."""
    begins = [span.begin for span in weighted.spans]
    weights = []
    for begin, end in offsets:
        space = len(weighted.text[begin:end]) - len(weighted.text[begin:end].lstrip())
        first = begin + space if begin + space < end else begin
        weights.append(weighted.spans[bisect_right(begins, first) - 1].weight)
    return weights
