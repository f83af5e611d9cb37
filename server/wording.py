"""The texts of a request on their way into a plan: in a style, in chunks of tokens, with what was left out told.

Knows no request, no network and no style by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from server.families.base import Text
from server.prompts.styles import Style
from server.prompts.weights import LEAST, MOST, Weighted, parse
from server.tokenizer import Prompt, TextTokenizer, Tokens


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

    prompts: Mapping[Text, Prompt]
    negative_prompts: Mapping[Text, Prompt]  # as many chunks each as in `prompts`
    notices: tuple[str, ...]  # what was left out or bounded, in sentences


def read_texts(wording: Wording, texts: Sequence[Text], tokenizers: Mapping[str, TextTokenizer]) -> Reading:
    """10,000 emojis take some 20 ms a tokenizer; `tokenizers` are by text engine."""
    names = {field: _told(wording, field) for field in _FIRST}
    weighted = {name: parse(getattr(wording, name)) for name in dict.fromkeys(names.values())}
    tokens: dict[tuple[str, str], Tokens] = {}  # by engine and field
    for text in texts:
        for field in (text.field, f"negative_{text.field}"):
            if (text.engine, names[field]) not in tokens:
                found = tokenizers[text.engine].chunks(weighted[names[field]], text.most_chunks)
                tokens[text.engine, names[field]] = found
    length = max(len(found.chunks) for found in tokens.values())

    def prompt(engine: str, field: str) -> Prompt:
        chunks, empty = tokens[engine, names[field]].chunks, tokenizers[engine].empty
        return Prompt(chunks + (empty,) * (length - len(chunks)), empty)

    return Reading(
        prompts={text: prompt(text.engine, text.field) for text in texts},
        negative_prompts={text: prompt(text.engine, f"negative_{text.field}") for text in texts},
        notices=(*_cuts(tokens), *_bounds(weighted)),
    )


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
