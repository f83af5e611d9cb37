"""What this deployment can draw with: the cards of a model repository, each joined to its family's code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.engines.port import Spec
from server.families import families
from server.families.base import Family
from server.families.card import Card
from server.levels import NoiseSchedule, noise_schedule
from server.tokenizer import ClipTokenizer


@dataclass(frozen=True)
class Engine:
    """One checkpoint and everything needed to plan and run a request on it."""

    card: Card
    family: Family
    specs: tuple[Spec, ...]
    schedule: NoiseSchedule
    tokenizer: ClipTokenizer


Catalog = Mapping[str, Engine]  # by the name a request gives


def read_catalog(repository: Path) -> Catalog:
    """Every `<name>.json` of a model repository. Raises `ValueError` with what is wrong and what to do."""
    paths = sorted(repository.glob("*.json"))
    if not paths:
        raise ValueError(f"{repository} holds no engine card (*.json): render it with `python -m export`")
    cards = [Card.read(path) for path in paths]
    return {card.name: _engine(card, repository) for card in cards}


def _engine(card: Card, repository: Path) -> Engine:
    known = families()
    if card.family not in known:
        raise ValueError(
            f"{card.name}.json names the family {card.family!r}; this version has {', '.join(sorted(known))}"
        )
    family = known[card.family]
    specs = family.engines(card)
    return Engine(
        card=card,
        family=family,
        specs=specs,
        schedule=noise_schedule(card.scheduler),
        tokenizer=ClipTokenizer(repository / specs[0].name / "tokenizer.json"),
    )
