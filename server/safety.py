"""The safety stage: a classifier looks at every finished picture and decides whether it leaves the service.

The classifier is the safety checker of diffusers: CLIP's vision tower, whose summary of a picture is compared with the
embeddings of concepts. This file knows its engine, what it is shown and what its answer means; nothing of requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import exp, isfinite

from server.clip import normalised
from server.engines.port import Array, EngineFault, Port, Spec
from server.families.base import Run
from server.families.card import Card

SIDE = 224  # pixels, of what CLIP is shown
# diffusers rounds a margin to thousandths before it asks whether it is above 0.
LEAST_MARGIN = 0.0005
# Of a cosine: one concept's margin spreads over a few hundredths; the checker's own step of caution is 0.01.
_SOFTNESS = 0.02


@dataclass(frozen=True)
class NotChecked:
    """Nobody has looked."""


@dataclass(frozen=True)
class Passed:
    """The picture may leave the service."""

    score: float  # 0 (harmless) to 0.5


@dataclass(frozen=True)
class Removed:
    """The picture must not leave the service."""

    score: float  # above 0.5, to 1


Verdict = NotChecked | Passed | Removed
Judge = Callable[[Array, Card, Run], Awaitable[Verdict]]  # of pixels: height width 3, uint8


def safety_checker(card: Card) -> Spec:
    """The engine of a card that has one."""
    return Spec(
        name=f"{card.name}_safety_checker",
        inputs=(Port("pixels", "float32", ("rows", 3, SIDE, SIDE)),),  # RGB, normalised as CLIP's
        outputs=(Port("margin", "float32", ("rows",)),),  # highest of (cosine similarity - threshold) over the concepts
        max_rows=1,  # pictures of a request finish one after the other
    )


@dataclass(frozen=True)
class Safety:
    """What a deployment has decided for an engine."""

    judge: Judge
    specs: tuple[Spec, ...]  # the networks that the judge runs, each once a picture


async def _not_checked(pixels: Array, card: Card, run: Run) -> Verdict:
    """Of an engine without a safety stage."""
    return NotChecked()


async def _by_checker(pixels: Array, card: Card, run: Run) -> Verdict:
    """Of an engine with one. Raises `EngineFault` where the answer is no number: nothing passes so."""
    shown = await asyncio.to_thread(normalised, pixels, SIDE)
    spec = safety_checker(card)
    margin = float((await run(spec, {"pixels": shown[None]}))["margin"][0])
    if not isfinite(margin):
        raise EngineFault(f"{spec.name} gave {margin} for a picture, which therefore cannot be let through")
    return verdict(margin)


NO_SAFETY = Safety(_not_checked, ())


def with_checker(card: Card) -> Safety:
    """Every picture is looked at."""
    return Safety(_by_checker, (safety_checker(card),))


def verdict(margin: float) -> Passed | Removed:
    """Above `LEAST_MARGIN` a picture is removed. The score is a logistic function of the distance to it."""
    distance = margin - LEAST_MARGIN
    score = 1 / (1 + exp(-distance / _SOFTNESS))
    return Removed(score) if distance > 0 else Passed(score)
