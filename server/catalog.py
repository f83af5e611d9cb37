"""What this deployment can draw with: the cards of a model repository, each joined to its family's code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engines.port import Spec
from server.families import families
from server.families.base import Family
from server.families.card import Card, read_card
from server.levels import Schedule, noise_schedule
from server.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Engine:
    """One checkpoint and everything needed to plan and run a request on it."""

    card: Card
    family: Family[Any]  # of the card's own type
    specs: tuple[Spec, ...]
    refuses: frozenset[str]  # request fields that ask for what it does not have
    schedule: Schedule
    tokenizers: Mapping[str, TextTokenizer]  # by text engine


Catalog = Mapping[str, Engine]  # by the name a request gives


def read_catalog(repository: Path) -> Catalog:
    """Every `<name>.json` of a model repository. Raises `ValueError` with what is wrong and what to do."""
    paths = sorted(repository.glob("*.json"))
    if not paths:
        raise ValueError(f"{repository} holds no engine card (*.json): render it with `python -m export`")
    known = families()
    cards = [read_card(path, {name: family.card for name, family in known.items()}) for path in paths]
    return {card.name: _engine(card, known[card.family], repository) for card in cards}


def _engine(card: Card, family: Family[Any], repository: Path) -> Engine:
    names = dict.fromkeys(text.engine for text in family.texts(card))
    return Engine(
        card=card,
        family=family,
        specs=family.engines(card),
        refuses=family.refuses(card),
        schedule=noise_schedule(card.scheduler),
        tokenizers={name: TextTokenizer(repository / name / "tokenizer.json") for name in names},
    )
