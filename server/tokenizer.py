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
class Replaced:
    """Characters of a text, from `begin` up to, not including, `end`, that read as these ids."""

    begin: int
    end: int
    ids: tuple[int, ...]  # at least one


@dataclass(frozen=True)
class Repeated:
    """Characters of a text, from `begin` up to, not including, `end`, that are left out: the token before them stands
    `times` times instead, with their weight where they have one, else with its own."""

    begin: int
    end: int
    times: int  # at least 1


@dataclass(frozen=True)
class Tokens:
    """A text as its text encoder reads it."""

    chunks: tuple[Chunk, ...]  # at least one, which is empty where the text is
    cut: str  # the end of the text that does not fit into them, empty where all of it does
    repeats: tuple[tuple[int, ...], ...]  # of each `Repeated`: where its tokens stand in the chunks side by side


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

    def chunks(self, weighted: Weighted, most: int, marks: Sequence[Replaced | Repeated] = ()) -> Tokens:
        """A text in chunks, `most` of them at most. A chunk ends before a word that does not fit, unless the word fits
        into none or the chunk is the last one allowed: that is full to its last id, as diffusers cuts.

        Words are what the tokenizer splits a text into before it splits words. `marks`, side by side, cut the text into
        pieces that are read each for itself; what one puts in counts as one word. 10,000 emojis take some 20 ms: ask
        once a text.
        """
        read = self._read(weighted, marks)
        room = self.length - len(self._begin) - len(self._end)
        bounds = tuple(_bounds(read.words, room, most))
        last = bounds[-1]
        weights = _weights(weighted, read.offsets[:last])
        kept = max(end for _, end in read.offsets[:last]) if last < len(read.ids) else len(weighted.text)
        places = tuple(_places(bounds, self.length, len(self._begin)))
        return Tokens(
            tuple(
                self._chunk(read.ids[begin:end], weights[begin:end])
                for begin, end in zip((0, *bounds[:-1]), bounds, strict=True)
            ),
            weighted.text[kept:].strip(),
            tuple(places[begin : min(end, last)] for begin, end in read.repeats),
        )

    def _read(self, weighted: Weighted, marks: Sequence[Replaced | Repeated]) -> "_Read":
        read, done, text = _Read([], [], [], []), 0, weighted.text
        for mark in marks:
            self._append(read, text, done, mark.begin)
            match mark:
                case Replaced(begin, end, ids):
                    read.append(ids, _spread(begin, end, len(ids)), [0] * len(ids))
                case Repeated(begin, end, times):
                    weighs = _weights(weighted, [(begin, end)]) != [1.0]
                    read.repeat((begin, begin) if weighs or not read.offsets else read.offsets[-1], end, times)
            done = mark.end
        self._append(read, text, done, len(text))
        return read

    def _append(self, read: "_Read", text: str, begin: int, end: int) -> None:
        encoding = self._tokenizer.encode(text[begin:end], add_special_tokens=False)
        offsets = [(begin + first, begin + behind) for first, behind in encoding.offsets]
        read.append(encoding.ids, offsets, encoding.word_ids)

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


@dataclass(frozen=True)
class _Read:
    """A text's tokens as they are found."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # characters that each stands for
    words: list[int]  # that each is of, numbered
    repeats: list[tuple[int, int]]  # tokens from, up to

    def append(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], words: Sequence[int | None]) -> None:
        """A piece's; its words are numbered for themselves."""
        first = self.words[-1] + 1 if self.words else 0
        self.ids.extend(ids)
        self.offsets.extend(offsets)
        self.words.extend(first + (word or 0) for word in words)

    def repeat(self, offset: tuple[int, int], end: int, times: int) -> None:
        """The last token, so often, each with these characters, whose first one's weight it has; the last one's go up
        to `end`, so that a mark that is cut is told as cut. Nothing where there is no token."""
        if self.ids:
            last = len(self.ids) - 1
            self.ids[last:] = self.ids[last:] * times
            self.words[last:] = self.words[last:] * times
            self.offsets[last:] = [*(offset for _ in range(times - 1)), (offset[0], end)]
            self.repeats.append((last, len(self.ids)))
        else:
            self.repeats.append((0, 0))


def _spread(begin: int, end: int, times: int) -> list[tuple[int, int]]:
    """The characters of so many tokens for one mark: see `_Read.repeat`."""
    return [*((begin, begin) for _ in range(times - 1)), (begin, end)]


def _places(bounds: Sequence[int], length: int, framed: int) -> Iterator[int]:
    """Where each token stands in the chunks side by side, each of which begins with so many ids of its frame."""
    for number, (begin, end) in enumerate(zip((0, *bounds[:-1]), bounds, strict=True)):
        yield from range(number * length + framed, number * length + framed + end - begin)


def _bounds(words: Sequence[int], room: int, most: int) -> Iterator[int]:
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
