"""Transfer images: pictures of a subject that a trigger word in the prompt stands for. Knows no engine's name.

"a man luis" is read as "a man", the word's last token once for each picture; the states of those tokens, side by side
from both encoders, are fused with what the pictures' encoder says of them. The first steps are told of no picture and
read the text without the trigger word.

Source: Li et al., "PhotoMaker: Customizing Realistic Human Photos via Stacked ID Embedding" (2023), its first version.
Ours are several trigger words in one prompt. As in ComfyUI a weight acts on the text's states, before they are fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server.adapters.tokens import find
from server.engines.port import Array, Spec
from server.prompts.weights import parse
from server.tokenizer import Prompt

if TYPE_CHECKING:
    from server.families.base import Run

TEXT_ONLY = 0.2  # share of the evaluations that are told of no picture: PhotoMaker's style strength of 20 %


@dataclass(frozen=True, eq=False)
class Transfer:
    """A trigger word and its pictures."""

    trigger: str
    pixel_values: Array  # n 3 side side, float32, as CLIP was trained: its mean and deviation taken out


@dataclass(frozen=True)
class Marked:
    """A prompt that has a token for each picture."""

    prompt: Prompt
    places: Mapping[int, int]  # by picture, all triggers' counted on: where its token stands in the chunks side by side


def text_only(evaluations: int) -> int:
    """How many of a run's evaluations, its first ones, are told of no picture: those up to and with PhotoMaker's
    `start_merge_step`."""
    return int(TEXT_ONLY * evaluations) + 1


def wrong_triggers(texts: Mapping[str, str], triggers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(trigger, what is wrong with it) of those that do not stand once in each text, behind a word. `texts` are a
    request's prompts by field, as it gave them: brackets and all, and without a style's words, which are no nouns."""
    for field, given in texts.items():
        text = parse(given).text
        found = find(text, triggers)
        behind = 0
        for trigger in triggers:
            count = sum(each.trigger == trigger for each in found)
            if count != 1:
                yield trigger, f"{field} has it {count} times; write it once, behind what it is: a man {trigger}"
        for each in found:
            before = text[behind : each.begin].rstrip()
            if not before or not before[-1].isalnum():
                yield each.trigger, f"{field} has no word before it; write what it is there: a man {each.trigger}"
            behind = each.end


def shared(marked: Sequence[Marked]) -> Sequence[int]:
    """The pictures that stand in all texts: what was cut from one is in none."""
    return sorted(set.intersection(*(set(each.places) for each in marked)))


async def merged(
    states: Sequence[Array],
    marked: Sequence[Marked],
    transfers: Sequence[Transfer],
    encoder: Spec,
    fusion: Spec,
    run: Run,
) -> Array:
    """Text states side by side (tokens width, float32) with the pictures' in them.

    `states` (tokens width, float32) and `marked` are each encoder's, in the order in which they lie side by side. Where
    the encoders read different texts, a picture's two halves go each to its place in its own.
    """
    pictures = np.concatenate([transfer.pixel_values for transfer in transfers])  # n 3 side side
    result = [each.copy() for each in states]
    ordered = shared(marked)
    if ordered:
        identity = await _rows(encoder, {"pixel_values": pictures[ordered]}, run)
        places = [[each.places[picture] for picture in ordered] for each in marked]
        text = np.concatenate([each[at] for each, at in zip(states, places, strict=True)], axis=1)
        fused = await _rows(fusion, {"text": text, "identity": identity}, run)
        ends = np.cumsum([each.shape[1] for each in states])[:-1]
        for each, at, half in zip(result, places, np.split(fused, ends, axis=1), strict=True):
            each[at] = half
    return np.concatenate(result, axis=1)


async def _rows(spec: Spec, inputs: Mapping[str, Array], run: Run) -> Array:
    """An engine's only output for any number of rows."""
    (output,) = spec.outputs
    count = len(next(iter(inputs.values())))
    answers = [
        (await run(spec, {name: rows[begin : begin + spec.max_rows] for name, rows in inputs.items()}))[output.name]
        for begin in range(0, count, spec.max_rows)
    ]
    return np.concatenate(answers)
