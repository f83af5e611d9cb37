"""The texts of a request on their way into a plan: in a style, in chunks of tokens, with what was left out told.

Knows no request, no network and no style by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from server.adapters.tokens import Found, Inversion, find, table
from server.adapters.transfer import Marked, Transfer
from server.engines.port import Array
from server.families.base import Text
from server.prompts.styles import Style
from server.prompts.weights import LEAST, MOST, Weighted, parse
from server.tokenizer import Prompt, Repeated, Replaced, TextTokenizer, Tokens


@dataclass(frozen=True)
class Wording:
    """The four texts, brackets and all. A second one is a copy of the first where the request has none."""

    prompt: str
    prompt_2: str
    negative_prompt: str
    negative_prompt_2: str

    def styled(self, style: Style) -> "Wording":
        """All of them with a style's words."""
        return Wording(
            prompt=style.applied(self.prompt),
            prompt_2=style.applied(self.prompt_2),
            negative_prompt=style.negated(self.negative_prompt),
            negative_prompt_2=style.negated(self.negative_prompt_2),
        )

    def positive(self) -> "Wording":
        """As it is read where no guidance uses the negative texts: without them."""
        return replace(self, negative_prompt="", negative_prompt_2="")


@dataclass(frozen=True)
class Reading:
    """A wording as the text engines read it."""

    prompts: Mapping[Text, Prompt]  # without the trigger words of transfer images
    negative_prompts: Mapping[Text, Prompt]  # as many chunks each as in `prompts`
    marked: Mapping[Text, Marked]  # the prompts with a token for each transfer image; empty without those
    vectors: Mapping[
        str, Array
    ]  # by text engine: k width, float32, what ids below 0 stand for; empty without inversions
    notices: tuple[str, ...]  # what was left out or bounded, in sentences


def read_texts(
    wording: Wording,
    texts: Sequence[Text],
    tokenizers: Mapping[str, TextTokenizer],
    inversions: Sequence[Inversion],
    transfers: Sequence[Transfer],
) -> Reading:
    """10,000 emojis take some 20 ms a tokenizer; `tokenizers` are by text engine. No two triggers are equal."""
    names = {field: _told(wording, field) for field in _FIRST}
    weighted = {name: parse(getattr(wording, name)) for name in dict.fromkeys(names.values())}
    tables = {text.engine: table(inversions, text.engine) for text in texts}
    triggers = [*(each.trigger for each in inversions), *(each.trigger for each in transfers)]
    found = {name: find(text.text, triggers) for name, text in weighted.items()}
    once = {transfer.trigger: 1 for transfer in transfers}
    times = {transfer.trigger: len(transfer.pixel_values) for transfer in transfers}

    def tokens(text: Text, name: str, repeated: Mapping[str, int]) -> Tokens:
        marks = _marks(found[name], tables[text.engine][0], repeated)
        return tokenizers[text.engine].chunks(weighted[name], text.most_chunks, tuple(marks))

    plain: dict[tuple[str, str], Tokens] = {}  # by engine and field
    for text in texts:
        for field, repeated in ((text.field, once), (f"negative_{text.field}", {})):
            if (text.engine, names[field]) not in plain:
                plain[text.engine, names[field]] = tokens(text, names[field], repeated)
    marked = {text: tokens(text, names[text.field], times) for text in texts if transfers}
    length = max(len(each.chunks) for each in (*plain.values(), *marked.values()))

    def prompt(engine: str, each: Tokens) -> Prompt:
        empty = tokenizers[engine].empty
        return Prompt(each.chunks + (empty,) * (length - len(each.chunks)), empty)

    return Reading(
        prompts={text: prompt(text.engine, plain[text.engine, names[text.field]]) for text in texts},
        negative_prompts={
            text: prompt(text.engine, plain[text.engine, names[f"negative_{text.field}"]]) for text in texts
        },
        marked={
            text: Marked(prompt(text.engine, each), _places(each, found[names[text.field]], times))
            for text, each in marked.items()
        },
        vectors={engine: vectors for engine, (_, vectors) in tables.items() if len(vectors) > 0},
        notices=(
            *_cuts(plain | {(text.engine, names[text.field]): each for text, each in marked.items()}),
            *_bounds(weighted),
            *_unread(inversions, found),
        ),
    )


def _marks(
    found: Sequence[Found], ids: Mapping[str, tuple[int, ...]], times: Mapping[str, int]
) -> Iterator[Replaced | Repeated]:
    """What trigger words are read as; those of neither kind are words."""
    for each in found:
        if each.trigger in ids:
            yield Replaced(each.begin, each.end, ids[each.trigger])
        elif each.trigger in times:
            yield Repeated(each.begin, each.end, times[each.trigger])


def _places(tokens: Tokens, found: Sequence[Found], times: Mapping[str, int]) -> dict[int, int]:
    """Of each picture that is not cut; a trigger word's first one is numbered by the pictures of those before it in the
    request."""
    firsts = dict(zip(times, accumulate(times.values(), initial=0), strict=False))
    triggers = [each.trigger for each in found if each.trigger in times]
    return {
        firsts[trigger] + number: place
        for trigger, places in zip(triggers, tokens.repeats, strict=True)
        for number, place in enumerate(places)
    }


def _unread(inversions: Sequence[Inversion], found: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    standing = {each.trigger for several in found.values() for each in several}
    for each in inversions:
        if each.trigger not in standing:
            yield f"textual_inversions: no text has the word {each.trigger!r}, which therefore did nothing"


_FIRST = {  # the text that another one is a copy of
    "prompt": "prompt",
    "prompt_2": "prompt",
    "negative_prompt": "negative_prompt",
    "negative_prompt_2": "negative_prompt",
}


def _told(wording: Wording, field: str) -> str:
    """The field that stands for an equal one: a text is read once, and what it loses is told once."""
    return _FIRST[field] if getattr(wording, field) == getattr(wording, _FIRST[field]) else field


def _cuts(tokens: Mapping[tuple[str, str], Tokens]) -> Iterator[str]:
    readers: dict[tuple[str, str, str], list[str]] = {}
    for (engine, field), found in tokens.items():
        if found.cut:
            size = f"{len(found.chunks[0].ids)} tokens"
            size = size if len(found.chunks) == 1 else f"{len(found.chunks)} x {size}"
            readers.setdefault((field, found.cut, size), []).append(engine)
    for (field, cut, size), engines in readers.items():
        yield f"{field} is longer than {' and '.join(engines)} can read ({size}); not used was: {cut!r}"


def _bounds(weighted: Mapping[str, Weighted]) -> Iterator[str]:
    for field, text in weighted.items():
        if text.bounded:
            yield f"{field} has weights outside {LEAST:g}..{MOST:g}; the nearest of these was used"
