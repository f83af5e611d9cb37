"""What this deployment can draw with: the cards of a model repository, each joined to its family's code."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engines.port import Spec
from server.families import families
from server.families.base import Family
from server.families.card import Card, read_card
from server.levels import Schedule, noise_schedule
from server.safety import NO_SAFETY, Safety, with_checker
from server.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Engine:
    """One checkpoint and everything needed to plan and run a request on it."""

    card: Card
    family: Family[Any]  # of the card's own type
    specs: tuple[Spec, ...]  # the family's, then the safety stage's
    templates: tuple[Spec, ...]  # graphs that are run as variants alone
    refuses: frozenset[str]  # request fields that ask for what it does not have
    schedule: Schedule
    tokenizers: Mapping[str, TextTokenizer]  # by text engine
    safety: Safety


Catalog = Mapping[str, Engine]  # by the name a request gives


def read_catalog(repository: Path, checked: Collection[str] = ()) -> Catalog:
    """Every `<name>.json` of a model repository; the engines named in `checked` get a safety stage.

    Raises `ValueError` with what is wrong and what to do.
    """
    paths = sorted(repository.glob("*.json"))
    if not paths:
        raise ValueError(f"{repository} holds no engine card (*.json): render it with `python -m export`")
    known = families()
    cards = [read_card(path, {name: family.card for name, family in known.items()}) for path in paths]
    _expect_checkers(checked, cards, repository)
    return {card.name: _engine(card, known[card.family], repository, card.name in checked) for card in cards}


def _expect_checkers(checked: Collection[str], cards: Sequence[Card], repository: Path) -> None:
    unknown = sorted(set(checked) - {card.name for card in cards})
    if unknown:
        names = ", ".join(card.name for card in cards)
        raise ValueError(f"MEDIAGEN_SAFETY names {', '.join(unknown)}; this repository has {names}")
    without = [card.name for card in cards if card.name in checked and not card.safety_checker]
    if without:
        raise ValueError(
            f"MEDIAGEN_SAFETY names {', '.join(without)}, and {repository} holds no safety checker for it: render one "
            "by `python -m export ... --safety-checker`, or leave the name out"
        )


def _engine(card: Card, family: Family[Any], repository: Path, checked: bool) -> Engine:
    safety = with_checker(card) if checked else NO_SAFETY
    names = dict.fromkeys(text.engine for text in family.texts(card))
    return Engine(
        card=card,
        family=family,
        specs=(*family.engines(card), *safety.specs),
        templates=family.templates(card),
        refuses=family.refuses(card),
        schedule=noise_schedule(card.scheduler),
        tokenizers={name: TextTokenizer(repository / name / "tokenizer.json") for name in names},
        safety=safety,
    )
